# SPDX-License-Identifier: Apache-2.0
"""An interface gets another MAC address or MTU while a program works on it: the program follows.

``ip`` changes the device; a packet socket at the other end of the cable sees what comes back.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from running import Running, on_server
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from bpfkit.net.links.lab import Lab, pair_lab

OTHER = "02:00:00:00:77:77"
VIP = "10.99.0.1"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with pair_lab() as lab:
        yield lab


class Wire:
    """The client's end of the cable: sends frames, and waits for one of a kind to come in."""

    def __init__(self, lab: Lab) -> None:
        self.sock = lab["client"].socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.sock.bind(("eth0", 0))
        self.sock.settimeout(0.5)
        self.mac = lab.lladdr("client:eth0")

    def answer(self, frame: Packet, kind: type[Packet], source: str) -> Packet | None:
        """The first frame of ``kind`` that comes in from that MAC address."""
        self.sock.send(bytes(frame))
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            try:
                raw, where = self.sock.recvfrom(4000)
            except TimeoutError:
                return None
            if where[2] != socket.PACKET_OUTGOING:
                got = Ether(raw)
                if kind in got and got.src == source:
                    return got
        return None

    def close(self) -> None:
        self.sock.close()


def set_device(lab: Lab, program: Running, *words: str, said: str) -> None:
    lab["server"].check_output(["ip", "link", "set", "eth0", *words])
    assert program.wait_for(said), program.said


def test_the_load_balancer_follows_its_mac_address(lab: Lab) -> None:
    """Frames for the new address are forwarded, those for the old one are the kernel's."""
    old = lab.lladdr("server:eth0")
    words = ("--vip", f"{VIP}:80/tcp", "--backend", "10.77.0.1", "--health", "none")
    more = ("--forward", "l2", "--mode", "generic", "-t", "0.2")
    with closing(Wire(lab)) as wire, on_server("xdp_lb", lab, *words, *more) as program:
        assert program.wait_for("backends up: 1")
        syn = IP(src="10.77.0.9", dst=VIP) / TCP(sport=1234, dport=80)
        assert wire.answer(Ether(src=wire.mac, dst=old) / syn, TCP, old)
        set_device(lab, program, "address", OTHER, said=f"MAC address of eth0 is {OTHER} now")
        got = wire.answer(Ether(src=wire.mac, dst=OTHER) / syn, TCP, OTHER)
        assert got
        assert got.dst == wire.mac  # the backend's
        assert wire.answer(Ether(src=wire.mac, dst=old) / syn, TCP, old) is None


def test_the_load_balancer_follows_the_mtu(lab: Lab) -> None:
    """A packet that no longer fits with its outer header is answered with "too big"."""
    mac = lab.lladdr("server:eth0")
    words = ("--vip", f"{VIP}:80/tcp", "--backend", "10.77.0.1", "--health", "none")
    with (
        closing(Wire(lab)) as wire,
        on_server("xdp_lb", lab, *words, "--mode", "generic", "-t", "0.2") as program,
    ):
        assert program.wait_for("backends up: 1")
        packet = IP(src="10.77.0.9", dst=VIP, flags="DF") / TCP(sport=1234, dport=80)
        frame = (
            Ether(src=wire.mac, dst=mac) / packet / Raw(bytes(1270))
        )  # 1310 bytes, 1330 with the outer header
        assert wire.answer(frame, ICMP, mac) is None
        set_device(lab, program, "mtu", "1320", said="MTU of eth0 is 1320 now")
        got = wire.answer(frame, ICMP, mac)
        assert got
        assert (got[ICMP].type, got[ICMP].code, got[ICMP].nexthopmtu) == (3, 4, 1300)


def test_afxdp_answers_with_the_mac_address_of_the_moment(lab: Lab) -> None:
    old = lab.lladdr("server:eth0")
    with (
        closing(Wire(lab)) as wire,
        on_server("xdp_afxdp", lab, "--address", "10.77.0.50", "-t", "0.2") as program,
    ):
        who = Ether(src=wire.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(
            op=1, hwsrc=wire.mac, psrc="10.77.0.1", pdst="10.77.0.50"
        )
        got = wire.answer(who, ARP, old)
        assert got
        assert got[ARP].hwsrc == old
        set_device(lab, program, "address", OTHER, said=f"MAC address of eth0 is {OTHER} now")
        got = wire.answer(who, ARP, OTHER)
        assert got
        assert got[ARP].hwsrc == OTHER
