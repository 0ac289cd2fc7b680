# SPDX-License-Identifier: Apache-2.0
"""UDP in frames with a VLAN tag, made by hand: for kernels without VLAN devices too.

A tag of VLAN id 0 is a priority tag: every kernel takes it off and takes the packet for its own.
So what is behind the IP layer gets such a packet as any other, and what is before it does not.
"""

from __future__ import annotations

import _socket
import os
import select
from time import monotonic

from bpfkit.net.packets.frames import PRIORITY, send_frames, udp_frame
from bpfkit.net.traffic.udp import UdpReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.links.lab import Lab

__all__ = ["TaggedReport", "tagged_udp"]


class TaggedReport(UdpReport):
    """Like that of :func:`bpfkit.net.traffic.report.udp`; the frames left with a tag."""

    @property
    def what(self) -> str:
        return f"{self.proto} with a priority tag"

    @property
    def wire_bytes(self) -> int:
        """Bytes sent, as frames on an Ethernet; the tag is four of each."""
        return super().wire_bytes + 4 * self.sent


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
        frame = udp_frame(
            lab.lladdr(to),
            lab.lladdr(device),
            source,
            host,
            payload,
            vlans=[PRIORITY],
            ports=(40000, receiver.getsockname()[1]),
        )
        name, _, port = device.partition(":")
        send_frames(port, [frame] * count, ns=lab[name])
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
    report.finish()
    return report
