# SPDX-License-Identifier: Apache-2.0
"""Which sockets can enter a sockmap, and how often; each answer found by putting one in."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

from bpfkit.core.features.answer import NOT_SUPPORTED, WORKS, Feature
from bpfkit.core.features.sockmap import unknown
from bpfkit.core.features.sockmap.table import SK_SKB, Absent, Table, enters, errno_name, pair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["entering"]

_IPPROTO_MPTCP = 262


def entering() -> Iterator[Feature]:
    """Which sockets can enter a sockmap; NOT_SUPPORTED has the errno's name as its ``value``."""
    for name, make in _ENTRANTS.items():
        with ExitStack() as stack:
            try:
                table = stack.enter_context(Table())
                refused = enters(table, _made(make, stack))
            except OSError as error:
                yield unknown(name, error)
                continue
        yield _entry(name, refused)
    yield from _twice()


def _made(make: Callable[[ExitStack], socket.socket], stack: ExitStack) -> socket.socket:
    try:
        return make(stack)
    except Absent:
        raise
    except OSError as error:  # no such family or protocol, or switched off
        if error.errno in (errno.EPERM, errno.EACCES, errno.EMFILE):
            raise
        text = f"no such sockets here ({errno_name(error)})"
        raise Absent(error.errno, text) from None


def _entry(name: str, refused: str) -> Feature:
    return Feature(name, NOT_SUPPORTED if refused else WORKS, value=refused or None)


def _twice() -> Iterator[Feature]:
    """One socket in two places, and two programs on one map."""
    with ExitStack() as stack:
        keep = stack.enter_context
        ours, _ = map(keep, pair("tcp"))
        one, two = keep(Table()), keep(Table())
        one.attach(SK_SKB)
        two.attach(SK_SKB)
        one.enter(ours)
        yield _entry("two slots of one map", enters(one, ours, slot=1))
        yield _entry("two maps, a verdict program each", enters(two, ours))
        yield _entry("two maps, the second without program", enters(keep(Table()), ours))


def _listening(stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.socket())
    sock.bind(("127.0.0.1", 0))
    sock.listen(1)
    return sock


def _connected(kind: str) -> Callable[[ExitStack], socket.socket]:
    def make(stack: ExitStack) -> socket.socket:
        ours, _ = map(stack.enter_context, pair(kind))
        return ours

    return make


def _fresh(family: int, kind: int, protocol: int = 0) -> Callable[[ExitStack], socket.socket]:
    def make(stack: ExitStack) -> socket.socket:
        return stack.enter_context(socket.socket(family, kind, protocol))

    return make


def _bound_udp(stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    sock.bind(("127.0.0.1", 0))
    return sock


def _half_closed(stack: ExitStack) -> socket.socket:
    ours, _ = map(stack.enter_context, pair("tcp"))
    ours.shutdown(socket.SHUT_WR)
    return ours


def _mptcp(stack: ExitStack) -> socket.socket:
    keep = stack.enter_context
    listener = keep(socket.socket(socket.AF_INET, socket.SOCK_STREAM, _IPPROTO_MPTCP))
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    client = keep(socket.socket(socket.AF_INET, socket.SOCK_STREAM, _IPPROTO_MPTCP))
    client.settimeout(1)
    client.connect(listener.getsockname())
    return client


def _seqpacket(stack: ExitStack) -> socket.socket:
    ours, _ = map(stack.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    return ours


_ENTRANTS: dict[str, Callable[[ExitStack], socket.socket]] = {
    "tcp, connected": _connected("tcp"),
    "tcp, listening": _listening,
    "tcp, not connected": _fresh(socket.AF_INET, socket.SOCK_STREAM),
    "tcp, half-closed": _half_closed,
    "mptcp, connected": _mptcp,
    "udp, connected": _connected("udp"),
    "udp, bound": _bound_udp,
    "udp, not bound": _fresh(socket.AF_INET, socket.SOCK_DGRAM),
    "unix stream, connected": _connected("unix stream"),
    "unix stream, not connected": _fresh(socket.AF_UNIX, socket.SOCK_STREAM),
    "unix dgram, connected": _connected("unix dgram"),
    "unix dgram, not connected": _fresh(socket.AF_UNIX, socket.SOCK_DGRAM),
    "unix seqpacket, connected": _seqpacket,
    "vsock, connected": _connected("vsock"),
    "raw": _fresh(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "netlink": _fresh(socket.AF_NETLINK, socket.SOCK_RAW),
}
