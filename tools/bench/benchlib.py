# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: packets, and tables for a terminal or for README.md."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from bpfkit.net.packets.checksum import checksum

if TYPE_CHECKING:
    from collections.abc import Sequence

PAYLOAD = bytes(1000)
SOURCE, DESTINATION = bytes((192, 0, 2, 1)), bytes((198, 51, 100, 2))
PREFIX = b"\x20\x01\x0d\xb8" + bytes(11)
TCP, UDP, ICMP, GRE = 6, 17, 1, 47


def ipv4(
    proto: int, payload: bytes, source: bytes = SOURCE, destination: bytes = DESTINATION
) -> bytes:
    """An IPv4 packet."""
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, proto, 0)
    addresses = source + destination
    right = struct.pack(">H", checksum(head + addresses))
    return head[:10] + right + addresses + payload


def ipv6(proto: int, payload: bytes) -> bytes:
    """An IPv6 packet from 2001:db8::1 to 2001:db8::2."""
    head = struct.pack(">IHBB", 6 << 28, len(payload), proto, 64)
    return head + PREFIX + b"\1" + PREFIX + b"\2" + payload


def ethernet(
    ethertype: int,
    payload: bytes,
    destination: bytes = bytes.fromhex("020000000002"),
    source: bytes = bytes.fromhex("020000000001"),
) -> bytes:
    """A frame, without its checksum: 60 bytes or more."""
    return (destination + source + ethertype.to_bytes(2, "big") + payload).ljust(60, b"\0")


def tcp_segment(
    payload: bytes = b"",
    ports: tuple[int, int] = (1234, 80),
    flags: int = 0x10,
    addresses: bytes = SOURCE + DESTINATION,
    sequence: int = 1,
) -> bytes:
    """A TCP segment; its checksum is that over IPv4."""
    head = struct.pack(">HHIIBBHHH", *ports, sequence, 1, 5 << 4, flags, 500, 0, 0)
    pseudo = addresses + struct.pack(">HH", TCP, len(head) + len(payload))
    right = struct.pack(">H", checksum(pseudo + head + payload))
    return head[:16] + right + head[18:] + payload


def udp_datagram(payload: bytes, ports: tuple[int, int] = (1234, 9)) -> bytes:
    """A UDP datagram without checksum, as IPv4 allows."""
    return struct.pack(">HHHH", *ports, 8 + len(payload), 0) + payload


ECHO = struct.pack(">BBHHH", 8, 0, 0, 1, 1) + PAYLOAD
ECHO6 = struct.pack(">BBHHH", 128, 0, 0, 1, 1) + PAYLOAD
#: Hop-by-hop, destination options and an atomic fragment in front of TCP.
EXTENSIONS = b"\x3c\0\1\4\0\0\0\0" + b"\x2c\0\1\4\0\0\0\0" + struct.pack(">BBHI", TCP, 0, 0, 7)
SEGMENT = tcp_segment(PAYLOAD)
PACKETS = {
    "TCP over IPv4": ethernet(0x0800, ipv4(TCP, SEGMENT)),
    "TCP over IPv6": ethernet(0x86DD, ipv6(TCP, SEGMENT)),
    "TCP over IPv4 in a VLAN": ethernet(0x8100, b"\0\5\x08\0" + ipv4(TCP, SEGMENT)),
    "TCP over IPv6, 3 extension headers": ethernet(0x86DD, ipv6(0, EXTENSIONS + SEGMENT)),
    "ICMP over IPv4": ethernet(0x0800, ipv4(ICMP, ECHO)),
    "TCP over IPv4 in GRE": ethernet(0x0800, ipv4(GRE, b"\0\0\x08\0" + ipv4(TCP, SEGMENT))),
}


def table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1, markdown: bool = False
) -> str:
    """The rows below the titles; the first ``words`` columns hold words, the others numbers."""
    if markdown:
        rule = ["---"] * words + ["--:"] * (len(titles) - words)
        return "\n".join("| " + " | ".join(line) + " |" for line in (titles, rule, *rows))
    from bpfkit.show.text import table as aligned

    right = [False] * words + [True] * (len(titles) - words)
    return "\n".join(aligned(titles, rows, right=right))
