# SPDX-License-Identifier: Apache-2.0
"""sockex1: packets and bytes per IP protocol, through the real program by BPF_PROG_TEST_RUN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from counters import Sockex1
from headers_oracle import ETH
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, GRE, Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

V4 = IP(src="192.0.2.1", dst="198.51.100.2")
V6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
BIG = Raw(bytes(3000))


@pytest.fixture
def sockex1() -> Iterator[Sockex1]:
    program = Sockex1()
    yield program
    program.close()


@pytest.mark.parametrize(
    ("frame", "proto"),
    [
        (ETH / V4 / TCP(), 6),
        (ETH / V4 / UDP(), 17),
        (ETH / V4 / ICMP(), 1),
        (ETH / V6 / TCP(), 6),
        (ETH / V6 / ICMPv6EchoRequest(), 58),
        (ETH / Dot1Q(vlan=5) / V4 / TCP(), 6),
        (ETH / Dot1AD(vlan=5) / Dot1Q(vlan=6) / V6 / UDP(), 17),
        (ETH / IP(options=[IPOption_NOP()] * 40) / UDP(), 17),
        (ETH / V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt() / TCP(), 6),
        (ETH / V6 / IPv6ExtHdrFragment(m=1) / UDP(), 17),
        (ETH / V6 / IPv6ExtHdrFragment(offset=9, nh=6) / Raw(bytes(40)), 6),
        (ETH / IP(frag=9, proto=17) / Raw(bytes(40)), 17),
        (ETH / V4 / GRE() / V4 / TCP(), 47),
        (ETH / V4 / UDP(dport=4789) / VXLAN() / ETH / V4 / TCP(), 17),
        (bytes(ETH / V4 / TCP())[:34], 6),
    ],
)
def test_frames_count_by_the_protocol_they_carry(
    sockex1: Sockex1, frame: Packet | bytes, proto: int
) -> None:
    frame = bytes(frame)
    sockex1.run(frame)
    assert sockex1.rows() == {proto: (1, len(frame))}
    assert sockex1.nonip() == (0, 0)


def test_every_protocol_has_its_row(sockex1: Sockex1) -> None:
    for proto in range(256):
        sockex1.run(bytes(ETH / IP(proto=proto) / Raw(bytes(4))))
    assert sockex1.rows() == dict.fromkeys(range(256), (1, 38))


@pytest.mark.parametrize(
    "frame",
    [
        # what stands at the place of IPv4's protocol is not looked at without IPv4
        ETH / ARP(psrc="6.6.6.6", pdst="6.6.6.6", hwsrc="06:06:06:06:06:06"),
        Ether(type=0x88CC) / Raw(bytes([6]) * 50),
        ETH / Dot1Q(vlan=3) / ARP(),
        bytes(ETH / V4 / TCP())[:33],
        bytes(ETH / V6 / TCP())[:53],
        bytes(ETH)[:13],
        ETH / IP(ihl=4) / TCP(),
        Ether(type=0x0800) / Raw(bytes(V6 / TCP())),
        Ether(type=0x86DD) / Raw(bytes(V4 / TCP() / BIG)),
    ],
)
def test_frames_without_an_ip_header_count_as_nonip(sockex1: Sockex1, frame: Packet) -> None:
    frame = bytes(frame)
    sockex1.run(frame)
    assert sockex1.rows() == {}
    assert sockex1.nonip() == (1, len(frame))


def test_ipv6_addresses_are_not_taken_for_a_protocol(sockex1: Sockex1) -> None:
    # byte 23 of the frame is the source address' second byte
    for second in (1, 6, 17):
        src = f"20{second:02x}:db8::1"
        sockex1.run(bytes(ETH / IPv6(src=src, dst="::1", nh=58) / Raw(bytes(8))))
    assert sockex1.rows() == {58: (3, 3 * 62)}


@pytest.mark.parametrize(("direction", "packets"), [(1, 1), (2, 0), (3, 1)])
def test_only_the_chosen_direction_is_counted(direction: int, packets: int) -> None:
    program = Sockex1({"direction": direction})
    program.run(bytes(ETH / V4 / TCP()))
    program.run(bytes(ETH / ARP()))
    assert sum(row[0] for row in program.rows().values()) == packets
    assert program.nonip()[0] == packets
    program.close()


@pytest.mark.parametrize(
    ("packet", "proto", "header"),
    [
        (ETH / V4 / TCP() / BIG, 6, 54),
        (ETH / Dot1Q(vlan=1) / V6 / TCP(options=[("Timestamp", (1, 2))]) / BIG, 6, 90),
        (ETH / V4 / UDP(dport=1) / BIG, 17, 42),
        (ETH / V4 / V6 / TCP() / BIG, 41, 94),
        (ETH / V4 / GRE(key_present=1, key=5) / V4 / TCP() / BIG, 47, 82),
        (ETH / V6 / GRE(proto=0x6558) / ETH / V4 / UDP(dport=1) / BIG, 47, 100),
        (ETH / V4 / UDP(dport=4789) / VXLAN() / ETH / V4 / TCP() / BIG, 17, 104),
        (ETH / V4 / UDP(dport=4789) / VXLAN() / ETH / V4 / GRE() / V6 / TCP() / BIG, 17, 148),
    ],
)
def test_super_frames_count_as_their_segments(
    sockex1: Sockex1, packet: Packet, proto: int, header: int
) -> None:
    frame = bytes(packet)
    assert len(frame) == header + 3000
    sockex1.run(frame, gso_segs=3, gso_size=1000)
    assert sockex1.rows() == {proto: (3, 3 * (1000 + header))}
    sockex1.run(frame, gso_size=999)  # virtio does not say how many
    assert sockex1.rows() == {proto: (7, 6000 + 7 * header)}


def test_bytes_follow_the_original_length_of_a_cut_capture(sockex1: Sockex1) -> None:
    sockex1.run(bytes(ETH / V4 / TCP()), wire_len=1514)
    assert sockex1.rows() == {6: (1, 1514)}


def test_interfaces_without_link_header_go_by_the_protocol_of_the_buffer() -> None:
    program = Sockex1({"l2_len": 0})
    # the 14 bytes a packet run takes off are the frame's own: make them say IPv4
    packet = bytearray(bytes(IP(options=[IPOption_NOP()] * 12, proto=17) / UDP()))
    packet[12:14] = b"\x08\x00"  # the source address, as far as the program is concerned
    program.run(bytes(packet))
    assert program.rows() == {17: (1, len(packet))}
    program.close()
