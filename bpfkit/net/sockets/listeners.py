# SPDX-License-Identifier: Apache-2.0
"""The sockets that others listen on: found by port, by process, by descriptor; then borrowed.

::

    sock_diag (or /proc/thread-self/net) ─▶ Listener: address, port, cookie, inode, user
    /proc/PID/fd ─▶ who holds that inode ─▶ pidfd_open(2), pidfd_getfd(2) ─▶ a descriptor of ours

A listening TCP socket, and a UDP socket without a peer.  Everything is about the network namespace
of the calling thread.
"""

from __future__ import annotations

import errno
import os
import struct
import sys

from bpfkit.core.errors import BpfkitError, InputError, PrivilegeError, UnsupportedError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "Listener",
    "borrow",
    "find_owner",
    "listeners",
    "pidfd_getfd",
    "process_name",
]

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_SKV6ONLY, _CGROUP_ID = 11, 21  # INET_DIAG_SKV6ONLY; INET_DIAG_CGROUP_ID (Linux 5.8)
_STATES = {"tcp": 1 << 10, "udp": 1 << 7}  # TCP_LISTEN; TCP_CLOSE is an unconnected UDP socket
_STATE_TEXTS = {"tcp": "0A", "udp": "07"}
_NUMBERS = {"tcp": 6, "udp": 17}
_FAMILIES = {4: 2, 6: 10}
_SOL_SOCKET, _SO_COOKIE, _SOL_IPV6, _IPV6_V6ONLY = 1, 57, 41, 26
_MAPPED = bytes(10) + b"\xff\xff"
_NR_PIDFD_GETFD = 438  # the same number on every architecture


class Listener:
    """One socket that listens.

    :ivar proto: ``tcp`` or ``udp``.
    :ivar family: 4 or 6.
    :ivar address: 4 or 16 bytes; all zero: every address.
    :ivar v6only: takes no IPv4; None: not known.
    :ivar cookie: the kernel's number of the socket (SO_COOKIE); 0: not known.
    :ivar inode: of its descriptors; 0: no process has one.
    :ivar uid: the user who made it.
    :ivar cgroup: id of the cgroup that it was made in, whose programs see its sendmsg(2); 0: not
        known.
    """

    __slots__ = (
        "address",
        "cgroup",
        "cookie",
        "family",
        "inode",
        "port",
        "proto",
        "uid",
        "v6only",
    )

    def __init__(self, proto: str, family: int, address: bytes, port: int) -> None:
        self.proto = proto
        self.family = family
        self.address = address
        self.port = port
        self.v6only: bool | None = None
        self.cookie = self.inode = self.uid = self.cgroup = 0

    @property
    def is_wildcard(self) -> bool:
        """Whether it listens on every address."""
        return not any(self.address)

    def takes(self, family: int) -> bool:
        """Whether packets of a family reach it: dual-stack sockets take IPv4, too."""
        if self.family == family:
            return True
        if self.family == 4 or self.v6only:
            return False
        return self.is_wildcard or self.address.startswith(_MAPPED)

    def __str__(self) -> str:
        import _socket

        text = _socket.inet_ntop(_FAMILIES[self.family], self.address)
        return f"{self.proto} {f'[{text}]' if self.family == 6 else text}:{self.port}"


def listeners(ports: Iterable[int] | None = None) -> list[Listener]:
    """The sockets that listen in the calling thread's network namespace.

    :param ports: only those; None: all.
    :raises UnsupportedError: the kernel lists no sockets.
    """
    wanted = None if ports is None else frozenset(ports)
    found = [
        one
        for proto in _STATES
        for family in _FAMILIES
        for one in _listed(proto, family)
        if wanted is None or one.port in wanted
    ]
    found.sort(key=lambda one: (one.proto, one.port, one.family, one.address, one.inode))
    return found


def _listed(proto: str, family: int) -> Iterator[Listener]:
    try:
        return iter(list(_by_diag(proto, family)))
    except OSError:  # no INET_DIAG, or no UDP_DIAG
        return _by_proc(proto, family)


def _by_diag(proto: str, family: int) -> Iterator[Listener]:
    """Source: struct inet_diag_req_v2, struct inet_diag_msg; sock_diag(7)."""
    from bpfkit.net.links.rtnetlink import attributes, dump

    request = struct.pack("=BBBBI", _FAMILIES[family], _NUMBERS[proto], 0, 0, _STATES[proto])
    for body in dump(_SOCK_DIAG_BY_FAMILY, request + bytes(48), _NETLINK_SOCK_DIAG):
        size = 4 if family == 4 else 16
        one = Listener(proto, family, body[8 : 8 + size], int.from_bytes(body[4:6], "big"))
        low, high = struct.unpack_from("=II", body, 44)
        one.cookie = low | high << 32
        one.uid, one.inode = struct.unpack_from("=II", body, 64)
        for kind, value in attributes(body[72:]):
            if kind == _SKV6ONLY:
                one.v6only = bool(value[0])
            elif kind == _CGROUP_ID:
                one.cgroup = int.from_bytes(value, sys.byteorder)
        yield one


