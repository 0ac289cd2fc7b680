#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What it costs to watch an interface: sockex3's live view beside iftop, tcpdump and softflowd.

    sudo python3 tools/bench/sockex3_cost.py [-n ROUNDS] [-t SECONDS] [--rate N] [--markdown]

    generator, then iperf3 -> cable -> eth0 [watched by one of them] -> dropped, then iperf3

Each round measures all of them, and nothing at all, in turns; figures are medians of the rounds.
First the kernel's generator (see rates.py) sends frames at a fixed rate.  They have another host's
MAC address, so that the network stack drops them behind the taps, and what is measured is the taps.
Then iperf3 sends TCP as fast as it goes.

`cpu ns`: CPU time per packet of the kernel and of the watcher's process, less the kernel's without
a watcher; `own ns` of it is the process's.  `TCP`: throughput, and what is kept of it.

A watcher that this machine lacks gets a line that says how to install it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from bpfkit.net.links.lab import Lab

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [path for path in (ROOT, HERE) if path not in sys.path]

import benchlib  # noqa: E402
from rates import FIRST_PORT, FIRST_SEQUENCE, PORT, Bench  # noqa: E402

from bpfkit.core.children import command  # noqa: E402
from bpfkit.core.errors import BpfkitError  # noqa: E402
from bpfkit.net.packets.frames import ip_packet, tcp_segment  # noqa: E402

NOTHING = "nothing"
OURS = "sockex3, live view"
CLIENT, SERVER = "10.77.0.1", "10.77.0.2"
DEVICE = "eth0"
ELSEWHERE = "02:00:00:00:00:99"
BURSTS = 20  # per second: each waits for a grace period of RCU
WARM_UP_S, PATIENCE_S = 1.5, 30
STARTED_NS = 80_000_000  # of CPU time in a second: it is at work, and not starting any more


def watchers(directory: str) -> dict[str, list[str]]:
    """Name -> argv."""
    control = os.path.join(directory, "softflowd")
    return {
        NOTHING: [],
        OURS: command("bpfkit.sockex3", "-i", DEVICE),
        "sockex3 --by process": command("bpfkit.sockex3", "-i", DEVICE, "--by", "process"),
        "iftop": ["iftop", "-nNP", "-i", DEVICE],
        "tcpdump -w /dev/null": ["tcpdump", "-n", "-i", DEVICE, "-w", "/dev/null"],
        "softflowd": [
            "softflowd",
            "-d",
            "-i",
            DEVICE,
            "-c",
            f"{control}.ctl",
            "-p",
            f"{control}.pid",
        ],
    }


