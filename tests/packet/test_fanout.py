# SPDX-License-Identifier: Apache-2.0
"""fanout: which socket of a group a packet goes to, by BPF_PROG_TEST_RUN."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from headers_oracle import ETH
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

import bpfkit
from bpfkit.core.kernel import syscall

SOCKETS = 8
ENDS = [("10.0.0.1", "10.9.8.7"), ("2001:db8::1", "2001:db8::2")]


class Fanout:
    """Gives frames to the program as a group on a receiving interface does."""

    def __init__(self, sockets: int) -> None:
        self.object = bpfkit.load("socket/fanout.bpf.c", consts={"sockets": sockets})
        self.fd = self.object.programs["fanout"].fd

    def __call__(self, frame: Packet) -> int:
        # the kernel takes the Ethernet header off and its type into skb->protocol
        return syscall.prog_test_run(self.fd, bytes(frame))[0]


@pytest.fixture(scope="module")
def fanout() -> Iterator[Fanout]:
    program = Fanout(SOCKETS)
    yield program
    program.object.close()


def ip(src: str, dst: str) -> Packet:
    return IPv6(src=src, dst=dst) if ":" in src else IP(src=src, dst=dst)


@pytest.mark.parametrize(("a", "b"), ENDS)
@pytest.mark.parametrize("transport", [TCP, UDP, SCTP])
def test_both_directions_of_a_flow_go_to_one_socket(
    fanout: Fanout, a: str, b: str, transport: type[Packet]
) -> None:
    used = set()
    for port in range(1000, 1100):
        there = ETH / ip(a, b) / transport(sport=port, dport=80)
        back = ETH / ip(b, a) / transport(sport=80, dport=port)
        assert fanout(there) == fanout(back)
        used.add(fanout(there))
    assert used == set(range(SOCKETS))


@pytest.mark.parametrize(("a", "b"), ENDS)
def test_vlan_tags_and_extension_headers_do_not_matter(fanout: Fanout, a: str, b: str) -> None:
    packet = ip(a, b) / TCP(sport=5, dport=6)
    there = fanout(ETH / packet)
    assert fanout(ETH / Dot1Q(vlan=9) / packet) == there
    assert fanout(ETH / Dot1AD(vlan=9) / Dot1Q(vlan=8) / packet) == there
    if ":" in a:
        extended = IPv6(src=a, dst=b) / IPv6ExtHdrHopByHop() / TCP(sport=5, dport=6)
        assert fanout(ETH / extended) == there


def test_fragments_of_a_datagram_stay_together(fanout: Fanout) -> None:
    used = set()
    for i in range(50):
        a, b = f"10.0.0.{i}", "10.1.0.1"
        first = IP(src=a, dst=b, flags="MF") / UDP(sport=i, dport=1) / Raw(bytes(64))
        later = [IP(src=a, dst=b, frag=n, flags=f, proto=17) for n, f in ((9, "MF"), (18, 0))]
        where = {fanout(ETH / fragment / Raw(bytes(80))) for fragment in [first, *later]}
        assert len(where) == 1
        used |= where
        a, b = f"2001:db8::{i:x}", "2001:db8::ffff"
        first = IPv6(src=a, dst=b) / IPv6ExtHdrFragment(m=1) / UDP(sport=i, dport=1)
        head = IPv6ExtHdrFragment(offset=9, nh=17)
        last = IPv6(src=a, dst=b) / head / Raw(bytes(80))
        assert fanout(ETH / first) == fanout(ETH / last)
    assert len(used) > SOCKETS / 2


def test_an_atomic_fragment_goes_where_its_flow_goes(fanout: Fanout) -> None:
    for port in range(1, 30):
        udp = UDP(sport=port, dport=1)
        whole = IPv6(src="2001:db8::1", dst="2001:db8::2") / udp
        atomic = IPv6(src="2001:db8::1", dst="2001:db8::2") / IPv6ExtHdrFragment() / udp
        assert fanout(ETH / whole) == fanout(ETH / atomic)


@pytest.mark.parametrize("sockets", [1, 2, 3, 7, 200])
def test_flows_spread_evenly(sockets: int) -> None:
    program = Fanout(sockets)
    flows = 60 * sockets if sockets < 100 else 20 * sockets
    split = Counter(
        program(ETH / IP(src=f"10.{i % 7}.0.1", dst="10.0.0.2") / TCP(sport=i, dport=443))
        for i in range(flows)
    )
    program.object.close()
    assert set(split) <= set(range(sockets))
    if sockets < 100:
        assert min(split[i] for i in range(sockets)) > 60 * 0.5
        assert max(split.values()) < 60 * 1.6


def test_what_has_no_ports_or_no_ip_header_goes_somewhere(fanout: Fanout) -> None:
    assert fanout(ETH / ARP()) == 0
    there = fanout(ETH / IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(type=8))
    assert there == fanout(ETH / IP(src="10.0.0.2", dst="10.0.0.1") / ICMP(type=0))
