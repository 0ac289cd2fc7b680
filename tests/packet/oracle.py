# SPDX-License-Identifier: Apache-2.0
"""What sockex3 has to say about a frame, told a second time and independently, in plain Python.

:func:`dissect` reads the bytes of a frame by the rules in ``bpf_c/socket/sockex3.bpf.c``'s header
comment: the flow is that of the innermost IP header that can be read.  :func:`random_frame` goes
the other way: it builds a frame with scapy and knows the flow because it chose it.
"""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

from counters import Flow, Tunnel
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import GRE, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

ETH_TYPES_VLAN = (0x8100, 0x88A8, 0x9100)
PORTS = frozenset({6, 17, 33, 132, 136})
_EXTENSIONS = frozenset({0, 43, 44, 51, 60, 135, 139, 140})
_IN_IP = {(4, 4): "ipip", (4, 6): "6in4", (6, 4): "4in6", (6, 6): "6in6"}


#: Ethertypes by which an Ethernet pseudowire is known.
KNOWN = (0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8, 0x8847, 0x8864, 0x88CC)


class _Cut(Exception):
    """The bytes end, or are not what they should be: what was read until now counts."""


class _Reader:
    """Reads one frame; ``flow`` is the deepest one so far."""

    def __init__(self, frame: bytes, vxlan_port: int) -> None:
        self.frame = frame
        self.vxlan_port = vxlan_port
        self.flow: Flow | None = None
        self.vlan: tuple[int, ...] = ()
        self.tunnel: tuple[Tunnel, ...] = ()

    def take(self, at: int, size: int, end: int) -> bytes:
        if at + size > end:
            raise _Cut
        return self.frame[at : at + size]

    def number(self, at: int, size: int, end: int) -> int:
        return int.from_bytes(self.take(at, size, end), "big")

    def ethernet(self, at: int, end: int) -> None:
        self.take(at, 14, end)
        self.ethertype(self.number(at + 12, 2, end), at + 14, end)

    def ethertype(self, kind: int, at: int, end: int) -> None:
        while kind in ETH_TYPES_VLAN:
            tci, kind = self.number(at, 2, end), self.number(at + 2, 2, end)
            if tci & 0xFFF:  # id 0: a priority, and no VLAN
                self.vlan += (tci & 0xFFF,)
            at += 4
        if kind in (0x8847, 0x8848):
            while not self.number(at, 4, end) & 0x100:
                at += 4
            at += 4
            version = self.number(at, 1, end) >> 4
            if version in (4, 6) and not self.is_ethernet(at, end, version):
                self.ip(version, at, end)
            elif self.known_at(at + 12, end):
                self.ethertype(self.number(at + 12, 2, end), at + 14, end)
            elif not version and self.known_at(at + 16, end):  # behind a control word
                self.ethertype(self.number(at + 16, 2, end), at + 18, end)
        elif kind == 0x8864:
            self.pppoe(at, end)
        elif kind == 0x0800:
            self.ip(4, at, end)
        elif kind == 0x86DD:
            self.ip(6, at, end)

    def is_ethernet(self, at: int, end: int, version: int) -> bool:
        """An Ethernet pseudowire whose MAC address starts like an IP header."""
        if end - at < 20:
            return False
        head = self.frame[at : at + 20]
        if version == 4:
            total = int.from_bytes(head[2:4], "big")
            words = sum(int.from_bytes(head[i : i + 2], "big") for i in range(0, 20, 2))
            if head[0] == 0x45 and words % 0xFFFF == 0 and words:
                return False
        else:
            total = int.from_bytes(head[4:6], "big") + 40
        if total == end - at:
            return False
        return int.from_bytes(head[12:14], "big") in KNOWN

    def known_at(self, at: int, end: int) -> bool:
        """An ethertype is there, at the end of an Ethernet header."""
        return at + 2 <= end and int.from_bytes(self.frame[at : at + 2], "big") in KNOWN

    def pppoe(self, at: int, end: int) -> None:
        """RFC 2516's session stage, PPP with a protocol number of one byte or two."""
        if end - at < 8 or self.frame[at : at + 2] != b"\x11\0":
            return
        end = min(end, at + 6 + self.number(at + 4, 2, end))
        first = self.frame[at + 6]
        size = 1 if first & 1 else 2
        number = int.from_bytes(self.frame[at + 6 : at + 6 + size], "big")
        kind = {0x21: 0x0800, 0x57: 0x86DD, 0x281: 0x8847, 0x283: 0x8847}.get(number, 0)
        self.ethertype(kind, at + 6 + size, end)

    def enter(self, src: bytes, dst: bytes) -> None:
        kind = IPv4Address if len(src) == 4 else IPv6Address
        self.flow = Flow(str(kind(src)), str(kind(dst)), 0, vlan=self.vlan, tunnel=self.tunnel)

    def ip(self, version: int, at: int, end: int) -> None:
        head = self.take(at, 20 if version == 4 else 40, end)
        if head[0] >> 4 != version or (version == 4 and head[0] & 15 < 5):
            raise _Cut
        if version == 4:
            self.enter(head[12:16], head[16:20])
            length = int.from_bytes(head[2:4], "big")
            if length:
                end = min(end, at + length)
            self.named(head[9])
            if not int.from_bytes(head[6:8], "big") & 0x1FFF:
                self.behind_ah(head[9], at + (head[0] & 15) * 4, end)
            return
        self.enter(head[8:24], head[24:40])
        length = int.from_bytes(head[4:6], "big")
        at, kind = at + 40, head[6]
        if length:
            end = min(end, at + length)
        while True:
            self.named(kind)
            if kind not in _EXTENSIONS:
                break
            ext = self.take(at, 8, end)
            size = {44: 8, 51: (ext[1] + 2) * 4}.get(kind, (ext[1] + 1) * 8)
            if kind == 51 and not ext[1]:
                raise _Cut
            self.take(at, size, end)
            if kind == 44 and int.from_bytes(ext[2:4], "big") & 0xFFF8:
                self.named(ext[0])
                return
            at, kind = at + size, ext[0]
        self.payload(6, kind, at, end)

    def behind_ah(self, kind: int, at: int, end: int) -> None:
        """IPv4's one extension header, which may stand there more than once."""
        while kind == 51:
            ext = self.take(at, 8, end)
            size = (ext[1] + 2) * 4
            if not ext[1]:
                raise _Cut
            self.take(at, size, end)
            at, kind = at + size, ext[0]
            self.named(kind)
        self.payload(4, kind, at, end)

    def named(self, proto: int) -> None:
        assert self.flow is not None
        self.flow = self.flow._replace(proto=proto)

    def inside(self, kind: str, number: int | None = None) -> None:
        assert self.flow is not None
        self.tunnel = (*self.flow.tunnel, Tunnel(kind, self.flow.src, self.flow.dst, number))

    def payload(self, version: int, proto: int, at: int, end: int) -> None:
        assert self.flow is not None
        if proto in (4, 41):
            inner = 4 if proto == 4 else 6
            self.inside(_IN_IP[version, inner])
            self.ip(inner, at, end)
        elif proto == 47:
            self.gre(at, end)
        elif proto in PORTS:
            sport, dport = self.number(at, 2, end), self.number(at + 2, 2, end)
            self.flow = self.flow._replace(sport=sport, dport=dport)
            if proto == 17 and self.vxlan_port and dport == self.vxlan_port:
                head = self.take(at + 8, 8, end)
                if head[0] & 0x08:
                    self.inside("vxlan", int.from_bytes(head[4:7], "big"))
                    self.ethernet(at + 16, end)

    def gre(self, at: int, end: int) -> None:
        flags, kind = self.number(at, 2, end), self.number(at + 2, 2, end)
        at += 4
        if flags & 7 == 1:
            self.pptp(flags, kind, at, end)
            return
        if flags & 0x4007:
            return
        key = None
        if flags & 0x8000:
            at += 4
        if flags & 0x2000:
            key = self.number(at, 4, end)
            at += 4
        if flags & 0x1000:
            at += 4
        self.inside("gre", key)
        if kind == 0x6558:
            self.ethernet(at, end)
        else:
            self.ethertype(kind, at, end)

    def pptp(self, flags: int, kind: int, at: int, end: int) -> None:
        assert self.flow is not None
        if kind != 0x880B or not flags & 0x2000:
            return
        self.inside("gre", self.number(at, 4, end) & 0xFFFF)
        self.flow = self.flow._replace(tunnel=self.tunnel, vlan=self.vlan)
        if not flags & 0x1000:
            return
        at += 4 + (8 if flags & 0x80 else 4)
        if self.take(at, 2, end) == b"\xff\x03":
            at += 2
        self.take(at, 2, end)
        if self.frame[at] == 0:
            at += 1
        proto = self.number(at, 1, end)
        if proto in (0x21, 0x57):
            self.ip(4 if proto == 0x21 else 6, at + 1, end)


