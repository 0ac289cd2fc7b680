# SPDX-License-Identifier: Apache-2.0
"""rtnetlink without pyroute2: for requests that it does not support, or where it is too slow.

Source: rtnetlink(7), netlink(7).
"""

from __future__ import annotations

import _socket
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["attribute", "attributes", "dump", "request"]

_AF_NETLINK, _NETLINK_ROUTE = 16, 0
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 1, 4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TYPE_MASK = 0x3FFF
_PATIENCE_S = 5  # to wait for an answer, which the kernel sends at once


def attribute(kind: int, *values: bytes) -> bytes:
    """An attribute of type ``kind``; with several attributes as values, a nested one."""
    value = b"".join(values)
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The (type, value) pairs of the attributes in ``data``."""
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            return
        yield kind & _TYPE_MASK, data[at + 4 : at + size]
        at += size + 3 & ~3


def request(kind: int, body: bytes, flags: int = _NLM_F_ACK) -> bytes:
    """Send one request in the calling thread's network namespace; the body of the answer.

    :param kind: message type, RTM_….
    :param flags: NLM_F_…; without NLM_F_ACK for requests whose answer is an object.
    :raises OSError: the error that the kernel answered with.
    """
    return next(_answers(kind, body, flags), b"")


def dump(kind: int, body: bytes, protocol: int = _NETLINK_ROUTE) -> list[bytes]:
    """The bodies of all objects of a dump in the calling thread's network namespace.

    :param kind: message type, RTM_GET….
    :param protocol: NETLINK_…, where it is not rtnetlink that answers.
    :raises OSError: the error that the kernel answered with.
    """
    return list(_answers(kind, body, _NLM_F_DUMP, protocol))


def _answers(kind: int, body: bytes, flags: int, protocol: int = _NETLINK_ROUTE) -> Iterator[bytes]:
    """The bodies of the answers: all of a dump, else the first."""
    sock = _socket.socket(_AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
    try:
        sock.settimeout(_PATIENCE_S)
        sock.send(struct.pack("=IHHII", 16 + len(body), kind, _NLM_F_REQUEST | flags, 1, 0) + body)
        while True:
            data, at = sock.recv(1 << 16), 0
            while at + 16 <= len(data):
                size, what = struct.unpack_from("=IH", data, at)
                if what == _NLMSG_DONE or size < 16:
                    return
                if what == _NLMSG_ERROR:
                    number = -struct.unpack_from("=i", data, at + 16)[0]
                    if number:
                        raise OSError(number, os.strerror(number))
                    return
                yield data[at + 16 : at + size]
                if not flags & _NLM_F_DUMP:
                    return
                at += size + 3 & ~3
    finally:
        sock.close()
