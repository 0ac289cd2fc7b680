# SPDX-License-Identifier: Apache-2.0
"""What the XDP and tc programs must find in a frame, told independently, two ways.

:func:`look` reads bytes in plain Python by the rules of ``bpf_c/include/bpfkit/headers.h``;
:func:`built` makes a frame with scapy and knows what it is because it chose it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

#: What the tests' packets start with.
ETH = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4, V6 = IP(src="192.0.2.1", dst="192.0.2.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")
VLAN = (0x8100, 0x88A8, 0x9100)
EXTENSIONS = (0, 43, 44, 51, 60, 135, 139, 140)
MAX_TAGS, MAX_EXTS, REACH = 8, 32, 0x3FFF


class Found(NamedTuple):
    """``family`` 0: not IP.  ``deep``: more headers than the programs look through."""

    family: int = 0
    proto: int = 0
    later: bool = False
    deep: bool = False
    first: int | None = None  # the first byte behind the IP headers, where the packet has one
    dscp: int = 0


def look(frame: bytes, tags_max: int = MAX_TAGS, exts_max: int = MAX_EXTS) -> Found:
    """What there is in a frame, for a program that looks through so many tags and headers."""
    at, kind = network(frame, tags_max)
    if kind in VLAN:
        return Found(deep=True)
    if kind == 0x0800:
        return _ipv4(frame, at, exts_max)
    return _ipv6(frame, at, exts_max) if kind == 0x86DD else Found()


def network(frame: bytes, tags_max: int = MAX_TAGS) -> tuple[int, int]:
    """Where the network header is, and its ethertype: a tag's if there are too many, 0 if cut."""
    if len(frame) < 14:
        return 0, 0
    at, kind, tags = 14, int.from_bytes(frame[12:14], "big"), 0
    while kind in VLAN and tags < tags_max:
        if len(frame) < at + 4:
            return 0, 0
        kind = int.from_bytes(frame[at + 2 : at + 4], "big")
        at, tags = at + 4, tags + 1
    return at, kind


def _first(frame: bytes, at: int, end: int) -> int | None:
    return frame[at] if at < end else None


def _ipv4(frame: bytes, at: int, exts_max: int) -> Found:
    head = frame[at : at + 20]
    if len(head) < 20 or head[0] >> 4 != 4 or head[0] & 15 < 5:
        return Found()
    total = int.from_bytes(head[2:4], "big")
    end = min(len(frame), at + total) if total else len(frame)
    later = bool(int.from_bytes(head[6:8], "big") & 0x1FFF)
    kind, at = head[9], at + (head[0] & 15) * 4
    if not later:
        reached = behind_ah(frame, kind, at, end, exts_max)
        if isinstance(reached, str):
            return Found(deep=reached == "deep")
        kind, at = reached
    return Found(4, kind, later, first=_first(frame, at, end), dscp=head[1] >> 2)


def behind_ah(
    frame: bytes, kind: int, at: int, end: int, exts_max: int = MAX_EXTS
) -> tuple[int, int] | str:
    """Protocol and place behind IPv4's authentication headers; "cut" or "deep" without them."""
    for _ in range(exts_max):
        if kind != 51:
            break
        if at > REACH:
            return "deep"
        if at + 8 > end or not frame[at + 1] or at + (frame[at + 1] + 2) * 4 > end:
            return "cut"
        kind, at = frame[at], at + (frame[at + 1] + 2) * 4
    return "deep" if kind == 51 else (kind, at)


def _ipv6(frame: bytes, at: int, exts_max: int) -> Found:
    head = frame[at : at + 40]
    if len(head) < 40 or head[0] >> 4 != 6:
        return Found()
    size, kind = int.from_bytes(head[4:6], "big"), head[6]
    dscp = int.from_bytes(head[:2], "big") >> 6 & 63
    at += 40
    end = min(len(frame), at + size) if size else len(frame)
    for _ in range(exts_max):
        if kind not in EXTENSIONS:
            return Found(6, kind, first=_first(frame, at, end), dscp=dscp)
        if at > REACH:
            return Found(deep=True)
        ext = frame[at : min(at + 8, end)]
        if len(ext) < 8 or (kind == 51 and not ext[1]):
            return Found()
        at += {44: 8, 51: (ext[1] + 2) * 4}.get(kind, (ext[1] + 1) * 8)
        if at > end:
            return Found()
        if kind == 44 and int.from_bytes(ext[2:4], "big") & 0xFFF8:
            return Found(6, ext[0], True, dscp=dscp)
        kind = ext[0]
    if kind in EXTENSIONS:
        return Found(deep=True)
    return Found(6, kind, first=_first(frame, at, end), dscp=dscp)


