# SPDX-License-Identifier: Apache-2.0
"""sock_example's hand-assembled program, packet by packet.

The numbers in the names are those of the known defects of the classic sample: 12 the ethertype is
not looked at, 13 fragments, short packets, extension headers, 14 super-frames.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headers_oracle import ETH
from hypothesis import given, settings
from hypothesis import strategies as st
from running import run
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    fragment6,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from bpfkit.core.kernel import syscall
from bpfkit.core.maps.base import Map
from bpfkit.core.object import load
from bpfkit.core.program import Program
from bpfkit.show.protocols import protocol_name
from bpfkit.sock_example import assemble_program

A6, B6 = "2001:db8::1", "2001:db8::2"


class Counter:
    """The program with its map; counts what one frame adds."""

    def __init__(self, direction: int = 3, l2_len: int = 14) -> None:
        self.map = Map.create("array", 4, 8, 256, name="packets")
        code = assemble_program(self.map.fd, direction, l2_len)
        self.program = Program.from_insns("socket_filter", code, name="sock_example")
        self.before = [0] * 256

    def __call__(self, frame: Packet | bytes, **skb: Any) -> dict[int, int]:
        """Protocol number -> packets counted for this frame."""
        result = self.program.run(bytes(frame), skb=skb or None)
        assert result.retval == 0  # nothing is kept for user space
        now = [int(value) for value in self.map.values()]
        counted = {n: now[n] - self.before[n] for n in range(256) if now[n] != self.before[n]}
        self.before = now
        return counted

    def close(self) -> None:
        self.program.close()
        self.map.close()


@pytest.fixture(scope="module")
def count() -> Iterator[Counter]:
    counter = Counter()
    yield counter
    counter.close()


V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src=A6, dst=B6)

PACKETS = {
    "tcp": (ETH / V4 / TCP(), 6),
    "udp": (ETH / V4 / UDP() / b"x", 17),
    "icmp": (ETH / V4 / ICMP(), 1),
    "tcp6": (ETH / V6 / TCP(), 6),
    "udp6": (ETH / V6 / UDP(), 17),
    "icmp6": (ETH / V6 / ICMPv6EchoRequest(), 58),
    "sctp": (ETH / V4 / SCTP(), 132),
    "esp": (ETH / V6 / ESP(spi=1, seq=1), 50),
    "unassigned": (ETH / IP(proto=253) / b"x", 253),
    "options": (ETH / IP(options=IPOption(b"\x01" * 40)) / TCP(), 6),
    "vlan": (ETH / Dot1Q(vlan=5) / V4 / UDP(), 17),
    "qinq": (ETH / Dot1AD(vlan=5) / Dot1Q(vlan=6) / V6 / TCP(), 6),
    "tags": (ETH / Dot1Q() / Dot1Q() / Dot1AD() / Dot1Q() / V4 / ICMP(), 1),
    "hop-by-hop": (ETH / V6 / IPv6ExtHdrHopByHop() / UDP(), 17),
    "routing": (ETH / V6 / IPv6ExtHdrRouting(addresses=[A6, B6]) / TCP(), 6),
    "all": (
        ETH
        / V6
        / IPv6ExtHdrHopByHop()
        / IPv6ExtHdrDestOpt()
        / IPv6ExtHdrRouting()
        / IPv6ExtHdrFragment()
        / IPv6ExtHdrDestOpt()
        / ICMPv6EchoRequest(),
        58,
    ),
    "ah4": (ETH / V4 / AH(icv=bytes(12)) / TCP(), 51),
    "ah6": (ETH / V6 / AH(nh=6, payloadlen=4, icv=bytes(12)) / TCP(), 6),
    "no next header": (ETH / IPv6(nh=59), 59),
}


@pytest.mark.parametrize("name", PACKETS)
def test_protocols(count: Counter, name: str) -> None:
    packet, proto = PACKETS[name]
    assert count(packet) == {proto: 1}


def test_defect_12_the_ethertype_decides(count: Counter) -> None:
    """Byte 23 of an ARP or IPv6 frame is no protocol."""
    assert count(ETH / ARP(hwsrc="02:00:00:00:00:01", psrc="6.6.6.6", pdst="17.17.17.17")) == {}
    arp = bytearray(bytes(ETH / ARP()))
    arp[23] = 6
    assert count(bytes(arp)) == {}
    # an IPv6 address whose second byte is 1 (ICMP), as fe01::
    assert count(ETH / IPv6(src="fe01:106::1", dst=B6) / UDP()) == {17: 1}
    # IPv4 behind an ethertype that says otherwise, and the other way round
    assert count(Ether(type=0x88CC) / bytes(V4 / TCP())) == {}
    assert count(Ether(type=0x86DD) / bytes(V4 / TCP())) == {}
    assert count(Ether(type=0x0800) / bytes(V6 / TCP())) == {}
    # 802.3: a length where the ethertype should be
    assert count(Ether(type=0x0026) / bytes(V4 / TCP())) == {}


def test_defect_13_fragments(count: Counter) -> None:
    """Every fragment is a packet of its protocol; nothing is read behind its IP header."""
    parts = fragment(V4 / UDP() / bytes(3000), fragsize=1400)
    assert len(parts) == 3
    for part in parts:
        assert count(ETH / part) == {17: 1}
    parts = fragment6(V6 / IPv6ExtHdrFragment(id=7) / UDP() / Raw(bytes(3000)), 1280)
    assert len(parts) >= 3
    for part in parts:
        assert count(ETH / part) == {17: 1}
    # a later fragment whose bytes look like an extension header must not be walked
    later = IPv6ExtHdrFragment(nh=60, offset=100, id=7) / bytes([6, 0, 1, 4, 0, 0, 0, 0])
    assert count(ETH / V6 / later) == {60: 1}


@pytest.mark.parametrize("payload", range(5))
def test_defect_13_short_payloads(count: Counter, payload: int) -> None:
    """A payload too short to have ports, or none: still a packet of its protocol."""
    for proto in (1, 6, 17, 47):
        assert count(
            ETH / IP(proto=proto, src="10.0.0.1", dst="10.0.0.2") / Raw(bytes(payload))
        ) == {proto: 1}
        assert count(ETH / IPv6(nh=proto, src=A6, dst=B6) / Raw(bytes(payload))) == {proto: 1}


@pytest.mark.parametrize("name", ["tcp", "tcp6", "qinq", "all", "options"])
def test_defect_13_cut_frames(count: Counter, name: str) -> None:
    """Every length: counted exactly when the IP header is there; cut inside the extension
    headers, under the one that is not all there."""
    packet, proto = PACKETS[name]
    data = bytes(packet)
    tags = sum(isinstance(packet.getlayer(i), (Dot1Q, Dot1AD)) for i in range(8))
    needed = 14 + 4 * tags + (20 if IP in packet else 40)
    for size in range(1, len(data)):
        counted = count(data[:size])
        if size < needed:
            assert counted == {}, size
        else:
            assert sum(counted.values()) == 1
            if name != "all":
                assert counted == {proto: 1}
    assert count(data) == {proto: 1}


def test_headers_that_cannot_be(count: Counter) -> None:
    for packet in (
        ETH / IP(version=5, src="1.1.1.1", dst="2.2.2.2") / TCP(),
        ETH / IP(ihl=4, src="1.1.1.1", dst="2.2.2.2") / TCP(),
        ETH / IPv6(version=4, src=A6, dst=B6) / TCP(),
    ):
        assert count(packet) == {}
    assert count(ETH / IPv6(nh=51, src=A6, dst=B6) / bytes(16)) == {51: 1}  # AH of length 0
    # an extension header that reaches over the end of the packet, into the frame's padding
    reach = ETH / IPv6(nh=60, plen=8, src=A6, dst=B6) / bytes([6, 1, 1, 4, 0, 0, 0, 0]) / bytes(40)
    assert count(reach) == {60: 1}


def test_defect_14_super_frames(count: Counter) -> None:
    """A GSO/GRO super-frame is as many packets as it has segments."""
    big4 = ETH / V4 / TCP(options=[("NOP", None)] * 12) / bytes(3000)
    big6 = ETH / V6 / UDP() / bytes(2500)
    assert count(big4, gso_segs=3, gso_size=1448) == {6: 3}
    assert count(big6, gso_segs=2, gso_size=1250) == {17: 2}
    assert count(big4, gso_segs=1, gso_size=0) == {6: 1}
    # virtio leaves gso_segs at 0: gso_size and the payload say it
    assert count(big4, gso_segs=0, gso_size=1000) == {6: 3}
    assert count(big4, gso_segs=0, gso_size=1448) == {6: 3}
    assert count(big4, gso_segs=0, gso_size=1500) == {6: 2}
    assert count(big6, gso_segs=0, gso_size=1000) == {17: 3}
    assert count(ETH / V4 / SCTP() / bytes(2000), gso_segs=0, gso_size=1000) == {132: 2}
    # SCTP's segments have sizes of their own
    assert count(ETH / V4 / SCTP() / bytes(100), gso_segs=0, gso_size=0xFFFF) == {132: 1}
    assert count(ETH / V4 / TCP(), gso_segs=0, gso_size=1448) == {6: 1}  # no payload


def test_interfaces_without_link_header() -> None:
    """tun: frames start with the IP header, and the ethertype is beside them."""
    counter = Counter(l2_len=0)
    try:
        # a packet run takes the ethertype from the 14 bytes that it strips off
        for packet, ethertype, proto in ((V4 / TCP(), 0x0800, 6), (V6 / UDP(), 0x86DD, 17)):
            data = bytes(packet)
            head = bytes(12) + struct.pack(">H", ethertype)
            syscall.prog_test_run(counter.program.fd, head + data)
            now = [int(value) for value in counter.map.values()]
            assert now[proto] - counter.before[proto] == 1
            counter.before = now
    finally:
        counter.close()


def test_directions() -> None:
    """A packet run's packets come in: the outgoing half must not see them."""
    for direction, expected in ((1, {6: 1}), (2, {}), (3, {6: 1})):
        counter = Counter(direction)
        assert counter(ETH / V4 / TCP()) == expected
        counter.close()


