# SPDX-License-Identifier: Apache-2.0
"""What xdp_lb must do with a frame, told independently: in plain Python, by its header comment.

:class:`Oracle` knows services and backends and says verdict, bytes and backend.  Its Maglev is the
paper's, with whole permutations; its hash is lookup3's final mixing written from its description.
"""

from __future__ import annotations

import hashlib
import ipaddress
import struct
from typing import NamedTuple

from headers_oracle import EXTENSIONS, VLAN, behind_ah

PASS, TX, DROP = 2, 3, 1
MAX_TAGS, MAX_EXTS = 2, 32
PORTS = (6, 17, 33, 132, 136)
ADDRESS = {4: 4, 6: 16}


class Here(NamedTuple):
    """Where things are in a frame whose headers were found."""

    family: int
    proto: int
    network: int
    payload: int
    limit: int
    fragment: bool
    later: bool


def find(frame: bytes) -> Here | None:
    """The IP header and what is behind it; None: it is not there, or behind too much."""
    kind, at, tags = int.from_bytes(frame[12:14], "big"), 14, 0
    while kind in VLAN:
        tags += 1
        if tags > MAX_TAGS or len(frame) < at + 4:
            return None
        kind, at = int.from_bytes(frame[at + 2 : at + 4], "big"), at + 4
    if kind == 0x0800:
        return _find4(frame, at)
    return _find6(frame, at) if kind == 0x86DD else None


def _find4(frame: bytes, at: int) -> Here | None:
    if len(frame) < at + 20 or frame[at] >> 4 != 4 or frame[at] & 15 < 5:
        return None
    total, _, bits = struct.unpack_from("!HHH", frame, at + 2)
    limit = min(len(frame), at + total) if total else len(frame)
    payload = at + 4 * (frame[at] & 15)
    offset = bits & 0x1FFF
    kind = frame[at + 9]
    if not offset:
        reached = behind_ah(frame, kind, payload, limit, MAX_EXTS)
        if isinstance(reached, str):
            return None
        kind, payload = reached
    return Here(4, kind, at, payload, limit, bool(bits & 0x3FFF), bool(offset))


def _find6(frame: bytes, network: int) -> Here | None:
    if len(frame) < network + 40 or frame[network] >> 4 != 6:
        return None
    size, kind = struct.unpack_from("!HB", frame, network + 4)
    at = network + 40
    limit = min(len(frame), at + size) if size else len(frame)
    fragment = False
    for _ in range(MAX_EXTS):
        if kind not in EXTENSIONS:
            break
        if at + 8 > limit:
            return None
        length = (frame[at + 1] + 1) * 8
        if kind == 44:
            length = 8
        elif kind == 51:
            length = (frame[at + 1] + 2) * 4
            if not frame[at + 1]:
                return None
        if at + length > limit:
            return None
        if kind == 44:
            bits = int.from_bytes(frame[at + 2 : at + 4], "big")
            if bits & 0xFFF8:
                return Here(6, frame[at], network, at + 8, limit, True, True)
            fragment = fragment or bool(bits & 1)
        kind = frame[at]
        at += length
    if kind in EXTENSIONS:
        return None
    return Here(6, kind, network, at, limit, fragment, False)


class Flow(NamedTuple):
    """Addresses as bytes, ports None where there are none."""

    source: bytes
    destination: bytes
    proto: int
    sport: int | None
    dport: int | None


def _ends(frame: bytes, network: int, family: int) -> tuple[bytes, bytes]:
    size, at = ADDRESS[family], network + (12 if family == 4 else 8)
    return frame[at : at + size], frame[at + size : at + 2 * size]


def flow_of(frame: bytes, here: Here) -> Flow:
    """Who sends to whom."""
    source, destination = _ends(frame, here.network, here.family)
    sport = dport = None
    if here.proto in PORTS and not here.fragment and here.payload + 4 <= here.limit:
        sport, dport = struct.unpack_from("!HH", frame, here.payload)
    return Flow(source, destination, here.proto, sport, dport)


def quoted(frame: bytes, here: Here) -> Flow | None:
    """The flow that an ICMP error is about, as the client sends it."""
    inner = here.payload + 8
    if here.fragment or inner > here.limit:
        return None
    kinds = (3, 11, 12) if here.family == 4 else (1, 2, 3, 4)
    least = 20 if here.family == 4 else 40
    if frame[here.payload] not in kinds or inner + least > here.limit:
        return None
    source, destination = _ends(frame, inner, here.family)
    if source != _ends(frame, here.network, here.family)[1]:
        return None
    if here.family == 4:
        if frame[inner] >> 4 != 4 or frame[inner] & 15 < 5:
            return None
        proto, at = frame[inner + 9], inner + 4 * (frame[inner] & 15)
        later = int.from_bytes(frame[inner + 6 : inner + 8], "big") & 0x1FFF
    else:
        if frame[inner] >> 4 != 6:
            return None
        proto, at, later = frame[inner + 6], inner + 40, 0
    if proto not in PORTS:
        return None
    if later:
        return Flow(destination, source, proto, None, None)
    if at + 4 > here.limit:
        return None
    dport, sport = struct.unpack_from("!HH", frame, at)
    return Flow(destination, source, proto, sport, dport)


