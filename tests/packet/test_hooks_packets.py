# SPDX-License-Identifier: Apache-2.0
"""The probes of hooks by packet runs: which packet is the one, and what its data starts with."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

import bpfkit
from bpfkit.hooks.journey import HOOKS, Sighting
from bpfkit.hooks.probes import PORT

scapy = pytest.importorskip("scapy.all", reason="scapy is not installed")

DST = {4: "192.0.2.7", 6: "2001:db8::7"}
PROTOS = {"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58}
PROGRAMS = ["xdp_native", "tc_ingress", "tap", "cgroup_ingress", "lwt_in", "socket_filter"]
TESTED = {"xdp_native": (2, 1), "tc_ingress": (2**32 - 1, 2), "lwt_in": (0, 2)}  # pass, drop


class Probes:
    def __init__(self) -> None:
        self.object = bpfkit.load("misc/hooks.bpf.c", programs=PROGRAMS)
        self.ring = self.object["sightings"].open()

    def close(self) -> None:
        self.ring.close()
        self.object.close()

    def look_for(self, proto: int, family: int = 4, **more: int) -> None:
        end = scapy.inet_pton(2 if family == 4 else 10, DST[family])[-4:]
        wanted = dict.fromkeys("drop_hook drop_ifindex drop_place push vlan".split(), 0) | more
        (dst,) = struct.unpack("=I", end)
        self.object["control"][0] = {"proto": proto, "dst": dst, "port": PORT, **wanted}

    def run(self, name: str, packet: Any) -> tuple[int, list[Sighting]]:
        result = self.object.programs[name].run(bytes(packet))
        return result.retval, [Sighting(r, {}) for r in self.ring.drain()]


@pytest.fixture(scope="module")
def probes() -> Iterator[Probes]:
    made = Probes()
    yield made
    made.close()


def frame(proto: str, family: int = 4, tag: int | None = None, **fields: Any) -> Any:
    ip = scapy.IP(src="192.0.2.1", dst=DST[4]) if family == 4 else None
    ip = ip or scapy.IPv6(src="2001:db8::1", dst=DST[6])
    if proto == "tcp":
        over = scapy.TCP(**{"dport": PORT, "flags": "S", "options": [("MSS", 1460)] * 5, **fields})
    elif proto == "udp":
        over = scapy.UDP(**{"dport": PORT, **fields})
    elif family == 4:
        over = scapy.ICMP(**{"type": 8, "id": PORT, **fields})
    else:
        over = scapy.ICMPv6EchoRequest(**{"id": PORT, **fields})
    eth = scapy.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    if tag is not None:
        eth = eth / scapy.Dot1Q(vlan=tag)
    return eth / ip / over / (b"x" * 40)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp", "icmp"])
def test_the_packet_is_seen_by_every_probe_with_its_form(
    probes: Probes, proto: str, family: int
) -> None:
    probes.look_for(PROTOS[proto if proto != "icmp" or family == 4 else "icmp6"], family)
    packet = frame(proto, family)
    for name, form, skipped in (
        ("xdp_native", "L2", 0),
        ("tc_ingress", "L2", 0),
        ("cgroup_ingress", "L3", 14),
        ("lwt_in", "L3", 14),
    ):
        _, seen = probes.run(name, packet)
        assert [(s.hook, s.form, s.length) for s in seen] == [(name, form, len(packet) - skipped)]
        assert (seen[0].vlan, seen[0].vlan_id, seen[0].dropped) == ("none", None, False)


def test_a_filter_of_a_socket_sees_the_transport_header(probes: Probes) -> None:
    probes.look_for(17)
    datagram = bytes(frame("udp"))[34:]
    _, seen = probes.run("socket_filter", datagram)
    assert [(s.hook, s.form, s.length) for s in seen] == [("socket_filter", "L4", len(datagram))]


def test_a_tag_in_the_data_is_found_there(probes: Probes) -> None:
    for family in (4, 6):
        probes.look_for(17, family)
        _, (seen,) = probes.run("xdp_native", frame("udp", family, tag=77))
        assert (seen.vlan, seen.vlan_id, seen.form) == ("data", 77, "L2")


@pytest.mark.parametrize(
    "other",
    [
        frame("udp", dport=PORT + 1),
        frame("tcp"),
        frame("icmp"),
        frame("udp", family=6),
        frame("udp")[scapy.IP],
        scapy.Ether() / scapy.ARP(),
        scapy.Ether() / scapy.IP(dst="192.0.2.8") / scapy.UDP(dport=PORT) / (b"x" * 40),
        scapy.Ether() / scapy.IP(dst=DST[4]) / scapy.UDP(dport=PORT),
        b"\0" * 14,
    ],
    ids=["port", "tcp", "icmp", "ipv6", "no-ethernet", "arp", "address", "short", "zeros"],
)
def test_other_packets_pass_and_are_not_told(probes: Probes, other: Any) -> None:
    probes.look_for(17, drop_hook=HOOKS.index("xdp_native") + 1)
    assert probes.run("xdp_native", other) == (2, [])


def test_of_tcp_only_the_syn_and_of_icmp_only_the_request_is_the_packet(probes: Probes) -> None:
    probes.look_for(6)
    for flags, count in (("S", 1), ("SA", 0), ("A", 0), ("R", 0), ("SE", 1)):
        assert len(probes.run("tc_ingress", frame("tcp", flags=flags))[1]) == count
    probes.look_for(1)
    for kind, count in ((8, 1), (0, 0), (3, 0)):
        assert len(probes.run("tc_ingress", frame("icmp", type=kind))[1]) == count
    assert not probes.run("tc_ingress", frame("icmp", id=PORT + 1))[1]


@pytest.mark.parametrize("name", TESTED)
def test_it_is_dropped_where_asked_and_only_there(probes: Probes, name: str) -> None:
    passes, drops = TESTED[name]
    packet = frame("udp")
    for hook in TESTED:
        probes.look_for(17, drop_hook=HOOKS.index(hook) + 1)
        verdict, (seen,) = probes.run(name, packet)
        assert (verdict, seen.dropped) == ((drops, True) if hook == name else (passes, False))
    probes.look_for(17, drop_hook=HOOKS.index(name) + 1, drop_place=1)
    verdict, (seen,) = probes.run(name, packet)
    assert (verdict, seen.dropped) == (passes, False)


def test_nothing_is_looked_for_by_default(probes: Probes) -> None:
    probes.look_for(0)
    for name in ("xdp_native", "tc_ingress", "cgroup_ingress", "lwt_in"):
        assert not probes.run(name, frame("udp"))[1]


def test_every_length_of_the_packet_is_judged_without_reading_behind_it(probes: Probes) -> None:
    whole = bytes(frame("udp"))
    probes.look_for(17)
    for length in range(14, len(whole)):
        verdict, seen = probes.run("xdp_native", whole[:length])
        assert verdict == 2
        assert len(seen) == (length >= 72)  # the bytes that tell packets apart, see HEAD
