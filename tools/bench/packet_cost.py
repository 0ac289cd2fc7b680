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
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpfkit.core.program import Program

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [path for path in (ROOT, HERE) if path not in sys.path]

from benchlib import PACKETS as EVERY  # noqa: E402

CLASSIC = os.path.join(ROOT, "tools", "baseline", "sockex3_classic.bpf.c")
CLASSIC_LAYERS = ("classic_ip", "classic_ipv6", "classic_vlan", "classic_mpls")
REPEAT = 100_000
#: What both designs can read.
PACKETS = {kind: frame for kind, frame in EVERY.items() if "extension" not in kind}


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
    from bpfkit.net.packets.flows import fill_jump

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