# --- against the same rules in Python ---------------------------------------------------------


def model(frame: bytes) -> int | None:
    """The protocol a frame is counted under, None if it is not."""
    at, end = 12, len(frame)
    for _ in range(9):
        if at + 2 > end:
            return None
        ethertype = int.from_bytes(frame[at : at + 2], "big")
        at += 2
        if ethertype not in (0x8100, 0x88A8, 0x9100):
            break
        at += 2
    else:
        return None
    if ethertype == 0x0800:
        head = frame[at : at + 20]
        if len(head) < 20 or head[0] >> 4 != 4 or head[0] & 15 < 5:
            return None
        return head[9]
    if ethertype != 0x86DD or at + 40 > end or frame[at] >> 4 != 6:
        return None
    proto, length = frame[at + 6], int.from_bytes(frame[at + 4 : at + 6], "big")
    at += 40
    if length:
        end = min(end, at + length)
    for _ in range(16):
        if proto not in (0, 43, 44, 51, 60, 135, 139, 140) or at + 8 > end:
            return proto
        size = frame[at + 1]
        if proto == 44:
            size = 8
        elif proto == 51:
            size = (size + 2) * 4 if size else 0
        else:
            size = (size + 1) * 8
        if not size or at + size > end:
            return proto
        before, proto = proto, frame[at]
        if before == 44 and int.from_bytes(frame[at + 2 : at + 4], "big") & 0xFFF8:
            return proto
        at += size
    return proto


