#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What cgroup_skb costs a packet, next to systemd's IPAddressDeny= and to nftables.

    sudo python3 tools/bench/cgroup_skb.py [--runs N] [--packets N] [--markdown] [--no-rates]

1. Nanoseconds a packet by BPF_PROG_TEST_RUN, egress, ten prefixes, against systemd's design with
   the same rules (cgroup_skb_two_lists.bpf.c), in turns; the ratio is the median of the turns'
   ratios.  cgroup_skb counts packets and bytes per process name as well, and in the rows "with
   ports" it decides by port, which the other cannot.
2. What a datagram over lo costs the sender's system call: with cgroup_skb on its cgroup, with a
   rule `socket cgroupv2` of nftables and sets of prefixes in its stead, and with neither, in
   turns; what each adds: the minimum of the turns, less that of neither.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bpfkit.core.object import Object
    from bpfkit.core.program import Program

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

DENIED = [f"10.{n}.0.0/16" for n in range(5)] + [f"2001:db8:{n + 1:x}::/48" for n in range(5)]
ADDRESSES = {
    "IPv4, no rule matches": "192.0.2.1",
    "IPv4, denied": "10.3.0.1",
    "IPv6, no rule matches": "2001:db9::1",
    "IPv6, denied": "2001:db8:3::1",
}


@contextlib.contextmanager
def ours(ports: bool) -> Iterator[Object]:
    """cgroup_skb with the rules, filled as the program fills it."""
    import bpfkit
    from bpfkit.cgroup_skb.program import CgroupSkb
    from bpfkit.cgroup_skb.rules import ALLOW, DENY, parse_rule, resolve

    words = list(DENIED)
    if ports:
        words += ["203.0.113.1:22", "[2001:db8:ff::1]:22", "192.0.2.0/24:22", "[2001:db9::]/32:22"]
    program = CgroupSkb.__new__(CgroupSkb)
    program._table = resolve([parse_rule(text, DENY) for text in words], ALLOW)
    consts = {"have_rules": 1, "have_ports": int(ports), "event_rate": 0}
    with bpfkit.load("cgroup/cgroup_skb.bpf.c", consts=consts) as loaded:
        program.prepare(loaded)
        yield loaded


@contextlib.contextmanager
def systemds() -> Iterator[Object]:
    """The rebuilt design of systemd."""
    import bpfkit
    from bpfkit.cgroup_skb.rules import DENY, parse_rule

    with bpfkit.load(f"{HERE}/cgroup_skb_two_lists.bpf.c") as loaded:
        for text in DENIED:
            rule = parse_rule(text, DENY)
            key = rule.length.to_bytes(4, sys.byteorder) + rule.address
            loaded["deny4" if len(rule.address) == 4 else "deny6"][key] = 1
        yield loaded


def packet(address: str) -> bytes:
    """A TCP segment of 1000 bytes to an address."""
    from benchlib import ACK, ENDS, PAYLOAD, TCP, frame

    from bpfkit.net.packets.frames import ip_packet, tcp_segment

    ends = ENDS[6 if ":" in address else 4][0], address
    segment = tcp_segment(*ends, PAYLOAD, ports=(1234, 80), flags=ACK, acknowledgement=1)
    return frame(ip_packet(*ends, TCP, segment))


def compare(
    one: Program, other: Program, data: bytes, runs: int, repeat: int
) -> tuple[float, float, float]:
    """(ns of the one, ns of the other, ratio), in turns."""
    turns = []
    for number in range(runs + 1):
        order = (one, other) if number % 2 else (other, one)
        took = {id(p): p.run(data, repeat=repeat).duration_ns for p in order}
        if number:
            turns.append((took[id(one)], took[id(other)]))
    first, second = zip(*turns, strict=True)
    ratio = statistics.median(a / b for a, b in turns)
    return min(first), min(second), ratio


def packet_runs(runs: int, repeat: int) -> list[list[str]]:
    """The table of the packet runs."""
    rows = []
    with ours(False) as plain, ours(True) as by_port, systemds() as lists:
        other = lists.programs["two_lists"]
        for what, address in ADDRESSES.items():
            data = packet(address)
            for loaded, words in ((plain, what), (by_port, f"{what}; with ports")):
                mine = loaded.programs["skb_egress"]
                assert mine.run(data).retval == other.run(data).retval, words
                a, b, ratio = compare(mine, other, data, runs, repeat)
                rows.append([words, f"{a:.0f}", f"{b:.0f}", f"{ratio:.2f}"])
    return rows


