#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""sockops: what it costs per connection, and whether its close events are right.

::

    sudo python3 tools/bench/sockops.py [--connections 20000] [--rounds 7] [--markdown]

Rate: short connections on loopback in a namespace of their own (tcp_connections.c), measured in
turns: without sockops; with its program attached and its events left in the ring buffer; with the
whole program, which writes its events as JSON.  Ratios are of one round; the median is printed.

Equality: every close event against TCP_INFO that the kernel itself sends when it frees the socket
(tcp_destroy.py), without loss and with: netem's where the kernel has it, else sockops_loss.bpf.c's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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
LISTEN = 10  # TCP_LISTEN
CLIENTS = 8  # at once, for equality
#: Every kind of event but state changes.
USUAL = 0b1101111


def build(directory: str) -> str:
    """The traffic program."""
    program = f"{directory}/tcp_connections"
    source = ROOT / "tools/bench/tcp_connections.c"
    subprocess.run(["cc", "-O2", "-Wall", "-o", program, str(source)], check=True)
    return program


class Run:
    """What one run was like.

    :ivar rate: connections per second.
    :ivar cpu_us: CPU time of client and server per connection.
    """

    def __init__(self, rate: float, cpu_us: float) -> None:
        self.rate = rate
        self.cpu_us = cpu_us


def connections(program: str, group: Cgroup, count: int, size: int, clients: int) -> Run:
    """One run in the cgroup."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = group.run([program, str(count), str(size), str(clients)], timeout=120)
    if done.returncode:
        raise SystemExit(f"tcp_connections: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(float(done.stdout), seconds / count * 1e6)


class Program:
    """``python3 -m bpfkit.sockops --json --cgroup …``, its events in a file."""

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


def without(program: str, count: int) -> Run:
    with Cgroup.new("bench") as group:
        return connections(program, group, count, 1, 1)


def kernel_part(program: str, count: int) -> Run:
    flags = ["-DHAS_MPTCP"] if os.path.isdir("/proc/sys/net/mptcp") else []
    with (
        Cgroup.new("bench") as group,
        bpfkit.load("sock/sockops.bpf.c", consts={"report": USUAL}, cflags=flags) as loaded,
        loaded.programs["sockops"].attach_cgroup(group.path),
    ):
        run = connections(program, group, count, 1, 1)
        if loaded["count"].sum(1) != 2 * count:
            raise SystemExit(f"{loaded['count'].sum(1)} sockets closed, not {2 * count}")
        return run


def whole(program: str, count: int) -> Run:
    with Cgroup.new("bench") as group:
        running = Program(group, os.devnull)
        try:
            return connections(program, group, count, 1, 1)
        finally:
            running.end()


def rates(program: str, rounds: int, count: int, markdown: bool) -> None:
    ways: dict[str, Callable[[str, int], Run]] = {
        "without sockops": without,
        "attached, events not read": kernel_part,
        "python3 -m bpfkit.sockops --json": whole,
    }
    found: dict[str, list[Run]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            with NetNS.new("bench") as namespace, namespace.entered():
                found[name].append(way(program, count))
    base = found["without sockops"]
    rows = []
    middle = statistics.median
    for name, runs in found.items():
        pairs = list(zip(runs, base, strict=True))
        rows.append(
            [
                name,
                f"{middle(run.rate for run in runs):.0f}",
                f"{middle(run.rate / other.rate for run, other in pairs):.3f}",
                f"{middle(run.cpu_us for run in runs):.1f}",
                f"{middle(run.cpu_us / other.cpu_us for run, other in pairs):.3f}",
            ]
        )
    print(f"{count} connections a run, {rounds} rounds, one client")
    print(
        table(
            ["short connections", "connections/s", "ratio", "CPU us each", "ratio"],
            rows,
            markdown=markdown,
        )
    )


# -- equality


def netem(percent: float) -> bool:
    """Random loss on lo, by netem; false if the kernel does not have it."""
    argv = f"tc qdisc add dev lo root netem loss {percent}%".split()
    return subprocess.run(argv, stderr=subprocess.DEVNULL).returncode == 0


def equality(program: str, count: int, percent: float) -> bool:
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
        how = f"{percent} % loss by netem" if percent else "no loss"
        if percent and not netem(percent):
            every = round(100 / percent)
            how = f"each {every}th data segment lost"
            loss = bpfkit.load("sock/sockops_loss.bpf.c", consts={"every": every})
            loss.programs["sockops_loss"].attach_tc(Interface.find("lo").index, "ingress")
        count = count // CLIENTS * CLIENTS
        connections(program, group, count, 2000 if percent else 1, CLIENTS)
        truth = []
        # Some sockets still wait for an acknowledgement, and the kernel reports freed ones later.
        deadline = time.monotonic() + 30
        while len(truth) < 2 * count and time.monotonic() < deadline:
            time.sleep(0.2)
            truth += [entry for entry in judge.read() if entry[1].state != LISTEN and entry[0][3]]
        running.end()
        judge.close()
        if loss is not None:
            loss.close()
        events = [json.loads(line) for line in Path(out).read_text().splitlines()]
    return compare(events, truth, count, how)


def compare(events: list[dict], truth: list[tuple[Key, object]], count: int, how: str) -> bool:
    told: dict[Key, Counter[tuple[int, ...]]] = {}
    closes = [event for event in events if event["event"] == "close"]
    for event in closes:
        key = event["src"], event["sport"], event["dst"], event["dport"]
        told.setdefault(key, Counter())[tuple(event[name] for name in SAME)] += 1
    known: dict[Key, Counter[tuple[int, ...]]] = {}
    for key, info in truth:
        values = tuple(getattr(info, name) for name in SAME.values())
        known.setdefault(key, Counter())[values] += 1
    sockets = sum(sum(c.values()) for c in known.values())
    equal = sum(sum((c & told.get(key, Counter())).values()) for key, c in known.items())
    repeated = sum(event["retransmits"] for event in closes)
    lost = sum(event["lost"] for event in events if event["event"] == "lost")
    print(
        f"{count} connections, {how}: {sockets} sockets freed by the kernel, {len(closes)} close "
        f"events, {equal} equal TCP_INFO; {repeated} retransmissions, {lost} events lost"
    )
    # Loss makes the kernel free a few sockets that never were connections.
    return equal == len(closes) == 2 * count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7, help="0: no rates")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        program = build(directory)
        good = equality(program, options.connections, 0)
        good &= equality(program, options.connections // 4, 2.0)
        if options.rounds:
            rates(program, options.rounds, 8_000, options.markdown)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
