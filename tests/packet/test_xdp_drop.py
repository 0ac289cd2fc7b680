# SPDX-License-Identifier: Apache-2.0
"""xdp_drop_world, xdp_drop_icmp, xdp_drop_tcp and tc_drop_tcp, frame by frame.

What must come out is said by headers_oracle, and by scapy, which built the frames.  Every prefix of
many more frames, and random ones: test_corpus.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from headers_oracle import ETH, V4, V6, drops_icmp, drops_tcp, look
from running import run
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, GRE, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

import bpfkit
from bpfkit.app.interface import InterfaceApp
from bpfkit.core.program import Program
from bpfkit.tc_drop_tcp import TcDropTcp
from bpfkit.xdp_drop_icmp import XdpDropIcmp
from bpfkit.xdp_drop_tcp import XdpDropTcp
from bpfkit.xdp_drop_world import XdpDropWorld

DEST = IPv6ExtHdrDestOpt
PASS = {XdpDropTcp: 2, XdpDropIcmp: 2, XdpDropWorld: 2, TcDropTcp: 0xFFFFFFFF}
DROP = {XdpDropTcp: 1, XdpDropIcmp: 1, XdpDropWorld: 1, TcDropTcp: 2}


class Loaded:
    """A program and whether it drops a frame."""

    def __init__(self, cls: type[InterfaceApp], **consts: int) -> None:
        self.cls = cls
        self.object = bpfkit.load(cls.source, consts=consts)
        self.program: Program = next(iter(self.object.programs.values()))
        self._run = self.program.runner(skb=cls is TcDropTcp)
        self._frame_of = cls.frame_of.__get__(cls.__new__(cls))

    def drops(self, frame: bytes) -> bool:
        verdict = self._run(self._frame_of(frame), 0)
        assert verdict in (PASS[self.cls], DROP[self.cls])
        return verdict == DROP[self.cls]


@pytest.fixture(scope="module")
def tcp_droppers() -> Iterator[list[Loaded]]:
    made = [Loaded(XdpDropTcp), Loaded(TcDropTcp)]
    yield made
    for one in made:
        one.object.close()


@pytest.fixture(scope="module")
def icmp_dropper() -> Iterator[Loaded]:
    made = Loaded(XdpDropIcmp)
    yield made
    made.object.close()


#: frame, is it TCP, is it ICMP
CORPUS: list[tuple[Packet, bool, bool]] = [
    (ETH / V4 / TCP(), True, False),
    (ETH / V6 / TCP(), True, False),
    (ETH / V4 / UDP(), False, False),
    (ETH / V4 / ICMP(), False, True),
    (ETH / V6 / ICMPv6EchoRequest(), False, True),
    (ETH / V6 / ICMPv6ND_NS(), False, True),
    (ETH / ARP(hwdst="02:00:00:00:00:02", psrc="192.0.2.1", pdst="192.0.2.2"), False, False),
    (ETH / Dot1Q(vlan=5) / V4 / TCP(), True, False),
    (ETH / Dot1AD(vlan=5) / Dot1Q(vlan=6) / V6 / TCP(), True, False),
    (ETH / Dot1Q(vlan=5, type=0x9100) / Dot1Q(vlan=6) / V4 / ICMP(), False, True),
    (ETH / IP(options=[IPOption_NOP()] * 40) / TCP(), True, False),
    (ETH / V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / DEST() / TCP(), True, False),
    (ETH / V6 / DEST() / ICMPv6EchoRequest(), False, True),
    (ETH / IP(flags="MF") / TCP(), True, False),
    (ETH / IP(frag=9, proto=6) / Raw(bytes(40)), True, False),
    (ETH / IP(frag=9, proto=1) / Raw(bytes(40)), False, True),
    (ETH / IP(frag=9, proto=17) / Raw(b"\6" * 40), False, False),
    (ETH / V6 / IPv6ExtHdrFragment(m=1) / TCP(), True, False),
    (ETH / V6 / IPv6ExtHdrFragment(offset=9, nh=6) / Raw(bytes(40)), True, False),
    (ETH / V6 / IPv6ExtHdrFragment(offset=9, nh=58) / Raw(bytes(40)), False, True),
    (ETH / V6 / IPv6ExtHdrFragment(offset=9, nh=60) / Raw(bytes([6] * 40)), False, False),
    (ETH / V4 / GRE() / V4 / TCP(), False, False),
    (ETH / V4 / V4 / TCP(), False, False),
    (ETH / IP(proto=58) / Raw(bytes(8)), False, False),
    (ETH / IPv6(nh=1) / Raw(bytes(8)), False, False),
    (ETH / IP(ihl=4) / TCP(), False, False),
    (Ether(type=0x0800) / Raw(bytes(V6 / TCP())), False, False),
    (Ether(type=0x86DD) / Raw(bytes(V4 / TCP() / Raw(bytes(40)))), False, False),
]


@pytest.mark.parametrize(("packet", "tcp", "icmp"), CORPUS, ids=lambda x: str(x)[:40])
def test_corpus(
    tcp_droppers: list[Loaded], icmp_dropper: Loaded, packet: Packet, tcp: bool, icmp: bool
) -> None:
    frame = bytes(packet)
    assert (drops_tcp(frame), drops_icmp(frame)) == (tcp, icmp), "the oracle itself"
    assert [one.drops(frame) for one in tcp_droppers] == [tcp, tcp]
    assert icmp_dropper.drops(frame) == icmp


@pytest.mark.parametrize(("count", "dropped"), [(31, False), (32, False), (33, True), (100, True)])
def test_chains_that_are_too_long_are_dropped(
    tcp_droppers: list[Loaded], icmp_dropper: Loaded, count: int, dropped: bool
) -> None:
    chain = b"".join(bytes([60 if i < count - 1 else 17, 0]) + bytes(6) for i in range(count))
    frame = bytes(ETH / IPv6(nh=60, plen=len(chain) + 8) / Raw(chain + bytes(8)))
    assert look(frame).deep == dropped
    assert [one.drops(frame) for one in (*tcp_droppers, icmp_dropper)] == [dropped] * 3


@pytest.mark.parametrize(("count", "dropped"), [(7, False), (8, False), (9, True), (40, True)])
def test_too_many_tags_are_dropped(
    tcp_droppers: list[Loaded], icmp_dropper: Loaded, count: int, dropped: bool
) -> None:
    tags = b"".join(b"\x81\0\0\1" for _ in range(count))
    frame = bytes(ETH)[:12] + tags + b"\x08\0" + bytes(V4 / UDP())
    assert [one.drops(frame) for one in (*tcp_droppers, icmp_dropper)] == [dropped] * 3


def test_ethernet_padding_is_no_header(tcp_droppers: list[Loaded]) -> None:
    # the packet ends before its extension header does; what follows in the frame is padding
    frame = bytes(ETH / IPv6(nh=60, plen=8) / Raw(bytes([6, 1]) + bytes(6) + bytes(30)))
    assert [one.drops(frame) for one in tcp_droppers] == [False, False]


def test_icmp_is_counted_by_type() -> None:
    one = Loaded(XdpDropIcmp)
    for packet in (V4 / ICMP(type=8), V4 / ICMP(type=3), V6 / ICMPv6EchoRequest()):
        assert one.drops(bytes(ETH / packet))
    assert one.drops(bytes(ETH / IP(frag=3, proto=1) / Raw(bytes(8))))
    assert not one.drops(bytes(ETH / V4 / UDP()))
    seen = {key: sums.packets for key, sums in one.object["types"].sums() if sums.packets}
    assert seen == {8: 1, 3: 1, 256 + 128: 1, 512: 1, 515: 1}
    one.object.close()


def test_neighbour_discovery_passes_on_request() -> None:
    one = Loaded(XdpDropIcmp, keep_nd=1)
    assert not one.drops(bytes(ETH / V6 / ICMPv6ND_NS()))
    assert one.drops(bytes(ETH / V6 / ICMPv6EchoRequest()))
    one.object.close()


def test_super_frames_count_as_their_segments() -> None:
    one = Loaded(TcDropTcp)
    frame = bytes(ETH / V4 / TCP() / Raw(bytes(3000)))
    assert one.program.run(frame, skb={"gso_segs": 3, "gso_size": 1000}).retval == 2
    first = dict(one.object["rows"].sums())[0]
    assert (first.packets, first.bytes) == (3, 3 * 1054)
    one.object.close()


def test_interfaces_without_link_header_go_by_the_version() -> None:
    one = Loaded(XdpDropTcp, l2_len=0)
    for packet in (V4 / TCP(), V6 / TCP()):
        assert one.program.run(bytes(packet)).retval == 1
    assert one.program.run(bytes(V4 / UDP())).retval == 2
    one.object.close()


def test_world_drops_every_frame() -> None:
    one = Loaded(XdpDropWorld)
    frames = [bytes(packet) for packet, _, _ in CORPUS]
    assert all(one.drops(frame) for frame in frames)
    sums = one.object["dropped"].sum(0)
    assert (sums.packets, sums.bytes) == (len(frames), sum(map(len, frames)))
    one.object.close()


def test_pcap_rows_have_these_fields_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "one.pcap"
    wrpcap(str(path), [Raw(bytes(packet)) for packet, _, _ in CORPUS[:3]], linktype=1)
    done = run("xdp_drop_tcp", "--pcap", str(path), "--json", check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [list(row) for row in rows] == [["ts", "round", "index", "action"]] * 3
    done = run("xdp_drop_tcp", "--pcap", str(path), check=True)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["      0 XDP_DROP", "      1 XDP_DROP", "      2 XDP_PASS"]
    assert lines[3].split()[:3] == ["action", "ip", "what"], "for people the counters as well"
    assert "3 packets: XDP_DROP 2, XDP_PASS 1" in done.stderr
