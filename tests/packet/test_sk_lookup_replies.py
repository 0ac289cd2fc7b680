# SPDX-License-Identifier: Apache-2.0
"""sk_lookup's replies by packet runs: the port that is written, scapy's word on the checksum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

import bpfkit
from bpfkit.core.object import Object

CLIENT = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
SERVER = {4: "192.0.2.7", 6: "2001:db8::7"}
TC_ACT_UNSPEC = 0xFFFFFFFF
LINK = {"dst": "02:00:00:00:00:01", "src": "02:00:00:00:00:02"}


class Replies:
    """The program at tc egress, and the flows it knows."""

    def __init__(self, stack: ExitStack) -> None:
        self.object: Object = stack.enter_context(bpfkit.load("sock/sk_lookup_reply.bpf.c"))
        for family in (4, 6):
            self.remember(family, 40000, 5201, 5202)

    def remember(self, family: int, client_port: int, server_port: int, port: int) -> None:
        def raw(text: str) -> bytes:
            return ip_address(text).packed.ljust(16, b"\0")

        key = raw(CLIENT[family]) + client_port.to_bytes(2, "big")
        key += server_port.to_bytes(2, "little") + family.to_bytes(4, "little")
        value = raw(SERVER[family]) + port.to_bytes(2, "little") + bytes(2)
        self.object["flows"][key] = value + (1).to_bytes(4, "little")

    def run(self, packet: Packet) -> bytes:
        result = self.object.programs["reply_port"].run(bytes(packet))
        assert result.retval == TC_ACT_UNSPEC  # programs behind it run, too
        return result.data

    @property
    def rewritten(self) -> int:
        return int(self.object["counts"].sum(1).replies)


@pytest.fixture
def replies() -> Iterator[Replies]:
    with ExitStack() as stack:
        yield Replies(stack)


def reply(family: int, **more: Any) -> Packet:
    """A datagram of the server to the client."""
    ip = IP if family == 4 else IPv6
    ports = {"sport": 5201, "dport": 40000, **more}
    return ip(src=SERVER[family], dst=CLIENT[family]) / UDP(**ports) / Raw(b"an answer")


def as_wanted(packet: Packet, port: int = 5202) -> bytes:
    """The packet with another source port, and the checksum that scapy computes for it."""
    wanted = packet.copy()
    wanted[UDP].sport = port
    del wanted[UDP].chksum
    return bytes(wanted)


@pytest.mark.parametrize("family", [4, 6])
def test_the_source_port_is_the_one_that_the_client_sent_to(replies: Replies, family: int) -> None:
    packet = Ether(**LINK) / reply(family)
    assert replies.run(packet) == as_wanted(packet)
    assert replies.rewritten == 1


@pytest.mark.parametrize("family", [4, 6])
def test_in_vlans_too(replies: Replies, family: int) -> None:
    packet = Ether(**LINK) / Dot1Q(vlan=7) / reply(family)
    got = replies.run(packet)
    assert Ether(got)[UDP].sport == 5202
    assert bytes(Ether(got)[UDP]) == bytes(Ether(as_wanted(packet))[UDP])


def test_a_datagram_without_checksum_stays_without(replies: Replies) -> None:
    packet = Ether(**LINK) / reply(4, chksum=0)
    got = Ether(replies.run(packet))
    assert (got[UDP].sport, got[UDP].chksum) == (5202, 0)


def test_a_checksum_that_becomes_zero_is_sent_as_ffff(replies: Replies) -> None:
    """RFC 768: zero means none."""
    packet = Ether(**LINK) / reply(4)
    packet[Raw].load = bytes(2)
    # the word that makes the sum of all others 0xffff
    packet[Raw].load = Ether(as_wanted(packet))[UDP].chksum.to_bytes(2, "big")
    assert Ether(as_wanted(packet))[UDP].chksum == 0xFFFF
    assert replies.run(packet) == as_wanted(packet)


def test_the_first_fragment_is_rewritten_and_later_ones_are_not(replies: Replies) -> None:
    four = Ether(**LINK) / reply(4)
    four[IP].flags = "MF"
    assert Ether(replies.run(four))[UDP].sport == 5202
    later = Ether(**LINK) / IP(src=SERVER[4], dst=CLIENT[4], frag=185, proto=17)
    later /= Raw(bytes(four[UDP]))  # would be a UDP header, if it were one
    assert replies.run(later) == bytes(later)
    six = Ether(**LINK) / IPv6(src=SERVER[6], dst=CLIENT[6])
    six /= IPv6ExtHdrFragment(m=1, id=9) / UDP(sport=5201, dport=40000, chksum=0x1234) / Raw(b"x")
    assert Ether(replies.run(six))[UDP].sport == 5202
    behind = Ether(**LINK) / IPv6(src=SERVER[6], dst=CLIENT[6])
    behind /= IPv6ExtHdrFragment(offset=185, nh=17, id=9) / Raw(bytes(four[UDP]))
    assert replies.run(behind) == bytes(behind)
    assert replies.rewritten == 2


@pytest.mark.parametrize("family", [4, 6])
def test_everything_else_is_left_alone(replies: Replies, family: int) -> None:
    ip = IP if family == 4 else IPv6
    ends = {"src": SERVER[family], "dst": CLIENT[family]}
    other = {4: "192.0.2.8", 6: "2001:db8::8"}[family]
    ports = {"sport": 5201, "dport": 40000}
    for packet in (
        ip(**ends) / TCP(**ports),
        ip(**ends) / UDP(sport=5201, dport=40001) / Raw(b"another client socket"),
        ip(**ends) / UDP(sport=5200, dport=40000) / Raw(b"another server"),
        ip(src=other, dst=CLIENT[family]) / UDP(**ports) / Raw(b"not from where it asked"),
        ip(src=SERVER[family], dst=other) / UDP(**ports) / Raw(b"another client"),
        ip(**ends) / ICMP(),
    ):
        frame = Ether(**LINK) / packet
        assert replies.run(frame) == bytes(frame), packet.summary()
    assert replies.rewritten == 0


def test_headers_that_are_cut_off_are_left_alone(replies: Replies) -> None:
    whole = bytes(Ether(**LINK) / reply(4))
    for size in range(14 + 20, 14 + 20 + 8):  # the kernel runs no shorter ones
        assert replies.run(Raw(whole[:size])) == whole[:size]
    assert replies.rewritten == 0
