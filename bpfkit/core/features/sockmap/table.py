# SPDX-License-Identifier: Apache-2.0
"""A SOCKMAP with a program, and pairs of sockets to put into it: what the experiments are made of.

The programs are assembled, so nothing is compiled.  Every object is the process's own and ends
with it.  Source: ``Documentation/bpf/map_sockmap.rst``, ``net/core/sock_map.c``.
"""

from __future__ import annotations

import errno
import os
import socket
import sys

from bpfkit.core.closing import Closing
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.asm import (
    add,
    assemble,
    atomic_add,
    call,
    exit_,
    jeq,
    label,
    ld_map_fd,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r7,
    r10,
    stx,
    u32,
    u64,
)
from bpfkit.core.kernel.constants import attach_type, map_type, prog_type

__all__ = [
    "EGRESS",
    "INGRESS",
    "KINDS",
    "SK_DROP",
    "SK_MSG",
    "SK_PASS",
    "SK_SKB",
    "STREAM_VERDICT",
    "Absent",
    "Table",
    "enters",
    "errno_name",
    "pair",
    "readable",
    "receive",
]

#: The hooks, by the program's type: what arrives (SK_SKB), what is sent (SK_MSG).
SK_SKB, SK_MSG = "SK_SKB", "SK_MSG"
#: SK_SKB as it was before the type SK_SKB_VERDICT (5.13): TCP only.
STREAM_VERDICT = "SK_SKB_STREAM_VERDICT"
#: ``flags`` of the redirect helpers: into the target's send queue, or its receive queue.
EGRESS, INGRESS = 0, 1
#: ``enum sk_action``.
SK_DROP, SK_PASS = 0, 1
#: The kinds of socket that :func:`pair` makes.
KINDS = ("tcp", "udp", "unix stream", "unix dgram", "vsock")

