#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Goodput of tcp_cc's algorithm and of the kernel's reno, over the same path.

    sudo python3 tools/bench/tcp_cc.py [-n ROUNDS] [-t SECONDS] [--against reno] [--markdown]

    iperf3 client -> router -> iperf3 server

The router forwards 100 Mbit/s and queues 100 packets, or does not limit the rate (then a CPU does,
and what the programs cost shows).  The two take turns, every round in the other order; medians, and
the ratio of the medians.  Goodput is what the server received; segments that were sent again and
the CPU time of the client, which includes its ACKs, are iperf3's figures.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpfkit.net.links.lab import Lab

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [path for path in (ROOT, HERE) if path not in sys.path]

import benchlib  # noqa: E402

from bpfkit.core.errors import BpfkitError  # noqa: E402
from bpfkit.tcp_cc.transfer import HOSTS, bottleneck_lab  # noqa: E402

NAME = "bench_aimd"
GOAL = 0.98


def transfer(lab: Lab, family: int, algorithm: str, seconds: int) -> tuple[float, int, float]:
    """(Mbit/s at the server, segments sent again, CPU share of the client in percent)."""
    server = lab["server"].popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    try:
        client = ["iperf3", "-c", HOSTS[family], "-C", algorithm, "-t", str(seconds), "-J"]
        for _ in range(100):
            try:
                text = lab["client"].check_output(client, timeout=seconds + 20)
                break
            except BpfkitError as error:
                if "refused" not in error.why or server.poll() is not None:
                    raise
                time.sleep(0.02)  # the server is not listening yet
        else:
            raise BpfkitError("iperf3 -s does not listen")
        end = json.loads(text)["end"]
        used = end["sender_tcp_congestion"]
        if used != algorithm:
            raise BpfkitError(f"iperf3 used {used}, not {algorithm}")
        received = end["sum_received"]["bits_per_second"] / 1e6
        return (
            received,
            end["sum_sent"]["retransmits"],
            end["cpu_utilization_percent"]["host_total"],
        )
    finally:
        server.kill()
        server.wait()


def measure(lab: Lab, family: int, names: tuple[str, str], rounds: int, seconds: int) -> list[str]:
    """A line of the table."""
    found: dict[str, list[tuple[float, int, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else names[::-1]:
            found[name].append(transfer(lab, family, name, seconds))
    ours, theirs = (
        [statistics.median(values) for values in zip(*found[name], strict=True)] for name in names
    )
    ratio = ours[0] / theirs[0]
    pair = [f"{a:.{digits}f} / {b:.{digits}f}" for a, b, digits in zip(ours, theirs, (1, 0, 1))]
    return [*pair, f"{ratio:.3f}"]


def main() -> int:
    from shutil import which

    import bpfkit
    from bpfkit.net.links.lab import router_lab

    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-n", "--rounds", type=int, default=5)
    parser.add_argument("-t", "--seconds", type=int, default=3)
    parser.add_argument("--against", default="reno")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if which("iperf3") is None:
        print("iperf3 is not installed", file=sys.stderr)
        return 77
    names = (NAME, options.against)
    lines = []
    with bpfkit.load("sock/tcp_cc.bpf.c") as loaded:
        with loaded.attach_struct_ops("tcp_congestion_ops", name=NAME, flags=1):
            for label, build in (
                ("100 Mbit/s", lambda: bottleneck_lab(100, 100)),
                ("no limit", router_lab),
            ):
                with build() as lab:
                    for family in (4, 6):
                        found = measure(lab, family, names, options.rounds, options.seconds)
                        lines.append([f"{label}, IPv{family}", *found])
    titles = ["path", "Mbit/s", "sent again", "CPU %", f"goodput, of {options.against}'s"]
    print(f"tcp_cc / {options.against}, medians of {options.rounds} transfers of each")
    print(benchlib.table(titles, lines, markdown=options.markdown))
    worst = min(float(line[-1]) for line in lines)
    print(f"least ratio {worst:.3f}; goal: at least {GOAL}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BpfkitError as error:
        print(f"tcp_cc: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