def dissect(frame: bytes, vxlan_port: int = 0) -> Flow | None:
    """The flow of a frame; None: no IP header could be read."""
    reader = _Reader(frame, vxlan_port)
    try:
        reader.ethernet(0, len(frame))
    except _Cut:
        pass
    return reader.flow


# --- the other way round ----------------------------------------------------------------------


def _address(rng: random.Random, version: int) -> str:
    if version == 4:
        return str(IPv4Address(0x0A000000 | rng.getrandbits(16)))
    return str(IPv6Address(0x20010DB8 << 96 | rng.getrandbits(4) << 64 | rng.getrandbits(16)))


def _tags(rng: random.Random, most: int) -> tuple[list[Packet], list[int]]:
    ids = [rng.randrange(1, 4095) for _ in range(rng.randrange(most + 1))]
    return [rng.choice((Dot1Q, Dot1AD))(vlan=i) for i in ids], ids


def _extensions(rng: random.Random) -> list[Packet]:
    kinds = (IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt, IPv6ExtHdrRouting, IPv6ExtHdrFragment)
    return [rng.choice(kinds)() for _ in range(rng.choice((0, 0, 0, 1, 2, 9)))]


def _transport(rng: random.Random) -> tuple[Packet, int, int | None, int | None]:
    sport, dport = rng.randrange(1, 65536), rng.randrange(1, 4000)
    kind = rng.choice((TCP, UDP, SCTP, ICMP))
    if kind is ICMP:
        return ICMP(), 1, None, None
    return kind(sport=sport, dport=dport), {TCP: 6, UDP: 17, SCTP: 132}[kind], sport, dport


