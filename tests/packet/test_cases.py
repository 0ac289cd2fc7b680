# SPDX-License-Identifier: Apache-2.0
"""Captures that once gave a wrong answer, through sockex3 as its users run it.

The lengths are tshark's; so are the flows in PPPoE. The pseudowires were made by hand: tshark's
guess misses their inner packets, whose flow is the one that was put in.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from running import run

DATA = Path(__file__).resolve().parents[1] / "data"
FLOW = ("198.51.100.1", 40001, "203.0.113.9", 443, "tcp")


def flows(name: str) -> tuple[dict[tuple[object, ...], int], dict[str, int]]:
    """(flow with its VLANs -> packets, the summary)."""
    done = run("sockex3", "--pcap", str(DATA / name), "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    keys = ("src", "sport", "dst", "dport", "proto")
    found = {(*(row[key] for key in keys), tuple(row["vlan"])): row["packets"] for row in rows[:-1]}
    return found, rows[-1]


def tshark(name: str, *fields: str) -> list[list[str]]:
    argv = ["tshark", "-r", str(DATA / name), "-T", "fields"]
    argv += [word for field in fields for word in ("-e", field)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


CASES = ["p1_caplen_gt_len.pcap", "q4_short.pcap", "p2_pppoe.pcap", "p5_eompls.pcap", "p15_ah.pcap"]


@pytest.mark.parametrize("name", CASES)
def test_packets_and_bytes_are_tsharks(name: str) -> None:
    _, summary = flows(name)
    lengths = [int(length) for (length,) in tshark(name, "frame.len")]
    assert (summary["packets"], summary["bytes"]) == (len(lengths), sum(lengths))


def test_flows_in_pppoe() -> None:
    found, _ = flows("p2_pppoe.pcap")
    fields = ("ip.src", "tcp.srcport", "ip.dst", "tcp.dstport", "vlan.id")
    wanted = {
        (src, int(sport), dst, int(dport), "tcp", (int(vlan),) if vlan else ()): 1
        for src, sport, dst, dport, vlan in tshark("p2_pppoe.pcap", *fields)
        if src
    }
    assert len(wanted) == 2
    assert found == wanted | {("2001:db8::1", 5000, "2001:db8::2", 53, "udp", ()): 1}


def test_flows_in_pseudowires() -> None:
    assert flows("p5_eompls.pcap")[0] == {(*FLOW, ()): 3}


def test_tcp_behind_an_authentication_header() -> None:
    found, _ = flows("p15_ah.pcap")
    assert found == {
        (*FLOW, ()): 1,
        ("2001:db8::1", 40001, "2001:db8::2", 443, "tcp", ()): 1,
    }
