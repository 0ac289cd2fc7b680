# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.functrace: calls and mean times of a whole family of kernel functions.

The C side is bpf_c/trace/functrace.bpf.c, which has the hooks of every way; the program loads those
of one.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.trace import TraceApp, listed_refusals
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.show.rows import Row, Verdict

#: Way -> its programs (returns first), the newest way first.
WAYS = {
    "fentry.multi": ("trampoline_return", "trampoline_entry"),
    "kprobe.session": ("session",),
    "kprobe.multi": ("multi_return", "multi_entry"),
    "kprobe": ("single_return", "single_entry"),
}
#: Functions of one link; and of a run with a kprobe and a kretprobe for each.
MOST, MOST_SINGLE = 10_000, 500
#: What the demo hooks: each system call of its child on an IPv4 socket is one call of one of these.
DEMO = ("inet_bind", "inet_listen", "inet_release")
TIMES = 200
CHILD = f"""
import socket, time
took = 0.0
for i in range({TIMES}):
    with socket.socket() as sock:
        before = time.perf_counter()
        sock.bind(("127.0.0.1", 0))
        took += time.perf_counter() - before
        if i % 2: sock.listen()
print({TIMES}, {TIMES} // 2, {TIMES}, took / {TIMES})
"""


class FuncTrace(TraceApp):
    """Calls and mean times of a whole family of kernel functions: 'tcp_*'."""

    name = "functrace"
    source = "trace/functrace.bpf.c"
    counters = ("calls",)
    details = ("mean_us", "time_us", "open")
    demo_rounds = 1
    has_live_view = True
    takes_targets = True
    epilog = (
        "PATTERN is a kernel function, or a pattern with * ? [ ] as in 'tcp_*'. The times include "
        "the functions that a function calls. Words behind -- are a command to run and trace."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add("patterns", metavar="PATTERN", nargs="*", help="functions to hook (default: a demo)")
        add("--via", choices=WAYS, help="the hook (default: the first of these that works here)")
        add("--sort", choices=("calls", "time"), default="calls", help="order of the rows")

    def check_options(self) -> None:
        super().check_options()
        options = self.options
        if options.check and options.patterns:
            raise UsageError("--check takes no functions", why="it verifies those of its demo")
        if not options.patterns and (self.traces_one() or options.no_demo):
            raise UsageError("name a PATTERN", hint="an example: 'tcp_*'")

    def wants_demo(self) -> bool:
        return super().wants_demo() and not self.options.patterns

    def setup(self) -> None:
        from bpfkit.core.attach.symbols import matching_functions

        self.functions = matching_functions(self.options.patterns or DEMO, MOST)
        self.way = self._attach_first()
        if not self.options.check:
            self.note(f"{count_of(len(self.functions), 'function')} by {self.way}")
        self.said: list[list[str]] = self.for_check([])

    def _attach_first(self) -> str:
        """Load and attach by the way that is asked for, or the first that works; returns it."""
        refusals = {}
        for way in [self.options.via] if self.options.via else WAYS:
            kept = len(self._keep)
            try:
                self._attach_single() if way == "kprobe" else self._attach(way)
                return way
            except InputError:
                raise
            except BpfkitError as error:
                while len(self._keep) > kept:
                    self._keep.pop().close()
                if self.options.via:
                    raise
                refusals[way] = error.why or error.what
        why = listed_refusals(refusals)
        raise UnsupportedError("no way to hook functions works here", why=why)

    def _attach(self, way: str) -> None:
        if way == "fentry.multi":
            from bpfkit.core.attach.tracing_multi import has_trace_multi

            if not has_trace_multi():
                raise UnsupportedError(way, why="this kernel has no fentry.multi (7.2)")
        if way == "kprobe.session":
            from bpfkit.core.features.kfuncs import has_kfunc

            if not has_kfunc("bpf_session_is_return"):
                raise UnsupportedError(way, why="this kernel has no kprobe.session (6.10)")
        self._options: dict[str, Any] = {"programs": list(WAYS[way])}
        programs = self.load_traced().programs
        numbers = range(len(self.functions))
        # The returns first: a return without an entry is ignored, not the other way round.
        for name in WAYS[way]:
            program = programs[name]
            attach = (
                program.attach_trace_multi if way == "fentry.multi" else program.attach_kprobe_multi
            )
            self.keep(attach(self.functions, cookies=numbers))

    def _attach_single(self) -> None:
        """A kprobe and a kretprobe for each function, of the same two programs."""
        if len(self.functions) > MOST_SINGLE:
            raise InputError(
                f"{len(self.functions)} functions are too many on this kernel",
                why=f"{MOST_SINGLE} at most without kprobe.multi links",
            )
        self._options = {"programs": list(WAYS["kprobe"])}
        programs = self.load_traced().programs
        refused: list[str] = []
        # 0 is no cookie: numbers from 1.
        for number, function in enumerate(self.functions, 1):
            try:
                for name in WAYS["kprobe"]:
                    self.keep(programs[name].attach_kprobe(function, cookie=number))
            except InputError:
                if len(self.functions) == 1:
                    raise
                refused.append(function)
        if len(refused) == len(self.functions):
            raise InputError(f"the kernel lets none of the {len(refused)} functions be hooked")
        if refused:
            self.note(f"not hooked, the kernel refuses: {', '.join(refused[:5])}")

    def load_options(self) -> dict[str, Any]:
        return {"max_entries": {"counts": len(self.functions)}, **self._options}

    def demo(self) -> None:
        """A child binds sockets, listens on half of them, closes them, and measures its bind(2)."""
        import sys

        if not self.options.check:
            self.note(
                f"a child binds and closes {TIMES} sockets, and listens on {TIMES // 2} of them"
            )
        done = self.run_traced([sys.executable, "-I", "-S", "-c", CHILD])
        if done.returncode:
            raise BpfkitError("the demo's child failed", why=done.stderr.strip()[-300:])
        self.said.append(done.stdout.split())
        if not self.options.check:
            took = float(done.stdout.split()[-1]) * 1e6
            self.note(f"the child says: bind(2) took {took:.1f} us on average")

    def rows(self) -> list[Row]:
        rows: list[Row] = []
        for number, count in self.object["counts"].sums():
            if not count.calls and len(self.functions) > len(DEMO):
                continue
            mean = round(count.time_ns / 1000 / count.returns, 2) if count.returns else None
            rows.append(
                {
                    "function": self.functions[number],
                    "calls": count.calls,
                    "open": max(0, count.calls - count.returns),
                    "time_us": count.time_ns // 1000,
                    "mean_us": mean,
                }
            )
        field = {"calls": "calls", "time": "time_us"}[self.options.sort]
        rows.sort(key=lambda row: (-row[field], row["function"]))
        return rows

    def notes(self, rows: list[Row]) -> list[str]:
        lost = self._lost()
        return (
            [f"{count_of(lost, 'call')} not measured: a map was full, or a hook was busy"]
            if lost
            else []
        )

    def _lost(self) -> int:
        return int(self.object["lost"][0]) + self.missed()

    def conclusion(self, rows: list[Row]) -> str:
        calls = sum(row["calls"] for row in rows)
        return f"seen: {count_of(calls, 'call')} of the whole family, by one program"

    def verify(self) -> Iterable[Verdict]:
        """The calls that the child made, against the rows."""
        rows = {row["function"]: row for row in self.rows()}
        for index, function in enumerate(DEMO):
            wanted = sum(int(words[index]) for words in self.said)
            calls, still = rows[function]["calls"], rows[function]["open"]
            good = calls == wanted > 0 and not still
            yield (
                good,
                f"{function}: {count_of(calls, 'call')}, {still} open; the child made {wanted}",
            )
        mean = sum(float(words[3]) for words in self.said) / len(self.said) * 1e6
        took = rows[DEMO[0]]["mean_us"]
        good = took is not None and 0 < took < mean
        yield good, f"inet_bind took {took} us; the child measured {mean:.1f} us around bind(2)"
        lost = self._lost()
        yield lost == 0, f"{count_of(lost, 'call')} not measured"


if __name__ == "__main__":
    raise SystemExit(main(FuncTrace))
