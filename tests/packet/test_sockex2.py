# SPDX-License-Identifier: Apache-2.0
"""sockex2: packets and bytes per destination, through the real program by BPF_PROG_TEST_RUN."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from counters import Sockex2
from headers_oracle import ETH
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, GRE, Dot1AD, Dot1Q
from scapy.packet import Packet, Raw

A4, B4, A6, B6 = "192.0.2.1", "198.51.100.2", "2001:db8::1", "2001:db8:1::2"
V4, V6 = IP(src=A4, dst=B4), IPv6(src=A6, dst=B6)


@pytest.fixture
def sockex2() -> Iterator[Sockex2]:
    program = Sockex2()
    yield program
    program.close()


@pytest.mark.parametrize(
    ("frame", "dst"),
    [
        (ETH / V4 / TCP(), B4),
        (ETH / V4 / ICMP(), B4),
        (ETH / IP(src=A4, dst=B4, proto=200), B4),
        (ETH / IP(src=A4, dst=B4, frag=9), B4),
        (ETH / V6 / UDP(), B6),
        (ETH / V6 / IPv6ExtHdrFragment(offset=9, nh=17), B6),
        (ETH / Dot1AD(vlan=5) / Dot1Q(vlan=6) / V6 / UDP(), B6),
        (ETH / V4 / GRE() / IP(src="10.0.0.1", dst="10.0.0.2"), B4),
        (bytes(ETH / V4 / UDP())[:34], B4),
        (bytes(ETH / V6 / UDP())[:54], B6),
        # what the samples count under a key of zeros
        (ETH / V4 / GRE(version=1, proto=0x880B), B4),
        (ETH / V4 / GRE(routing_present=1), B4),
    ],
)
def test_frames_count_by_destination(sockex2: Sockex2, frame: Packet | bytes, dst: str) -> None:
    frame = bytes(frame)
    sockex2.run(frame)
    assert sockex2.rows() == {dst: (1, len(frame))}
    assert sockex2.totals() == {"seen": (1, len(frame)), "nonip": (0, 0), "unattributed": (0, 0)}


def test_ipv6_addresses_are_whole(sockex2: Sockex2) -> None:
    destinations = ["::", "::1", "2001:db8::1", "2001:db8::1:0:0", "::ffff:192.0.2.1", "c000:201::"]
    for dst in destinations:
        sockex2.run(bytes(ETH / IPv6(src=A6, dst=dst) / UDP()))
    sockex2.run(bytes(ETH / IP(dst="192.0.2.1") / UDP()))
    sockex2.run(bytes(ETH / IP(dst="0.0.0.0") / UDP()))
    assert len(sockex2.rows()) == len(destinations) + 2


def test_frames_without_an_ip_header_count_as_nonip(sockex2: Sockex2) -> None:
    for frame in (ETH / ARP(), ETH / Dot1Q() / ARP(), ETH / IP(version=5), ETH / IP(ihl=3)):
        sockex2.run(bytes(frame))
    assert sockex2.rows() == {}
    assert sockex2.totals()["nonip"][0] == sockex2.totals()["seen"][0] == 4


def test_payload_under_four_bytes_is_counted(sockex2: Sockex2) -> None:
    for size in range(4):
        sockex2.run(bytes(ETH / IP(dst=B4, proto=6) / Raw(bytes(size))))
    assert sockex2.rows() == {B4: (4, 4 * 34 + 6)}


def test_a_full_table_counts_as_unattributed() -> None:
    program = Sockex2(max_entries={"destinations": 4})
    for i in range(1, 11):
        program.run(bytes(ETH / IP(dst=f"10.0.0.{i}") / UDP()), repeat=3)
    assert set(program.rows()) == {f"10.0.0.{i}" for i in range(1, 5)}
    assert program.totals()["unattributed"] == (18, 18 * 42)
    assert program.totals()["seen"] == (30, 30 * 42)
    program.close()


def test_an_lru_table_makes_place() -> None:
    program = Sockex2(
        max_entries={"destinations": 64}, map_types={"destinations": "lru_percpu_hash"}
    )
    for i in range(1000):
        program.run(bytes(ETH / IP(dst=f"10.0.{i // 250}.{i % 250}") / UDP()))
    assert program.totals()["unattributed"] == (0, 0)
    assert "10.0.3.249" in program.rows()
    program.close()


def test_cpus_that_meet_in_a_new_destination_both_count(sockex2: Sockex2) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    frames = [bytes(ETH / IP(dst=f"10.0.{i // 250}.{i % 250}") / UDP()) for i in range(1000)]
    start = threading.Barrier(len(cpus))

    def work(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        start.wait()
        for frame in frames:
            sockex2.run(frame)

    threads = [threading.Thread(target=work, args=(cpu,)) for cpu in cpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = sockex2.rows()
    assert len(rows) == len(frames)
    assert {packets for packets, _ in rows.values()} == {len(cpus)}


def test_super_frames_count_as_their_segments(sockex2: Sockex2) -> None:
    frame = bytes(ETH / V4 / TCP() / Raw(bytes(3000)))
    sockex2.run(frame, gso_segs=3, gso_size=1448)
    assert sockex2.rows() == {B4: (3, 3000 + 3 * 54)}
    sockex2.run(frame, gso_size=1448)
    assert sockex2.rows() == {B4: (6, 6000 + 6 * 54)}
