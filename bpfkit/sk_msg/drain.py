# SPDX-License-Identifier: Apache-2.0
"""How sk_msg ends: no redirected byte is thrown away.

A socket that leaves the map loses what was redirected to it and not read.  So::

    1. stop: new messages go by TCP; recvmsg(2) returns redirected bytes first, so the order holds
    2. a moment for the messages that were judged before
    3. again and again, of every connection in the map: is there nothing to read at either end?
       then both ends leave the map
    4. what is left after the time given stays in the map, and loses nothing

What stays goes by TCP, and the kernel keeps the map and the program until the last of these sockets
is closed.  The same holds when this process is killed: then they go on being redirected.

The sockets are found in the processes of the cgroup, and duplicated for a moment (pidfd_getfd(2),
kernel 5.6).  A socket that is not found there may have unread bytes, and stays.  With --cork and
--apply all of them stay: bytes may be in the sender's hands, judged already.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket as socket_module
    from collections.abc import Iterator
    from typing import Any, TypeAlias

    from bpfkit.core.maps.base import Map

    #: (network namespace's cookie, local address and port, remote address and port).
    Tuple: TypeAlias = tuple[int, bytes, int, bytes, int]

__all__ = ["drain", "sockets_of", "tuple_of"]

_SO_NETNS_COOKIE = 71
#: Seconds in which a message that was judged reaches the receive queue, on a busy machine, too.
_SETTLE_S = 0.2
_PAUSE_S = 0.02


def drain(sockets: Map, cgroup: str, limit: float) -> int:
    """Take every connection out of ``sockets`` that has nothing left to read.

    :param sockets: the map ``socks``; nothing is redirected any more.
    :param cgroup: the directory of the cgroup.
    :param limit: seconds to wait for readers.
    :returns: the number of sockets that stay.
    """
    from time import monotonic, sleep

    if not len(sockets):
        return 0
    sleep(_SETTLE_S)
    deadline = monotonic() + limit
    while True:
        keys = {_key_tuple(key): key for key in sockets.keys()}  # noqa: SIM118
        read = {name for name, empty in _look(cgroup, keys) if empty}
        for name, key in keys.items():
            netns, local, local_port, remote, remote_port = name
            peer = (netns, remote, remote_port, local, local_port)
            if name in read and (peer in read or peer not in keys):
                try:
                    del sockets[key]
                except KeyError:
                    pass  # it was closed
        left = len(sockets)
        if not left or monotonic() >= deadline:
            return left
        sleep(_PAUSE_S)


def _key_tuple(key: Any) -> Tuple:
    """The tuple of a ``struct end``."""
    from struct import pack

    end = key.tuple
    return (
        end.netns,
        pack("!4I", *end.local_addr),
        end.local_port,
        pack("!4I", *end.remote_addr),
        end.remote_port,
    )


def _look(cgroup: str, wanted: dict[Tuple, Any]) -> Iterator[tuple[Tuple, bool]]:
    """The sockets found of those wanted, and whether there is nothing to read."""
    for sock in sockets_of(cgroup):
        with sock:
            name = tuple_of(sock)
            if name is not None and name in wanted:
                yield name, _is_read(sock)


def _is_read(sock: socket_module.socket) -> bool:
    import select
    import socket

    poller = select.poll()
    poller.register(sock, select.POLLIN)
    ready = poller.poll(0)
    if not ready:
        return True
    if ready[0][1] & select.POLLERR:
        return False  # the error is its program's to read
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False


def tuple_of(sock: socket_module.socket) -> Tuple | None:
    """The tuple of a connected TCP socket; None for any other."""
    import socket
    from struct import unpack

    from bpfkit.net.packets.addresses import mapped

    if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        local, remote = sock.getsockname(), sock.getpeername()
        cookie = unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]
    except OSError:
        return None
    addresses = [mapped(name[0].partition("%")[0]) for name in (local, remote)]
    return cookie, addresses[0], local[1], addresses[1], remote[1]


def sockets_of(cgroup: str) -> Iterator[socket_module.socket]:
    """A duplicate of every socket of the processes in a cgroup and in those below it."""
    for directory, _, _ in os.walk(cgroup):
        try:
            with open(f"{directory}/cgroup.procs") as procs:
                pids = [int(line) for line in procs]
        except OSError:
            continue
        for pid in pids:
            yield from _sockets_of_process(pid)


def _sockets_of_process(pid: int) -> Iterator[socket_module.socket]:
    import socket

    from bpfkit.net.sockets.listeners import pidfd_getfd

    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return  # it has ended
    for name in names:
        try:
            if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                continue
            fd = pidfd_getfd(pid, int(name))
        except OSError:
            continue  # it was closed
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            continue
        yield sock