class Watcher:
    """A watcher at work, on a terminal of its own that is read all the time."""

    def __init__(self, lab: Lab, argv: list[str], cpus: set[int]) -> None:
        from threading import Thread

        self.process: subprocess.Popen[bytes] | None = None
        if not argv:
            return
        master, slave = os.openpty()
        _set_size(slave)
        env = os.environ | {"TERM": "xterm"}
        self.process = lab["server"].popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )
        os.close(slave)
        self._said = b""
        self._reader = Thread(target=self._read, args=(master,), daemon=True)
        self._reader.start()
        self._settle()
        if self.process.poll() is not None:
            said = self._said.decode(errors="replace").strip().rpartition("\n")[2]
            raise BpfkitError(f"{argv[0]} ended", why=said)

    def _settle(self) -> None:
        """Wait until it has started: it works for a while, then waits for packets."""
        time.sleep(WARM_UP_S)
        deadline = time.monotonic() + PATIENCE_S
        quiet = 0
        while quiet < 2 and time.monotonic() < deadline and self.process.poll() is None:
            before = self.cpu_ns()
            time.sleep(1)
            quiet = quiet + 1 if self.cpu_ns() - before < STARTED_NS else 0

    def _read(self, master: int) -> None:
        try:
            while piece := os.read(master, 1 << 16):
                self._said = (self._said + piece)[-4096:]
        except OSError:  # EIO: the other end is closed
            pass
        os.close(master)

    def cpu_ns(self) -> int:
        """CPU time of all its threads."""
        if self.process is None:
            return 0
        total = 0
        tasks = f"/proc/{self.process.pid}/task"
        for task in os.listdir(tasks):
            with open(f"{tasks}/{task}/schedstat") as file:
                total += int(file.read().split()[0])
        return total

    def close(self) -> None:
        """End it as a user would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self._reader.join(5)


def _set_size(terminal: int) -> None:
    import fcntl
    import struct
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))


def throughput(lab: Lab, seconds: int) -> float:
    """TCP by iperf3, in bit/s."""
    server = lab["server"].popen(
        ["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 10
    while ":5201 " not in str(lab["server"].check_output(["ss", "-Hltn"])):
        if time.monotonic() > deadline:
            raise BpfkitError("iperf3 does not listen")
        time.sleep(0.05)
    argv = ["iperf3", "-c", SERVER, "-J", "-t", str(seconds)]
    try:
        report = json.loads(lab["gen"].check_output(argv))
    finally:
        server.terminate()
        server.wait()
    return float(report["end"]["sum_received"]["bits_per_second"])


def kernel_ns(bench: Bench, options: Namespace) -> tuple[float, int]:
    """(CPU time of the kernel per packet, packets) at the rate that was asked for."""
    ends = CLIENT, SERVER
    segment = tcp_segment(
        *ends, ports=(FIRST_PORT, PORT), sequence=FIRST_SEQUENCE, acknowledgement=1
    )
    mine = bench.lab.lladdr("gen:out")
    frame = benchlib.frame(ip_packet(*ends, benchlib.TCP, segment), ELSEWHERE, mine)
    index = bench.lab.interface("gen:out").index
    bench.lab["gen"].run(bench.generator["out"].__setitem__, 0, index)
    each = max(options.rate // BURSTS, 64)
    busy = sent = 0
    begun = time.monotonic()
    while time.monotonic() < begun + options.seconds:
        busy += bench.send(bench.generator.programs["generate"], frame, each)[1]
        sent += each
        time.sleep(max(0.0, begun + sent / options.rate - time.monotonic()))
    return busy / sent, sent


class Figures:
    """What was measured of one watcher, a value per round."""

    def __init__(self) -> None:
        self.total_ns: list[float] = []
        self.own_ns: list[float] = []
        self.tcp: list[float] = []
        self.problem = ""


def measure_one(bench: Bench, argv: list[str], figures: Figures, options: Namespace) -> None:
    """One round of one watcher."""
    watcher = Watcher(bench.lab, argv, options.every_cpu)
    try:
        own = watcher.cpu_ns()
        kernel, packets = kernel_ns(bench, options)
        own = watcher.cpu_ns() - own
        figures.own_ns.append(own / packets)
        figures.total_ns.append(kernel + own / packets)
        figures.tcp.append(throughput(bench.lab, options.seconds))
    finally:
        watcher.close()


def measure(options: Namespace) -> dict[str, Figures]:
    """All watchers, in turns."""
    with ExitStack() as keep:
        directory = keep.enter_context(tempfile.TemporaryDirectory())
        every = watchers(directory)
        found = {name: Figures() for name in every}
        bench = Bench(options, keep)
        bench.namespace("server")
        bench.cable("gen:out", f"server:{DEVICE}", ([f"{CLIENT}/24"], [f"{SERVER}/24"]))
        bench.lab.ready()
        for name, argv in every.items():
            if argv and not shutil.which(argv[0]):
                found[name].problem = f"not installed: apt-get install {argv[0]}"
        for _ in range(options.rounds):
            for name, argv in every.items():
                if not found[name].problem:
                    try:
                        measure_one(bench, argv, found[name], options)
                    except BpfkitError as error:
                        if not argv:
                            raise
                        found[name].problem = str(error)
    return found


def show(found: dict[str, Figures], options: Namespace) -> str:
    """The table, and what could not be measured."""
    base = statistics.median(found[NOTHING].total_ns)
    full = statistics.median(found[NOTHING].tcp)

    def extra(name: str) -> float:
        return statistics.median(found[name].total_ns) - base

    ours = None if found[OURS].problem else extra(OURS)
    rows = []
    for name, figures in found.items():
        if figures.problem:
            continue
        tcp = statistics.median(figures.tcp)
        cells = [name]
        if name == NOTHING:
            cells += [f"({base:.0f})", "-", "-"]
        else:
            cells += [f"{extra(name):.0f}", f"{statistics.median(figures.own_ns):.0f}"]
            cells.append(f"{extra(name) / ours:.2f}" if ours and ours > 0 else "-")
        rows.append([*cells, f"{tcp / 1e9:.2f}", f"{tcp / full:.2f}"])
    titles = ["watcher", "cpu ns", "own ns", "ratio", "TCP Gbit/s", "kept"]
    text = benchlib.table(titles, rows, 1, options.markdown) + "\n"
    for name, figures in found.items():
        if figures.problem:
            text += f"\nnot measured: {name}: {figures.problem}"
    return text + (
        f"\ncpu ns: CPU time per packet on top of the traffic's own, which is in brackets; own: of "
        f"the watcher's\nprocess; ratio: to {OURS}. {options.rate} frames of 60 bytes per second, "
        f"{options.flows} flows;\nmedians of {options.rounds} rounds of {options.seconds} s in "
        f"turns; veth; Linux {os.uname().release.partition('-')[0]}.\n"
    )


def main() -> int:
    """Measure and print."""
    from argparse import ArgumentParser

    parser = ArgumentParser(description="what watching an interface costs")
    add = parser.add_argument
    add("-n", "--rounds", type=int, default=5, help="default: 5")
    add("-t", "--seconds", type=int, default=3, help="of each measurement; default: 3")
    add("--rate", type=int, default=20_000, help="packets per second; default: 20 000")
    add("--flows", type=int, default=256, help="source ports, a power of two; default: 256")
    add("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="default: the last one")
    add("--markdown", action="store_true", help="a Markdown table")
    options = parser.parse_args()
    options.every_cpu = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {options.cpu})
    if min(options.rounds, options.seconds, options.rate) < 1:
        parser.error("at least one round, one second and one packet per second")
    for tool in ("iperf3", "ss"):
        if not shutil.which(tool):
            print(f"sockex3_cost: {tool} is missing", file=sys.stderr)
            return 77
    try:
        print(show(measure(options), options), flush=True)
    except BpfkitError as error:
        print(f"sockex3_cost: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
