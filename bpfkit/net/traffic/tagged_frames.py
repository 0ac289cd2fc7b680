# SPDX-License-Identifier: Apache-2.0
"""Frames with one VLAN tag and with two, in a demo: which of them get past the program?

::

    leaves ──▶ [program] ──▶ a capture: the frame itself (TaggedFrames)
    leaves ──▶ [program] ──▶ a host; a capture where it left: its answer (PriorityTaggedFrames)
    leaves ──▶ [program, which answers]; a capture where it left: an answer with tags (TaggedRequests)

The frames are made by hand, so no VLAN device is needed.  Nothing is waited for by a fixed time:
frames that pass are sent last, and when they are there, the others were there or are lost.
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

    from bpfkit.app.base import Verdict
    from bpfkit.net.links.lab import Lab
    from bpfkit.net.packets.packet_socket import Packet

__all__ = ["PAIR", "PriorityTaggedFrames", "TaggedFrames", "TaggedRequests"]

#: (source, destination) for :class:`TaggedFrames`, of the two ends of a pair_lab.
PAIR = (("10.77.0.1", "10.77.0.2"), ("fd77::1", "fd77::2"))
_PATIENCE_S = 2.0


class TaggedFrames:
    """Tagged frames over IPv4 and IPv6, from one device of a lab to another.

    :param leaves, arrives: where they are sent and where a capture looks for them, or for what
        :meth:`is_it` is true of: ``client:eth0``.
    :param ends: source and destination addresses.
    :param kinds: what to send, of ``TCP`` (a SYN), ``UDP``, ``ping`` and ``ARP/ND``.
    :param to: the device that they are addressed to; default: ``arrives``.
    :param port: of TCP.
    :ivar sent: the frames of the last round.
    """

    #: The tags, the outermost first.
    vlans: tuple[tuple[int, ...], ...] = ((5,), (6, 5))
    #: What becomes of a frame that is not lost.
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
        """Send all of them; a verdict for each IP version and number of tags.

        :param lost: the kinds that are not to get through.
        :param settled: where all of them are: called with their number until it is true.
        :param when: for the text.
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
        """(kind, source, tags) -> did it get through?  Parameters as for :meth:`verdicts`."""
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
        look = self.lab.interface(self.arrives)
        with Capture(look, ns=self.lab[self.arrives.partition(":")[0]], outgoing=False) as capture:
            self.sent = [frame for _, frame in frames.values()]
            send_frames(port, self.sent, ns=self.lab[leaves], lossy=True)
            passing = [frames[key] for key in frames if key[0] not in lost]

            def is_awaited(packet: Packet) -> bool:
                return any(self.is_it(packet, *one) for one in passing)

            try:
                capture.wait(len(passing), where=is_awaited, timeout=_PATIENCE_S)
            except BpfkitError:
                pass  # what is missing will show
            end = monotonic() + _PATIENCE_S
            while settled is not None and not settled(len(frames)) and monotonic() < end:
                sleep(0.002)
            packets = list(capture.packets)
        return {
            key: any(self.is_it(packet, *one) for packet in packets) for key, one in frames.items()
        }

    def is_it(self, packet: Packet, number: int, frame: bytes) -> bool:
        """Does this captured packet show that ``frame``, with ``number`` in it, got through?"""
        return packet.data == frame

    def _packet(self, kind: str, source: str, destination: str) -> bytes:
        """A packet with its number as source port or as identifier."""
        if kind == "TCP":
            return syn_packet(source, destination, ports=(self._number, self.port))
        if kind == "UDP":
            return udp_packet(source, destination, ports=(self._number, 9))
        if kind == "ARP/ND":
            return neighbour_request(self.macs[1], source, destination)
        return echo_packet(source, destination, self._number)


class PriorityTaggedFrames(TaggedFrames):
    """The same with priority tags, which every kernel takes off, so that the host answers.

    For programs behind the tap: there a capture sees what they drop.  ``arrives`` is where the
    answers, untagged ones, come back to.
    """

    vlans = ((PRIORITY,), (PRIORITY, PRIORITY))
    passes = "is answered"

    def is_it(self, packet: Packet, number: int, frame: bytes) -> bool:
        """Is it an answer, a SYN-ACK or an echo reply, to that port or identifier?"""
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
    """Questions, ``ARP/ND`` and ``ping``, and answers that come back in the same tags."""

    passes = "is answered in the same tags"

    def is_it(self, packet: Packet, number: int, frame: bytes) -> bool:
        """Is it the answer: the same Ethernet header, but the other way, and what it says?"""
        data, at = packet.data, 12
        while frame[at : at + 2] == b"\x81\0":
            at += 4
        at += 2
        if data[:at] != frame[6:12] + frame[:6] + frame[12:at]:
            return False
        body, asked = data[at:], frame[at:]
        if frame[at - 2 : at] == b"\x08\x06":
            return body[7:8] == b"\2" and body[14:18] == asked[24:28]
        head, reply = (40, {135: 136, 128: 129}) if asked[0] >> 4 == 6 else (20, {8: 0})
        if len(body) < head + 8 or body[head] != reply[asked[head]]:
            return False
        what = slice(head + 8, head + 24) if body[head] == 136 else slice(head + 4, head + 8)
        return body[what] == asked[what]
