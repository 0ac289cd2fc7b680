# SPDX-License-Identifier: Apache-2.0
"""xdp_cpumap, frame by frame: what is spread, and to which CPU, against plain Python.

A packet run does not put anything into a queue, so all 64 slots can be used on every machine: they
are told apart by the CPU that each bit of their number is sent to, in six runs.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Iterator

import pytest
from corpus import frames, pcap_verdicts, random_frames, truncated
from headers_oracle import ETH, EXTENSIONS, VLAN, look
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

import bpfkit
from bpfkit.core.cpus import online, possible_cpus
from bpfkit.core.object import Object

RANDOM = 200_000
PASS, REDIRECT = 2, 4
PORTS = (6, 17, 33, 132, 136)
MASK = 0xFFFFFFFF
SLOTS = 64


# --- the oracle -----------------------------------------------------------------------------------


def endpoints(frame: bytes) -> tuple[int, bytes, bytes, bytes, bytes] | None:
    """(protocol, source, destination, source port, destination port); None: it is not spread.

    Addresses have 16 bytes, IPv4's as ::ffff:a.b.c.d; ports two, zeros where there are none.
    """
    found = look(frame)
    if not found.family:
        return None
    at, kind = 14, int.from_bytes(frame[12:14], "big")
    while kind in VLAN:
        kind, at = int.from_bytes(frame[at + 2 : at + 4], "big"), at + 4
    head = frame[at:]
    none = b"\0\0"
    if found.family == 4:
        mapped = bytes(10) + b"\xff\xff"
        source, destination = mapped + head[12:16], mapped + head[16:20]
        total = int.from_bytes(head[2:4], "big")
        packet = head[:total] if total else head
        part = int.from_bytes(head[6:8], "big") & 0x3FFF
        rest, kind = packet[(head[0] & 15) * 4 :], head[9]
        while kind == 51 and not part:  # authentication headers
            kind, rest = rest[0], rest[(rest[1] + 2) * 4 :]
    else:
        source, destination = head[8:24], head[24:40]
        size = int.from_bytes(head[4:6], "big")
        rest, part = _behind(head[6], head[40 : 40 + size] if size else head[40:])
    if part or found.proto not in PORTS or len(rest) < 4:
        return found.proto, source, destination, none, none
    return found.proto, source, destination, rest[:2], rest[2:4]


def _behind(kind: int, rest: bytes) -> tuple[bytes, int]:
    """What follows the extension headers, and whether it is part of a datagram."""
    part = 0
    while kind in EXTENSIONS:
        size = {44: 8, 51: (rest[1] + 2) * 4}.get(kind, (rest[1] + 1) * 8)
        if kind == 44:
            part |= int.from_bytes(rest[2:4], "big") & 0xFFF9
            if part & 0xFFF8:
                return b"", part
        kind, rest = rest[0], rest[size:]
    return rest, part


def jhash3(a: int, b: int, c: int, seed: int = 0) -> int:
    """The final mixing of Bob Jenkins' lookup3, as the kernel's jhash_3words() has it."""
    seed = seed + 0xDEADBEEF + 12
    a, b, c = a + seed & MASK, b + seed & MASK, c + seed & MASK
    for first, shift in (
        (14, "c"),
        (11, "a"),
        (25, "b"),
        (16, "c"),
        (4, "a"),
        (14, "b"),
        (24, "c"),
    ):
        if shift == "c":
            c = (c ^ b) - (b << first | b >> 32 - first) & MASK
        elif shift == "a":
            a = (a ^ c) - (c << first | c >> 32 - first) & MASK
        else:
            b = (b ^ a) - (a << first | a >> 32 - first) & MASK
    return c


def slot(frame: bytes, slots: int) -> int | None:
    """Which of so many slots; None: it stays."""
    found = endpoints(frame)
    if found is None:
        return None
    proto, *rest = found
    ends = []
    for address, port in zip(rest[:2], rest[2:], strict=True):
        w = struct.unpack("=4I", address)
        ends.append(jhash3(w[3], *struct.unpack("=H", port), jhash3(w[0], w[1], w[2])))
    a, b = ends
    return jhash3(a + b & MASK, a ^ b, proto) * slots >> 32


# --- the program ----------------------------------------------------------------------------------


class Spread:
    """The program with so many slots, and where it sends a frame."""

    def __init__(self, slots: int) -> None:
        count = possible_cpus()
        self.slots = slots
        self.object: Object = bpfkit.load(
            "xdp/xdp_cpumap.bpf.c",
            consts={"cpu_count": slots},
            max_entries={"chosen": slots, "cpus": count, "queued": count + 1},
        )
        self.run = self.object.programs["xdp_cpumap"].runner(skb=False)
        self.cpus = online()
        for cpu in self.cpus:
            self.object["cpus"][cpu] = (64, self.object.programs["on_cpu"])
        for number in range(slots):
            self.object["chosen"][number] = self.cpus[number % len(self.cpus)]

    def queued(self) -> dict[int, int]:
        """Frames by CPU; -1: stayed."""
        return {key - 1: sums.packets for key, sums in self.object["queued"].sums() if sums.packets}

    def stays(self, frame: bytes) -> bool:
        verdict = self.run(frame.ljust(14, b"\0"))
        assert verdict in (PASS, REDIRECT)
        return verdict == PASS


@pytest.fixture(scope="module")
def spread() -> Iterator[Spread]:
    made = Spread(len(online()))
    yield made
    made.object.close()


def test_exactly_the_slot_that_the_hash_says() -> None:
    """All slots on any machine of two CPUs or more: bit by bit of their number."""
    made = Spread(SLOTS)
    try:
        if len(made.cpus) < 2:
            pytest.skip("one CPU: slots cannot be told apart")
        whole = [f.ljust(14, b"\0") for f in frames() if endpoints(f)]
        numbers = [0] * len(whole)
        for bit in range(6):
            for number in range(SLOTS):
                made.object["chosen"][number] = made.cpus[number >> bit & 1]
            for i, frame in enumerate(whole):
                made.object["queued"].clear()
                assert not made.stays(frame)
                (cpu,) = made.queued()
                numbers[i] |= made.cpus.index(cpu) << bit
        assert numbers == [slot(frame, SLOTS) for frame in whole]
        assert len(set(numbers)) > SLOTS // 2
    finally:
        made.object.close()


def test_truncated_at_every_byte(spread: Spread) -> None:
    for frame in truncated([frame[:150] for frame in frames()[::3]]):
        assert spread.stays(frame) == (endpoints(frame) is None), frame.hex()


def test_random_and_mutated_frames(spread: Spread) -> None:
    spread.object["queued"].clear()
    wanted: Counter[int] = Counter()
    for frame in random_frames(9, RANDOM):
        frame = frame.ljust(14, b"\0")
        where = slot(frame, spread.slots)
        assert spread.stays(frame) == (where is None), frame.hex()
        wanted[-1 if where is None else spread.cpus[where % len(spread.cpus)]] += 1
    assert spread.queued() == wanted
    assert wanted[-1] > 1000 and min(wanted.values()) > 1000


A, B = ("192.0.2.1", "2001:db8::1"), ("198.51.100.7", "2001:db8:1::7")


def between(version: int, a: tuple[str, str], b: tuple[str, str]) -> Packet:
    return IP(src=a[0], dst=b[0]) if version == 4 else IPv6(src=a[1], dst=b[1])


@pytest.mark.parametrize("version", [4, 6])
def test_both_directions_and_any_tags_are_together(spread: Spread, version: int) -> None:
    for number in range(50):
        for proto in (TCP, UDP, SCTP):
            there = between(version, A, B) / proto(sport=1000 + number, dport=80)
            back = between(version, B, A) / proto(sport=80, dport=1000 + number)
            spread.object["queued"].clear()
            for packet in (there, back, Dot1Q(vlan=7) / there, Dot1AD(vlan=9) / Dot1Q() / back):
                assert not spread.stays(bytes(ETH / packet))
            assert list(spread.queued().values()) == [4]


@pytest.mark.parametrize("version", [4, 6])
def test_fragments_of_a_datagram_are_together(spread: Spread, version: int) -> None:
    for number in range(30):
        ports = UDP(sport=number, dport=9)
        if version == 4:
            parts = fragment(
                IP(src=A[0], dst=f"198.51.100.{number}") / ports / Raw(bytes(3000)), 600
            )
        else:
            whole = IPv6(src=A[1], dst=f"2001:db8::{number:x}") / IPv6ExtHdrFragment(id=number)
            parts = fragment6(whole / ports / Raw(bytes(3000)), 600)
        assert len(parts) > 4
        spread.object["queued"].clear()
        for part in parts:
            assert not spread.stays(bytes(ETH / part))
        assert list(spread.queued().values()) == [len(parts)]


def test_what_is_not_ip_stays(spread: Spread) -> None:
    arp = ARP(hwdst="02:00:00:00:00:02", psrc="192.0.2.1", pdst="192.0.2.2")
    for frame in (bytes(ETH / arp), bytes(ETH / Dot1Q(vlan=5) / arp), bytes(60), bytes(ETH)):
        assert spread.stays(frame)
    for packet in (IP() / ICMP(), IPv6() / ICMPv6EchoRequest()):
        assert not spread.stays(bytes(ETH / packet))


def test_flows_are_spread_evenly() -> None:
    made = Spread(SLOTS)
    rng = random.Random(1)
    try:
        counts: Counter[int] = Counter()
        for _ in range(6400):
            ip = between(rng.choice((4, 6)), A, B)
            frame = bytes(ETH / ip / UDP(sport=rng.randrange(65536), dport=53))
            assert not made.stays(frame)
            number = slot(frame, SLOTS)
            assert number is not None
            counts[number] += 1
        # 100 each are expected, by chance give or take 10
        assert len(counts) == SLOTS and max(counts.values()) < 150 and min(counts.values()) > 55
        by_cpu = Counter(dict.fromkeys(made.cpus, 0))
        for number, count in counts.items():
            by_cpu[made.cpus[number % len(made.cpus)]] += count
        assert made.queued() == by_cpu
    finally:
        made.object.close()


def test_pcap_verdicts() -> None:
    whole = frames()
    wanted = ["XDP_PASS" if endpoints(f) is None else "XDP_REDIRECT" for f in whole]
    assert pcap_verdicts("xdp_cpumap", whole) == wanted
