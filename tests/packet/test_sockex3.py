# SPDX-License-Identifier: Apache-2.0
"""sockex3: every kind of frame through the real programs, by BPF_PROG_TEST_RUN."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter as Tally
from collections.abc import Iterator

import pytest
from counters import Flow, Sockex3, Tunnel
from headers_oracle import ETH
from oracle import dissect, random_frame
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import ARP, GRE, LLC, STP, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from bpfkit.core.kernel import syscall

INNER_ETH = Ether(src="02:00:00:00:00:03", dst="02:00:00:00:00:04")
A4, B4 = "192.0.2.1", "198.51.100.2"
A6, B6 = "2001:db8::1", "2001:db8:1::2"
C4, D4 = "10.0.0.1", "10.0.0.2"
C6, D6 = "fd00::1", "fd00::2"
V4, V6 = IP(src=A4, dst=B4), IPv6(src=A6, dst=B6)
IN4, IN6 = IP(src=C4, dst=D4), IPv6(src=C6, dst=D6)
PORTS = {"sport": 1234, "dport": 80}
SEG = TCP(**PORTS) / Raw(b"payload")
TCP4 = Flow(A4, B4, 6, 1234, 80)
TCP6 = Flow(A6, B6, 6, 1234, 80)
INNER4 = Flow(C4, D4, 6, 1234, 80)
INNER6 = Flow(C6, D6, 6, 1234, 80)
VXLAN_PORT = 4789


@pytest.fixture(scope="module")
def sockex3() -> Iterator[Sockex3]:
    program = Sockex3()
    yield program
    program.close()


@pytest.fixture(scope="module")
def with_vxlan() -> Iterator[Sockex3]:
    program = Sockex3({"vxlan_port": VXLAN_PORT})
    yield program
    program.close()


def is_counted(program: Sockex3, frame: Packet | bytes, flow: Flow | None) -> None:
    """The frame is that flow (None: non-IP), one packet, as many bytes as it has."""
    frame = bytes(frame)
    assert program.flow_of(frame) == (flow, (1, len(frame)))


def variants(table: dict[str, tuple[Packet, Flow | None]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("frame", "flow"), table.values(), ids=table)


# --- what the well-known samples get wrong (facts: flow accounting) ----------------------------


def test_ports_are_in_the_packets_direction(sockex3: Sockex3) -> None:
    is_counted(sockex3, ETH / V4 / SEG, TCP4)
    back = Flow(B4, A4, 6, 80, 1234)
    is_counted(sockex3, ETH / IP(src=B4, dst=A4) / TCP(sport=80, dport=1234), back)


@pytest.mark.parametrize(("direction", "packets"), [(1, 1), (2, 0), (3, 1)])
def test_only_the_chosen_direction_is_counted(direction: int, packets: int) -> None:
    # a packet run is an incoming packet; the outgoing half is a live test on lo
    program = Sockex3({"direction": direction})
    program.run(bytes(ETH / V4 / SEG))
    program.run(bytes(ETH / V6 / SEG))
    assert program.totals()["seen"][0] == 2 * packets
    program.close()


GRE_FLAGS = [(c, k, s) for c in (0, 1) for k in (0, 1) for s in (0, 1)]


@pytest.mark.parametrize("flags", GRE_FLAGS, ids=lambda f: "c{}k{}s{}".format(*f))
@pytest.mark.parametrize("outer", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("inner", ["v4", "v6", "teb4", "teb6", "tebvlan", "mpls"])
def test_gre_header_has_the_length_its_flags_say(
    sockex3: Sockex3, flags: tuple[int, int, int], outer: Packet, inner: str
) -> None:
    gre = GRE(chksum_present=flags[0], key_present=flags[1], seqnum_present=flags[2])
    if flags[1]:
        gre.key = 0xCAFE0001
    gre.proto, inside, flow = {
        "v4": (0x0800, IN4, INNER4),
        "v6": (0x86DD, IN6, INNER6),
        "teb4": (0x6558, INNER_ETH / IN4, INNER4),
        "teb6": (0x6558, INNER_ETH / IN6, INNER6),
        "tebvlan": (0x6558, INNER_ETH / Dot1Q(vlan=7) / IN4, INNER4._replace(vlan=(7,))),
        "mpls": (0x8847, MPLS(label=9, s=1) / IN4, INNER4),
    }[inner]
    tunnel = Tunnel("gre", outer.src, outer.dst, 0xCAFE0001 if flags[1] else None)
    is_counted(sockex3, ETH / outer / gre / inside / SEG, flow._replace(tunnel=(tunnel,)))


@pytest.mark.parametrize("labels", [1, 2, 3, 8, 20])
@variants({"v4": (V4 / SEG, TCP4), "v6": (V6 / SEG, TCP6)})
def test_mpls_payload_is_read_as_the_ip_version_it_is(
    sockex3: Sockex3, labels: int, frame: Packet, flow: Flow
) -> None:
    stack: Packet = Ether(bytes(ETH)[:12] + b"\x88\x47")
    for i in range(labels):
        stack = stack / MPLS(label=100 + i, s=int(i == labels - 1))
    is_counted(sockex3, bytes(stack) + bytes(frame), flow)


@pytest.mark.parametrize("proto", ["0021", "21"], ids=["two bytes", "compressed"])
@pytest.mark.parametrize("vlan", [(), (35,)])
@variants({"v4": (V4 / SEG, TCP4), "v6": (V6 / SEG, TCP6)})
def test_pppoe_is_looked_through(
    sockex3: Sockex3, proto: str, vlan: tuple[int, ...], frame: Packet, flow: Flow
) -> None:
    number = bytes.fromhex(proto if flow is TCP4 else proto.replace("21", "57"))
    payload = number + bytes(frame)
    head = b"\x11\x00" + (7).to_bytes(2, "big") + len(payload).to_bytes(2, "big")
    tags = b"".join(b"\x81\x00" + one.to_bytes(2, "big") for one in vlan)
    whole = bytes(ETH)[:12] + tags + b"\x88\x64" + head + payload
    is_counted(sockex3, whole, flow._replace(vlan=vlan))
    padded = whole + bytes(20)  # the session header says how long the packet is
    is_counted(sockex3, padded, flow._replace(vlan=vlan))


@pytest.mark.parametrize(
    "head", ["1200", "1101", "2100"], ids=["version 1 type 2", "discovery's code", "version 2"]
)
def test_pppoe_that_is_none_is_not_ip(sockex3: Sockex3, head: str) -> None:
    payload = b"\x00\x21" + bytes(V4 / SEG)
    whole = bytes(ETH)[:12] + b"\x88\x64" + bytes.fromhex(head) + b"\0\7"
    is_counted(sockex3, whole + len(payload).to_bytes(2, "big") + payload, None)


@pytest.mark.parametrize("word", [b"", bytes(4), b"\0\0\x12\x34"], ids=["none", "zero", "sequence"])
@pytest.mark.parametrize("mac", ["00:11:22:33:44:55", "02:00:00:00:00:09", "45:00:00:3c:00:01"])
@pytest.mark.parametrize("vlan", [(), (9,)])
def test_ethernet_pseudowires_are_looked_through(
    sockex3: Sockex3, word: bytes, mac: str, vlan: tuple[int, ...]
) -> None:
    """RFC 4448, with and without the control word, whatever the MAC address starts with."""
    inner: Packet = Ether(src="02:00:00:00:00:08", dst=mac)
    for one in vlan:
        inner = inner / Dot1Q(vlan=one)
    outer = bytes(ETH)[:12] + b"\x88\x47" + bytes(MPLS(label=16, s=0)) + bytes(MPLS(label=17, s=1))
    frame = outer + word + bytes(inner / IN4 / SEG)
    is_counted(sockex3, frame, INNER4._replace(vlan=vlan))


def test_all_cpus_count(sockex3: Sockex3) -> None:
    sockex3.clear()
    before = os.sched_getaffinity(0)
    frame = bytes(ETH / Dot1Q(vlan=3) / V4 / SEG)
    try:
        for cpu in before:
            os.sched_setaffinity(0, {cpu})
            sockex3.run(frame, repeat=10)
    finally:
        os.sched_setaffinity(0, before)
    packets = 10 * len(before)
    assert sockex3.rows()[TCP4._replace(vlan=(3,))] == (packets, packets * len(frame))


@variants(
    {
        "icmp": (ETH / V4 / ICMP(), Flow(A4, B4, 1)),
        "icmp in gre": (
            ETH / V4 / GRE() / IN4 / ICMP(),
            Flow(C4, D4, 1, tunnel=(Tunnel("gre", A4, B4),)),
        ),
        "icmp6": (ETH / V6 / ICMPv6EchoRequest(), Flow(A6, B6, 58)),
    }
)
def test_packets_without_ports_do_not_inherit_the_previous_ones(
    sockex3: Sockex3, frame: Packet, flow: Flow
) -> None:
    for _ in range(2):
        sockex3.run(bytes(ETH / V4 / SEG))
        sockex3.run(bytes(ETH / Dot1Q(vlan=9) / V6 / SEG))
        is_counted(sockex3, frame, flow)


@pytest.mark.parametrize("family", [4, 6])
def test_every_ip_protocol_is_counted(sockex3: Sockex3, family: int) -> None:
    headers = {0, 43, 44, 51, 60, 135, 139, 140} if family == 6 else {51}
    src, dst = (A4, B4) if family == 4 else (A6, B6)
    for proto in set(range(256)) - headers:
        ip = IP(src=src, dst=dst, proto=proto) if family == 4 else IPv6(src=src, dst=dst, nh=proto)
        flow = Flow(src, dst, proto)
        if proto in (6, 17, 33, 132, 136):
            flow = flow._replace(sport=0x0102, dport=0x0304)
        # 0x01…: neither a GRE nor an IP header
        is_counted(sockex3, ETH / ip / Raw(bytes(range(1, 41))), flow)


@variants(
    {
        "tcp": (ETH / V4 / TCP(**PORTS), TCP4),
        "udp": (ETH / V4 / UDP(**PORTS), TCP4._replace(proto=17)),
        "sctp": (ETH / V4 / SCTP(**PORTS), TCP4._replace(proto=132)),
        "udplite": (ETH / IP(src=A4, dst=B4, proto=136) / UDP(**PORTS), TCP4._replace(proto=136)),
        "dccp": (ETH / IP(src=A4, dst=B4, proto=33) / TCP(**PORTS), TCP4._replace(proto=33)),
        "esp": (ETH / V4 / ESP(spi=1, seq=1), Flow(A4, B4, 50)),
        "ah": (ETH / V4 / AH(nh=6) / SEG, Flow(A4, B4, 51)),
        "igmp": (ETH / IP(src=A4, dst="224.0.0.1", proto=2), Flow(A4, "224.0.0.1", 2)),
        "tcp6": (ETH / V6 / TCP(**PORTS), TCP6),
        "udp6": (ETH / V6 / UDP(**PORTS), TCP6._replace(proto=17)),
        "sctp6": (ETH / V6 / SCTP(**PORTS), TCP6._replace(proto=132)),
        "esp6": (ETH / V6 / ESP(spi=1, seq=1), Flow(A6, B6, 50)),
    }
)
def test_transports(sockex3: Sockex3, frame: Packet, flow: Flow) -> None:
    is_counted(sockex3, frame, flow)


def test_gre_that_cannot_be_entered_is_a_flow_of_gre(sockex3: Sockex3) -> None:
    gre = Flow(A4, B4, 47)
    routed = ETH / V4 / GRE(routing_present=1, proto=0x0800) / IN4 / SEG
    is_counted(sockex3, routed, gre)
    is_counted(sockex3, ETH / V4 / GRE(version=2, proto=0x0800) / IN4 / SEG, gre)
    is_counted(sockex3, ETH / V4 / GRE(proto=0x0806) / ARP(), gre)
    is_counted(sockex3, ETH / V4 / GRE(proto=0x6558) / INNER_ETH / ARP(), gre)
    is_counted(sockex3, ETH / V4 / GRE(proto=0), gre)


PPTP = b"\x30\x81\x88\x0b\x00\x28\x12\x34" + bytes(4) + bytes(4)  # key, seq, ack; call 0x1234
PPTP_NO_ACK = b"\x30\x01\x88\x0b\x00\x28\x12\x34" + bytes(4)
PPTP_ACK_ONLY = b"\x20\x81\x88\x0b\x00\x00\x12\x34\x00\x00\x00\x01"
CALL = (Tunnel("gre", A4, B4, 0x1234),)
IN_CALL4, IN_CALL6 = INNER4._replace(tunnel=CALL), INNER6._replace(tunnel=CALL)
CALL_ITSELF = Flow(A4, B4, 47, tunnel=CALL)


@variants(
    {
        "ip": (PPTP + b"\xff\x03\x00\x21" + bytes(IN4 / SEG), IN_CALL4),
        "ip, no ack": (PPTP_NO_ACK + b"\xff\x03\x00\x21" + bytes(IN4 / SEG), IN_CALL4),
        "no address and control": (PPTP + b"\x00\x21" + bytes(IN4 / SEG), IN_CALL4),
        "short protocol": (PPTP + b"\x21" + bytes(IN4 / SEG), IN_CALL4),
        "ipv6": (PPTP + b"\xff\x03\x57" + bytes(IN6 / SEG), IN_CALL6),
        "lcp": (PPTP + b"\xff\x03\xc0\x21\x01\x01\x00\x04", CALL_ITSELF),
        "encrypted": (PPTP + b"\x00\xfd" + bytes(range(64)), CALL_ITSELF),
        "ack only": (PPTP_ACK_ONLY, CALL_ITSELF),
        "no key": (b"\x00\x01\x88\x0b" + bytes(40), Flow(A4, B4, 47)),
    }
)
def test_pptp_calls_are_told_apart_by_call_id(sockex3: Sockex3, frame: bytes, flow: Flow) -> None:
    is_counted(sockex3, bytes(ETH / IP(src=A4, dst=B4, proto=47) / Raw(frame)), flow)


def test_ipv6_addresses_are_whole(sockex3: Sockex3) -> None:
    sockex3.clear()
    for src in ("2001:db8::1", "2001:db8::1:0:0", "::1", "::"):
        sockex3.run(bytes(ETH / IPv6(src=src, dst="::1") / SEG))
    assert sorted(flow.src for flow in sockex3.rows()) == [
        "2001:db8::1",
        "2001:db8::1:0:0",
        "::",
        "::1",
    ]


EXTENSIONS = {
    "hop-by-hop": IPv6ExtHdrHopByHop(),
    "routing": IPv6ExtHdrRouting(addresses=["2001:db8::9"]),
    "destination": IPv6ExtHdrDestOpt(),
    "ah": AH(payloadlen=4, icv=bytes(12)),
    "atomic fragment": IPv6ExtHdrFragment(),
    "first fragment": IPv6ExtHdrFragment(m=1, id=7),
}


@pytest.mark.parametrize("header", EXTENSIONS.values(), ids=EXTENSIONS)
def test_ipv6_extension_header(sockex3: Sockex3, header: Packet) -> None:
    header = header.copy()
    header.nh = 6
    number = {IPv6ExtHdrHopByHop: 0, IPv6ExtHdrRouting: 43, IPv6ExtHdrDestOpt: 60, AH: 51}
    ip = IPv6(src=A6, dst=B6, nh=number.get(type(header), 44))
    is_counted(sockex3, ETH / ip / header / SEG, TCP6)
    inside = IPv6(src=C6, dst=D6, nh=ip.nh) / header / SEG
    tunnel = (Tunnel("gre", A4, B4),)
    is_counted(sockex3, ETH / V4 / GRE(proto=0x86DD) / inside, INNER6._replace(tunnel=tunnel))


@pytest.mark.parametrize("number", [0, 43, 60, 135, 139, 140])
@pytest.mark.parametrize("count", [1, 2, 6, 7, 30])
@pytest.mark.parametrize("units", [0, 2, 31])
def test_ipv6_extension_headers_in_chains(
    sockex3: Sockex3, number: int, count: int, units: int
) -> None:
    if count * units > 300:
        units = 3
    headers = b"".join(
        bytes((number if i < count - 1 else 17, units)) + bytes(6 + 8 * units) for i in range(count)
    )
    frame = ETH / IPv6(src=A6, dst=B6, nh=number) / Raw(headers + bytes(UDP(**PORTS)))
    is_counted(sockex3, frame, TCP6._replace(proto=17))


def test_ipv6_extension_header_that_is_cut_off_names_the_flow(sockex3: Sockex3) -> None:
    for size in range(8):
        ip = IPv6(src=A6, dst=B6, nh=60, plen=16)
        is_counted(sockex3, bytes(ETH / ip) + (b"\x06" + bytes(7))[:size], Flow(A6, B6, 60))
    no_such_ah = IPv6(src=A6, dst=B6, nh=51) / Raw(bytes(40))
    is_counted(sockex3, ETH / no_such_ah, Flow(A6, B6, 51))


@pytest.mark.parametrize("proto", [6, 17, 1, 4, 41, 47])
def test_later_ipv4_fragments_count_without_ports(sockex3: Sockex3, proto: int) -> None:
    payload = Raw(bytes(V4 / SEG) if proto != 41 else bytes(V6 / SEG))
    for flags, offset in ((0, 185), ("MF", 185), ("MF+DF", 1)):
        later = IP(src=C4, dst=D4, proto=proto, frag=offset, flags=flags) / payload
        is_counted(sockex3, ETH / later, Flow(C4, D4, proto))
        inside = (Tunnel("gre", A4, B4),)
        is_counted(sockex3, ETH / V4 / GRE() / later, Flow(C4, D4, proto, tunnel=inside))


def test_a_first_ipv4_fragment_counts_by_its_ports(sockex3: Sockex3) -> None:
    is_counted(sockex3, ETH / IP(src=A4, dst=B4, flags="MF") / SEG, TCP4)
    is_counted(sockex3, ETH / IP(src=A4, dst=B4, flags="DF") / SEG, TCP4)
    tunnel = (Tunnel("ipip", A4, B4),)
    first = ETH / IP(src=A4, dst=B4, flags="MF") / IN4 / SEG
    is_counted(sockex3, first, INNER4._replace(tunnel=tunnel))


@pytest.mark.parametrize("proto", [6, 17, 58, 4, 41, 47, 60])
def test_later_ipv6_fragments_count_without_ports(sockex3: Sockex3, proto: int) -> None:
    payload = Raw(bytes(IN4 / SEG))
    for more in (0, 1):
        head = IPv6ExtHdrFragment(nh=proto, offset=100, m=more, id=1)
        is_counted(sockex3, ETH / IPv6(src=A6, dst=B6, nh=44) / head / payload, Flow(A6, B6, proto))
        inner = IPv6(src=C6, dst=D6, nh=44) / head / payload
        flow = Flow(C6, D6, proto, tunnel=(Tunnel("6in4", A4, B4),))
        is_counted(sockex3, ETH / V4 / inner, flow)


def test_a_full_table_counts_as_unattributed() -> None:
    program = Sockex3(max_entries={"flows": 8})
    frames = [bytes(ETH / V4 / TCP(sport=port, dport=80)) for port in range(1, 101)]
    for frame in frames + frames:
        program.run(frame)
    totals = program.totals()
    rows = program.rows()
    assert len(rows) == 8 and all(row == (2, 54 * 2) for row in rows.values())
    assert totals["unattributed"] == (2 * 92, 2 * 92 * 54)
    program.check_sum()
    program.close()


def test_no_place_for_outer_headers_counts_as_unattributed() -> None:
    program = Sockex3(max_entries={"outers": 4})
    for tag in range(1, 21):
        program.run(bytes(ETH / Dot1Q(vlan=tag) / V4 / SEG))
    assert program.totals()["unattributed"][0] == 16
    is_counted(program, ETH / Dot1Q(vlan=1) / V4 / SEG, TCP4._replace(vlan=(1,)))
    is_counted(program, ETH / V4 / SEG, TCP4)
    program.close()


def test_an_lru_table_makes_place() -> None:
    program = Sockex3(map_types={"flows": "lru_percpu_hash"}, max_entries={"flows": 64})
    for port in range(1, 2001):
        program.run(bytes(ETH / V4 / TCP(sport=port, dport=80)))
    totals = program.totals()
    assert totals["seen"][0] == 2000 and totals["unattributed"] == (0, 0)
    assert 0 < len(program.rows()) <= 64
    assert TCP4._replace(sport=2000) in program.rows()
    program.close()


def test_cpus_that_meet_in_a_new_flow_both_count(sockex3: Sockex3) -> None:
    sockex3.clear()
    cpus = sorted(os.sched_getaffinity(0))
    frames = [
        bytes(ETH / Dot1Q(vlan=1 + port % 50) / V4 / TCP(sport=port, dport=443))
        for port in range(1, 1501)
    ]
    start = threading.Barrier(len(cpus))

    def work(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        start.wait()
        for frame in frames:
            sockex3.run(frame)

    threads = [threading.Thread(target=work, args=(cpu,)) for cpu in cpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = sockex3.rows()
    assert len(rows) == len(frames)
    assert {row[0] for row in rows.values()} == {len(cpus)}
    sockex3.check_sum()


TAGS = {"8100": 0x8100, "88a8": 0x88A8, "9100": 0x9100}


@pytest.mark.parametrize("outer", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("inner", TAGS.values(), ids=TAGS)
@variants({"v4": (V4 / SEG, TCP4), "v6": (V6 / SEG, TCP6), "mpls": (V4 / SEG, TCP4)})
def test_vlan_tags_in_any_order_are_in_the_key(
    sockex3: Sockex3,
    outer: int,
    inner: int,
    frame: Packet,
    flow: Flow,
    request: pytest.FixtureRequest,
) -> None:
    last = 0x86DD if flow is TCP6 else 0x0800
    payload = bytes(frame)
    if "mpls" in request.node.name:
        last, payload = 0x8847, bytes(MPLS(label=5, s=1)) + payload
    head = bytes(ETH)[:12]

    def tags(*pairs: tuple[int, int]) -> bytes:
        parts = b"".join(kind.to_bytes(2, "big") + tci.to_bytes(2, "big") for kind, tci in pairs)
        return head + parts + last.to_bytes(2, "big") + payload

    is_counted(sockex3, tags((outer, 0x6064)), flow._replace(vlan=(100,)))
    is_counted(sockex3, tags((outer, 100), (inner, 0xF0C8)), flow._replace(vlan=(100, 200)))
    is_counted(sockex3, tags((outer, 0), (inner, 200)), flow._replace(vlan=(200,)))
    is_counted(sockex3, tags((outer, 0xE000)), flow)  # a priority tag: no VLAN
    three = ((outer, 1), (inner, 2), (outer, 3))
    is_counted(sockex3, tags(*three), flow._replace(vlan=(1, 2, 3)))


@pytest.mark.parametrize("depth", [4, 10, 25, 40])
def test_frames_nested_deeper_than_tail_calls_reach_are_counted(
    sockex3: Sockex3, depth: int
) -> None:
    tags: Packet = ETH
    for i in range(depth):
        tags = tags / Dot1Q(vlan=1 + i)
    flow, row = sockex3.flow_of(bytes(tags / V4 / SEG))
    assert row == (1, len(tags / V4 / SEG))
    if depth <= 25:
        assert flow == TCP4._replace(vlan=tuple(range(1, depth + 1)))
    nested: Packet = ETH
    for i in range(depth):
        nested = nested / IP(src=f"10.0.0.{i}", dst=B4)
    frame = bytes(nested / SEG)
    flow, row = sockex3.flow_of(frame)
    assert row == (1, len(frame)) and flow is not None
    if depth <= 25:
        assert flow.src == f"10.0.0.{depth - 1}" and len(flow.tunnel) == depth - 1
        assert flow.sport == 1234
    else:
        assert flow.proto == 4  # the deepest that was reached


IP_IN_IP = {
    "ipip": (V4, IN4, INNER4),
    "6in4": (V4, IN6, INNER6),
    "4in6": (V6, IN4, INNER4),
    "6in6": (V6, IN6, INNER6),
}


@pytest.mark.parametrize("kind", IP_IN_IP)
def test_ip_in_ip(sockex3: Sockex3, kind: str) -> None:
    outer, inner, flow = IP_IN_IP[kind]
    tunnel = Tunnel(kind, outer.src, outer.dst)
    is_counted(sockex3, ETH / outer / inner / SEG, flow._replace(tunnel=(tunnel,)))
    tagged = flow._replace(vlan=(5,), tunnel=(tunnel,))
    is_counted(sockex3, ETH / Dot1AD(vlan=5) / outer / inner / SEG, tagged)
    not_ip = bytes(ETH / outer.__class__(bytes(outer / inner)[: len(outer)])) + b"\x50" + bytes(40)
    is_counted(sockex3, not_ip, Flow(outer.src, outer.dst, 4 if inner is IN4 else 41))


def test_two_tunnels_are_told_apart(sockex3: Sockex3) -> None:
    one, two = IP(src=A4, dst="203.0.113.1"), IP(src=A4, dst="203.0.113.2")
    sockex3.clear()
    for outer in (one, two):
        for key in (1, 2):
            gre = GRE(key_present=1, key=key)
            sockex3.run(bytes(ETH / outer / gre / V6 / IN4 / SEG))
    assert {flow.tunnel for flow in sockex3.rows()} == {
        (Tunnel("gre", A4, outer.dst, key), Tunnel("4in6", A6, B6))
        for outer in (one, two)
        for key in (1, 2)
    }


def test_vxlan_is_an_option(sockex3: Sockex3, with_vxlan: Sockex3) -> None:
    outer = V4 / UDP(sport=50000, dport=VXLAN_PORT)
    vni = VXLAN(vni=0xABCDEF)
    frame = ETH / outer / vni / INNER_ETH / Dot1Q(vlan=7) / IN6 / SEG
    udp = Flow(A4, B4, 17, 50000, VXLAN_PORT)
    inner = INNER6._replace(vlan=(7,), tunnel=(Tunnel("vxlan", A4, B4, 0xABCDEF),))
    is_counted(sockex3, frame, udp)
    is_counted(with_vxlan, frame, inner)
    is_counted(with_vxlan, ETH / outer / vni / INNER_ETH / ARP(), udp)
    is_counted(with_vxlan, ETH / outer / VXLAN(flags=0) / INNER_ETH / IN4 / SEG, udp)
    is_counted(with_vxlan, ETH / V4 / UDP(**PORTS) / vni / INNER_ETH, TCP4._replace(proto=17))
    is_counted(with_vxlan, ETH / V4 / SEG, TCP4)


# --- what is no IP -----------------------------------------------------------------------------


@variants(
    {
        "arp": (ETH / ARP(), None),
        "stp": (Ether(dst="01:80:c2:00:00:00", type=38) / LLC() / STP(), None),
        "arp in vlan": (ETH / Dot1Q(vlan=4) / ARP(), None),
        "ipv4 says ipv6": (Ether(bytes(ETH)[:12] + b"\x08\x00") / Raw(bytes(V6 / SEG)), None),
        "ipv6 says ipv4": (Ether(bytes(ETH)[:12] + b"\x86\xdd") / Raw(bytes(V4 / SEG)), None),
        "ihl 4": (ETH / IP(src=A4, dst=B4, ihl=4) / SEG, None),
        "mpls, no bottom": (Ether(bytes(ETH)[:12] + b"\x88\x47") / Raw(bytes(400)), None),
        "mpls control word, no known ethertype": (
            ETH / MPLS(s=1) / Raw(bytes(16) + b"\x12\x34" + bytes(IN4 / SEG)),
            None,
        ),
    }
)
def test_frames_without_a_readable_ip_header_are_nonip(
    sockex3: Sockex3, frame: Packet, flow: None
) -> None:
    is_counted(sockex3, bytes(frame), flow)


@pytest.mark.parametrize("first", range(0x40, 0x70))
def test_ethernet_in_mpls_is_not_misread_as_ip(sockex3: Sockex3, first: int) -> None:
    for inner, flow in (
        (IN4 / SEG, INNER4),
        (IN6 / SEG, INNER6),
        (Dot1Q(vlan=3) / IN4 / SEG, INNER4._replace(vlan=(3,))),
        (ARP(), None),
    ):
        wire = Ether(dst=f"{first:02x}:00:00:12:34:56", src="02:00:00:00:00:03") / inner
        frame = bytes(Ether(bytes(ETH)[:12] + b"\x88\x47") / MPLS(label=3, s=1)) + bytes(wire)
        is_counted(sockex3, frame, flow)


# --- lengths -----------------------------------------------------------------------------------


def test_ports_are_not_read_from_padding(sockex3: Sockex3) -> None:
    bare = bytes(ETH / IP(src=A4, dst=B4, proto=17, len=20)) + bytes(26)
    is_counted(sockex3, bare, Flow(A4, B4, 17))
    bare = bytes(ETH / IP(src=A4, dst=B4, proto=17, len=22)) + bytes(26)
    is_counted(sockex3, bare, Flow(A4, B4, 17))
    bare = bytes(ETH / IPv6(src=A6, dst=B6, nh=17, plen=3)) + bytes(26)
    is_counted(sockex3, bare, Flow(A6, B6, 17))
    # the inner packet does not reach beyond the outer one either
    inner = bytes(IP(src=C4, dst=D4, proto=6) / SEG)
    outer = bytes(ETH / IP(src=A4, dst=B4, proto=4, len=20 + 21)) + inner
    is_counted(sockex3, outer, Flow(C4, D4, 6, tunnel=(Tunnel("ipip", A4, B4),)))


def test_padding_counts_as_bytes_on_the_wire(sockex3: Sockex3) -> None:
    is_counted(sockex3, bytes(ETH / V4 / TCP(**PORTS)).ljust(60, b"\0"), TCP4)


def test_a_packet_that_does_not_say_its_length_is_as_long_as_the_frame(sockex3: Sockex3) -> None:
    # super-frames above 64 KiB and some captures of offloaded packets have 0 there
    is_counted(sockex3, ETH / IP(src=A4, dst=B4, len=0) / SEG, TCP4)
    is_counted(sockex3, ETH / IPv6(src=A6, dst=B6, plen=0) / SEG, TCP6)


def test_payload_under_four_bytes_is_counted_without_ports(sockex3: Sockex3) -> None:
    for size in range(4):
        for ip, flow in ((IP(src=A4, dst=B4, proto=17), Flow(A4, B4, 17)),
                         (IPv6(src=A6, dst=B6, nh=17), Flow(A6, B6, 17))):  # fmt: skip
            is_counted(sockex3, bytes(ETH / ip / Raw(bytes(size))), flow)
    is_counted(sockex3, bytes(ETH / IP(src=A4, dst=B4, proto=17) / Raw(b"\1\2\3\4")),
               Flow(A4, B4, 17, 0x102, 0x304))  # fmt: skip


def test_bytes_follow_the_original_length_of_a_cut_capture(sockex3: Sockex3) -> None:
    frame = bytes(ETH / V4 / TCP(**PORTS) / Raw(bytes(1400)))
    assert sockex3.flow_of(frame[:54], wire_len=1454) == (TCP4, (1, 1454))
    assert sockex3.flow_of(frame[:34], wire_len=1454) == (Flow(A4, B4, 6), (1, 1454))
    assert sockex3.flow_of(frame[:33], wire_len=1454) == (None, (1, 1454))
    # offloads in a capture are not to be guessed from gso_size alone
    assert sockex3.flow_of(frame[:54], wire_len=1454, gso_size=100) == (TCP4, (1, 1454))


DEEP = [
    ETH / Dot1AD(vlan=1) / Dot1Q(vlan=2) / MPLS(label=3, s=1) / V4
    / GRE(key_present=1, key=4, seqnum_present=1) / IN6 / IP(src="10.9.9.9", dst="10.8.8.8")
    / UDP(sport=9, dport=VXLAN_PORT) / VXLAN(vni=5) / INNER_ETH / Dot1Q(vlan=6)
    / IPv6(src="fd00::9", dst="fd00::8") / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / SEG,
    ETH / V6 / IPv6ExtHdrFragment(m=1) / GRE(chksum_present=1, proto=0x6558)
    / INNER_ETH / IP(src=C4, dst=D4, options=[IPOption_NOP()] * 8) / SCTP(**PORTS) / Raw(bytes(10)),
    ETH / IP(src=A4, dst=B4, proto=47) / Raw(PPTP + b"\xff\x03\x00\x21" + bytes(IN4 / SEG)),
]  # fmt: skip


@pytest.mark.parametrize("deep", range(len(DEEP)))
def test_a_frame_cut_anywhere_is_counted_as_what_can_be_read(
    with_vxlan: Sockex3, deep: int
) -> None:
    frame = bytes(DEEP[deep])
    for size in range(1, len(frame) + 1):
        flow = dissect(frame[:size], VXLAN_PORT)
        assert with_vxlan.flow_of(frame[:size]) == (flow, (1, size)), size
        assert with_vxlan.flow_of(frame[:size], wire_len=len(frame))[1] == (1, len(frame)), size
    assert flow is not None and flow.sport is not None


# --- super-frames ------------------------------------------------------------------------------

BIG = Raw(bytes(3000))
SUPER = {
    "tcp": (ETH / V4 / TCP(**PORTS) / BIG, 54, TCP4),
    "tcp with options": (ETH / V4 / TCP(**PORTS, options=[("Timestamp", (1, 2))]) / BIG, 66, TCP4),
    "tcp6": (ETH / V6 / TCP(**PORTS) / BIG, 74, TCP6),
    "vlan": (ETH / Dot1Q(vlan=1) / V4 / TCP(**PORTS) / BIG, 58, TCP4._replace(vlan=(1,))),
    "udp": (ETH / V4 / UDP(**PORTS) / BIG, 42, TCP4._replace(proto=17)),
    "sctp": (ETH / V4 / SCTP(**PORTS) / BIG, 46, TCP4._replace(proto=132)),
    "gre": (
        ETH / V4 / GRE(key_present=1, key=1) / IN4 / TCP(**PORTS) / BIG,
        14 + 20 + 8 + 20 + 20,
        INNER4._replace(tunnel=(Tunnel("gre", A4, B4, 1),)),
    ),
    "6in4": (
        ETH / V4 / IN6 / UDP(**PORTS) / BIG,
        14 + 20 + 40 + 8,
        INNER6._replace(proto=17, tunnel=(Tunnel("6in4", A4, B4),)),
    ),
    "vxlan": (
        ETH
        / V4
        / UDP(sport=5, dport=VXLAN_PORT)
        / VXLAN(vni=1)
        / INNER_ETH
        / IN4
        / TCP(**PORTS)
        / BIG,
        14 + 20 + 8 + 8 + 14 + 20 + 20,
        INNER4._replace(tunnel=(Tunnel("vxlan", A4, B4, 1),)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SUPER)
def test_super_frames_count_as_their_segments(with_vxlan: Sockex3, kind: str) -> None:
    packet, header, flow = SUPER[kind]
    frame = bytes(packet)
    payload = len(frame) - header
    for size in (1, 500, 1000, 1448, payload - 1, payload, payload + 1):
        if size > 0xFFFE:
            continue
        segments = -(-payload // size)
        if segments > 0xFFFF:
            continue
        wire = payload + segments * header
        assert with_vxlan.flow_of(frame, gso_size=size, gso_segs=segments) == (
            flow,
            (segments, wire),
        )
        assert with_vxlan.flow_of(frame, gso_size=size) == (flow, (segments, wire)), "virtio"
    by_frags = with_vxlan.flow_of(frame, gso_size=0xFFFF, gso_segs=4)
    assert by_frags == (flow, (4, len(frame) + 3 * header))
    assert with_vxlan.flow_of(frame, gso_size=0xFFFF) == (flow, (1, len(frame)))
    assert with_vxlan.flow_of(frame, gso_segs=3) == (flow, (3, len(frame) + 2 * header))


def test_segments_of_a_tunnel_that_is_not_shown_repeat_its_inner_headers(sockex3: Sockex3) -> None:
    packet, header, _ = SUPER["vxlan"]
    flow = Flow(A4, B4, 17, 5, VXLAN_PORT)
    wire = len(packet) + 2 * header
    assert sockex3.flow_of(bytes(packet), gso_size=1000, gso_segs=3) == (flow, (3, wire))


# --- coming and going --------------------------------------------------------------------------


def test_nothing_is_left_when_others_look_at_the_maps_meanwhile() -> None:
    """The kernel empties a tail-call array after its last descriptor is closed, and keeps it for
    good if somebody opens it by its id twice meanwhile.  Where calls were patched into the code
    emptying takes 0.2 s, and any ``bpftool map`` will do."""
    for _ in range(5):
        program = Sockex3()
        number = program.object["jump"].id
        program.run(bytes(ETH / Dot1Q(vlan=1) / V4 / SEG))
        program.close()
        time.sleep(0.1)
        deadline = time.monotonic() + 2
        while True:
            try:
                os.close(syscall.map_get_fd_by_id(number))
            except FileNotFoundError:
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)


# --- at random ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_random_frames_are_the_flow_they_were_made_for(with_vxlan: Sockex3, seed: int) -> None:
    rng = random.Random(seed)
    frames = [random_frame(rng, VXLAN_PORT) for _ in range(250)]
    expected: Tally[tuple[Flow, str]] = Tally()
    with_vxlan.clear()
    run = with_vxlan.program.runner()
    for frame, flow in frames:
        assert dissect(frame, VXLAN_PORT) == flow, frame.hex()
        run(frame)
        expected[flow, "packets"] += 1
        expected[flow, "bytes"] += len(frame)
    rows = with_vxlan.rows()
    assert set(rows) == {flow for _, flow in frames}
    for flow, row in rows.items():
        assert row == (expected[flow, "packets"], expected[flow, "bytes"])
    with_vxlan.check_sum()


def mutate(rng: random.Random, frame: bytes) -> bytes:
    """A few bytes changed, mostly in the headers; sometimes cut or padded."""
    data = bytearray(frame)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(min(len(data), 200))
        data[at] = rng.choice(
            (0, 0xFF, 0x45, 0x60, rng.getrandbits(8), data[at] ^ 1 << rng.randrange(8))
        )
    cut = rng.random()
    if cut < 0.2:
        del data[rng.randrange(1, len(data) + 1) :]
    elif cut < 0.3:
        data += bytes(rng.randrange(40))
    return bytes(data) or b"\0"


@pytest.mark.parametrize("port", [0, VXLAN_PORT], ids=["plain", "vxlan"])
@pytest.mark.parametrize("seed", range(3))
def test_no_frame_is_lost_or_counted_twice_whatever_its_bytes(
    sockex3: Sockex3, with_vxlan: Sockex3, seed: int, port: int
) -> None:
    program = with_vxlan if port else sockex3
    rng = random.Random(1000 + seed)
    bases = [random_frame(rng, VXLAN_PORT)[0] for _ in range(100)]
    run = program.program.runner()
    for base in bases:
        expected: dict[Flow | None, tuple[int, int]] = {}
        program.clear()
        for _ in range(50):
            frame = mutate(rng, base)
            run(frame)
            flow = dissect(frame, port)
            packets, size = expected.get(flow, (0, 0))
            expected[flow] = packets + 1, size + len(frame)
        rows: dict[Flow | None, tuple[int, int]] = dict(program.rows())
        totals = program.totals()
        if totals["nonip"][0]:
            rows[None] = totals["nonip"]
        assert rows == expected, [frame.hex()]
        assert totals["seen"] == (50, sum(size for _, size in expected.values()))
        assert totals["unattributed"] == (0, 0)