_HOOKS = {
    SK_SKB: (SK_SKB, "SK_SKB_VERDICT", "sk_redirect_map"),
    STREAM_VERDICT: (SK_SKB, STREAM_VERDICT, "sk_redirect_map"),
    SK_MSG: (SK_MSG, "SK_MSG_VERDICT", "msg_redirect_map"),
}
_SLOTS = 4
#: What stops socket(2) and connect(2) and says nothing about the kind; None is a time-out's.
_NOT_ABSENCE = (None, errno.EPERM, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Absent(OSError):
    """This machine has no such sockets or no such protocol; the text says which."""


def errno_name(error: OSError) -> str:
    """The kernel's name of an errno (Python calls EOPNOTSUPP ENOTSUP, the same number)."""
    code = error.errno or 0
    return "EOPNOTSUPP" if code == errno.EOPNOTSUPP else errno.errorcode.get(code, str(code))


class Table(Closing):
    """A SOCKMAP of sockets whose data a program judges, and a second one of redirect targets.

    :ivar fd: the map that has the program.
    :ivar targets: the map of redirect targets; it has no program.
    :raises OSError: no such map, or no privilege.
    """

    __slots__ = ("_counts", "fd", "targets")

    def __init__(self) -> None:
        self.fd = self.targets = self._counts = -1
        try:
            self.fd = syscall.map_create(map_type("SOCKMAP"), 4, 4, _SLOTS)
            self.targets = syscall.map_create(map_type("SOCKMAP"), 4, 4, _SLOTS)
            self._counts = syscall.map_create(map_type("ARRAY"), 4, 8, 2)
        except BaseException:
            self.close()
            raise

    def attach(self, hook: str, flags: int | None = None) -> None:
        """Attach a program that redirects to target 0, or without ``flags`` one that passes all.

        SK_SKB falls back on the stream verdict where the kernel has no SK_SKB_VERDICT.

        :param hook: :data:`SK_SKB`, :data:`STREAM_VERDICT` or :data:`SK_MSG`.
        :param flags: :data:`EGRESS` or :data:`INGRESS`.
        :raises OSError: the program cannot be loaded or attached.
        """
        try:
            self._attach(hook, flags)
        except OSError as error:
            if hook != SK_SKB or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            self._attach(STREAM_VERDICT, flags)

    def _attach(self, hook: str, flags: int | None) -> None:
        kind, attach, helper = _HOOKS[hook]
        number = attach_type(attach)
        verdict = (
            [mov(r0, SK_PASS)]
            if flags is None
            else [ld_map_fd(r2, self.targets), mov(r3, 0), mov(r4, flags), call(helper)]
        )
        code = assemble(
            verdict,
            mov(r6, r0),
            stx(u32, r10 - 4, r0),
            ld_map_fd(r1, self._counts),
            mov(r2, r10),
            add(r2, -4),
            call("map_lookup_elem"),
            jeq(r0, 0, "out"),
            mov(r7, 1),
            atomic_add(u64, r0 + 0, r7),
            label("out"),
            mov(r0, r6),
            exit_(),
        )
        fd = syscall.prog_load(
            prog_type(kind), code, name=b"bpfkit_sockmap", expected_attach_type=number
        )
        try:
            syscall.prog_attach(self.fd, fd, number)
        finally:
            os.close(fd)  # the map holds it

    def verdicts(self) -> tuple[int, int]:
        """How often the program said SK_DROP and SK_PASS (a helper that refuses says SK_DROP)."""
        dropped, passed = (
            int.from_bytes(
                syscall.map_lookup(self._counts, n.to_bytes(4, sys.byteorder), 8), sys.byteorder
            )
            for n in (SK_DROP, SK_PASS)
        )
        return dropped, passed

    def enter(self, sock: socket.socket, *, target: bool = False, slot: int = 0) -> None:
        """Put ``sock`` into the map (or among the targets).

        :raises OSError: sockets of this kind or in this state cannot enter.
        """
        fd = self.targets if target else self.fd
        value = sock.fileno().to_bytes(4, sys.byteorder)
        syscall.map_update(fd, slot.to_bytes(4, sys.byteorder), value)

    def leave(self, *, target: bool = False, slot: int = 0) -> None:
        """Take a socket out again; returns at once, the socket has its own functions back."""
        syscall.map_delete(self.targets if target else self.fd, slot.to_bytes(4, sys.byteorder))

    def close(self) -> None:
        """Close the maps; the sockets in them leave."""
        fds = (self.fd, self.targets, self._counts)
        self.fd = self.targets = self._counts = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def enters(table: Table, sock: socket.socket, slot: int = 0) -> str:
    """The errno's name when ``sock`` is refused, "" when it enters."""
    try:
        table.enter(sock, slot=slot)
    except OSError as error:
        return errno_name(error)
    return ""


def pair(kind: str) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets of one of :data:`KINDS`, each of which can send to the other.

    :raises Absent: the kernel has none, or loopback is down.
    :raises OSError: no privilege, too many files, or the connection took too long.
    """
    try:
        if kind == "tcp":
            return _stream(socket.AF_INET, ("127.0.0.1", 0))
        if kind == "vsock":
            return _stream(socket.AF_VSOCK, (1, socket.VMADDR_PORT_ANY))  # VMADDR_CID_LOCAL
        if kind == "udp":
            return _udp()
        what = socket.SOCK_STREAM if kind == "unix stream" else socket.SOCK_DGRAM
        return socket.socketpair(socket.AF_UNIX, what)
    except OSError as error:
        if error.errno in _NOT_ABSENCE:
            raise
        raise Absent(error.errno, f"no {kind} sockets here ({errno_name(error)})") from None


def _stream(family: int, address: tuple[str | int, int]) -> tuple[socket.socket, socket.socket]:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen(1)
        listener.settimeout(1)
        client = socket.socket(family, socket.SOCK_STREAM)
        try:
            client.settimeout(1)
            port = listener.getsockname()[1]
            client.connect((address[0], port))
            if family == socket.AF_INET:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return client, listener.accept()[0]
        except BaseException:
            client.close()
            raise


def _udp() -> tuple[socket.socket, socket.socket]:
    made = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    try:
        for sock in made:
            sock.bind(("127.0.0.1", 0))
        for sock, peer in zip(made, reversed(made), strict=True):
            sock.connect(peer.getsockname())
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return made[0], made[1]


def readable(sock: socket.socket, seconds: float) -> bool:
    """Whether poll(2) says so within that time."""
    from select import POLLIN, poll

    waiter = poll()
    waiter.register(sock, POLLIN)
    return bool(waiter.poll(seconds * 1000))


def receive(sock: socket.socket, size: int, seconds: float) -> bytes:
    """Up to ``size`` bytes, as many as arrive within that time (less at the end of the stream)."""
    from time import monotonic

    end = monotonic() + seconds
    data = b""
    while len(data) < size:
        if not readable(sock, max(0.0, end - monotonic())):
            break
        try:
            more = sock.recv(size - len(data), socket.MSG_DONTWAIT)
        except BlockingIOError:
            if monotonic() >= end:
                break
            continue  # readable, but nothing for recv() yet: a parser's data comes later
        if not more:
            break
        data += more
    return data
