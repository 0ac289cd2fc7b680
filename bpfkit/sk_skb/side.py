# SPDX-License-Identifier: Apache-2.0
"""One socket of a proxied connection, and what the kernel says about its streams (TCP_INFO)."""

from __future__ import annotations

import socket
import struct
import sys
from fcntl import ioctl
from select import EPOLLIN, EPOLLOUT, EPOLLRDHUP

from bpfkit.core.errors import errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from select import epoll

    from bpfkit.sk_skb.connection import Connection

__all__ = ["RESET_ON_CLOSE", "Side", "TcpInfo", "flow_key", "run_program", "text_of"]

#: SO_LINGER: close(2), and the end of the process, reset the connection.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CLOSE_NORMALLY = struct.pack("ii", 0, 0)
_FLOW = struct.Struct("=16s16sHH")
_SIOCOUTQ = 0x5411
_SO_DETACH_FILTER, _SO_ATTACH_BPF = 27, 50
_MAPPED = bytes(10) + b"\xff\xff"

#: tcp_info.tcpi_state, and the states that a socket has after the other end's FIN.
_ESTABLISHED = 1
_AFTER_FIN = frozenset({6, 7, 8, 9, 11})  # TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING


class TcpInfo:
    """What a connection has received (struct tcp_info, kernel 4.1).

    :ivar received: bytes that arrived in order, read or not, without the FIN.
    :ivar acknowledged: bytes that the other end acknowledged; on the connecting side also the SYN.
    :ivar fin: the other end has ended its stream.
    :ivar established: neither end has ended its stream.
    """

    __slots__ = ("acknowledged", "established", "fin", "received")

    def __init__(self, sock: socket.socket) -> None:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
        self.fin = raw[0] in _AFTER_FIN
        self.established = raw[0] == _ESTABLISHED
        self.acknowledged, received = struct.unpack_from("=QQ", raw, 120)
        self.received = received - self.fin  # the kernel counts a FIN as one byte


class Side:
    """A connected socket of the proxy.

    :ivar written: bytes that the proxy itself wrote to it.
    :ivar fin: its other end has ended its stream, or the poller said so.
    :ivar shut: the proxy has ended the stream that it sends.
    """

    __slots__ = ("_base", "connection", "fd", "fin", "mask", "shut", "sock", "written")

    def __init__(self, sock: socket.socket, connection: Connection) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.connection = connection
        self.written = 0
        self.fin = False
        self.shut = False
        self.mask: int | None = None  # None: the poller does not watch it
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._base = 0

    def connected(self) -> None:
        """The connection is established, and nothing was written."""
        self._base = self._handed_over()

    def accepted(self) -> int:
        """Bytes that the socket took over for sending, sent or not; what it takes over during the
        call may be missing."""
        return self._handed_over() - self._base

    def _handed_over(self) -> int:
        # In this order: what is acknowledged in between is missing from the sum, not counted twice.
        acknowledged: int = TcpInfo(self.sock).acknowledged
        waiting = bytearray(4)
        ioctl(self.fd, _SIOCOUTQ, waiting)
        return acknowledged + int.from_bytes(waiting, sys.byteorder)

    def check(self) -> None:
        """Raise the socket's error, if it has one."""
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, errno_text(number))

    def watch(self, poller: epoll, read: bool, write: bool) -> None:
        """Watch for data, for room, for the end of the stream and for errors."""
        mask: int | None = EPOLLIN * read | EPOLLOUT * write
        if not self.fin:
            mask = EPOLLRDHUP | (mask or 0)
        elif self.shut and not mask:
            mask = None  # EPOLLHUP cannot be masked, and would be reported for ever
        if mask == self.mask:
            return
        if mask is None:
            poller.unregister(self.fd)
        elif self.mask is None:
            poller.register(self.fd, mask)
        else:
            poller.modify(self.fd, mask)
        self.mask = mask

    def freeze(self, program: int) -> None:
        """Attach a socket filter that drops what has payload; the other end sends it again."""
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, program)

    def thaw(self) -> None:
        """Detach the filter."""
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)

    def shut_down(self) -> None:
        """End the stream that is sent, after what was written."""
        self.shut = True
        self.sock.shutdown(socket.SHUT_WR)

    def close(self, poller: epoll, reset: bool) -> None:
        """Close: with a reset, or so that what was written is still delivered."""
        if self.mask is not None:
            poller.unregister(self.fd)
            self.mask = None
        if not reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_NORMALLY)
        self.sock.close()


def _packed(address: str) -> bytes:
    """16 bytes; IPv4 as ::ffff:a.b.c.d."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    return _MAPPED + socket.inet_aton(address)


def run_program(sock: socket.socket) -> None:
    """Have the program take what is in the receive queue (tcp_set_rcvlowat()).

    recv(2) runs it too, but tcp_bpf_recvmsg_parser() then writes back the copied_seq from before:
    once out of the map, the socket cannot be read ("TCP recvmsg seq # bug").
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def flow_key(sock: socket.socket) -> bytes:
    """struct flow of the C side."""
    local, remote = sock.getsockname(), sock.getpeername()
    return _FLOW.pack(_packed(local[0]), _packed(remote[0]), remote[1], local[1])


def text_of(address: tuple[str, int]) -> tuple[str, int]:
    """(address, port) in RFC 5952 form; IPv4-mapped addresses as IPv4."""
    return address[0].removeprefix("::ffff:") if "." in address[0] else address[0], address[1]
