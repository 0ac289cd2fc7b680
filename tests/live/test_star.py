# SPDX-License-Identifier: Apache-2.0
"""The star lab, hand-made frames, hops and path MTUs: against the kernel, scapy and ip(8)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from bpfkit.core.errors import BpfkitError, InputError
from bpfkit.net.links.lab import Lab, star_lab
from bpfkit.net.links.offloads import driver
from bpfkit.net.packets.frames import BROADCAST, send_frames, udp_frame
from bpfkit.net.traffic.ping import ping
from bpfkit.xdp_redirect.path import hop, path_mtu
from bpfkit.xdp_redirect.star import Star, addresses, peers_pass

A, B = "02:00:00:00:00:01", "02:00:00:00:00:02"
PAIRS = [("10.0.0.1", "10.0.0.2", IP), ("fd00::1", "fd00::2", IPv6)]


@pytest.fixture
def routed() -> Iterator[Lab]:
    with star_lab(2, routed=True) as lab:
        yield lab


@pytest.mark.parametrize(("source", "destination", "kind"), PAIRS)
@pytest.mark.parametrize("vlans", [(), (10,), (10, 4094)])
@pytest.mark.parametrize("payload", [b"", b"odd", bytes(1400)])
def test_a_frame_is_what_scapy_makes_of_it(
    source: str, destination: str, kind: type[IP], vlans: tuple[int, ...], payload: bytes
) -> None:
    frame = udp_frame(B, A, source, destination, payload, vlans=vlans, ports=(7, 9), ttl=5)
    packet = Ether(src=A, dst=B)
    for vlan in vlans:
        packet = packet / Dot1Q(vlan=vlan)
    life = {"ttl": 5, "id": 0} if kind is IP else {"hlim": 5}
    packet = packet / kind(src=source, dst=destination, **life) / UDP(sport=7, dport=9)
    assert frame == bytes(packet / Raw(payload) if payload else packet)


def test_hosts_reach_each_other_only_through_a_program() -> None:
    with star_lab() as lab:
        assert lab["middle"].sysctl("net.ipv4.ip_forward") == "0"
        shown = json.loads(lab["middle"].check_output(["ip", "-j", "addr"]))
        assert [dev["ifname"] for dev in shown] == ["lo", "p1", "p2", "p3"]
        assert not any(dev["addr_info"] for dev in shown if dev["ifname"] != "lo")
        assert addresses(lab, "h2") == ["10.77.0.2", "fd77::2"]
        for address in addresses(lab, "h2"):
            assert ping(address, ns=lab["h1"], timeout=0.2).received == 0


def test_programs_at_the_hosts() -> None:
    with star_lab(2) as lab:
        with peers_pass(lab):
            assert " xdp " in lab["h2"].check_output(["ip", "link", "show", "dev", "eth0"])
        assert " xdp " not in lab["h2"].check_output(["ip", "link", "show", "dev", "eth0"])


def test_hops(routed: Lab) -> None:
    for host, port in (("10.77.2.1", "10.77.1.254"), ("fd77:2::1", "fd77:1::fe")):
        assert hop(host, 1, ns=routed["h1"]) == (port, "time exceeded")
        assert hop(host, 2, ns=routed["h1"]) == (host, "port unreachable")
    routed["middle"].check_output(["ip", "route", "add", "unreachable", "192.0.2.0/24"])
    assert hop("192.0.2.1", 5, ns=routed["h1"]) == ("10.77.1.254", "other")
    routed["middle"].check_output(["ip", "route", "add", "blackhole", "198.51.100.0/24"])
    assert hop("198.51.100.1", 5, ns=routed["h1"], timeout=0.2) == ("", "")


def test_path_mtu(routed: Lab) -> None:
    for end in ("middle:p2", "h2:eth0"):
        routed.mtu(end, 1300)
        assert routed.interface(end).mtu == 1300
    for host in ("10.77.2.1", "fd77:2::1"):
        assert path_mtu(host, 1400, ns=routed["h1"]) == 1300
        assert path_mtu(host, 1400, ns=routed["h1"]) == 1300, "known by now"
    with pytest.raises(InputError, match="no device"):
        routed.mtu("h1:eth1", 1300)
    with pytest.raises(BpfkitError, match="cannot set the MTU"):
        routed.mtu("h1:eth0", 1)


def test_driver(routed: Lab) -> None:
    assert driver(routed.interface("h1:eth0")) == "veth"
    assert driver(routed.interface("h1:lo")) in ("", "loopback")


def test_who_gets_a_frame() -> None:
    # a Linux bridge in the middle, so that there is something to be seen
    with star_lab() as lab:
        lab.bridge("middle:br0", ["middle:p1", "middle:p2", "middle:p3"])
        lab.ready()
        with Star(lab) as star:
            mark = star.new_mark()
            frame = udp_frame(BROADCAST, A, "10.77.0.1", "10.77.0.255", mark)
            got = star.send("h1", frame, mark, {"h2", "h3"})
            assert got == {"h2": frame, "h3": frame}
            reports = star.exchange("h1", "h2")
            assert len(reports) == 6 and all(report.packets for report in reports)
            assert star.count_overheard("h2", "h1", "h2") > 20
            assert star.count_overheard("h3", "h1", "h2") == 0
            other = star.new_mark()
            assert star.send("h1", frame, other, ()) == {}, "its payload is another one"
    with star_lab(2) as lab, pytest.raises(BpfkitError, match="cannot send a frame"):
        send_frames("eth0", [b"short"], ns=lab["h1"])
