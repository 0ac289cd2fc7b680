# SPDX-License-Identifier: Apache-2.0
"""Health checks: TCP connections to all backends at once, with thresholds for a change of state.

Everything runs in the calling thread and its network namespace.
"""

from __future__ import annotations

import _socket
import errno
import os
import time

from bpfkit.net.packets.addresses import family_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Health", "connect_all"]


#: Simultaneous connections: a process may have 1024 descriptors.
_AT_ONCE = 256


def _begin(address: str, port: int) -> tuple[_socket.socket | None, str]:
    """A socket that is connecting; or None and the error."""
    sock = _socket.socket(family_of(address), _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    number = sock.connect_ex((address, port))
    if number in (0, errno.EINPROGRESS):
        return sock, ""
    sock.close()
    return None, os.strerror(number)


def connect_all(addresses: Iterable[str], port: int, timeout: float = 1.0) -> dict[str, str]:
    """Connect to TCP ``port`` of each address.

    256 connections run at once, each batch for up to ``timeout`` seconds.  Established connections
    are reset, so that no server keeps them.

    :returns: address -> "", or the error.
    """
    every = list(addresses)
    found: dict[str, str] = {}
    for at in range(0, len(every), _AT_ONCE):
        found.update(_connect(every[at : at + _AT_ONCE], port, timeout))
    return found


def _connect(addresses: list[str], port: int, timeout: float) -> dict[str, str]:
    from select import POLLERR, POLLHUP, POLLOUT, poll
    from struct import pack

    found: dict[str, str] = {}
    waiting: dict[int, tuple[str, _socket.socket]] = {}
    poller = poll()
    deadline = time.monotonic() + timeout
    try:
        for address in addresses:
            sock, why = _begin(address, port)
            if sock is None:
                found[address] = why
            else:
                waiting[sock.fileno()] = address, sock
                poller.register(sock.fileno(), POLLOUT | POLLERR | POLLHUP)
        while waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            for fd, _ in poller.poll(int(left * 1000) + 1):
                poller.unregister(fd)
                address, sock = waiting.pop(fd)
                number = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
                found[address] = os.strerror(number) if number else ""
                sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, pack("=ii", 1, 0))
                sock.close()
    finally:
        for address, sock in waiting.values():
            found[address] = "no answer"
            sock.close()
    return found


class Health:
    """The state of each backend, which changes after several equal results in a row.

    :param rise: consecutive successes that bring a backend up.
    :param fall: consecutive failures that take a backend down.
    """

    def __init__(self, rise: int = 2, fall: int = 2) -> None:
        self.rise = rise
        self.fall = fall
        #: Address -> why the backend is down; "": it is up.
        self.why: dict[str, str] = {}
        self._against: dict[str, int] = {}

    def is_up(self, address: str) -> bool:
        """Whether the backend is up; one that was never checked is not."""
        return self.why.get(address, "-") == ""

    def update(self, answers: dict[str, str]) -> list[str]:
        """Apply results of :func:`connect_all`; the addresses whose state changed.

        The first result of an address counts at once.  Addresses without a result are forgotten.
        """
        for address in self.why.keys() - answers.keys():
            del self.why[address]
            self._against.pop(address, None)
        changed = []
        for address, why in answers.items():
            if address not in self.why:
                self.why[address] = why
                changed.append(address)
                continue
            if (why == "") == self.is_up(address):
                self._against[address] = 0
                continue
            self._against[address] = self._against.get(address, 0) + 1
            if self._against[address] >= (self.fall if why else self.rise):
                self._against[address] = 0
                self.why[address] = why
                changed.append(address)
        return changed
