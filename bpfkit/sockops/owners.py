# SPDX-License-Identifier: Apache-2.0
"""Owners of sockets that listened before the program was attached.

TCP_LISTEN comes once, with listen(2).  A service that runs already is found by its listening
socket, of which this process takes a descriptor (pidfd_getfd, Linux 5.6), and the storage that the
program would have written is written from here: accepted sockets then have a pid and a name.
"""

from __future__ import annotations

from bpfkit.core.errors import BpfkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.cgroups import Cgroup
    from bpfkit.core.object import Object

__all__ = ["name_listeners"]

_SIDE_LISTENER = 1
_NOEXIST = 1  # BPF_NOEXIST


def name_listeners(loaded: Object, group: Cgroup) -> int:
    """Write the owner of each TCP listener of the cgroup, and of those below it, to its storage.

    Only listeners in the network namespace of the calling thread are found.

    :returns: how many were named.
    """
    import os

    from bpfkit.net.sockets.listeners import borrow, find_owner, listeners

    groups = {os.stat(directory).st_ino for directory, _, _ in os.walk(group.path)}
    named = 0
    for one in listeners():
        if one.proto != "tcp" or one.cgroup not in groups:
            continue
        found = find_owner(one.inode)
        if found is None:
            continue
        pid, number = found
        try:
            fd = borrow(one, pid, number)
        except BpfkitError:
            continue  # it was closed, or is not to be had
        try:
            _write(loaded, fd, pid)
            named += 1
        except (OSError, BpfkitError):
            pass  # it ended
        finally:
            os.close(fd)
    return named


def _write(loaded: Object, fd: int, pid: int) -> None:
    with open(f"/proc/{pid}/comm", "rb") as file:
        comm = file.read().rstrip(b"\n")
    conns = loaded["conns"]
    value = conns.value_layout.decode(bytes(conns.value_size))
    named = value._replace(side=_SIDE_LISTENER, pid=pid, comm=comm.decode(errors="replace"))
    conns.update_elem(fd, named, _NOEXIST)  # what the program itself wrote meanwhile stays
