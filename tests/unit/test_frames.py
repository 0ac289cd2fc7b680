# SPDX-License-Identifier: Apache-2.0
"""Addresses and crafted packets: scapy and the ipaddress module judge them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

pytest.importorskip("scapy.all", reason="scapy is not installed")

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from bpfkit.net.packets import frames
from bpfkit.net.packets.addresses import family_of, host_address, mapped, packed

TO, BY = "02:00:00:00:00:02", "02:00:00:00:00:01"
ENDS = [("192.0.2.1", "198.51.100.2"), ("2001:db8::1", "2001:db8:1::2")]


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "fe80::1%eth0"])
def test_packed_addresses(text: str) -> None:
    assert packed(text) == ip_address(text).packed
    assert family_of(text) == (10 if ":" in text else 2)
    assert len(mapped(text)) == 16


@pytest.mark.parametrize("text", ["", "192.0.2", "192.0.2.256", "::g", "example.org", "1.2.3.4%e"])
def test_texts_that_are_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="IPv4 or IPv6 address"):
        packed(text)
    with pytest.raises(ValueError, match="IPv4 or IPv6 address"):
        host_address(text)


def test_host_addresses() -> None:
    assert host_address("2001:DB8:0::1") == "2001:db8::1"
    assert mapped("192.0.2.1") == ip_address("::ffff:192.0.2.1").packed
    for text in ("224.0.0.1", "0.0.0.0", "fe80::1", "ff02::1"):
        with pytest.raises(ValueError, match="unicast"):
            host_address(text)


def rebuilt(data: bytes, layer: type[Packet]) -> bytes:
    """The packet with all lengths and checksums as scapy computes them."""
    packet = layer(data)
    head = packet
    while head:
        for field in ("chksum", "cksum", "len", "plen"):
            if field in head.fields:
                delattr(head, field)
        head = head.payload
    return bytes(packet)


@pytest.mark.parametrize(("source", "destination"), ENDS)
@pytest.mark.parametrize("payload", [b"", b"odd", b"even"])
def test_lengths_and_checksums(source: str, destination: str, payload: bytes) -> None:
    layer = IPv6 if ":" in source else IP
    ends = source, destination
    segment = frames.tcp_segment(*ends, payload, ports=(1, 2), flags=16, sequence=7, window=9)
    tcp = frames.ip_packet(*ends, 6, segment, ttl=9)
    udp = frames.udp_packet(*ends, payload, ports=(3, 4))
    echo = frames.echo_packet(*ends, 5)
    for packet in (tcp, udp, echo, frames.syn_packet(*ends, ports=(1, 2))):
        assert rebuilt(packet, layer) == packet
    found = layer(tcp)[TCP]
    assert (found.sport, found.dport, found.flags, found.seq, found.window) == (1, 2, "A", 7, 9)
    assert layer(udp)[UDP].dport == 4
    assert layer(echo)[ICMPv6EchoRequest if ":" in source else ICMP].id == 5
    assert layer(frames.udp_packet(*ends, payload, check=False))[UDP].chksum == 0
    assert bytes(layer(udp)[UDP].payload) == payload


def test_tags_are_outermost_first() -> None:
    packet = frames.udp_packet(*ENDS[0], b"x")
    frame = Ether(frames.tag(frames.ethernet(TO, BY, packet, vlans=[5]), 6, 0x88A8))
    assert (frame.dst, frame.src) == (TO, BY)
    assert (frame[Dot1AD].vlan, frame[Dot1Q].vlan) == (6, 5)
    assert bytes(frame[Raw]) == b"x"
    assert frames.udp_frame(TO, BY, *ENDS[0], b"x", vlans=[7, 8])[12:20].hex() == "8100000781000008"


def test_neighbour_requests() -> None:
    arp = Ether(frames.ethernet(TO, BY, frames.neighbour_request(BY, *ENDS[0])))[ARP]
    assert (arp.op, arp.hwsrc, arp.psrc, arp.pdst) == (1, BY, *ENDS[0])
    packet = frames.neighbour_request(BY, *ENDS[1])
    assert rebuilt(packet, IPv6) == packet
    assert IPv6(packet)[ICMPv6ND_NS].tgt == ENDS[1][1]