def _by_proc(proto: str, family: int) -> Iterator[Listener]:
    """Source: Documentation/networking/proc_net_tcp.rst."""
    path = f"/proc/thread-self/net/{proto}{'' if family == 4 else '6'}"
    if not os.path.exists(path):
        if family == 6:
            return  # a kernel without IPv6
        raise UnsupportedError(
            "cannot list the sockets that listen",
            why="the kernel has neither CONFIG_INET_DIAG nor CONFIG_PROC_FS",
        )
    with open(path) as file:
        next(file, None)
        for line in file:
            words = line.split()
            if words[3] != _STATE_TEXTS[proto]:
                continue
            text, _, port = words[1].partition(":")
            raw = bytes.fromhex(text)  # words of the machine's byte order, printed as numbers
            address = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
            one = Listener(proto, family, address, int(port, 16))
            one.uid, one.inode = int(words[7]), int(words[9])
            yield one


# ---------------------------------------------------------------- whose, and a descriptor


def sockets_of(pid: int, fd: int = -1) -> frozenset[int]:
    """Inodes of the sockets that a process has open.

    :param fd: only this descriptor; -1: all.
    :raises InputError: there is no such process, or its descriptor is no socket.
    :raises PrivilegeError: not permitted to see them (CAP_SYS_PTRACE).
    """
    try:
        names = [str(fd)] if fd >= 0 else os.listdir(f"/proc/{pid}/fd")
    except FileNotFoundError:
        raise InputError(f"no process {pid}") from None
    except PermissionError:
        raise PrivilegeError(f"cannot see the sockets of process {pid}", why="needs root") from None
    found = set()
    for name in names:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            if fd < 0:
                continue
            if not os.path.exists(f"/proc/{pid}"):
                raise InputError(f"no process {pid}") from None
            raise InputError(f"process {pid} has no descriptor {fd}") from None
        except OSError as error:
            raise PrivilegeError(
                f"cannot see the sockets of process {pid}", why=errno_text(error.errno or 0)
            ) from None
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
        elif fd >= 0:
            raise InputError(f"descriptor {fd} of process {pid} is not a socket", why=target)
    return frozenset(found)


def find_owner(inode: int, first: int = 0) -> tuple[int, int] | None:
    """(pid, descriptor) of a process that has a socket open; None: nobody that can be seen.

    :param first: the process to look at first.
    """
    wanted = f"socket:[{inode}]"
    own = os.getpid()
    names = [name for name in os.listdir("/proc") if name.isdigit()]
    names.sort(key=lambda name: (int(name) != first, int(name) == own))
    for name in names:
        try:
            for fd in os.listdir(f"/proc/{name}/fd"):
                if os.readlink(f"/proc/{name}/fd/{fd}") == wanted:
                    return int(name), int(fd)
        except OSError:
            continue  # it ended, or is another user's
    return None


def process_name(pid: int) -> str:
    """``nginx (process 17)``."""
    from bpfkit.core.printable import printable

    try:
        with open(f"/proc/{pid}/comm", errors="replace") as file:
            return f"{printable(file.read().rstrip(chr(10)))} (process {pid})"
    except OSError:
        return f"process {pid}"


def borrow(one: Listener, pid: int, fd: int) -> int:
    """A descriptor of this process for another process's socket; the caller closes it.

    Fills in ``cookie`` and ``v6only``.

    :raises BpfkitError: the socket was closed meanwhile.
    :raises PrivilegeError: not permitted (CAP_SYS_PTRACE, or Yama).

    Source: pidfd_getfd(2) (kernel 5.6).
    """
    import _socket

    try:
        mine = os.dup(fd) if pid == os.getpid() else pidfd_getfd(pid, fd)
    except PermissionError:
        raise PrivilegeError(
            f"cannot take over a descriptor of {process_name(pid)}",
            why="pidfd_getfd: not permitted",
            hint="run as root with CAP_SYS_PTRACE; see also kernel.yama.ptrace_scope",
        ) from None
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise UnsupportedError(
                "cannot take over descriptors", why="the kernel has no pidfd_getfd (Linux 5.6)"
            ) from None
        raise BpfkitError(f"{one} was closed", why=errno_text(error.errno or 0)) from None
    try:
        if os.readlink(f"/proc/self/fd/{mine}") != f"socket:[{one.inode}]":
            raise BpfkitError(f"{one} was closed", why="its descriptor is another file's now")
        sock = _socket.socket(fileno=mine)
        try:
            raw = sock.getsockopt(_SOL_SOCKET, _SO_COOKIE, 8)
            one.cookie = int.from_bytes(raw, sys.byteorder)
            if one.family == 6:
                one.v6only = bool(sock.getsockopt(_SOL_IPV6, _IPV6_V6ONLY))
        finally:
            sock.detach()
    except BaseException:
        os.close(mine)
        raise
    return mine


def pidfd_getfd(pid: int, fd: int) -> int:
    """A descriptor of this process for what ``fd`` of process ``pid`` is; raises OSError."""
    import ctypes

    pidfd = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        mine: int = libc.syscall(
            ctypes.c_long(_NR_PIDFD_GETFD), ctypes.c_int(pidfd), ctypes.c_int(fd), ctypes.c_uint(0)
        )
        if mine < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return mine
    finally:
        os.close(pidfd)