def rates(runs: int, packets: int) -> list[list[str]]:
    """The table of the datagrams over lo."""
    import socket

    from bpfkit.core.cgroups import Cgroup, cgroup_root
    from bpfkit.net.links.netns import NetNS

    with contextlib.ExitStack() as stack:
        # The table would cost the other senders something, too: it has a namespace of its own.
        clean, filtered = (stack.enter_context(NetNS.new("bench")) for _ in range(2))
        groups = {name: stack.enter_context(Cgroup.new("bench")) for name in ("-", "bpf", "nft")}
        loaded = stack.enter_context(ours(False))
        for name in ("skb_ingress", "skb_egress", "sock_create"):
            stack.enter_context(loaded.programs[name].attach_cgroup(groups["bpf"].path))
        # nft looks for the path below /sys/fs/cgroup, wherever the v2 hierarchy is mounted there.
        path = os.path.relpath(groups["nft"].path, "/sys/fs/cgroup")
        level = len(os.path.relpath(groups["nft"].path, cgroup_root()).split("/"))
        # One match of the cgroup, then sets.  No input chain: the receiver is in no such cgroup,
        # so that cgroup_skb is not run there either.
        four = ", ".join(text for text in DENIED if ":" not in text)
        six = ", ".join(text for text in DENIED if ":" in text)
        script = f"""table inet bench {{
            chain judge {{
                ip daddr {{ {four} }} counter drop
                ip6 daddr {{ {six} }} counter drop
                counter
            }}
            chain output {{
                type filter hook output priority 0;
                socket cgroupv2 level {level} "{path}" goto judge
            }}
        }}
        """
        with filtered.entered():
            done = subprocess.run(
                ["nft", "-f", "-"], input=script, text=True, capture_output=True, check=False
            )
        if done.returncode:
            print(f"nft cannot match `socket cgroupv2` here: {done.stderr.splitlines()[0]}")
            del groups["nft"]
        senders = {}
        for name, group in groups.items():
            with (filtered if name == "nft" else clean).entered():
                sink = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sink.bind(("127.0.0.1", 0))
                sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                with group.entered():
                    sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sender.connect(sink.getsockname())
            senders[name] = sender.send
        turns = []
        for number in range(runs + 1):
            names = list(senders)
            order = names[number % len(names) :] + names[: number % len(names)]
            took = {name: _send(senders[name], packets) for name in order}
            if number:
                turns.append(took)
        with filtered.entered():
            counted = _counted()
        if "nft" in groups and counted < packets:
            raise SystemExit(f"cgroup_skb: nft saw only {counted} packets of the cgroup")
    least = {name: min(turn[name] for turn in turns) for name in senders}
    base = least["-"]
    rows = [["neither", f"{base:.0f}", "-", "-"]]
    extra = {name: ns - base for name, ns in least.items() if name != "-"}
    names = {"bpf": "cgroup_skb, 10 prefixes", "nft": "nft socket cgroupv2, 10 prefixes"}
    for name, added in extra.items():
        ratio = extra["bpf"] / extra["nft"] if name == "bpf" and extra.get("nft") else None
        rows.append(
            [
                names[name],
                f"{least[name]:.0f}",
                f"{added:.0f}",
                "-" if ratio is None else f"{ratio:.2f}",
            ]
        )
    return rows


def _send(send: Callable[[bytes], int], count: int) -> float:
    data = bytes(100)
    start = time.perf_counter_ns()
    for _ in range(count):
        send(data)
    return (time.perf_counter_ns() - start) / count


def _counted() -> int:
    """Packets that the last rule of nft's chain saw."""
    import re

    out = subprocess.run(
        ["nft", "list", "chain", "inet", "bench", "judge"], capture_output=True, text=True
    )
    found = re.findall(r"counter packets (\d+)", out.stdout)
    return int(found[-1]) if found else 0


def main() -> int:
    from benchlib import table

    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument(
        "--packets",
        type=int,
        default=20_000,
        help="packets of a turn; over lo a tenth of that in ten times as many turns",
    )
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--no-rates", action="store_true", help="packet runs only")
    options = parser.parse_args()
    titles = ["ns per packet", "cgroup_skb", "systemd's design", "ratio"]
    rows = packet_runs(options.runs, options.packets)
    print(table(titles, rows, markdown=options.markdown))
    if not options.no_rates:
        print()
        titles = ["datagram over lo", "ns", "added", "of nft's"]
        rows = rates(10 * options.runs, options.packets // 10)
        print(table(titles, rows, markdown=options.markdown))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
