# SPDX-License-Identifier: Apache-2.0
"""TCP behind an authentication header is TCP at netfilter's hooks, too.

The kernel answers AH, which it does not know here, with "protocol unreachable": an answer says that
the packet got past the program, silence that it did not.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.ipsec import AH

import bpfkit
from bpfkit.net.links.lab import Lab, pair_lab

LOCAL_IN = 1
TCP_NUMBER, UDP_NUMBER = 6, 17


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with pair_lab() as lab:
        yield lab


def frame(headers: int, inner: TCP | UDP, **fields: int) -> bytes:
    """IPv4, so many authentication headers, and a transport header."""
    packet = IP(src="10.77.0.1", dst="10.77.0.2", proto=51, **fields)
    number = {TCP: TCP_NUMBER, UDP: UDP_NUMBER}[type(inner)]
    for left in range(headers, 0, -1):
        packet = packet / AH(nh=51 if left > 1 else number, payloadlen=4, icv=b"\0" * 12)
    return bytes(packet / inner)


def is_answered(lab: Lab, packet: bytes) -> bool:
    """Whether "protocol unreachable" comes back."""
    ns = lab["client"]
    with (
        closing(ns.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as out,
        closing(ns.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)) as back,
    ):
        back.settimeout(0.3)
        out.sendto(packet, ("10.77.0.2", 0))
        try:
            while True:
                answer = back.recv(2000)
                if answer[20:22] == b"\x03\x02":
                    return True
        except TimeoutError:
            return False


@pytest.mark.parametrize("headers", [1, 2, 8, 20])
def test_tcp_behind_authentication_headers_is_dropped_as_tcp(lab: Lab, headers: int) -> None:
    server = lab["server"]
    for key in ("net.ipv4.icmp_ratelimit", "net.ipv4.icmp_msgs_per_sec"):
        try:
            server.sysctl(key, 0 if "ratelimit" in key else 100_000)
        except bpfkit.BpfkitError:
            pass  # not a setting of a namespace on this kernel
    consts = {"drop": TCP_NUMBER, "drop_at": LOCAL_IN}
    with bpfkit.load("misc/netfilter.bpf.c", consts=consts) as loaded:
        program = loaded.programs["filter"]
        assert is_answered(lab, frame(headers, TCP()))
        with server.run(program.attach_netfilter, 2, LOCAL_IN, 0):
            assert not is_answered(lab, frame(headers, TCP()))
            assert is_answered(lab, frame(headers, UDP()))
        assert is_answered(lab, frame(headers, TCP()))
