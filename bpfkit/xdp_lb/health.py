# SPDX-License-Identifier: Apache-2.0
"""Are servers there?  TCP connections to all of them at once, and how many answers make a change.

Everything happens in the calling thread and its network namespace.
"""

from __future__ import annotations

import _socket
import errno
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Health", "connect_all"]


#: Connections at once: a process may have 1024 descriptors.
_AT_ONCE = 256


def _begin(address: str, port: int) -> tuple[_socket.socket | None, str]:
    """A connection under way, or why there is none."""
    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    sock = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    number = sock.connect_ex((address, port))
    if number in (0, errno.EINPROGRESS):
        return sock, ""
    sock.close()
    return None, os.strerror(number)


def connect_all(addresses: Iterable[str], port: int, timeout: float = 1.0) -> dict[str, str]:
    """A TCP connection to ``port`` of each address: address -> "", or why not.

    256 at once, for each of which ``timeout`` seconds pass at most.  They are reset when they
    stand, so that no server keeps them.
    """
    everybody = list(addresses)
    found: dict[str, str] = {}
    for at in range(0, len(everybody), _AT_ONCE):
        found.update(_connect(everybody[at : at + _AT_ONCE], port, timeout))
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
    """Who is well: changes only after some equal answers in a row.

    :param rise: good answers that bring one back.
    :param fall: bad ones that take one out.
    """

    def __init__(self, rise: int = 2, fall: int = 2) -> None:
        self.rise = rise
        self.fall = fall
        #: Address -> why it is not well; "": it is.
        self.why: dict[str, str] = {}
        self._against: dict[str, int] = {}

    def well(self, address: str) -> bool:
        """Is it?  Whoever was never looked at is not."""
        return self.why.get(address, "-") == ""

    def learn(self, answers: dict[str, str]) -> list[str]:
        """Take what :func:`connect_all` found; the addresses that are well or ill only now.

        The first answer counts at once.  Addresses that are not asked any more are forgotten.
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
            if (why == "") == self.well(address):
                self._against[address] = 0
                continue
            self._against[address] = self._against.get(address, 0) + 1
            if self._against[address] >= (self.fall if why else self.rise):
                self._against[address] = 0
                self.why[address] = why
                changed.append(address)
        return changed
