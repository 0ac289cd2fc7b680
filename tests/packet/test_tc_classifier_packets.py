# SPDX-License-Identifier: Apache-2.0
"""tc_classifier, packet by packet: classes against scapy's fields, marks, the token bucket."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from headers_oracle import ETH
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from bpfkit.core.object import Object, load
from bpfkit.tc_classifier import NSEC, Rule, install

UNSPEC, SHOT = 0xFFFFFFFF, 2


@pytest.fixture(scope="module")
def loaded() -> Iterator[Object]:
    with load("tc/tc_classifier.bpf.c") as made:
        yield made


@pytest.fixture
def fresh(loaded: Object) -> Object:
    loaded["counts"].clear()
    install(loaded, [])
    return loaded


def counts(loaded: Object) -> dict[tuple[int, int, int], tuple[int, ...]]:
    return {
        (key.direction, key.proto, key.dscp): tuple(value) for key, value in loaded["counts"].sums()
    }


def expected(packet: Packet) -> tuple[int, int]:
    """(protocol, DSCP) by scapy."""
    if IP in packet:
        return packet[IP].proto, packet[IP].tos >> 2
    layer, proto = packet[IPv6], packet[IPv6].nh
    while isinstance(layer.payload, (IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt)):
        layer = layer.payload
        proto = layer.nh
    return proto, packet[IPv6].tc >> 2


def corpus() -> list[Packet]:
    rng = random.Random(9)
    packets = []
    for _ in range(400):
        dscp = rng.randrange(64)
        ecn = rng.randrange(4)
        link = ETH
        for tag in rng.choice(((), (Dot1Q,), (Dot1AD, Dot1Q))):
            link = link / tag(vlan=rng.randrange(1, 4095))
        net = IP(src="10.0.0.1", dst="10.0.0.2", tos=dscp << 2 | ecn)
        if rng.random() < 0.5:
            net = IPv6(src="2001:db8::1", dst="2001:db8::2", tc=dscp << 2 | ecn)
            for ext in rng.choice(((), (IPv6ExtHdrHopByHop,), (IPv6ExtHdrDestOpt,) * 3)):
                net = net / ext()
        upper = rng.choice((TCP(), UDP(), ICMP() if IP in net else UDP()))
        packet = link / net / upper / Raw(bytes(rng.randrange(200)))
        packets.append(Ether(bytes(packet)))
    return packets


@pytest.mark.parametrize("direction", [0, 1])
def test_classes_against_scapy(fresh: Object, direction: int) -> None:
    program = list(fresh.programs.values())[direction]
    want: dict[tuple[int, int, int], list[int]] = {}
    for packet in corpus():
        row = want.setdefault((direction, *expected(packet)), [0, 0, 0, 0])
        row[0] += 1
        row[1] += len(packet)
        assert program.run(bytes(packet)).retval == UNSPEC
    assert counts(fresh) == {key: tuple(row) for key, row in want.items()}


def test_not_ip_has_no_rule(fresh: Object) -> None:
    install(fresh, [Rule.parse("police=8bit,burst=1,mark=1")])
    arp = bytes(ETH / ARP())
    assert fresh.programs["tc_classifier_in"].run(arp).retval == UNSPEC
    assert counts(fresh) == {(0, 256, 0): (1, len(arp), 0, 0)}


def run(loaded: Object, name: str, packet: Packet) -> tuple[int, int, int]:
    """Verdict, mark and priority afterwards."""
    skb: dict[str, Any] = {"mark": 1, "priority": 2}
    result = loaded.programs[name].run(bytes(packet), skb=skb)
    mark, priority = (struct.unpack_from("=I", result.ctx, at)[0] for at in (8, 32))
    return result.retval, mark, priority


def test_marks_and_priorities(fresh: Object) -> None:
    """The first rule that matches counts; without a rule they stay as they were."""
    rules = ("egress,udp,dscp=46,mark=7,priority=6", "udp,mark=0x80000000", "dscp=46,priority=3")
    install(fresh, [Rule.parse(rule) for rule in rules])
    ef, be = IP(tos=46 << 2), IP()
    assert run(fresh, "tc_classifier_out", ETH / ef / UDP()) == (UNSPEC, 7, 6)
    assert run(fresh, "tc_classifier_in", ETH / ef / UDP()) == (UNSPEC, 0x80000000, 2)
    assert run(fresh, "tc_classifier_out", ETH / be / UDP()) == (UNSPEC, 0x80000000, 2)
    assert run(fresh, "tc_classifier_in", ETH / IPv6(tc=46 << 2) / TCP()) == (UNSPEC, 1, 3)
    assert run(fresh, "tc_classifier_in", ETH / be / TCP()) == (UNSPEC, 1, 2)


def test_token_bucket(fresh: Object) -> None:
    """A burst passes, nothing more; time brings tokens, up to the burst."""
    packet = ETH / IP() / UDP() / Raw(bytes(58))  # 100 bytes
    install(fresh, [Rule.parse("udp,police=8bit,burst=1000")])  # a byte a second
    verdicts = [run(fresh, "tc_classifier_in", packet)[0] for _ in range(15)]
    assert verdicts == [UNSPEC] * 10 + [SHOT] * 5
    assert counts(fresh)[0, 17, 0] == (15, 1500, 5, 500)
    assert run(fresh, "tc_classifier_in", ETH / IP() / TCP())[0] == UNSPEC  # not its class
    bucket = fresh["buckets"][1]
    assert bucket.tokens < 100 * NSEC
    # 300 seconds pass: three packets' worth.  A year: the burst and no more.
    for seconds, fits in ((300, 3), (365 * 86400, 10)):
        now = fresh["buckets"][1]
        fresh["buckets"][1] = {
            "rate": now.rate,
            "limit": now.limit,
            "fill_ns": now.fill_ns,
            "tokens": 0,
            "since_ns": max(0, now.since_ns - seconds * NSEC),
        }
        if now.since_ns < seconds * NSEC:  # the machine is not up for that long
            continue
        verdicts = [run(fresh, "tc_classifier_in", packet)[0] for _ in range(12)]
        assert verdicts == [UNSPEC] * fits + [SHOT] * (12 - fits)


def test_super_frame_costs_its_segments(fresh: Object) -> None:
    install(fresh, [Rule.parse("tcp,police=8bit,burst=3054")])
    big = bytes(ETH / IP() / TCP() / Raw(bytes(2892)))  # two segments: 3000 + 54 more
    program = fresh.programs["tc_classifier_out"]
    assert len(big) == 2946
    assert program.run(big, skb={"gso_segs": 2, "gso_size": 1446}).retval == UNSPEC
    assert counts(fresh)[1, 6, 0] == (2, 3000, 0, 0)


def test_cut_frames(fresh: Object) -> None:
    """Every length: counted, and under its class once the IP header is there."""
    packet = bytes(ETH / Dot1Q(vlan=5) / IP(tos=46 << 2) / UDP() / b"payload")
    program = fresh.programs["tc_classifier_in"]
    for size in range(14, len(packet) + 1):
        fresh["counts"].clear()
        assert program.run(packet[:size]).retval == UNSPEC
        key = (0, 17, 46) if size >= 38 else (0, 256, 0)
        assert counts(fresh) == {key: (1, size, 0, 0)}


@pytest.mark.parametrize(
    "text",
    ["", "udp", "dscp=64,mark=1", "mark=-1", "police=fast", "burst=1,mark=1", "nosuch,mark=1"],
)
def test_rules_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        Rule.parse(text)
