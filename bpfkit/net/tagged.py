# SPDX-License-Identifier: Apache-2.0
"""UDP in frames with a VLAN tag, made by hand: for kernels without VLAN devices too.

A tag of VLAN id 0 is a priority tag: every kernel takes it off and takes the packet for its own.
So what is behind the IP layer gets such a packet as any other, and what is before it does not.
"""

from __future__ import annotations

import _socket
import os
import select
from struct import pack
from time import monotonic

from bpfkit.net.answers import checksum, packed
from bpfkit.net.traffic import UdpReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.lab import Lab

__all__ = ["TaggedReport", "datagram", "send_frames", "tag", "tagged_udp"]

_PRIORITY = 5


class TaggedReport(UdpReport):
    """Like that of :func:`bpfkit.net.traffic.udp`; the frames left with a tag."""

    @property
    def what(self) -> str:
        return f"{self.proto} with a priority tag"

    @property
    def wire_bytes(self) -> int:
        """Bytes sent, as frames on an Ethernet; the tag is four of each."""
        return super().wire_bytes + 4 * self.sent


def tag(frame: bytes, vlan: int = 0) -> bytes:
    """``frame`` with an 802.1Q tag more, the outermost."""
    return frame[:12] + pack("!HH", 0x8100, _PRIORITY << 13 | vlan) + frame[12:]


def datagram(source: str, host: str, port: int, payload: bytes, macs: bytes) -> bytes:
    """A frame with a UDP datagram; ``macs`` are the destination's and the source's."""
    ends = packed(source) + packed(host)
    size = 8 + len(payload)
    udp = pack("!HHHH", 40000, port, size, 0) + payload
    pseudo = ends + pack("!HH", 17, size)
    udp = udp[:6] + pack("!H", checksum(pseudo + udp) or 0xFFFF) + udp[8:]
    if len(ends) == 32:
        return macs + b"\x86\xdd" + pack("!IHBB", 6 << 28, size, 17, 64) + ends + udp
    head = pack("!BBHHHBBH", 0x45, 0, 20 + size, 0, 0, 64, 17, 0) + ends
    head = head[:10] + pack("!H", checksum(head)) + head[12:]
    return macs + b"\x08\x00" + head + udp


def send_frames(lab: Lab, device: str, frames: list[bytes]) -> None:
    """Send frames as they are from a device of the lab."""
    from bpfkit.net.packet_socket import PacketSocket

    sender = PacketSocket(lab.interface(device), protocol=0)
    try:
        for frame in frames:
            sender.send(frame)
    finally:
        sender.close()


def tagged_udp(
    lab: Lab, device: str, to: str, host: str, source: str, *, at: str, count: int = 3
) -> TaggedReport:
    """UDP datagrams in priority-tagged frames, received by a socket.

    :param device: where the frames leave: ``client:eth0``.
    :param to: the device that they are addressed to: the receiver's, or a router's.
    :param host: destination address, of the namespace ``at``.
    :param source: source address.
    :param count: datagrams.
    """
    family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
    report = TaggedReport(family, 8)
    receiver = lab[at].socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        receiver.bind((host, 0))
        payload = os.urandom(8)  # what else may come to the port does not count
        macs = bytes.fromhex((lab.lladdr(to) + lab.lladdr(device)).replace(":", ""))
        frame = tag(datagram(source, host, receiver.getsockname()[1], payload, macs))
        send_frames(lab, device, [frame] * count)
        report.sent, report.bytes_sent = count, 8 * count
        deadline = monotonic() + 0.5
        while report.received < count:
            if not select.select([receiver], [], [], max(0.0, deadline - monotonic()))[0]:
                break
            got = receiver.recv(100)
            report.received += got == payload
            report.bytes_received += len(got)
    finally:
        receiver.close()
    report._finish()
    return report