ethertypes = st.sampled_from([0x0800, 0x86DD, 0x8100, 0x88A8, 0x9100, 0x0806]).map(
    lambda number: number.to_bytes(2, "big")
)
first_byte = st.sampled_from([0x45, 0x46, 0x4F, 0x60, 0x6F, 0x44, 0x50]).map(lambda b: bytes([b]))
extension = st.builds(
    lambda proto, size, rest: bytes([proto, size]) + rest,
    st.sampled_from([0, 43, 44, 51, 60, 135, 139, 140, 6, 17, 59]),
    st.sampled_from([0, 0, 0, 1, 2, 255]),
    st.binary(min_size=6, max_size=14),
)
frames = st.one_of(
    st.binary(min_size=1, max_size=120),
    st.builds(
        lambda tags, first, rest, payload: bytes(12) + b"".join(tags) + first + rest + payload,
        st.lists(st.one_of(ethertypes, ethertypes.map(lambda e: e + b"\0\7")), max_size=12),
        first_byte,
        st.binary(min_size=0, max_size=60),
        st.binary(max_size=40),
    ),
    st.builds(
        lambda proto, length, chain: bytes(12) + b"\x86\xdd\x60\0\0\0" + length.to_bytes(2, "big")
        + bytes([proto, 64]) + bytes(32) + b"".join(chain),
        st.sampled_from([0, 43, 44, 51, 60, 135, 6]),
        st.sampled_from([0, 16, 40, 65535]),
        st.lists(extension, max_size=20),
    ),
)  # fmt: skip


@settings(max_examples=800, deadline=None)
@given(frame=frames)
def test_any_bytes(count: Counter, frame: bytes) -> None:
    expected = model(frame)
    assert count(frame) == ({} if expected is None else {expected: 1})


def test_sockex1_agrees(count: Counter) -> None:
    """The same rules a third time, in C: over all lengths of all packets above, tags and all."""
    with load("socket/sockex1.bpf.c", consts={"direction": 3, "l2_len": 14}) as other:
        program = other.programs["sockex1"]
        rows = other["protocols"]
        before: dict[int, int] = {}
        for packet, _ in PACKETS.values():
            data = bytes(packet)
            for size in range(1, len(data) + 1):
                program.run(data[:size])
                now = {proto: row.packets for proto, row in rows.sums() if row.packets}
                added = {n: now[n] - before.get(n, 0) for n in now if now[n] != before.get(n, 0)}
                before = now
                assert count(data[:size]) == added, (packet, size)


def test_capture(tmp_path: Path) -> None:
    """--pcap: every packet of a capture, and no interface touched."""
    frames = [packet for packet, _ in PACKETS.values()]
    path = tmp_path / "all.pcap"
    wrpcap(str(path), frames)
    done = run("sock_example", "--pcap", str(path), "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    wanted: dict[str, int] = {"tcp": 0, "udp": 0, "icmp": 0}
    for _, proto in PACKETS.values():
        name = protocol_name(proto)
        wanted[name] = wanted.get(name, 0) + 1
    assert {row["proto"]: row["packets"] for row in rows} == wanted
    assert {row["round"] for row in rows} == {0}
