#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Nanoseconds per packet: sockex3 beside the classic sample's design.

    sudo python3 tools/bench/packet_cost.py [RUNS]

Both are loaded the same way and get the same packets by BPF_PROG_TEST_RUN: runs of 100 000, the two
programs in turns, the minimum of RUNS (default 9).  The classic design folds IPv6 addresses, loses
VLAN ids, tunnels and fragments, and reads GRE wrongly: only the first row compares equal work.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpfkit.core.program import Program

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

CLASSIC = os.path.join(ROOT, "tools", "baseline", "sockex3_classic.bpf.c")
CLASSIC_LAYERS = ("classic_ip", "classic_ipv6", "classic_vlan", "classic_mpls")
REPEAT = 100_000
PAYLOAD = bytes(1000)


def ipv4(proto: int, payload: bytes) -> bytes:
    """An IPv4 packet (no checksum)."""
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, proto, 0)
    return head + bytes((192, 0, 2, 1, 198, 51, 100, 2)) + payload


def ipv6(proto: int, payload: bytes) -> bytes:
    """An IPv6 packet from 2001:db8::1 to 2001:db8::2."""
    prefix = b"\x20\x01\x0d\xb8" + bytes(11)
    head = struct.pack(">IHBB", 6 << 28, len(payload), proto, 64)
    return head + prefix + b"\1" + prefix + b"\2" + payload


def ethernet(ethertype: int, payload: bytes) -> bytes:
    """A frame."""
    return bytes.fromhex("020000000002020000000001") + ethertype.to_bytes(2, "big") + payload


TCP = struct.pack(">HHIIBBHHH", 1234, 80, 1, 1, 5 << 4, 0x10, 500, 0, 0) + PAYLOAD
ICMP = struct.pack(">BBHHH", 8, 0, 0, 1, 1) + PAYLOAD
PACKETS = {
    "TCP over IPv4": ethernet(0x0800, ipv4(6, TCP)),
    "TCP over IPv6": ethernet(0x86DD, ipv6(6, TCP)),
    "ICMP over IPv4": ethernet(0x0800, ipv4(1, ICMP)),
    "TCP over IPv4 in a VLAN": ethernet(0x8100, b"\0\5\x08\0" + ipv4(6, TCP)),
    "TCP over IPv4 in GRE": ethernet(0x0800, ipv4(47, b"\0\0\x08\0" + ipv4(6, TCP))),
}


def compare(sockex3: Program, classic: Program, frame: bytes, runs: int) -> tuple[int, int]:
    """(sockex3's, the classic's) minimum of ``runs`` in ns per packet."""
    pairs = [
        (
            sockex3.run(frame, REPEAT).duration_ns,
            classic.run(frame, REPEAT).duration_ns,
        )
        for _ in range(runs)
    ]
    return min(ours for ours, _ in pairs), min(theirs for _, theirs in pairs)


def measure(runs: int = 9) -> dict[str, tuple[int, int]]:
    """For each kind of packet: ns of sockex3, ns of the classic design."""
    import bpfkit
    from bpfkit.net.flows import fill_jump

    with (
        bpfkit.load("socket/sockex3.bpf.c", consts={"direction": 3}) as ours,
        bpfkit.load(CLASSIC) as theirs,
    ):
        fill_jump(ours)
        for number, name in enumerate(CLASSIC_LAYERS):
            theirs["jump"][number] = theirs.programs[name]
        programs = ours.programs["sockex3"], theirs.programs["classic_eth"]
        return {kind: compare(*programs, frame, runs) for kind, frame in PACKETS.items()}


def main() -> None:
    """Print the table."""
    print(f"{'packet':26} {'sockex3':>8} {'classic':>8}   ratio")
    for kind, (ours, theirs) in measure(int((sys.argv[1:] or ["9"])[0])).items():
        print(f"{kind:26} {ours:5} ns {theirs:5} ns {ours / theirs:7.2f}")


if __name__ == "__main__":
    main()
