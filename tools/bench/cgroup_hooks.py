#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a program on a cgroup hook adds to the system call that it judges.

    sudo python3 tools/bench/cgroup_hooks.py [--runs N] [--count N] [--markdown] [HOOK …]

For each hook of the table two processes (tools/bench/cgroup_hooks.c) make the same system call, one
in a cgroup with the program, one in a cgroup beside it without, in turns, on one CPU.  Each turn is
COUNT calls; the figures are the medians, the ratio is the median of the turns' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bpfkit.core.cgroups import Cgroup
    from bpfkit.core.object import Object

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))


class Hook(NamedTuple):
    """A program on a hook, and the system call that it judges."""

    #: Of tools/bench/cgroup_hooks.c.
    call: str
    #: What the call is, for people.
    what: str
    source: str
    #: Fills the maps before the program is attached.
    prepare: Callable[[Object], None] = lambda loaded: None
    #: (LOAD_CONST, value).
    consts: tuple[tuple[str, int], ...] = ()
    #: Names of the programs to attach; () for all of the source.
    programs: tuple[str, ...] = ()


def _ten_devices(loaded: Object) -> None:
    for minor in range(10):
        loaded["rules"][(2, 1, minor)] = 7


def _ten_sysctls(loaded: Object) -> None:
    for number in range(10):
        name = f"kernel/no_such_{number}".encode().ljust(128, b"\0")
        loaded["rules"].update_raw(name, (1).to_bytes(4, "little"))


def _ten_options(loaded: Object) -> None:
    for number in range(10):
        loaded["rules"][(1, 1000 + number)] = 1


HOOKS = {
    "device": Hook(
        "device",
        "open(2) and close(2) of /dev/null, 10 rules",
        "cgroup/cgroup_device.bpf.c",
        _ten_devices,
    ),
    "sysctl": Hook(
        "sysctl",
        "open(2), read(2), close(2) in /proc/sys, 10 rules, no events",
        "cgroup/cgroup_sysctl.bpf.c",
        _ten_sysctls,
        (("with_directories", 0), ("with_events", 0)),
    ),
    "setsockopt": Hook(
        "setsockopt",
        "setsockopt(2) SO_KEEPALIVE, 10 rules, no events",
        "cgroup/cgroup_sockopt.bpf.c",
        _ten_options,
        (("with_events", 0),),
    ),
    "getsockopt": Hook(
        "getsockopt",
        "getsockopt(2) SO_KEEPALIVE, 10 rules, no events",
        "cgroup/cgroup_sockopt.bpf.c",
        _ten_options,
        (("with_events", 0),),
    ),
    "setsockopt, one instruction": Hook(
        "setsockopt", "the same, a program that says yes", f"{HERE}/sockopt_one.bpf.c"
    ),
    "getsockopt, one instruction": Hook(
        "getsockopt", "the same, a program that says yes", f"{HERE}/sockopt_one.bpf.c"
    ),
    "sock": Hook("socket", "socket(2) and close(2), no rules", "cgroup/cgroup_sock.bpf.c"),
}


class Caller:
    """A process that makes a call in a cgroup."""

    def __init__(self, tool: str, hook: Hook, count: int, group: Cgroup) -> None:
        procs = group.open_procs()

        def enter() -> None:
            os.write(procs, b"0")
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

        try:
            self._process = subprocess.Popen(
                [tool, hook.call, str(count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=enter,
            )
        finally:
            os.close(procs)
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("cgroup_hooks: the caller has ended")
        return line

    def turn(self) -> float:
        """Nanoseconds of a call."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextlib.contextmanager
def callers(tool: str, hook: Hook, count: int) -> Iterator[tuple[Caller, Caller]]:
    """The caller without the program, and the one with it."""
    import bpfkit
    from bpfkit.core.cgroups import Cgroup

    with contextlib.ExitStack() as stack:
        without, with_ = (stack.enter_context(Cgroup.new("bench")) for _ in range(2))
        loaded = stack.enter_context(bpfkit.load(hook.source, consts=dict(hook.consts)))
        hook.prepare(loaded)
        for name in hook.programs or tuple(loaded.programs):
            stack.enter_context(loaded.programs[name].attach_cgroup(with_.path))
        both = []
        for group in (without, with_):
            both.append(stack.enter_context(contextlib.closing(Caller(tool, hook, count, group))))
        yield both[0], both[1]


def measure(tool: str, hook: Hook, runs: int, count: int) -> tuple[float, float, float]:
    """(ns without, ns with, ratio)."""
    with callers(tool, hook, count) as (without, with_):
        without.turn(), with_.turn()
        turns = []
        for number in range(runs):
            order = (without, with_) if number % 2 else (with_, without)
            took = {id(one): one.turn() for one in order}
            turns.append((took[id(without)], took[id(with_)]))
    plain, judged = zip(*turns, strict=True)
    ratio = statistics.median(b / a for a, b in turns)
    return statistics.median(plain), statistics.median(judged), ratio


def main() -> int:
    from benchlib import table

    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("hooks", metavar="HOOK", nargs="*", help=f"of {', '.join(HOOKS)}")
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--count", type=int, default=20_000, help="calls in a turn")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    unknown = [name for name in options.hooks if name not in HOOKS]
    if unknown:
        parser.error(f"no hook {unknown[0]}")
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        tool = f"{directory}/cgroup_hooks"
        subprocess.run(["cc", "-O2", "-o", tool, f"{HERE}/cgroup_hooks.c"], check=True)
        for name in options.hooks or list(HOOKS):
            hook = HOOKS[name]
            plain, judged, ratio = measure(tool, hook, options.runs, options.count)
            rows.append([name, hook.what, f"{plain:.0f}", f"{judged:.0f}", f"{ratio:.2f}"])
    titles = ["hook", "system call", "ns", "with the program", "ratio"]
    print(table(titles, rows, words=2, markdown=options.markdown))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
