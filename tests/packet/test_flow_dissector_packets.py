# SPDX-License-Identifier: Apache-2.0
"""flow_dissector and the lwt programs, packet by packet; scapy makes the packets."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator

import pytest
from headers_oracle import ETH
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP
from scapy.packet import Packet, Raw

import bpfkit
from bpfkit.core.program import Program

FOUND, CONTINUE = 0, 129


@pytest.fixture(scope="module")
def dissect() -> Iterator[Program]:
    with bpfkit.load("misc/flow_dissector.bpf.c") as loaded:
        yield loaded.programs["dissect"]


class Keys:
    """struct bpf_flow_keys."""

    def __init__(self, raw: bytes) -> None:
        self.nhoff, self.thoff, self.family = struct.unpack_from("=HHH", raw)
        self.fragment, self.first, self.encap, self.proto = raw[6:10]
        self.ports = struct.unpack_from("!HH", raw, 12)
        size, kind = (4, socket.AF_INET) if self.family == 0x800 else (16, socket.AF_INET6)
        self.src, self.dst = (
            socket.inet_ntop(kind, raw[16 + size * i : 16 + size * (i + 1)]) for i in (0, 1)
        )


def tunnel(inner: Packet) -> Packet:
    return Raw(bytes([4 if IP in inner else 41, 0, 0, 0, 0, 0, 0, 7])) / inner


INNER = [IP(src="10.1.0.1", dst="10.1.0.2"), IPv6(src="fd00::1", dst="fd00::2")]
OUTER = [
    IP(src="192.0.2.1", dst="192.0.2.2", proto=253),
    IPv6(src="2001:db8::1", dst="2001:db8::2", nh=253),
    IPv6(src="2001:db8::1", dst="2001:db8::2") / IPv6ExtHdrDestOpt(nh=253),
]


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("transport", [TCP, UDP])
def test_the_flow_of_a_tunnel_packet_is_the_inner_one(
    dissect: Program, outer: Packet, inner: Packet, transport: type[Packet]
) -> None:
    result = dissect.run(bytes(ETH / outer / tunnel(inner / transport(sport=1111, dport=2222))))
    keys = Keys(result.data)
    assert result.retval == FOUND
    assert (keys.src, keys.dst) == (inner.src, inner.dst)
    assert keys.ports == (1111, 2222)
    assert keys.encap
    assert keys.proto == (6 if transport is TCP else 17)


@pytest.mark.parametrize("plain", INNER)
def test_other_packets_are_their_own_flow(dissect: Program, plain: Packet) -> None:
    keys = Keys(dissect.run(bytes(ETH / plain / UDP(sport=5, dport=6))).data)
    assert (keys.src, keys.dst, keys.ports, keys.proto) == (plain.src, plain.dst, (5, 6), 17)
    assert not keys.encap


def test_fragments_have_no_ports(dissect: Program) -> None:
    later = IP(src="10.0.0.1", dst="10.0.0.2", frag=9, proto=17) / Raw(bytes(40))
    keys = Keys(dissect.run(bytes(ETH / later)).data)
    assert keys.fragment
    assert not keys.first
    assert keys.ports == (0, 0)
    first = IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrFragment(m=1) / UDP(sport=5, dport=6)
    keys = Keys(dissect.run(bytes(ETH / first)).data)
    assert keys.fragment
    assert keys.first
    assert keys.proto == 17


def test_what_it_does_not_know_is_left_to_the_kernel(dissect: Program) -> None:
    odd = IP(src="192.0.2.1", dst="192.0.2.2", proto=253) / Raw(bytes([9]) + bytes(7 + 40))
    assert dissect.run(bytes(ETH / ARP())).retval == CONTINUE
    assert dissect.run(bytes(ETH / odd)).retval == CONTINUE
    whole = bytes(ETH / OUTER[0] / tunnel(INNER[0] / UDP(sport=1, dport=2)))
    for size in range(14 + 20, 14 + 20 + 8 + 20):
        assert dissect.run(whole[:size]).retval == CONTINUE


def test_random_bytes_are_survived(dissect: Program) -> None:
    rng = random.Random(7)
    whole = bytes(ETH / OUTER[1] / tunnel(INNER[1] / TCP()))
    for _ in range(3000):
        packet = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            packet[rng.randrange(12, len(packet))] = rng.randrange(256)
        assert dissect.run(bytes(packet)).retval in (FOUND, CONTINUE)


@pytest.mark.parametrize("way", ["in", "out"])
def test_programs_on_routes_drop_one_protocol(way: str) -> None:
    with bpfkit.load(f"lwt/lwt_{way}.bpf.c", consts={"drop": 1}) as loaded:
        program = loaded.programs[f"lwt_{way}"]
        for outer in INNER:
            hop = outer / IPv6ExtHdrHopByHop() if IPv6 in outer else outer
            assert program.run(bytes(ETH / hop / TCP())).retval == 0
            assert program.run(bytes(ETH / outer / UDP())).retval == 0
        assert program.run(bytes(ETH / INNER[0] / ICMP())).retval == 2
        six = INNER[1].copy()
        six.nh = 58
        assert program.run(bytes(ETH / six / Raw(bytes(8)))).retval == 2
        rows = {number: row for number, row in loaded["rows"].sums() if row.packets}
        assert {number: (row.packets, row.acted) for number, row in rows.items()} == {
            1: (1, 1),
            6: (2, 0),
            17: (2, 0),
            58: (1, 1),
        }
