#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What an event costs on every tracing hook, by bpfkit and by libbpf in C.

    sudo python3 tools/bench/trace_cost.py [--turns N] [--count N] [--markdown] [HOOK …]

For each hook an empty program (trace_cost.bpf.c) is attached by bpfkit, then by libbpf, then by
neither, --turns times, and each time a process on one CPU makes COUNT events ten times.  A figure
is the fastest with the program less the fastest without; the ratio is bpfkit to libbpf.
Where a hook does not work on this kernel, its row says why.

Events are prctl(PR_SET_NAME), which calls __set_task_comm() and the tracepoint task_rename, and
calls of a function of the process itself for uprobes.  Needs cc, clang and libbpf-dev.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from bpfkit.core.attach.link import Link
    from bpfkit.core.program import Program

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [path for path in (ROOT, HERE) if path not in sys.path]

#: Turns from one attachment to the next.
TURNS = 10
FUNCTION = "__set_task_comm"
SOURCE = f"{HERE}/trace_cost.bpf.c"


class Hook(NamedTuple):
    """An empty program, and the event that calls it."""

    program: str
    #: Of tools/bench/trace_cost_events.c.
    event: str
    #: The function of a uprobe; "": the section says where.
    function: str = ""
    #: Name of the method of Program that attaches.
    method: str = "attach_trace"

    def attach(self, program: Program, events: str) -> Link:
        """Attach by bpfkit; ``events`` is the path of the process that makes the events."""
        if self.function:
            return program.attach_uprobe(events, self.function)
        if self.method == "attach_kprobe_multi":
            return program.attach_kprobe_multi([FUNCTION])
        return getattr(program, self.method)()  # type: ignore[no-any-return]


HOOKS = {
    "kprobe": Hook("on_kprobe", "rename", method="attach_kprobe"),
    "kprobe.multi": Hook("on_kprobe_multi", "rename", method="attach_kprobe_multi"),
    "kretprobe": Hook("on_kretprobe", "rename", method="attach_kprobe"),
    "fentry": Hook("on_fentry", "rename"),
    "fexit": Hook("on_fexit", "rename"),
    "tracepoint": Hook("on_tracepoint", "rename", method="attach_tracepoint"),
    "raw_tp": Hook("on_raw_tp", "rename"),
    "tp_btf": Hook("on_tp_btf", "rename"),
    "uprobe, int3": Hook("on_uprobe", "nop1", "trace_nop1"),
    "uprobe, nop10": Hook("on_uprobe", "nop10", "trace_nop10"),
    "uretprobe, int3": Hook("on_uretprobe", "nop1", "trace_nop1"),
}


class Refused(Exception):
    """A hook does not work here; the text says why."""


