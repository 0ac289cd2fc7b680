#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Do opensnoop, tcpconnect and execs show every event, once, with the right path, port and argv?

    sudo python3 tools/bench/trace_events.py [--count N] [--workers N] [--strace N] [PROGRAM …]

Each program runs around tools/bench/trace_workload.c, whose threads make COUNT (20 000) events, no
two alike, and write down what each call returned.  The program's events are compared with that: an
event that is missing must have been counted as lost, none may come twice, none may be wrong.  Then
a run of --strace (2 000) events under strace, whose log is compared as well.  Status 0: all is as
it must be.

At the end, from the start of the process until it is attached, in milliseconds: the program and,
where they are installed and start, BCC's opensnoop, tcpconnect and execsnoop.  Needs cc.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [path for path in (ROOT, HERE) if path not in sys.path]


def _errno(name: str | int) -> int:
    import errno

    return getattr(errno, name, -1) if isinstance(name, str) else name


# ---------------------------------------------------------------- the same event from three sides


def opened(row: dict[str, Any]) -> tuple[Any, ...] | None:
    """An event of opensnoop; None: not of the workload."""
    path = row.get("path") or ""
    return (path, row["ret"]) if re.search(r"/(present|absent)-\d+-\d+$", path) else None


def connected(row: dict[str, Any]) -> tuple[Any, ...] | None:
    """An event of tcpconnect."""
    if "dport" not in row:
        return None
    result = _errno(row["result"])
    return (row["dst"], row["dport"], 0 if result else row["sport"], result)


def executed(row: dict[str, Any]) -> tuple[Any, ...] | None:
    """An event of execs; the text of the last argument must have the length that the third says."""
    argv = row.get("argv") or [""]
    if argv[0] != "noop" or row["ret"]:
        return None
    right = len(argv) == 5 and argv[4] == "x" * int(argv[3])
    return (row["pid"], *map(int, argv[1:4])) if right else (row["pid"], "wrong", *argv[1:])


def record_of_opens(line: str) -> tuple[Any, ...]:
    """A line of the workload's record."""
    path, ret = line.rsplit(" ", 1)
    return (path, int(ret))


def record_of_connects(line: str) -> tuple[Any, ...]:
    """A line of the workload's record."""
    address, *numbers = line.split()
    return (address, *map(int, numbers))


def record_of_execs(line: str) -> tuple[Any, ...]:
    """A line of the workload's record."""
    return tuple(map(int, line.split()))


def strace_of_opens(lines: Iterable[str]) -> list[tuple[Any, ...]]:
    """What strace wrote down."""
    pattern = (
        r'open\w*\((?:AT_FDCWD, )?"([^"]*/(?:present|absent)-\d+-\d+)".* = (-?\d+)(?: (E\w+))?'
    )
    found = [m for m in (re.search(pattern, line) for line in lines) if m]
    return [(m[1], -_errno(m[3]) if m[3] else int(m[2])) for m in found]


def strace_of_connects(lines: Iterable[str]) -> list[tuple[Any, ...]]:
    """What strace wrote down, which has no source port."""
    pattern = r'sin_port=htons\((\d+)\), sin_addr=inet_addr\("(127[^"]*)"\).* = (-?\d+)(?: (E\w+))?'
    found = [m for m in (re.search(pattern, line) for line in lines) if m]
    return [(m[2], int(m[1]), _errno(m[4]) if m[4] else 0) for m in found]


def strace_of_execs(lines: Iterable[str]) -> list[tuple[Any, ...]]:
    """What strace wrote down."""
    pattern = r'^(\d+) .*execve\(.*\["noop", "(\d+)", "(\d+)", "(\d+)", "(x*)"\].* = 0'
    found = [m for m in (re.search(pattern, line) for line in lines) if m]
    return [(*map(int, (m[1], m[2], m[3], m[4])),) for m in found if len(m[5]) == int(m[4])]


class Subject(NamedTuple):
    """A program and the workload that it is shown."""

    workload: str
    event: Callable[[dict[str, Any]], tuple[Any, ...] | None]
    record: Callable[[str], tuple[Any, ...]]
    strace: Callable[[Iterable[str]], list[tuple[Any, ...]]]
    calls: str
    #: BCC's tool of the same purpose, and the text that it prints once it is attached.
    bcc: tuple[str, str]


SUBJECTS = {
    "opensnoop": Subject(
        *("opens", opened, record_of_opens, strace_of_opens),
        *("open,openat,openat2,creat", ("opensnoop-bpfcc", "COMM")),
    ),
    "tcpconnect": Subject(
        *("connects", connected, record_of_connects, strace_of_connects),
        *("connect", ("tcpconnect-bpfcc", "DADDR")),
    ),
    "execs": Subject(
        *("execs", executed, record_of_execs, strace_of_execs),
        *("execve", ("execsnoop-bpfcc", "ARGS")),
    ),
}


# ---------------------------------------------------------------- runs


class Outcome(NamedTuple):
    """What came of a run."""

    made: int
    seen: int
    missing: int
    twice: int
    wrong: int
    lost: int

    @property
    def is_right(self) -> bool:
        """Every event was shown once and as it was, or counted as lost."""
        return not (self.twice or self.wrong) and self.missing == self.lost


def compared(made: list[tuple[Any, ...]], seen: list[tuple[Any, ...]], lost: int) -> Outcome:
    """Events that were made against those that were shown."""
    wanted, shown = Counter(made), Counter(seen)
    twice = sum(n - wanted[key] for key, n in shown.items() if key in wanted and n > wanted[key])
    wrong = sum(n for key, n in shown.items() if key not in wanted)
    return Outcome(len(made), len(seen), (wanted - shown).total(), twice, wrong, lost)