def random_frame(rng: random.Random, vxlan_port: int = 4789) -> tuple[bytes, Flow]:
    """A well-formed frame of random layers (VLAN, MPLS, up to three tunnels) and its flow."""
    ids: list[int]
    parts, ids = _tags(rng, 3)
    parts.insert(0, Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02"))
    labels = rng.choice((0, 0, 0, 1, 2, 3))
    parts += [MPLS(label=16 + i, s=int(i == labels - 1)) for i in range(labels)]
    vlan = list(ids)
    tunnel: list[Tunnel] = []
    for depth in range(rng.choice((1, 1, 2, 2, 3, 4)), 0, -1):
        version = rng.choice((4, 6))
        src, dst = _address(rng, version), _address(rng, version)
        if version == 4:
            padding = rng.choice((0, 0, 0, 4, 40))
            ip: Packet = IP(src=src, dst=dst, options=[IPOption_NOP()] * padding)
            parts.append(ip)
        else:
            parts.append(IPv6(src=src, dst=dst))
            parts += _extensions(rng)
        if depth == 1:
            break
        carrier = rng.choice(("gre", "teb", "ip", "vxlan", "mpls"))
        if carrier == "vxlan":
            number = rng.getrandbits(24)
            parts += [UDP(sport=rng.randrange(1, 65536), dport=vxlan_port), VXLAN(vni=number)]
            tunnel.append(Tunnel("vxlan", src, dst, number))
        elif carrier == "ip":
            tunnel.append(Tunnel("?", src, dst, version))
        else:
            key = rng.choice((None, rng.getrandbits(32)))
            gre = GRE(chksum_present=rng.getrandbits(1), seqnum_present=rng.getrandbits(1))
            if key is not None:
                gre.key_present, gre.key = 1, key
            parts.append(gre)
            tunnel.append(Tunnel("gre", src, dst, key))
            if carrier == "mpls":
                parts.append(MPLS(label=77, s=1))
        if carrier in ("teb", "vxlan"):
            parts.append(Ether(src="02:00:00:00:00:03", dst="02:00:00:00:00:04"))
            tags, ids = _tags(rng, 2)
            parts += tags
            vlan += ids
    transport, proto, sport, dport = _transport(rng)
    # ICMP over IPv6 is odd but a protocol like any other
    parts += [transport, Raw(bytes(rng.randrange(60)))]
    frame = _stack(parts)
    tunnel = _name_ip_in_ip(parts, tunnel)
    vlan = [one for one in vlan if one]
    return frame, Flow(src, dst, proto, sport, dport, tuple(vlan), tuple(tunnel))


def _name_ip_in_ip(parts: list[Packet], tunnel: list[Tunnel]) -> list[Tunnel]:
    versions = [4 if isinstance(p, IP) else 6 for p in parts if isinstance(p, (IP, IPv6))]
    return [
        Tunnel(_IN_IP[versions[i], versions[i + 1]], t.src, t.dst) if t.type == "?" else t
        for i, t in enumerate(tunnel)
    ]


_NEXT = {TCP: 6, UDP: 17, SCTP: 132, ICMP: 1, IP: 4, IPv6: 41, GRE: 47}
_NEXT |= {IPv6ExtHdrHopByHop: 0, IPv6ExtHdrRouting: 43, IPv6ExtHdrFragment: 44}
_NEXT |= {IPv6ExtHdrDestOpt: 60}
_TYPE = {IP: 0x0800, IPv6: 0x86DD, MPLS: 0x8847, Dot1Q: 0x8100, Dot1AD: 0x88A8, Ether: 0x6558}


def _stack(parts: list[Packet]) -> bytes:
    """Joins the layers, naming each in the one before: nothing is left to scapy's bindings."""
    for this, behind in pairwise(parts):
        kind = type(behind)
        if isinstance(this, (Ether, Dot1Q, Dot1AD)):
            this.type = _TYPE[kind]
        elif isinstance(this, GRE):
            this.proto = _TYPE[kind]
        elif isinstance(this, IP):
            this.proto = _NEXT[kind]
        elif kind in _NEXT and hasattr(this, "nh"):
            this.nh = _NEXT[kind]
    packet = parts[0]
    for part in parts[1:]:
        packet = packet / part
    return bytes(packet)