def final(a: int, b: int, c: int, seed: int) -> int:
    """lookup3's final(a, b, c) from jhash's starting values, for three words."""
    start = (0xDEADBEEF + 12 + seed) % 2**32
    words = {"a": (a + start) % 2**32, "b": (b + start) % 2**32, "c": (c + start) % 2**32}
    for x, y, turn in (
        ("c", "b", 14),
        ("a", "c", 11),
        ("b", "a", 25),
        ("c", "b", 16),
        ("a", "c", 4),
        ("b", "a", 14),
        ("c", "b", 24),
    ):
        word = words[y]
        words[x] ^= word
        words[x] = (words[x] - ((word << turn | word >> (32 - turn)) % 2**32)) % 2**32
    return words["c"]


def hash_of(flow: Flow) -> int:
    """Of addresses, protocol and ports, as a little-endian machine has them in memory."""
    source = struct.unpack(f"<{len(flow.source) // 4}I", flow.source)
    destination = struct.unpack(f"<{len(flow.source) // 4}I", flow.destination)
    sport, dport = struct.unpack("<HH", struct.pack("!HH", flow.sport or 0, flow.dport or 0))
    seed = flow.proto
    if len(source) == 4:
        seed = final(*source[:3], seed)
        seed = final(*destination[:3], seed)
    return final(source[-1], destination[-1], sport * 65536 + dport, seed)


def maglev(names: list[str], size: int) -> list[str]:
    """The paper's pseudocode, figure 3, with one slot a turn for each."""
    names = sorted(names)
    permutations = []
    for name in names:
        digest = hashlib.blake2b(name.encode(), digest_size=16, person=b"bpfkit maglev").digest()
        offset = int.from_bytes(digest[:8], "big") % size
        skip = int.from_bytes(digest[8:], "big") % (size - 1) + 1
        permutations.append([(offset + j * skip) % size for j in range(size)])
    entry: list[str | None] = [None] * size
    following = [0] * len(names)
    filled = 0
    while names and filled < size:
        for i, name in enumerate(names):
            if filled == size:
                break
            while entry[permutations[i][following[i]]] is not None:
                following[i] += 1
            entry[permutations[i][following[i]]] = name
            filled += 1
    return [name or "" for name in entry]


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


class Oracle:
    """Services (packed address, port, protocol) and backends: name -> (source, MAC)."""

    def __init__(
        self,
        services: set[tuple[bytes, int, int]],
        backends: dict[str, tuple[str, bytes]],
        size: int,
        *,
        mtu: int = 1500,
        tunnel: bool = True,
    ) -> None:
        self.services = services
        self.some = {(address, proto) for address, _, proto in services}
        self.backends = backends
        self.table = maglev(list(backends), size)
        self.mtu = mtu
        self.tunnel = tunnel

    def backend(self, flow: Flow) -> str:
        return self.table[hash_of(flow) % len(self.table)]

    def judge(self, frame: bytes) -> tuple[int, bytes | None]:
        """Verdict, and for TX the frame that comes out; None: look at it by other means (the answer
        "too big")."""
        here = find(frame)
        if here is None:
            return PASS, None
        error = (here.family, here.proto) in ((4, 1), (6, 58))
        flow = quoted(frame, here) if error else flow_of(frame, here)
        if flow is None:
            return PASS, None
        if flow.dport is None:
            if (flow.destination, flow.proto) not in self.some or not (here.fragment or error):
                return PASS, None
        elif (flow.destination, flow.dport, flow.proto) not in self.services:
            return PASS, None
        if frame[0] & 1:
            return PASS, None
        head = frame[here.network : here.network + 40]
        if here.family == 4:
            length, least, tos = int.from_bytes(head[2:4], "big"), 4 * (head[0] & 15), head[1]
            whole = bool(head[6] & 0x40)
        else:
            length, least = 40 + int.from_bytes(head[4:6], "big"), 41
            tos, whole = int.from_bytes(head[:2], "big") >> 4 & 0xFF, True
        if length < least or here.network + length > len(frame):
            return PASS, None
        name = self.backend(flow)
        if not name:
            return DROP, None
        source, mac = self.backends[name]
        link = mac + frame[:6] + frame[12 : here.network]
        if not self.tunnel:
            return TX, link + frame[here.network :]
        outer = 40 if ":" in name else 20
        if length + outer > self.mtu:
            return (DROP if not whole or here.later or error else TX), None
        ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(name).packed
        inner = 4 if here.family == 4 else 41
        if ":" in name:
            word = 6 << 28 | tos << 20 | hash_of(flow) & 0xFFFFF
            ip, kind = struct.pack("!IHBB", word, length, inner, 64) + ends, b"\x86\xdd"
        else:
            ip = struct.pack("!BBHHHBBH", 0x45, tos, length + 20, 0, 0x4000, 64, inner, 0) + ends
            ip, kind = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:], b"\x08\x00"
        return TX, link[:-2] + kind + ip + frame[here.network :]
