# SPDX-License-Identifier: Apache-2.0
"""``--resolve``: names of addresses, looked up in the background.

A row shows the address until its name is there; no round waits for one.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

__all__ = ["Names"]

_THREADS = 4
#: Addresses that are remembered, and that may wait; others stay addresses.
_MOST, _WAITING = 20_000, 1000


class Names:
    """Looks names up as the system does (``/etc/nsswitch.conf``: files, DNS …).

    The threads stay in the network namespace of the thread that makes this object, where DNS
    servers can be reached; they never keep the program from ending.

    :param find: (address as text) -> its name; raises OSError where it has none.
    """

    def __init__(self, find: Callable[[str], str] | None = None) -> None:
        from queue import SimpleQueue
        from threading import Thread

        self._find = find or _by_system
        self._names: dict[str, str | None] = {}
        self._queue: SimpleQueue[str] = SimpleQueue()
        for number in range(_THREADS):
            Thread(target=self._work, name=f"names-{number}", daemon=True).start()

    def _work(self) -> None:
        while True:
            address = self._queue.get()
            try:
                name = self._find(address)
            except (OSError, UnicodeError):
                continue  # it has none
            if name and name != address:
                self._names[address] = name

    def get(self, address: str) -> str | None:
        """The name, if it is known by now; asks for it the first time."""
        if address not in self._names:
            if len(self._names) >= _MOST or self._queue.qsize() >= _WAITING:
                return None
            self._names[address] = None
            self._queue.put(address)
        return self._names[address]


def _by_system(address: str) -> str:
    import _socket

    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    end = (address, 0) if family == _socket.AF_INET else (address, 0, 0, 0)
    return str(_socket.getnameinfo(end, _socket.NI_NAMEREQD)[0])