def run(name: str, tool: str, count: int, workers: int, work: str, strace: bool) -> list[Outcome]:
    """A program around the workload: against the workload's record, and against strace's log."""
    from bpfkit.net.links.lab import loopback_lab

    subject = SUBJECTS[name]
    record, log, rows = (f"{work}/{name}.{kind}" for kind in ("record", "strace", "rows"))
    argv = [tool, subject.workload, str(count), str(workers), record]
    if subject.workload == "opens":
        argv.append(tempfile.mkdtemp(dir=work))
    if strace:
        shown = ["-s", "4096", "-o", log]
        argv = ["strace", "-f", "-qq", "-e", f"trace={subject.calls}", *shown, *argv]
    command = [sys.executable, "-m", f"bpfkit.{name}", "--json", "--", *argv]
    env = os.environ | {"PYTHONPATH": ROOT}
    with loopback_lab() as lab, open(rows, "w") as out, lab["host"].entered():
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"trace_events: {name} ended with {done.returncode}: {done.stderr}")
    seen, lost = [], 0
    with open(rows) as file:
        for row in map(json.loads, file):
            if row["event"] == "lost":
                lost = row["lost"]
                continue
            event = subject.event(row)
            if event is not None:
                seen.append(event)
    with open(record) as file:
        made = [subject.record(line.rstrip("\n")) for line in file]
    outcomes = [compared(made, seen, lost)]
    if strace:
        with open(log, errors="replace") as file:
            traced = subject.strace(_whole_lines(file))
        if name == "tcpconnect":
            seen = [(dst, dport, result) for dst, dport, _, result in seen]
        outcomes.append(compared(traced, seen, lost))
    return outcomes


def _whole_lines(lines: Iterable[str]) -> Iterable[str]:
    """strace's lines, calls that another process interrupted put together."""
    begun: dict[str, str] = {}
    for line in lines:
        pid, _, text = line.rstrip("\n").partition(" ")
        if text.endswith("<unfinished ...>"):
            begun[pid] = text.removesuffix("<unfinished ...>")
        elif "resumed>" in text and pid in begun:
            yield f"{pid} {begun.pop(pid)}{text.partition('resumed>')[2]}"
        else:
            yield f"{pid} {text}"


# ---------------------------------------------------------------- start-up


def attached_after(tool: str, argv: list[str], marker: str, runs: int) -> float | None:
    """Median of the milliseconds until a process says ``marker``; None: it does not start."""
    from select import select
    from time import monotonic

    took = []
    env = os.environ | {"PYTHONPATH": ROOT, "PYTHONUNBUFFERED": "1"}
    for _ in range(runs):
        begun = monotonic()
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
        ) as process:
            assert process.stdout is not None
            said = b""
            while marker.encode() not in said:
                ready = select([process.stdout], [], [], 60)[0]
                data = os.read(process.stdout.fileno(), 65536) if ready else b""
                if not data:
                    break
                said += data
            took.append((monotonic() - begun) * 1e3)
            process.kill()
        if marker.encode() not in said:
            return None
    return statistics.median(took)


def startup(names: list[str], work: str, runs: int) -> str:
    """The table of start-up times."""
    from benchlib import table

    rows = []
    for name in names:
        argv = [sys.executable, "-m", f"bpfkit.{name}", "--no-demo", "-v"]
        ours = attached_after(work, argv, "attached to", runs)
        tool, marker = SUBJECTS[name].bcc
        path = shutil.which(tool)
        theirs = attached_after(work, [path], marker, max(3, runs // 3)) if path else None
        why = "does not start" if path else "not installed"
        rows.append(
            [
                name,
                f"{ours:.0f}" if ours else "-",
                f"{theirs:.0f}" if theirs else f"{tool}: {why}",
                f"{ours / theirs:.2f}" if ours and theirs else "-",
            ]
        )
    return table(["program", "ms to attached", "BCC's tool", "ratio"], rows)


def main() -> int:
    """Print the tables."""
    from benchlib import table

    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("programs", metavar="PROGRAM", nargs="*", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--count", type=int, default=20_000, help="events: 20 000")
    parser.add_argument("--workers", type=int, default=8, help="threads: 8")
    parser.add_argument("--strace", type=int, default=2_000, help="events under strace: 2 000")
    parser.add_argument("--runs", type=int, default=9, help="starts: 9; 0: none")
    options = parser.parse_args()
    for name in options.programs:
        if name not in SUBJECTS:
            parser.error(f"no program {name!r}: {', '.join(SUBJECTS)}")
    names = options.programs or list(SUBJECTS)
    rows, is_right = [], True
    with tempfile.TemporaryDirectory() as work:
        tool = f"{work}/trace_workload"
        subprocess.run(
            ["cc", "-O2", "-pthread", "-o", tool, f"{HERE}/trace_workload.c"], check=True
        )
        for name in names:
            runs = [(options.count, False)]
            if options.strace and shutil.which("strace"):
                runs.append((options.strace, True))
            for count, strace in runs:
                outcomes = run(name, tool, count, options.workers, work, strace)
                judges = ("workload", "strace") if strace else ("workload",)
                for judge, outcome in zip(judges, outcomes, strict=True):
                    is_right &= outcome.is_right
                    rows.append([name, judge, *map(str, outcome)])
        print(table([*("program", "against"), *Outcome._fields], rows, words=2))
        if options.runs:
            print()
            print(startup(names, work, options.runs))
    return 0 if is_right else 1


if __name__ == "__main__":
    raise SystemExit(main())
