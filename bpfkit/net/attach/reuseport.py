# SPDX-License-Identifier: Apache-2.0
"""A program on somebody else's SO_REUSEPORT group, with an ownership record.

The group, which the kernel frees with its last socket, holds the program: it would go on choosing
after ``kill -9``, from maps that nobody keeps up to date.  The next start of bpfkit detaches it
through any socket of the group.
"""

from __future__ import annotations

import errno
import os

from bpfkit.core.closing import Held
from bpfkit.core.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.core.program import Program

__all__ = ["GroupAttachment", "undo_reuseport"]

_SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF = 1, 68


class GroupAttachment(Held):
    """The program on a group until it is closed.

    :param fd: a descriptor of one of the group's sockets.
    :param port: its port.
    :param proto: ``tcp`` or ``udp``.
    """

    def __init__(self, program: Program, fd: int, port: int, proto: str) -> None:
        self._pid = os.getpid()
        data: dict[str, Any] = {
            "netns": os.stat("/proc/thread-self/ns/net").st_ino,
            "port": port,
            "proto": proto,
            "program": program.id,
        }
        self._data = data
        self._record: Record | None = Record("reuseport", data)
        try:
            program.attach_reuseport(fd)
        except BaseException:
            self._record.done()
            self._record = None
            raise

    def _is_open(self) -> bool:
        return self._record is not None and self._pid == os.getpid()

    def close(self) -> None:
        record, self._record = self._record, None
        if record is not None:
            _detach(self._data["port"], self._data["proto"])
            record.done()


def _detach(port: int, proto: str) -> None:
    """Detach what is attached to the groups of a port of the calling thread's namespace."""
    import _socket

    from bpfkit.core.errors import BpfkitError
    from bpfkit.net.sockets.listeners import borrow, find_owner, listeners

    for one in listeners([port]):
        if one.proto != proto or not one.inode:
            continue
        owner = find_owner(one.inode)
        try:
            fd = borrow(one, *owner) if owner else -1
        except BpfkitError:
            continue
        if fd < 0:
            continue
        sock = _socket.socket(fileno=fd)
        try:
            sock.setsockopt(_SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
        except OSError as error:
            if error.errno != errno.ENOENT:  # nothing is attached to this one's group
                raise
        finally:
            sock.close()


def undo_reuseport(data: dict[str, Any]) -> None:
    """Detach the program of an ownership record, if it is still there."""
    from bpfkit.core.kernel import syscall
    from bpfkit.net.links.netns import NetNS

    try:
        os.close(syscall.prog_get_fd_by_id(data["program"]))
    except OSError:
        return  # it went with the group, or somebody replaced it
    namespace = NetNS.from_inode(data["netns"])
    if namespace is not None:
        with namespace:
            namespace.run(_detach, data["port"], data["proto"])
