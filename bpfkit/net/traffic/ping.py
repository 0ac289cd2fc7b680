# SPDX-License-Identifier: Apache-2.0
"""Ping: ICMP and ICMPv6 echo requests by a raw socket."""

from __future__ import annotations

import _socket
import errno
import os
import select
import struct
import time

from bpfkit.net.packets.frames import icmp_message
from bpfkit.net.traffic.report import Report
from bpfkit.net.traffic.sockets import failure, open_socket, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.links.netns import NetNS
    from bpfkit.net.traffic.report import Stop

__all__ = ["PingReport", "ping"]

_ICMP6_FILTER = 1


class PingReport(Report):
    """What :func:`ping` returns.

    :ivar sent: echo requests sent.
    :ivar received: answers.
    :ivar rtts: milliseconds, one per answer, in the order of the requests.
    :ivar lost: sequence numbers (from 0) without an answer.
    :ivar size: ICMP payload bytes; a frame has 8 + 20 (IPv6: 40) + 14 more.
    """

    def __init__(self, family: int, size: int) -> None:
        super().__init__(family)
        self.sent = 0
        self.size = size
        self._rtts: dict[int, float] = {}
        self.lost: list[int] = []

    @property
    def proto(self) -> str:  # type: ignore[override]
        return "ipv6-icmp" if self.family == 6 else "icmp"

    @property
    def received(self) -> int:
        return len(self._rtts)

    @property
    def rtts(self) -> list[float]:
        return [rtt for _, rtt in sorted(self._rtts.items())]

    @property
    def packets(self) -> int:
        return self.sent + self.received

    @property
    def wire_bytes(self) -> int:
        """Bytes as Ethernet frames (on lo too), both ways, FCS not included."""
        return self.packets * (14 + (40 if self.family == 6 else 20) + 8 + self.size)

    def __repr__(self) -> str:
        rtts = self.rtts
        times = f", {min(rtts):.3f}–{max(rtts):.3f} ms" if rtts else ""
        return f"<ping IPv{self.family}: {self.sent} sent, {self.received} received{times}>"


def ping(
    host: str,
    *,
    count: int | None = 1,
    interval: float = 0.0,
    size: int = 56,
    timeout: float = 1.0,
    source: str = "",
    identifier: int | None = None,
    ns: NetNS | None = None,
    stop: Stop | None = None,
) -> PingReport:
    """Send ICMP or ICMPv6 echo requests and wait for the answers.

    :param count: number of requests; None: until ``stop`` returns True.
    :param interval: seconds from one request to the next; 0: send each when its predecessor is
        answered.
    :param size: bytes of payload.
    :param timeout: seconds to wait for an answer.
    :param source: source address; "": the kernel's choice.
    :param identifier: identifier of the requests, 16 bits; None: a random one.
    :raises BpfkitError: the kernel refused to send; a drop by a filter is not an error.
    :raises PrivilegeError: without CAP_NET_RAW.
    """
    family, address = resolve(ns, host)
    six = family == _socket.AF_INET6
    protocol = _socket.IPPROTO_ICMPV6 if six else _socket.IPPROTO_ICMP
    request, reply = (128, 129) if six else (8, 0)
    sock = open_socket(ns, family, _socket.SOCK_RAW, protocol)
    report = PingReport(family, size)
    ident = int.from_bytes(os.urandom(2), "big") if identifier is None else identifier
    payload = bytes(i & 0xFF for i in range(size))
    waiting: dict[int, float] = {}

    def send(number: int) -> None:
        rest = struct.pack("!HH", ident, number & 0xFFFF) + payload
        packet = icmp_message(request, rest)  # the kernel fills in ICMPv6's checksum
        waiting[number & 0xFFFF] = time.perf_counter()
        report.sent += 1
        try:
            sock.sendto(packet, address)
        except OSError as error:
            # A drop on the way out (tc, cgroup, netfilter) is a lost packet, not a failure.
            if error.errno not in (errno.EPERM, errno.ENOBUFS):
                raise failure(f"cannot ping {host}", error) from error

    def receive(until: float, everything: bool) -> None:
        """Receive answers until ``until``; with ``everything``, only until none is missing."""
        while waiting or not everything:
            left = until - time.perf_counter()
            if not select.select([sock], [], [], max(left, 0))[0]:
                return
            try:
                packet = sock.recv(65536)
            except OSError:  # an ICMP error about a request, which then counts as lost
                continue
            now = time.perf_counter()
            if not six:
                packet = packet[(packet[0] & 15) * 4 :]
            if len(packet) < 8 or packet[0] != reply:
                continue
            _, _, _, who, number = struct.unpack_from("!BBHHH", packet)
            if who == ident and number in waiting:
                report._rtts[number] = 1e3 * (now - waiting.pop(number))

    try:
        if six:
            # ICMP6_FILTER (RFC 3542): a 1 blocks the type.
            words = [0xFFFFFFFF] * 8
            words[reply >> 5] &= ~(1 << (reply & 31))
            sock.setsockopt(protocol, _ICMP6_FILTER, struct.pack("=8I", *words))
        if source:
            sock.bind(resolve(ns, source)[1])
        number = 0
        due = time.perf_counter()
        while (count is None or number < count) and not (stop and stop()):
            send(number)
            number += 1
            due += interval
            if interval:
                receive(due, everything=False)
            else:
                receive(time.perf_counter() + timeout, everything=True)
                report.lost.extend(waiting)
                waiting.clear()
        receive(time.perf_counter() + timeout, everything=True)
        report.lost.extend(waiting)
    finally:
        sock.close()
    report.finish()
    return report
