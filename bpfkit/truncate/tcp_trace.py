# SPDX-License-Identifier: Apache-2.0
"""Reconstructs one TCP connection from packets: its segments, times and sequence numbers.

Sequence and acknowledgement numbers are relative to the SYN, which is 0, as in Wireshark.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.net.packets.packet_socket import Packet

__all__ = ["Segment", "tcp_trace"]

_TCP = struct.Struct("!HHIIBBHHH")
_ETHERTYPE_IP, _ETHERTYPE_IPV6 = 0x0800, 0x86DD
_IPPROTO_TCP = 6
_FLAGS = ((0x02, "S"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x20, "U"), (0x10, "."))


class Segment:
    """One TCP segment.

    :ivar ts_ns: UNIX time in nanoseconds.
    :ivar to_server: whether the client, which sent the SYN, sent the segment.
    :ivar flags: in tcpdump's notation: ``S`` ``F`` ``R`` ``P`` ``U``, and ``.`` for ACK.
    :ivar seq, ack: relative numbers; ``ack`` is 0 without the ACK flag.
    :ivar payload: the segment's data.
    :ivar again: whether all of its data was sent before.
    :ivar sport: source port.
    """

    __slots__ = ("ack", "again", "flags", "payload", "seq", "sport", "to_server", "ts_ns")

    def __init__(self, ts_ns: int, sport: int, flags: str, payload: bytes) -> None:
        self.ts_ns = ts_ns
        self.sport = sport
        self.flags = flags
        self.payload = payload
        self.to_server = False
        self.seq = self.ack = 0
        self.again = False

    def __repr__(self) -> str:
        arrow = "->" if self.to_server else "<-"
        return f"<Segment {arrow} {self.flags} {self.seq} {self.ack} {len(self.payload)} bytes>"


def _tcp(frame: bytes) -> tuple[int, int, int, int, str, bytes] | None:
    """(sport, dport, seq, ack, flags, payload) of an Ethernet frame with TCP over IP."""
    if len(frame) < 54:
        return None
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype == _ETHERTYPE_IP and frame[23] == _IPPROTO_TCP:
        at = 14 + (frame[14] & 15) * 4
        end = 14 + int.from_bytes(frame[16:18], "big")
    elif ethertype == _ETHERTYPE_IPV6 and frame[20] == _IPPROTO_TCP:
        at = 14 + 40
        end = at + int.from_bytes(frame[18:20], "big")
    else:
        return None
    if len(frame) < at + 20:
        return None
    sport, dport, seq, ack, offset, bits, _, _, _ = _TCP.unpack_from(frame, at)
    flags = "".join(letter for bit, letter in _FLAGS if bits & bit)
    return sport, dport, seq, ack, flags, frame[at + (offset >> 4) * 4 : end]


def tcp_trace(packets: Iterable[Packet], client_port: int, server_port: int) -> list[Segment]:
    """The segments of one connection among ``packets``, each once (on lo: as they leave)."""
    first: dict[bool, int] = {}
    high: dict[bool, int] = {}
    trace = []
    for packet in packets:
        found = _tcp(packet.data)
        if found is None or not packet.outgoing:
            continue
        sport, dport, seq, ack, flags, payload = found
        if {sport, dport} != {client_port, server_port}:
            continue
        segment = Segment(packet.ts_ns, sport, flags, payload)
        way = segment.to_server = sport == client_port
        if "S" in flags:
            first[way] = seq
        segment.seq = (seq - first.get(way, seq)) & 0xFFFFFFFF
        if "." in flags:
            segment.ack = (ack - first.get(not way, ack)) & 0xFFFFFFFF
        end = segment.seq + len(payload)
        segment.again = bool(payload) and end <= high.get(way, 0)
        high[way] = max(high.get(way, 0), end)
        trace.append(segment)
    return trace
