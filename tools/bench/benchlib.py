# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: packets, and tables for a terminal or for Markdown."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from bpfkit.net.packets.frames import ethernet, icmp_message, ip_packet, tcp_segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PAYLOAD = bytes(1000)
#: Source and destination address, by IP version.
ENDS = {4: ("192.0.2.1", "198.51.100.2"), 6: ("2001:db8::1", "2001:db8::2")}
TCP, ICMP, GRE = 6, 1, 47
ACK = 16


def frame(
    packet: bytes,
    to: str = "02:00:00:00:00:02",
    by: str = "02:00:00:00:00:01",
    vlans: Iterable[int] = (),
) -> bytes:
    """A packet in a frame of at least 60 bytes, FCS not included."""
    return ethernet(to, by, packet, vlans=vlans).ljust(60, b"\0")


def _tcp(version: int) -> bytes:
    return tcp_segment(
        *ENDS[version], PAYLOAD, ports=(1234, 80), flags=ACK, acknowledgement=1, window=500
    )


TCP4 = ip_packet(*ENDS[4], TCP, _tcp(4))
#: Hop-by-hop, destination options and an atomic fragment, in front of TCP.
EXTENSIONS = b"\x3c\0\1\4\0\0\0\0" + b"\x2c\0\1\4\0\0\0\0" + struct.pack(">BBHI", TCP, 0, 0, 7)
PACKETS = {
    "TCP over IPv4": frame(TCP4),
    "TCP over IPv6": frame(ip_packet(*ENDS[6], TCP, _tcp(6))),
    "TCP over IPv4 in a VLAN": frame(TCP4, vlans=[5]),
    "TCP over IPv6, 3 extension headers": frame(ip_packet(*ENDS[6], 0, EXTENSIONS + _tcp(6))),
    "ICMP over IPv4": frame(
        ip_packet(*ENDS[4], ICMP, icmp_message(8, struct.pack(">HH", 1, 1) + PAYLOAD))
    ),
    "TCP over IPv4 in GRE": frame(ip_packet(*ENDS[4], GRE, b"\0\0\x08\0" + TCP4)),
}


def table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1, markdown: bool = False
) -> str:
    """A table; the first ``words`` columns hold text, the others numbers."""
    if markdown:
        rule = ["---"] * words + ["--:"] * (len(titles) - words)
        return "\n".join("| " + " | ".join(line) + " |" for line in (titles, rule, *rows))
    from bpfkit.show.text import table as aligned

    right = [False] * words + [True] * (len(titles) - words)
    return "\n".join(aligned(titles, rows, right=right))