class Process(contextlib.AbstractContextManager["Process"]):
    """A tool that answers each line of its standard input with one of its own."""

    def __init__(self, argv: list[str], cpu: int | None = None) -> None:
        def pin() -> None:
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})

        self._argv = argv
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=pin,
        )

    def ask(self, line: str) -> str:
        """The answer to a line.

        :raises Refused: the process ended; the text is what it said on standard error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            said = self._process.communicate()[1].strip()
            raise Refused(said or f"{self._argv[0]} ended with {self._process.returncode}")
        return answer

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._process.communicate()


class Tools(NamedTuple):
    """What is compiled for a run."""

    events: str
    loader: str
    object: str

    @classmethod
    def build(cls, directory: str) -> Tools:
        """Compile the tools into a directory."""
        tools = cls(f"{directory}/events", f"{directory}/libbpf_trace", f"{directory}/cost.o")
        bpf = ["clang", "-O2", "-target", "bpf", "-DLIBBPF", "-Wno-ignored-attributes"]
        for argv in (
            ["cc", "-O2", "-o", tools.events, f"{HERE}/trace_cost_events.c"],
            ["cc", "-O2", "-o", tools.loader, f"{HERE}/libbpf_trace.c", "-lbpf"],
            [*bpf, "-c", "-o", tools.object, SOURCE],
        ):
            subprocess.run(argv, check=True)
        return tools


@contextlib.contextmanager
def by_bpfkit(hook: Hook, tools: Tools) -> Iterator[Callable[[], AbstractContextManager[object]]]:
    """The program loaded by bpfkit."""
    import bpfkit
    from bpfkit.core.errors import BpfkitError

    try:
        loaded = bpfkit.load(SOURCE, programs=(hook.program,))
    except BpfkitError as error:
        raise Refused(error.why or error.what) from None
    with loaded:
        program = loaded.programs[hook.program]

        def attached() -> Link:
            """Attach, once for each turn."""
            try:
                return hook.attach(program, tools.events)
            except BpfkitError as error:
                raise Refused(error.why or error.what) from None

        yield attached


@contextlib.contextmanager
def by_libbpf(hook: Hook, tools: Tools) -> Iterator[Callable[[], AbstractContextManager[object]]]:
    """The program loaded by libbpf in C."""
    where = [tools.events, hook.function] if hook.function else []
    # libbpf takes a tracepoint's number from tracefs, which need not be mounted.
    words = 'mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null; exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", words, "sh"]
    with Process([*argv, tools.loader, tools.object, hook.program, *where]) as loader:

        @contextlib.contextmanager
        def attached() -> Iterator[None]:
            loader.ask("attach")
            yield
            loader.ask("detach")

        yield attached


class Cost(NamedTuple):
    """A row: nanoseconds of an event without a program, and what each loader's adds to it."""

    hook: str
    base: float = 0.0
    ours: float = 0.0
    theirs: float = 0.0
    why: str = ""

    @property
    def ratio(self) -> str:
        """Of bpfkit's figure to libbpf's; "-" where the turns were too few for a difference."""
        return f"{self.ours / self.theirs:.2f}" if min(self.ours, self.theirs) > 0 else "-"


def measure(name: str, tools: Tools, turns: int, count: int) -> Cost:
    """A hook's row."""
    hook = HOOKS[name]
    cpu = min(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        events = stack.enter_context(Process([tools.events], cpu))

        def turn() -> float:
            return float(events.ask(f"{hook.event} {count}")) / count

        try:
            turn()
            ways = [stack.enter_context(way(hook, tools)) for way in (by_bpfkit, by_libbpf)]
            best = [float("inf")] * 3
            for number in range(turns):
                for which in (1, 0, 2) if number % 2 else (0, 1, 2):
                    with ways[which]() if which < 2 else contextlib.nullcontext():
                        best[which] = min(best[which], *(turn() for _ in range(TURNS)))
        except Refused as refusal:
            return Cost(name, why=str(refusal))
    ours, theirs, base = best
    return Cost(name, base, ours - base, theirs - base)


def listing(costs: list[Cost], markdown: bool) -> str:
    """The table."""
    from benchlib import table

    rows = []
    for cost in costs:
        if cost.why:
            rows.append([cost.hook, "-", "-", "-", "-", cost.why])
        else:
            figures = [f"{ns:.1f}" for ns in (cost.base, cost.ours, cost.theirs)]
            rows.append([cost.hook, *figures, cost.ratio, ""])
    titles = ["hook", "ns without", "bpfkit adds", "libbpf adds", "ratio", "why not"]
    return table(titles, rows, words=1, markdown=markdown)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("hooks", metavar="HOOK", nargs="*", help=f"of {'; '.join(HOOKS)}")
    parser.add_argument("--turns", type=int, default=30, help="attachments by each: 30")
    parser.add_argument("--count", type=int, default=2_000, help="events in a turn: 2 000")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table")
    options = parser.parse_args()
    if min(options.turns, options.count) < 1:
        parser.error("at least one turn and one event")
    for name in options.hooks:
        if name not in HOOKS:
            parser.error(f"no hook {name!r}: {'; '.join(HOOKS)}")
    with tempfile.TemporaryDirectory() as directory:
        tools = Tools.build(directory)
        names = options.hooks or list(HOOKS)
        costs = [measure(name, tools, options.turns, options.count) for name in names]
    print(listing(costs, options.markdown))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
