#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does profile take every sample, does it agree with perf, and what does it cost?

    sudo python3 tools/bench/profile_samples.py [--seconds S] [--hz N] [--perf-hz N]

A C program (tools/bench/burner.c) keeps all CPUs busy in functions with known shares.

Samples of all processes at --hz for S seconds against frequency × time × CPUs, and those of the
busy program against frequency × its CPU time, which it prints.  On a machine with other work only
the second comparison says something about profile.

Shares of the ten largest functions by profile and by `perf record`, of the same seconds, at
--perf-hz.

CPU time (of one CPU) and peak memory of profile while it samples the busy program at --hz: without
the start, which reads symbol tables, and with it.  Needs cc; perf for the second part.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [path for path in (ROOT, HERE) if path not in sys.path]

ENV = os.environ | {"PYTHONPATH": ROOT}
PROFILE = [sys.executable, "-m", "bpfkit.profile"]
#: Seconds after the start of profile from which its CPU time is its running time.
_STARTED = 3.0


def burning(burner: str, seconds: float) -> subprocess.Popen[str]:
    """The busy program, at work."""
    return subprocess.Popen([burner, f"{seconds}"], stdout=subprocess.PIPE, text=True)


def samples(burner: str, seconds: float, hz: int) -> list[list[str]]:
    """Rows: what was sampled, samples, expected, difference."""
    from bpfkit.core.cpus import online

    argv = [*PROFILE, "--no-demo", "--folded", "--hz", str(hz), "--seconds", f"{seconds}"]
    with burning(burner, seconds + 4) as busy:
        time.sleep(0.5)
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, env=ENV, check=True)
        busy.communicate()
    taken = total(done.stdout)
    cpus = len(online())
    rows = [compared(f"all processes, {seconds:g} s × {cpus} CPUs", taken, hz * seconds * cpus)]
    argv = [*PROFILE, "--folded", "--hz", str(hz), "--", burner, f"{seconds}"]
    done = subprocess.run(argv, capture_output=True, text=True, env=ENV, check=True)
    used = float(done.stderr.splitlines()[0])
    what = f"the busy program, {used:.2f} s of CPU time"
    return [*rows, compared(what, total(done.stdout), hz * used)]


def total(folded: str) -> int:
    """Samples in folded stacks."""
    return sum(int(line.rpartition(" ")[2]) for line in folded.splitlines())


def compared(what: str, taken: int, wanted: float) -> list[str]:
    """A row."""
    return [what, str(taken), f"{wanted:.0f}", f"{(taken / wanted - 1) * 100:+.2f} %"]


def shares(burner: str, seconds: float, hz: int, work: str) -> list[list[str]]:
    """Rows: function, profile's share, perf's share, difference in points."""
    with burning(burner, seconds + 2) as busy:
        time.sleep(0.5)
        data = f"{work}/perf.data"
        pid = str(busy.pid)
        argv = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(hz), "-p", pid, "-o", data]
        perf = subprocess.Popen(
            [*argv, "--", "sleep", f"{seconds}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        argv = [*PROFILE, "--pid", pid, "--hz", str(hz), "--seconds", f"{seconds}", "--json"]
        done = subprocess.run(argv, capture_output=True, text=True, env=ENV, check=True)
        perf.communicate()
        busy.communicate()
    script = ["perf", "script", "-i", data, "-F", "ip,sym"]
    said = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    theirs = Counter(line.split(None, 1)[1] for line in said.splitlines() if line.strip())
    rows: dict[str, Any] = {}
    for row in map(json.loads, done.stdout.splitlines()):
        rows[row["function"].removesuffix("_[k]")] = row["share"] * 100
    every = theirs.total()
    largest = [name for name, _ in theirs.most_common(10)]
    table = []
    for name in largest:
        ours, other = rows.get(name, 0.0), theirs[name] / every * 100
        table.append([name, f"{ours:.2f} %", f"{other:.2f} %", f"{ours - other:+.2f}"])
    return table


def usage(pid: int) -> float:
    """Seconds of CPU time that a process has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cost(burner: str, seconds: float, hz: int) -> list[list[str]]:
    """Rows: what, figure."""
    with burning(burner, seconds + 4) as busy:
        argv = [*PROFILE, "--pid", str(busy.pid), "--hz", str(hz), "--folded"]
        begun = time.monotonic()
        with subprocess.Popen(
            argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENV
        ) as process:
            time.sleep(_STARTED)
            early, at = usage(process.pid), time.monotonic()
            time.sleep(seconds)
            late, end = usage(process.pid), time.monotonic()
            with open(f"/proc/{process.pid}/status") as file:
                peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
            process.terminate()
        busy.communicate()
    return [
        ["CPU time while it runs", f"{(late - early) / (end - at) * 100:.2f} % of one CPU"],
        ["CPU time with its start", f"{late / (end - begun) * 100:.2f} % of one CPU"],
        ["peak memory", f"{peak / 1024:.1f} MB"],
    ]


def main() -> int:
    """Print the tables."""
    from benchlib import table

    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each part: 20")
    parser.add_argument("--hz", type=int, default=99, help="default: 99")
    parser.add_argument("--perf-hz", type=int, default=1999, help="beside perf: 1999")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        burner = f"{work}/burner"
        flags = ["-O1", "-fno-omit-frame-pointer", "-pthread"]
        subprocess.run(["cc", *flags, "-o", burner, f"{HERE}/burner.c"], check=True)
        rows = samples(burner, options.seconds, options.hz)
        print(table([f"sampled at {options.hz} Hz", "samples", "expected", ""], rows), end="\n\n")
        if shutil.which("perf"):
            rows = shares(burner, options.seconds, options.perf_hz, work)
            print(table(["function", "profile", "perf record", "points"], rows), end="\n\n")
        print(table(["cost of profile", ""], cost(burner, options.seconds, options.hz)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
