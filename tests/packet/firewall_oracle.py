# SPDX-License-Identifier: Apache-2.0
"""What xdp_firewall must do with a frame, told in plain Python with ``ipaddress``.

It shares nothing with the program but the rules of precedence in its header comment, and with the
other programs' oracle only the way past the VLAN tags.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple

from headers_oracle import EXTENSIONS, MAX_EXTS, REACH, VLAN, behind_ah, network

PORT_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "dccp": 33, "udplite": 136}
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ipv6-icmp": 58, "ospfigp": 89}


class Facts(NamedTuple):
    """``undecided``: headers go on where nobody looks.  ``known``: the protocol is known."""

    source: bytes = b""
    source_at: int = 0
    proto: int = 0
    port: int | None = None
    known: bool = False
    undecided: bool = False


def facts(frame: bytes) -> Facts:
    """What there is to be said about a frame."""
    at, kind = network(frame)
    if kind in VLAN:
        return Facts(undecided=True)
    if kind == 0x0800:
        return _ipv4(frame, at)
    return _ipv6(frame, at) if kind == 0x86DD else Facts()


def _port(frame: bytes, at: int, end: int, proto: int) -> int | None:
    if proto not in PORT_PROTOCOLS.values() or at + 4 > end:
        return None
    return int.from_bytes(frame[at + 2 : at + 4], "big")


def _ipv4(frame: bytes, at: int) -> Facts:
    head = frame[at : at + 20]
    if len(head) < 20 or head[0] >> 4 != 4 or head[0] & 15 < 5:
        return Facts()
    total = int.from_bytes(head[2:4], "big")
    end = min(len(frame), at + total) if total else len(frame)
    later = int.from_bytes(head[6:8], "big") & 0x1FFF
    source, kind, behind = at + 12, head[9], at + (head[0] & 15) * 4
    if not later:
        reached = behind_ah(frame, kind, behind, end)
        if isinstance(reached, str):
            more = bool(head[6] & 0x20)
            return Facts(head[12:16], source, undecided=reached == "deep" or more)
        kind, behind = reached
    port = None if later else _port(frame, behind, end, kind)
    return Facts(head[12:16], source, kind, port, True)


def _ipv6(frame: bytes, at: int) -> Facts:
    head = frame[at : at + 40]
    if len(head) < 40 or head[0] >> 4 != 6:
        return Facts()
    source, source_at = head[8:24], at + 8
    size, kind = int.from_bytes(head[4:6], "big"), head[6]
    at += 40
    end = min(len(frame), at + size) if size else len(frame)
    fragment = False

    def cut() -> Facts:
        return Facts(source, source_at, undecided=fragment)

    for _ in range(MAX_EXTS):
        if kind not in EXTENSIONS:
            return Facts(source, source_at, kind, _port(frame, at, end, kind), True)
        if at > REACH:
            return Facts(source, source_at, undecided=True)
        ext = frame[at : min(at + 8, end)]
        if len(ext) < 8 or (kind == 51 and not ext[1]):
            return cut()
        at += {44: 8, 51: (ext[1] + 2) * 4}.get(kind, (ext[1] + 1) * 8)
        if at > end:
            return cut()
        if kind == 44:
            word = int.from_bytes(ext[2:4], "big")
            if word & 0xFFF8:
                return Facts(source, source_at, ext[0], None, True)
            fragment = fragment or bool(word & 1)
        kind = ext[0]
    if kind in EXTENSIONS:
        return Facts(source, source_at, undecided=True)
    return Facts(source, source_at, kind, _port(frame, at, end, kind), True)


class Oracle:
    """Rules, and what they say about a frame."""

    def __init__(self, texts: list[str], default_drops: bool = False) -> None:
        self.networks: dict[IPv4Network | IPv6Network, bool] = {}
        self.ports: dict[tuple[int, int, int], bool] = {}
        self.protos: dict[int, bool] = {}
        self.default_drops = default_drops
        for text in texts:
            words = text.split()
            denies = words[0] != "allow"
            if words[0] in ("allow", "deny"):
                words = words[1:]
            name, _, rest = words[0].partition("/")
            if words[0] == "proto":
                number = PROTOCOLS.get(words[1])
                self.protos[int(words[1]) if number is None else number] = denies
            elif name in PORT_PROTOCOLS:
                low, _, high = rest.partition("-")
                self.ports[PORT_PROTOCOLS[name], int(low), int(high or low)] = denies
            else:
                self.networks[ip_network(words[0], strict=False)] = denies
        # (IP version, length), longest first -> the prefixes' bits -> does it deny
        self._by_length: dict[tuple[int, int], dict[int, bool]] = {}
        for net, denies in sorted(self.networks.items(), key=lambda one: -one[0].prefixlen):
            bits = int(net.network_address) >> net.max_prefixlen - net.prefixlen
            self._by_length.setdefault((net.version, net.prefixlen), {})[bits] = denies

    def address(self, source: bytes) -> bool | None:
        """Does the longest prefix with this address deny it?  None: there is none."""
        version, number = (4 if len(source) == 4 else 6), int.from_bytes(source, "big")
        for (of, length), prefixes in self._by_length.items():
            if of == version:
                denies = prefixes.get(number >> 8 * len(source) - length)
                if denies is not None:
                    return denies
        return None

    def drops(self, frame: bytes) -> bool:
        """Must the frame be dropped?"""
        found = facts(frame)
        if not found.source:
            return found.undecided
        denies = self.address(found.source)
        if denies is not None:
            return denies
        if found.undecided:
            return True
        if found.known and found.port is not None:
            ranges = [
                (high - low, not denies, denies)
                for (proto, low, high), denies in self.ports.items()
                if proto == found.proto and low <= found.port <= high
            ]
            if ranges:
                return min(ranges)[2]
        if found.known and found.proto in self.protos:
            return self.protos[found.proto]
        return self.default_drops
