#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""sockops: what it costs per connection, and whether its close events are right.

::

    sudo python3 tools/bench/sockops.py [--connections 20000] [--rounds 7] [--markdown]

Rate: short connections on loopback in a namespace of their own (tcp_connections.c), measured in
turns: without sockops; with its program attached and its events left in the ring buffer; with the
whole program, which writes its events as JSON.  Ratios are of one round; the median is printed.

Equality: every close event against TCP_INFO that the kernel itself sends when it frees the socket
(tcp_destroy.py), with and without loss.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from benchlib import table  # noqa: E402
from tcp_destroy import DestroyedSockets, Key  # noqa: E402

import bpfkit  # noqa: E402
from bpfkit.core.cgroups import Cgroup  # noqa: E402
from bpfkit.core.children import command as child_command  # noqa: E402
from bpfkit.net.links.interfaces import Interface  # noqa: E402
from bpfkit.net.links.netns import NetNS  # noqa: E402

SAME = {
    "bytes_sent": "bytes_sent",
    "bytes_received": "bytes_received",
    "segs_out": "segs_out",
    "segs_in": "segs_in",
    "retransmits": "total_retrans",
}
#: Every kind of event but state changes.
USUAL = 0b1101111


def build(directory: str) -> str:
    """The traffic program."""
    program = f"{directory}/tcp_connections"
    source = ROOT / "tools/bench/tcp_connections.c"
    subprocess.run(["cc", "-O2", "-Wall", "-o", program, str(source)], check=True)
    return program


def connections(program: str, group: Cgroup, count: int, size: int, clients: int) -> float:
    """Connections per second of one run in the cgroup."""
    done = group.run([program, str(count), str(size), str(clients)], timeout=120)
    if done.returncode:
        raise SystemExit(f"tcp_connections: {done.stderr}")
    return float(done.stdout)


class Program:
    """``python -m bpfkit.sockops --json --cgroup …``, its events in a file."""

    def __init__(self, group: Cgroup, out: str) -> None:
        argv = child_command("bpfkit.sockops", "--json", "-v", "-t", "1000", "--cgroup", group.path)
        with open(out, "w") as file:
            self.process = subprocess.Popen(argv, stdout=file, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "attached to" in line:
                return
        raise SystemExit("sockops did not start")

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=60)


# -- the rate


def without(program: str, count: int) -> float:
    with Cgroup.new("bench") as group:
        return connections(program, group, count, 1, 1)


def kernel_part(program: str, count: int) -> float:
    flags = ["-DHAS_MPTCP"] if os.path.isdir("/proc/sys/net/mptcp") else []
    with (
        Cgroup.new("bench") as group,
        bpfkit.load("sock/sockops.bpf.c", consts={"report": USUAL}, cflags=flags) as loaded,
        loaded.programs["sockops"].attach_cgroup(group.path),
    ):
        rate = connections(program, group, count, 1, 1)
        if loaded["count"].sum(1) != 2 * count:
            raise SystemExit(f"{loaded['count'].sum(1)} sockets closed, not {2 * count}")
        return rate


def whole(program: str, count: int) -> float:
    with Cgroup.new("bench") as group:
        running = Program(group, os.devnull)
        try:
            return connections(program, group, count, 1, 1)
        finally:
            running.end()


def rates(program: str, rounds: int, count: int, markdown: bool) -> None:
    ways: dict[str, Callable[[str, int], float]] = {
        "without sockops": without,
        "attached, events not read": kernel_part,
        "python -m bpfkit.sockops --json": whole,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            with NetNS.new("bench") as namespace, namespace.entered():
                found[name].append(way(program, count))
    base = found["without sockops"]
    rows = []
    for name, values in found.items():
        ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
        rows.append([name, f"{statistics.median(values):.0f}", f"{ratio:.3f}"])
    print(f"{count} connections a run, {rounds} rounds, one client")
    print(table(["short connections", "connections/s", "ratio"], rows, markdown=markdown))


# -- equality


def equality(program: str, count: int, every: int) -> bool:
    """Compare; true if all events are right."""
    with (
        tempfile.TemporaryDirectory() as directory,
        NetNS.new("bench") as namespace,
        namespace.entered(),
        Cgroup.new("bench") as group,
    ):
        out = f"{directory}/events"
        judge = DestroyedSockets()
        running = Program(group, out)
        loss = None
        if every:
            loss = bpfkit.load("sock/sockops_loss.bpf.c", consts={"every": every})
            loss.programs["sockops_loss"].attach_tc(Interface.find("lo").index, "ingress")
        connections(program, group, count, 2000 if every else 1, 8)
        time.sleep(2)  # sockets that still wait for their last acknowledgement
        running.end()
        truth = judge.read()
        judge.close()
        if loss is not None:
            loss.close()
        events = [json.loads(line) for line in Path(out).read_text().splitlines()]
    return compare(events, [entry for entry in truth if entry[1].state != 10], count, every)


def compare(events: list[dict], truth: list[tuple[Key, object]], count: int, every: int) -> bool:
    told: dict[Key, Counter[tuple[int, ...]]] = {}
    closes = [event for event in events if event["event"] == "close"]
    for event in closes:
        key = event["src"], event["sport"], event["dst"], event["dport"]
        told.setdefault(key, Counter())[tuple(event[name] for name in SAME)] += 1
    known: dict[Key, Counter[tuple[int, ...]]] = {}
    for key, info in truth:
        if key[3]:  # listeners have no peer
            values = tuple(getattr(info, name) for name in SAME.values())
            known.setdefault(key, Counter())[values] += 1
    sockets = sum(sum(c.values()) for c in known.values())
    equal = sum(sum((c & told.get(key, Counter())).values()) for key, c in known.items())
    repeated = sum(event["retransmits"] for event in closes)
    lost = sum(event["lost"] for event in events if event["event"] == "lost")
    text = f"every {every}th data segment lost" if every else "no loss"
    print(
        f"{count} connections, {text}: {sockets} sockets freed by the kernel, {len(closes)} close "
        f"events, {equal} equal TCP_INFO; {repeated} retransmissions, {lost} events lost"
    )
    return equal == sockets == len(closes) == 2 * count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        program = build(directory)
        good = equality(program, options.connections, 0)
        good &= equality(program, options.connections // 4, 50)
        rates(program, options.rounds, 8_000, options.markdown)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
