# SPDX-License-Identifier: Apache-2.0
"""Frames with one VLAN tag and with two, sent through a program: which of them get through?

::

    device ──▶ [program] ──▶ a capture sees the frame itself           TaggedFrames
    device ──▶ [program] ──▶ host; a capture at device: its answer      PriorityTaggedFrames
    device ──▶ [program, which answers]; a capture: a tagged answer     TaggedRequests

The frames are built here, so that no VLAN device is needed.  Frames that must get through are sent
last: once they have arrived, the others have arrived or are lost, and no fixed delay is needed.
"""

from __future__ import annotations

from time import monotonic, sleep

from bpfkit.core.errors import BpfkitError
from bpfkit.net.packets.frames import (
    PRIORITY,
    echo_packet,
    ethernet,
    neighbour_request,
    send_frames,
    syn_packet,
    udp_packet,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from bpfkit.net.links.lab import Lab
    from bpfkit.net.packets.packet_socket import Packet

    Verdict = tuple[bool, str]

__all__ = ["PAIR", "PriorityTaggedFrames", "TaggedFrames", "TaggedRequests"]

#: (source, destination) addresses for :class:`TaggedFrames` in a pair_lab.
PAIR = (("10.77.0.1", "10.77.0.2"), ("fd77::1", "fd77::2"))
_PATIENCE_S = 2.0


class TaggedFrames:
    """Tagged frames over IPv4 and IPv6, from one device of a lab to another.

    :param leaves, arrives: the devices (``client:eth0``) that send them and capture the packets for
        which :meth:`matches` is true.
    :param ends: (source, destination) addresses.
    :param kinds: which packets to send: ``TCP`` (a SYN), ``UDP``, ``ping`` and ``ARP/ND``.
    :param to: the device that the frames are addressed to; default: ``arrives``.
    :param port: destination port of TCP.
    :ivar sent: the frames of the last round.
    """

    #: The tags of the frames, each outermost first.
    vlans: tuple[tuple[int, ...], ...] = ((5,), (6, 5))
    #: Predicate of a frame that gets through, for verdicts.
    passes = "arrives"

    def __init__(
        self,
        lab: Lab,
        leaves: str,
        arrives: str,
        ends: Iterable[tuple[str, str]],
        kinds: Iterable[str],
        *,
        to: str = "",
        port: int = 9,
    ) -> None:
        self.lab, self.leaves, self.arrives = lab, leaves, arrives
        self.ends, self.kinds = tuple(ends), tuple(kinds)
        self.macs = lab.lladdr(to or arrives), lab.lladdr(leaves)
        self.port = port
        self.sent: list[bytes] = []
        self._number = 41000

    def verdicts(
        self,
        lost: Collection[str] = (),
        settled: Callable[[int], bool] | None = None,
        *,
        when: str = "",
    ) -> Iterator[Verdict]:
        """Send all frames; a verdict for each IP version and number of tags.

        :param lost: the kinds that must not get through.
        :param settled: called with the number of frames until it returns True: the program has
            processed all of them.
        :param when: prefix of the verdicts' text.
        """
        found = self.round(lost, settled)
        for source, _ in self.ends:
            for vlans in self.vlans:
                fates = {kind: found[kind, source, vlans] for kind in self.kinds}
                good = all(passed == (kind not in lost) for kind, passed in fates.items())
                words = ", ".join(
                    f"{kind} {self.passes if passed else 'is lost'}"
                    for kind, passed in fates.items()
                )
                ids = " and ".join(str(vlan & 0xFFF) for vlan in vlans)
                yield good, f"{when}IPv{6 if ':' in source else 4} tagged {ids}: {words}"

    def round(
        self, lost: Collection[str] = (), settled: Callable[[int], bool] | None = None
    ) -> dict[tuple[str, str, tuple[int, ...]], bool]:
        """(kind, source, tags) -> whether it got through; parameters as for :meth:`verdicts`."""
        from bpfkit.net.packets.capture import Capture

        frames = {}
        for kind in sorted(self.kinds, key=lambda kind: kind not in lost):
            for ends in self.ends:
                for vlans in self.vlans:
                    self._number += 1
                    packet = self._packet(kind, *ends)
                    frame = ethernet(*self.macs, packet, vlans=vlans)
                    frames[kind, ends[0], vlans] = (self._number, frame)
        leaves, _, port = self.leaves.partition(":")
        captured = self.lab.interface(self.arrives)
        with Capture(captured, outgoing=False) as capture:
            self.sent = [frame for _, frame in frames.values()]
            send_frames(port, self.sent, ns=self.lab[leaves], lossy=True)
            passing = [frames[key] for key in frames if key[0] not in lost]

            def is_expected(packet: Packet) -> bool:
                return any(self.matches(packet, *one) for one in passing)

            try:
                capture.wait(len(passing), where=is_expected, timeout=_PATIENCE_S)
            except BpfkitError:
                pass  # the result names the missing frames
            end = monotonic() + _PATIENCE_S
            while settled is not None and not settled(len(frames)) and monotonic() < end:
                sleep(0.002)
            packets = list(capture.packets)
        return {
            key: any(self.matches(packet, *one) for packet in packets)
            for key, one in frames.items()
        }

    def matches(self, packet: Packet, number: int, frame: bytes) -> bool:
        """Whether a captured packet shows that ``frame``, which carries ``number``, got through."""
        return packet.data == frame

    def _packet(self, kind: str, source: str, destination: str) -> bytes:
        """A packet with the next number as its source port or echo identifier."""
        if kind == "TCP":
            return syn_packet(source, destination, ports=(self._number, self.port))
        if kind == "UDP":
            return udp_packet(source, destination, ports=(self._number, 9))
        if kind == "ARP/ND":
            return neighbour_request(self.macs[1], source, destination)
        return echo_packet(source, destination, self._number)


class PriorityTaggedFrames(TaggedFrames):
    """Frames with priority tags, which every kernel strips, so that the host answers them.

    For programs behind the tap, where a capture also sees the frames that they drop.  ``arrives``
    is the device to which the untagged answers return.
    """

    vlans = ((PRIORITY,), (PRIORITY, PRIORITY))
    passes = "is answered"

    def matches(self, packet: Packet, number: int, frame: bytes) -> bool:
        """Whether it is an answer (SYN-ACK or echo reply) to that port or identifier."""
        data = packet.data
        at = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(data[12:14])
        if at is None or len(data) < at + 8:
            return False
        proto, body = data[23 if at == 34 else 20], data[at:]
        if proto == 6:
            return body[2:4] == number.to_bytes(2, "big") and body[13:14] == b"\x12"
        is_reply = (proto, body[0]) in ((1, 0), (58, 129))
        return is_reply and body[4:6] == number.to_bytes(2, "big")


class TaggedRequests(TaggedFrames):
    """Requests (``ARP/ND``, ``ping``) whose answers return with the same tags."""

    passes = "is answered in the same tags"

    def matches(self, packet: Packet, number: int, frame: bytes) -> bool:
        """Whether it is the answer: MAC addresses swapped, the same tags, the right content."""
        data, at = packet.data, 12
        while frame[at : at + 2] == b"\x81\0":
            at += 4
        at += 2
        if data[:at] != frame[6:12] + frame[:6] + frame[12:at]:
            return False
        body, request = data[at:], frame[at:]
        if frame[at - 2 : at] == b"\x08\x06":
            return body[7:8] == b"\2" and body[14:18] == request[24:28]
        head, reply = (40, {135: 136, 128: 129}) if request[0] >> 4 == 6 else (20, {8: 0})
        if len(body) < head + 8 or body[head] != reply[request[head]]:
            return False
        what = slice(head + 8, head + 24) if body[head] == 136 else slice(head + 4, head + 8)
        return body[what] == request[what]
