#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Connections per second to 1,000 ports: steered to one listener, or with a listener each.

    sudo python3 tools/bench/sk_lookup.py [-n ROUNDS] [-c CONNECTIONS] [--ports N] [--six]

    one       one listener, asked on its own port, no program attached
    port      one listener, asked on one port that is steered to it: what the hook costs
    many      N listeners, asked in turn
    rules     one listener, N ports steered to it by N rules
    range     one listener, N ports steered to it by one rule

Each has a network namespace and a server process of its own; one client (tools/bench/connects.c)
connects to them in turns, ROUNDS times (default 40), over loopback, one connection after the other.
Client and servers take turns on one CPU, so the scheduler has no choice to make.
Figures are means of the best quarter of the rounds: other processes only ever slow a round down.
`CPU` is the client's CPU time per connection, which has the kernel's work for both ends in it.  A
connection that is not accepted fails the run.

Memory: what the kernel holds for the listeners (their slabs, /proc/slabinfo), or for the program's
maps (fdinfo) and its one listener; and the processes' own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpfkit.net.links.netns import NetNS

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [path for path in (ROOT, HERE) if path not in sys.path]

import benchlib  # noqa: E402

from bpfkit.core.children import command  # noqa: E402

PORT, FIRST = 5201, 10000
SLABS = (
    *("TCP", "TCPv6", "sock_inode_cache", "filp", "tcp_bind_bucket", "tcp_bind2_bucket"),
    *("eventpoll_epi", "eventpoll_pwq"),
)


class Way:
    """A namespace, its server, and how it is asked."""

    def __init__(self, stack: ExitStack, tool: str, host: str, name: str, ports: int) -> None:
        from bpfkit.net.links.netns import NetNS

        self.name = name
        self.ns: NetNS = stack.enter_context(NetNS.new(f"bench-{name}"))
        many = name == "many"
        self.first = PORT if name == "one" else FIRST
        self.count = 1 if name in ("one", "port") else ports
        words = [FIRST, ports] if many else [PORT, 1]
        before = slab_bytes()
        self.server = self.start(stack, [tool, "serve", host, *map(str, words)])
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == b"ready\n"
        self.kernel = max(slab_bytes() - before, 0)
        self.steering: subprocess.Popen[bytes] | None = None
        rules = {
            "port": [f"tcp/{FIRST}:{PORT}"],
            "rules": [f"tcp/{port}:{PORT}" for port in range(FIRST, FIRST + ports)],
            "range": [f"tcp/{FIRST}-{FIRST + ports - 1}:{PORT}"],
        }.get(name)
        if rules:
            words_ = [word for rule in rules for word in ("--steer", rule)]
            where = f"/proc/{os.getpid()}/fd/{self.ns.fd}"
            argv = command("bpfkit.sk_lookup", "--json", "-t", "1000", "-v", "--netns", where)
            self.steering = self.start(stack, [*argv, *words_], stderr=subprocess.PIPE)
            assert self.steering.stderr is not None
            while line := self.steering.stderr.readline():
                if b"attached to" in line:
                    break
            else:
                raise SystemExit("sk_lookup did not start")
            self.kernel += maps_bytes(self.steering.pid)
        self.asked = [tool, "ask", host, str(self.first), str(self.count)]
        self.rates: list[float] = []
        self.cpu: list[float] = []

    def start(self, stack: ExitStack, argv: list[str], **more: int) -> subprocess.Popen[bytes]:
        process = self.ns.popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, **more
        )

        def end() -> None:
            process.terminate()
            process.communicate()

        stack.callback(end)
        return process

    def ask(self, connections: int, keep: bool = True) -> None:
        text = self.ns.check_output([*self.asked, str(connections)])
        seconds, cpu, refused = map(float, text.split())
        if refused:
            raise SystemExit(f"{self.name}: {refused:.0f} of {connections} connections failed")
        if keep:
            self.rates.append(connections / seconds)
            self.cpu.append(cpu / connections * 1e6)

    def resident(self) -> int:
        """Memory of the server's process, and of sk_lookup's."""
        total = 0
        for process in filter(None, (self.server, self.steering)):
            with open(f"/proc/{process.pid}/smaps_rollup") as file:
                rows = [line.split() for line in file]
            total += next(int(row[1]) * 1024 for row in rows if row[0] == "Pss:")
        return total


def slab_bytes() -> int:
    """Bytes of the objects that a listening socket consists of."""
    total = 0
    with open("/proc/slabinfo") as file:
        for line in file:
            words = line.split()
            if words[0] in SLABS:
                total += int(words[1]) * int(words[3])
    return total


def maps_bytes(pid: int) -> int:
    """Bytes of the maps and programs that a process holds."""
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        try:
            with open(f"/proc/{pid}/fdinfo/{fd}") as file:
                info = dict(line.split(":", 1) for line in file if ":" in line)
        except OSError:
            continue
        for kind in ("map_id", "prog_id"):
            if kind in info and "memlock" in info:
                found[kind, int(info[kind])] = int(info["memlock"])
    return sum(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("-n", metavar="ROUNDS", type=int, default=40, dest="rounds")
    add("-c", metavar="CONNECTIONS", type=int, default=2000, dest="connections")
    add("--ports", metavar="N", type=int, default=1000)
    add("--six", action="store_true", help="IPv6")
    add("--markdown", action="store_true")
    options = parser.parse_args()
    host = "::1" if options.six else "127.0.0.1"
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # children inherit it
    with ExitStack() as stack:
        where = stack.enter_context(tempfile.TemporaryDirectory())
        tool = f"{where}/connects"
        subprocess.run(["gcc", "-O2", "-o", tool, f"{HERE}/connects.c"], check=True)
        names = ("one", "port", "many", "rules", "range")
        ways = [Way(stack, tool, host, name, options.ports) for name in names]
        for way in ways:
            way.ask(1000, keep=False)
        for number in range(options.rounds):
            for way in ways[number % 5 :] + ways[: number % 5]:  # nobody is always first
                way.ask(options.connections)
                time.sleep(0.02)
        report(ways, options.markdown)


def best(figures: list[float], *, most: bool = False) -> float:
    """The mean of the best quarter: of the highest, or of the lowest."""
    ordered = sorted(figures, reverse=most)
    return statistics.mean(ordered[: max(1, len(ordered) // 4)])


def report(ways: list[Way], markdown: bool) -> None:
    one, many = ways[0], ways[2]

    rows = []
    for way in ways:
        rate, cpu = best(way.rates, most=True), best(way.cpu)
        rows.append(
            [
                way.name,
                f"{rate:.0f}",
                f"{rate / best(one.rates, most=True):.3f}",
                f"{rate / best(many.rates, most=True):.3f}",
                f"{cpu:.2f}",
                f"{cpu / best(one.cpu):.3f}",
                f"{way.kernel / 1024:.0f}",
                f"{way.resident() / 1024:.0f}",
            ]
        )
    titles = ["listeners", "connections/s", "to one", "to many", "CPU us", "to one", "kernel KB"]
    print(benchlib.table([*titles, "processes KB"], rows, markdown=markdown))


if __name__ == "__main__":
    main()
