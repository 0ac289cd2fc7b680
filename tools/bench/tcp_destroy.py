# SPDX-License-Identifier: Apache-2.0
"""TCP_INFO of every TCP socket of a network namespace at the moment the kernel frees it.

What ``ss -E`` shows: sock_diag's multicast groups (Linux 4.3, CONFIG_INET_DIAG).  It is the judge
of sockops' close events: another mechanism, and no program in between.
"""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bpfkit.net.traffic.tcp import TcpInfo
from bpfkit.show.address import address_text

__all__ = ["DestroyedSockets"]

_NETLINK_SOCK_DIAG = 4
_TCP_DESTROY, _TCP6_DESTROY = 1, 3  # SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY
_INET_DIAG_INFO = 2
_SO_RCVBUFFORCE = 33
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1

#: (source address, source port, destination address, destination port), as sockops names them.
Key = tuple[str, int, str, int]


class DestroyedSockets:
    """Made in the namespace; collects until it is closed.

    :param room: bytes of the receive buffer; a message takes about 1 kB of it.
    """

    def __init__(self, room: int = 256 << 20) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, room)
        self._sock.bind((0, 0))
        for group in (_TCP_DESTROY, _TCP6_DESTROY):
            self._sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        self._sock.setblocking(False)

    def read(self) -> list[tuple[Key, TcpInfo]]:
        """The sockets that were freed since the last call.

        :raises OSError: ENOBUFS, some were lost.
        """
        found = []
        while True:
            try:
                data = self._sock.recv(1 << 16)
            except BlockingIOError:
                return found
            offset = 0
            while offset + 16 <= len(data):
                (length,) = struct.unpack_from("=I", data, offset)
                found += _socket_of(data[offset + 16 : offset + length])
                offset += length + 3 & ~3

    def close(self) -> None:
        self._sock.close()


def _socket_of(message: bytes) -> list[tuple[Key, TcpInfo]]:
    family = message[0]
    sport, dport = struct.unpack_from(">HH", message, 4)
    width = 4 if family == socket.AF_INET else 16
    src, dst = message[8 : 8 + width], message[24 : 24 + width]
    if src[:12] == bytes(10) + b"\xff\xff":
        src, dst = src[12:], dst[12:]
    offset = 72
    while offset + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, offset)
        if kind == _INET_DIAG_INFO:
            info = TcpInfo(message[offset + 4 : offset + length])
            return [((address_text(src), sport, address_text(dst), dport), info)]
        offset += max(4, length + 3 & ~3)
    return []