def drops_tcp(frame: bytes) -> bool:
    """Must xdp_drop_tcp and tc_drop_tcp drop it?"""
    found = look(frame)
    return found.deep or (found.family != 0 and found.proto == 6)


def drops_icmp(frame: bytes) -> bool:
    """Must xdp_drop_icmp drop it?"""
    found = look(frame)
    return found.deep or (found.family, found.proto) in ((4, 1), (6, 58))


# --- the other way round ----------------------------------------------------------------------

_EXTS: tuple[Callable[[], Packet], ...] = (
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrRouting,
    IPv6ExtHdrFragment,
    lambda: AH(payloadlen=4, icv=bytes(12)),
)
_NEXT = {TCP: 6, UDP: 17, ICMP: 1, ICMPv6EchoRequest: 58, AH: 51, IPv6ExtHdrFragment: 44}
_NEXT |= {IPv6ExtHdrHopByHop: 0, IPv6ExtHdrRouting: 43, IPv6ExtHdrDestOpt: 60}
_TYPE = {IP: 0x0800, IPv6: 0x86DD, Dot1Q: 0x8100, Dot1AD: 0x88A8, ARP: 0x0806}


def built(rng: random.Random) -> tuple[bytes, int, int]:
    """A well-formed frame, its IP version (0: none) and its protocol."""
    parts: list[Packet] = [ETH.copy()]
    parts += [
        rng.choice((Dot1Q, Dot1AD))(vlan=rng.randrange(4095)) for _ in range(rng.randrange(4))
    ]
    version = rng.choice((4, 4, 6, 6, 0))
    transport = rng.choice((TCP, TCP, UDP, ICMP if version == 4 else ICMPv6EchoRequest))
    later = rng.random() < 0.2
    if version == 4:
        options = [IPOption_NOP()] * rng.choice((0, 0, 4, 40))
        parts.append(IP(src="192.0.2.1", dst="192.0.2.2", options=options, frag=9 if later else 0))
    elif version == 6:
        parts.append(IPv6(src="2001:db8::1", dst="2001:db8::2"))
        parts += [rng.choice(_EXTS)() for _ in range(rng.choice((0, 0, 1, 2, 5)))]
        if later:
            parts.append(IPv6ExtHdrFragment(offset=9))
    else:
        parts.append(ARP(hwdst="02:00:00:00:00:02", psrc="192.0.2.1", pdst="192.0.2.2"))
    if version:
        parts.append(transport())
    parts.append(Raw(bytes(rng.randrange(40))))
    for this, behind in pairwise(parts):
        kind = type(behind)
        if isinstance(this, (Ether, Dot1Q, Dot1AD)):
            this.type = _TYPE[kind]
        elif isinstance(this, IP):
            this.proto = _NEXT[kind]
        elif kind in _NEXT:
            this.nh = _NEXT[kind]
    packet = parts[0]
    for part in parts[1:]:
        packet = packet / part
    return bytes(packet), version, _NEXT[transport] if version else 0


def mutated(rng: random.Random, frame: bytes) -> bytes:
    """``frame`` with a few bytes changed, cut off or repeated."""
    out = bytearray(frame)
    for _ in range(rng.randrange(1, 5)):
        how = rng.randrange(4)
        at = rng.randrange(len(out)) if out else 0
        if how == 0 and out:
            out[at] = rng.getrandbits(8)
        elif how == 1 and out:
            out[at] = rng.choice((0, 6, 17, 44, 51, 58, 60, 0x45, 0x60, 0x81, 0x88, 0xFF))
        elif how == 2:
            del out[at:]
        elif len(out) > 14:
            start = rng.randrange(12, len(out))
            out[start:start] = out[start : start + 4 * rng.randrange(1, 12)]
    return bytes(out)
