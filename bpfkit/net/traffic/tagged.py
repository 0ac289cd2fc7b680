# SPDX-License-Identifier: Apache-2.0
"""UDP in frames with a priority tag, on kernels without VLAN devices too.

A tag with VLAN id 0 is a priority tag: every kernel strips it and receives the packet on the
device itself.  So programs behind the IP layer see an ordinary packet, programs in front of it a
tagged one.
"""

from __future__ import annotations

import _socket
import os
import select
from time import monotonic

from bpfkit.net.packets.addresses import family_of
from bpfkit.net.packets.frames import PRIORITY, send_frames, udp_frame
from bpfkit.net.traffic.udp import UdpReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.links.lab import Lab

__all__ = ["TaggedReport", "tagged_udp"]


class TaggedReport(UdpReport):
    """What :func:`tagged_udp` returns; like :class:`.udp.UdpReport`, for tagged frames."""

    @property
    def what(self) -> str:
        return f"{self.proto} with a priority tag"

    @property
    def wire_bytes(self) -> int:
        """Bytes sent as Ethernet frames, four of each for the tag."""
        return super().wire_bytes + 4 * self.sent


def tagged_udp(
    lab: Lab, device: str, to: str, host: str, source: str, *, at: str, count: int = 3
) -> TaggedReport:
    """UDP datagrams in priority-tagged frames, received by a socket.

    :param device: the device that sends the frames: ``client:eth0``.
    :param to: the device whose MAC address they are sent to: the receiver's, or a router's.
    :param host: destination address, in the namespace ``at``.
    :param source: source address.
    :param count: datagrams.
    """
    family = family_of(host)
    report = TaggedReport(family, 8)
    receiver = lab[at].socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        receiver.bind((host, 0))
        payload = os.urandom(8)  # tells them from other datagrams to the port
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
