# SPDX-License-Identifier: Apache-2.0
"""cgroup_skb by BPF_PROG_TEST_RUN: packets built by scapy, expectations from its own fields."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

import bpfkit
from bpfkit.app.options import parser_of
from bpfkit.cgroup_skb.program import CgroupSkb
from bpfkit.cgroup_skb.rules import ALLOW, DENY, REJECT, parse_rule, resolve
from bpfkit.core.object import Object

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
IN4, OUT4 = "192.0.2.7", "198.51.100.9"
IN6, OUT6 = "2001:db8::7", "2001:db9::9"


@contextmanager
def loaded(*rules: tuple[int, str], default: int = ALLOW, **consts: int) -> Iterator[Object]:
    """The program with these rules, filled as the Python side fills it."""
    program = CgroupSkb.__new__(CgroupSkb)
    program._table = resolve([parse_rule(text, action) for action, text in rules], default)
    have = {"have_rules": bool(rules), "have_ports": bool(program._table.ports)}
    settings = {**have, "default_action": default, **consts}
    with bpfkit.load("cgroup/cgroup_skb.bpf.c", consts=settings) as made:
        program.prepare(made)
        yield made


def verdict(made: Object, packet: Packet, way: str = "egress") -> int:
    return made.programs[f"skb_{way}"].run(bytes(ETHER / packet)).retval


def tcp(dport: int, dst: str = IN4, **more: Any) -> Packet:
    return (IPv6 if ":" in dst else IP)(dst=dst, **more) / TCP(sport=999, dport=dport)


def test_the_remote_end_is_the_destination_of_egress_and_the_source_of_ingress() -> None:
    with loaded((DENY, "192.0.2.0/24"), (DENY, "2001:db8::/32")) as made:
        for inside, outside, kind in ((IN4, OUT4, IP), (IN6, OUT6, IPv6)):
            there = kind(src=outside, dst=inside) / UDP()
            back = kind(src=inside, dst=outside) / UDP()
            assert [verdict(made, packet) for packet in (there, back)] == [0, 1]
            assert [verdict(made, packet, "ingress") for packet in (there, back)] == [1, 0]


@pytest.mark.parametrize("address", [IN4, IN6])
@pytest.mark.parametrize("layer", [TCP, UDP])
def test_a_port_rule_is_about_the_remote_port(address: str, layer: type[Packet]) -> None:
    prefix = f"[{address}]" if ":" in address else address
    kind = IPv6 if ":" in address else IP
    with loaded((DENY, f"{prefix}:443")) as made:
        assert verdict(made, kind(dst=address) / layer(sport=5, dport=443)) == 0
        assert verdict(made, kind(dst=address) / layer(sport=443, dport=5)) == 1
        assert verdict(made, kind(src=address) / layer(sport=443, dport=5), "ingress") == 0
        assert verdict(made, kind(src=address) / layer(sport=5, dport=443), "ingress") == 1


def test_the_longest_prefix_decides_and_leaves_other_ports_to_the_next() -> None:
    rules = ((DENY, "192.0.0.0/16"), (ALLOW, "192.0.2.0/24"), (DENY, "192.0.2.7:22"))
    with loaded(*rules) as made:
        assert verdict(made, tcp(80, "192.0.9.1")) == 0
        assert verdict(made, tcp(22, "192.0.2.8")) == 1
        assert verdict(made, tcp(22, "192.0.2.7")) == 0
        assert verdict(made, tcp(80, "192.0.2.7")) == 1


def test_an_allow_list_denies_everything_else() -> None:
    with loaded((ALLOW, "192.0.2.0/24"), default=DENY) as made:
        assert verdict(made, tcp(80)) == 1
        assert verdict(made, tcp(80, OUT4)) == 0
        assert verdict(made, tcp(80, IN6)) == 0


def test_ports_are_found_behind_options_and_extension_headers() -> None:
    with loaded((DENY, f"{IN4}:22"), (DENY, f"[{IN6}]:22")) as made:
        for port, expected in ((22, 0), (23, 1)):
            optioned = IP(dst=IN4, options=[b"\x01\x01\x01\x01"]) / TCP(dport=port)
            chain = IPv6(dst=IN6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / TCP(dport=port)
            first = IPv6(dst=IN6) / IPv6ExtHdrFragment(m=1) / TCP(dport=port)
            assert [verdict(made, packet) for packet in (optioned, chain, first)] == [expected] * 3


def test_later_fragments_and_packets_without_ports_get_the_prefixs_own_rule() -> None:
    rest = b"\0\x16\0\x16" * 4  # would be port 22 if it were read
    packets = [
        IP(dst=IN4, frag=10, proto=6) / rest,
        IPv6(dst=IN6) / IPv6ExtHdrFragment(offset=10, nh=6) / rest,
        IP(dst=IN4) / ICMP(),
    ]
    with loaded((DENY, f"{IN4}:22"), (DENY, f"[{IN6}]:22")) as made:
        assert [verdict(made, packet) for packet in packets] == [1, 1, 1]
    with loaded((DENY, IN4), (DENY, IN6), (ALLOW, f"{IN4}:22"), (ALLOW, f"[{IN6}]:22")) as made:
        assert [verdict(made, packet) for packet in packets] == [0, 0, 0]


def test_a_packet_whose_port_cannot_be_read_is_denied_where_a_port_would_decide() -> None:
    cut = IP(dst=IN4, proto=6, len=22) / b"\0\x16"
    with loaded((DENY, f"{IN4}:443")) as made:
        assert verdict(made, cut) == 0
    with loaded((DENY, f"{OUT4}:443")) as made:
        assert verdict(made, cut) == 1


def test_what_is_not_ip_is_denied_only_where_there_are_rules() -> None:
    with loaded((DENY, IN4)) as made:
        assert verdict(made, ARP()) == 0
    with loaded() as made:
        assert verdict(made, ARP()) == 1


def test_packets_and_bytes_count_once_from_the_ip_header_on() -> None:
    packets = [tcp(80) / bytes(n) for n in (0, 1, 1000)] + [tcp(80, IN6) / bytes(7)]
    with loaded((DENY, f"{IN4}:22")) as made:
        for packet in packets:
            verdict(made, packet)
            verdict(made, packet, "ingress")
        denied = tcp(22) / bytes(100)
        verdict(made, denied)
        (slot,) = made["slots"].values()
        counts = made["traffic"].sum(slot)
        size = sum(len(packet) for packet in packets)
        assert (counts.out_packets, counts.out_bytes) == (4, size)
        assert (counts.in_packets, counts.in_bytes) == (4, size)
        assert (counts.denied_packets, counts.denied_bytes) == (1, len(denied))


def test_a_super_frame_counts_as_its_segments_on_the_wire() -> None:
    packet = bytes(ETHER / (tcp(80) / bytes(3000)))
    with loaded() as made:
        made.programs["skb_egress"].run(packet, skb={"gso_size": 1000, "gso_segs": 3})
        (slot,) = made["slots"].values()
        counts = made["traffic"].sum(slot)
        assert (counts.out_packets, counts.out_bytes) == (3, 3 * (20 + 20 + 1000))


def test_events_have_the_packets_own_addresses_and_ports() -> None:
    with loaded((REJECT, IN4), (DENY, IN6)) as made, made["refused"].open() as records:
        verdict(made, IP(src=OUT4, dst=IN4) / TCP(sport=1000, dport=80))
        verdict(made, IPv6(src=IN6, dst=OUT6) / UDP(sport=53, dport=2000), "ingress")
        first, second = list(records.drain())
        assert (first.action, first.hook, first.family, first.proto) == (REJECT, 1, 4, 6)
        assert (first.local_port, first.remote_port, first.length) == (1000, 80, 40)
        assert first.remote[0].to_bytes(4, "big") == bytes([192, 0, 2, 7])
        assert first.local[0].to_bytes(4, "big") == bytes([198, 51, 100, 9])
        assert (second.action, second.hook, second.family, second.proto) == (DENY, 0, 6, 17)
        assert (second.local_port, second.remote_port) == (2000, 53)


def test_events_are_bounded_and_the_rest_is_counted() -> None:
    with loaded((DENY, IN4), event_rate=10) as made, made["refused"].open() as records:
        made.programs["skb_egress"].run(bytes(ETHER / tcp(80)), repeat=500)
        sent = len(list(records.drain()))
        assert 10 <= sent <= 20  # the second may end meanwhile
        assert made["lost"][0] == 500 - sent


def test_without_a_row_left_packets_are_counted_as_such() -> None:
    with loaded() as made:
        made["free_slots"].clear()
        verdict(made, tcp(80))
        assert len(made["slots"]) == 0
        assert made["traffic"].sum(0).out_packets == 1


def test_help_names_the_words_that_scripts_rely_on() -> None:
    text = parser_of(CgroupSkb).format_help()
    assert all(word in text for word in ("--deny", "--allow", "--reject", "--cgroup", "COMMAND"))
