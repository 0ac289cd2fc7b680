# SPDX-License-Identifier: Apache-2.0
"""A stream of UDP datagrams from one socket to another."""

from __future__ import annotations

import _socket
import errno
import select
import time

from bpfkit.net.traffic.report import Report
from bpfkit.net.traffic.sockets import failure, open_socket, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.links.netns import NetNS
    from bpfkit.net.traffic.report import Stop

__all__ = ["UdpReport", "udp"]

_SO_RCVBUFFORCE = 33
_UDP_SEGMENT = 103


class UdpReport(Report):
    """What :func:`udp` returns.

    :ivar sent, received: datagrams.
    :ivar bytes_sent, bytes_received: payload.
    :ivar size: payload bytes of a datagram.
    :ivar source_port, port: source and destination port.
    """

    proto = "udp"

    def __init__(self, family: int, size: int) -> None:
        super().__init__(family)
        self.sent = self.received = 0
        self.bytes_sent = self.bytes_received = 0
        self.size = size
        self.source_port = self.port = 0

    @property
    def packets(self) -> int:
        return self.sent

    @property
    def wire_bytes(self) -> int:
        """Bytes sent as Ethernet frames (on lo too), FCS not included; without fragmentation."""
        return self.bytes_sent + self.sent * (14 + (40 if self.family == 6 else 20) + 8)

    def __repr__(self) -> str:
        return f"<udp IPv{self.family}: {self.sent} sent, {self.received} received>"


def udp(
    host: str,
    *,
    port: int = 0,
    count: int | None = 100,
    size: int = 100,
    rate: float | None = None,
    segment: bool = False,
    timeout: float = 0.5,
    source: str = "",
    ns: NetNS | None = None,
    server_ns: NetNS | None = None,
    stop: Stop | None = None,
) -> UdpReport:
    """A one-way stream of UDP datagrams, received by a socket on ``host``.

    :param port: the receiver's port; 0: any.
    :param count: number of datagrams; None: until ``stop`` returns True.
    :param size: payload bytes of each.
    :param rate: datagrams per second; None: as fast as possible.
    :param segment: pass up to 40 datagrams to the kernel at once as one super-frame (UDP_SEGMENT,
        Linux 4.18); on the wire they are single packets.
    :param timeout: seconds to wait for missing datagrams after the last was sent.
    :raises BpfkitError: unreachable, or larger than the path allows.
    """
    server_ns = server_ns or ns
    family, address = resolve(server_ns, host, port)
    report = UdpReport(family, size)
    what = f"UDP to {host}"
    receiver = open_socket(server_ns, family, _socket.SOCK_DGRAM)
    sender = None
    buffer = bytearray(1 << 16)

    def drain(wait: float) -> bool:
        """Receive what has arrived, after up to ``wait`` seconds; whether anything had."""
        if wait and not select.select([receiver], [], [], wait)[0]:
            return False
        before = report.received
        while True:
            try:
                n = receiver.recv_into(buffer, 0, _socket.MSG_DONTWAIT)
            except BlockingIOError:
                return report.received > before
            report.received += 1
            report.bytes_received += n

    try:
        try:
            receiver.setsockopt(_socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        except PermissionError:
            receiver.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, 8 << 20)
        receiver.bind(address)
        target = receiver.getsockname()
        if "%" in host:
            target = resolve(ns, host, target[1])[1]
        sender = open_socket(ns, family, _socket.SOCK_DGRAM)
        if source:
            sender.bind(resolve(ns, source)[1])
        sender.connect(target)
        report.port, report.source_port = target[1], sender.getsockname()[1]
        batch = max(1, min(40, 60000 // max(size, 1))) if segment else 1
        if segment:
            sender.setsockopt(_socket.IPPROTO_UDP, _UDP_SEGMENT, size)
        start = time.perf_counter()
        while (count is None or report.sent < count) and not (stop and stop()):
            if rate:
                wait = start + report.sent / rate - time.perf_counter()
                if wait > 0:
                    time.sleep(wait)
            n = batch if count is None else min(batch, count - report.sent)
            try:
                sender.send(bytes(size * n))
                report.sent += n
                report.bytes_sent += size * n
            except OSError as error:
                # An ICMP error about an earlier datagram, or a drop on the way out by a filter.
                if error.errno == errno.EPERM:
                    report.sent += n
                    report.bytes_sent += size * n
                elif error.errno != errno.ECONNREFUSED:
                    raise
            drain(0)
        while report.received < report.sent and drain(timeout):
            pass
    except OSError as error:
        raise failure(what, error) from error
    finally:
        receiver.close()
        if sender is not None:
            sender.close()
    report.finish()
    return report
