# SPDX-License-Identifier: Apache-2.0
"""What a host in user space answers: scapy asks, and scapy judges the answer."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("scapy.all", reason="scapy is not installed")
from scapy.layers.inet import ICMP, IP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from bpfkit.net.packets.addresses import packed
from bpfkit.xdp_afxdp.answers import answer

MAC, ASKER = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
OURS4, OURS6 = "192.0.2.55", "2001:db8::55"
OWNED = {packed(OURS4), packed(OURS6)}
ETH = Ether(src=ASKER, dst=MAC)
GROUP = Ether(src=ASKER, dst="33:33:ff:00:00:55")
WHO_HAS = ARP(op=1, hwsrc=ASKER, psrc="192.0.2.1", pdst=OURS4)
PING = IP(src="192.0.2.1", dst=OURS4) / ICMP(id=7, seq=3) / Raw(b"abcde")
PING6 = IPv6(src="2001:db8::1", dst=OURS6) / ICMPv6EchoRequest(id=7, seq=3, data=b"abcde")
SOLICIT = (
    IPv6(src="2001:db8::1", dst="ff02::1:ff00:55", hlim=255)
    / ICMPv6ND_NS(tgt=OURS6)
    / ICMPv6NDOptSrcLLAddr(lladdr=ASKER)
)
TAGS = [None, Dot1Q(vlan=5), Dot1AD(vlan=6) / Dot1Q(vlan=7, prio=3)]


def asked(frame: Packet) -> tuple[str, Packet]:
    found = answer(bytes(frame), OWNED, bytes.fromhex(MAC.replace(":", "")))
    assert found is not None
    return found[0], Ether(found[1])


def tagged(eth: Packet, tags: Packet | None, rest: Packet) -> Packet:
    return eth / rest if tags is None else eth / tags.copy() / rest


def same_when_built_again(packet: Packet, layer: type[Packet]) -> bool:
    """Are all checksums what scapy would compute?"""
    rebuilt = packet[layer].copy()
    head = rebuilt
    while head:
        for field in ("chksum", "cksum"):
            if field in head.fields:
                delattr(head, field)
        head = head.payload
    return bytes(rebuilt) == bytes(packet[layer])


@pytest.mark.parametrize("tags", TAGS)
def test_arp_is_answered_in_its_vlan(tags: Packet | None) -> None:
    broadcast = Ether(src=ASKER, dst="ff:ff:ff:ff:ff:ff")
    word, reply = asked(tagged(broadcast, tags, WHO_HAS))
    assert word == "arp"
    assert (reply.dst, reply.src) == (ASKER, MAC)
    arp = reply[ARP]
    assert (arp.op, arp.hwsrc, arp.psrc) == (2, MAC, OURS4)
    assert (arp.hwdst, arp.pdst) == (ASKER, "192.0.2.1")
    assert [layer.vlan for layer in reply.iterpayloads() if isinstance(layer, Dot1Q)] == (
        [layer.vlan for layer in tags.iterpayloads()] if tags else []
    )


@pytest.mark.parametrize("tags", TAGS)
def test_pings_are_answered_with_the_same_payload(tags: Packet | None) -> None:
    word, reply = asked(tagged(ETH, tags, PING))
    assert word == "ping"
    assert (reply[IP].src, reply[IP].dst) == (OURS4, "192.0.2.1")
    assert (reply[ICMP].type, reply[ICMP].id, reply[ICMP].seq) == (0, 7, 3)
    assert bytes(reply[Raw]) == b"abcde"
    assert same_when_built_again(reply, IP)
    word, reply = asked(tagged(ETH, tags, PING6))
    assert word == "ping6"
    assert (reply[IPv6].src, reply[IPv6].dst) == (OURS6, "2001:db8::1")
    assert (reply[ICMPv6EchoReply].id, reply[ICMPv6EchoReply].data) == (7, b"abcde")
    assert same_when_built_again(reply, IPv6)


def test_solicitations_are_answered_to_who_asked() -> None:
    word, reply = asked(GROUP / SOLICIT)
    assert word == "nd"
    assert (reply.dst, reply[IPv6].dst, reply[IPv6].hlim) == (ASKER, "2001:db8::1", 255)
    said = reply[ICMPv6ND_NA]
    assert (said.R, said.S, said.O, said.tgt) == (0, 1, 1, OURS6)
    assert reply[ICMPv6NDOptDstLLAddr].lladdr == MAC
    assert same_when_built_again(reply, IPv6)


def test_who_looks_for_duplicates_is_answered_in_public() -> None:
    probe = IPv6(src="::", dst="ff02::1:ff00:55", hlim=255) / ICMPv6ND_NS(tgt=OURS6)
    _, reply = asked(GROUP / probe)
    assert (reply.dst, reply[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    assert reply[ICMPv6ND_NA].S == 0


@pytest.mark.parametrize(
    "frame",
    [
        ETH / ARP(op=1, hwsrc=ASKER, psrc="192.0.2.1", pdst="192.0.2.56"),
        ETH / ARP(op=2, hwsrc=ASKER, psrc="192.0.2.1", pdst=OURS4),
        ETH / IP(src="192.0.2.1", dst="192.0.2.56") / ICMP(),
        ETH / IP(src="192.0.2.1", dst=OURS4) / ICMP(type=0),
        ETH / IP(src="192.0.2.1", dst=OURS4) / ICMP(chksum=1),
        ETH / IP(src="192.0.2.1", dst=OURS4, chksum=1) / ICMP(),
        ETH / IP(src="192.0.2.1", dst=OURS4, len=2000) / ICMP(),
        ETH / IP(src="192.0.2.1", dst=OURS4, flags="MF") / ICMP(),
        ETH / IP(src="192.0.2.1", dst=OURS4, options=[IPOption_NOP()] * 4) / ICMP(),
        ETH / IP(src="224.0.0.1", dst=OURS4) / ICMP(),
        ETH / IP(src="192.0.2.1", dst=OURS4) / UDP(),
        ETH / IPv6(src="2001:db8::1", dst="2001:db8::56") / ICMPv6EchoRequest(),
        ETH / IPv6(src="2001:db8::1", dst=OURS6) / ICMPv6EchoRequest(cksum=1),
        ETH / IPv6(src="::", dst=OURS6) / ICMPv6EchoRequest(),
        ETH / IPv6(src="2001:db8::1", dst=OURS6) / IPv6ExtHdrHopByHop() / ICMPv6EchoRequest(),
        # from another link: a router has counted the hop limit down
        GROUP / IPv6(src="2001:db8::1", dst=OURS6, hlim=254) / ICMPv6ND_NS(tgt=OURS6),
        GROUP / IPv6(src="2001:db8::1", dst=OURS6, hlim=255) / ICMPv6ND_NS(tgt="2001:db8::56"),
    ],
)
def test_everything_else_gets_no_answer(frame: Packet) -> None:
    assert answer(bytes(frame), OWNED, bytes(6)) is None


def test_no_frame_breaks_it() -> None:
    chance = random.Random(4)
    whole = [bytes(ETH / p) for p in (WHO_HAS, PING, PING6, SOLICIT)]
    for frame in whole:
        for length in range(len(frame)):
            assert answer(frame[:length], OWNED, bytes(6)) is None
        for _ in range(1000):
            changed = bytearray(frame)
            for _ in range(chance.randrange(1, 4)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            answer(bytes(changed), OWNED, bytes(6))
