# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.uprobe: latency and results of functions of programs and libraries.

The C side is bpf_c/trace/uprobe.bpf.c.

::

    FILE:FUNCTION … ─▶ targets.py ─▶ uprobe.multi: a link for the entries of each file, one for the
                                     returns;  else two programs for each function
                 counts, slots ─▶ rows          calls ─▶ events (--args)
"""

from __future__ import annotations

import os

from bpfkit.app.trace import TraceApp
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, UsageError
from bpfkit.core.words import count_of
from bpfkit.uprobe.demo import CHILD, DEMO
from bpfkit.uprobe.latency import SLOTS, histogram, histogram_lines, percentile
from bpfkit.uprobe.targets import find_targets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.app.signals import Signals
    from bpfkit.show.rows import Event, Row, Verdict

#: enum failure and enum argument of the C side.
FAILURES = {"negative": 1, "zero": 2, "nonzero": 3}
NUMBER, TEXT = 1, 2
TEXT_SIZE = 64
#: Letter of --args -> enum argument.
LETTERS = {"d": NUMBER, "u": NUMBER, "x": NUMBER, "s": TEXT}
#: Without uprobe.multi each function has two programs.
MOST_SINGLE = 128


class Uprobe(TraceApp):
    """How long functions of programs and libraries take, how often they are called and fail."""

    name = "uprobe"
    source = "trace/uprobe.bpf.c"
    counters = ("calls", "errors")
    details = ("mean_us", "p99_us", "p50_us", "open")
    demo_rounds = 1
    has_live_view = True
    takes_targets = True
    epilog = (
        "FILE:FUNCTION is a program or library and a function of it: c:malloc (libc), "
        "/bin/bash:readline, 'ssl:SSL_*' (all that match), ./a.out:0x1139 (an offset in the file; "
        "-v shows the arithmetic), ./a.out:main+0x10 (an instruction: calls only). Percentiles "
        "are those of a histogram with four slots for each power of 2, so they are within an "
        "eighth; a probe itself takes a few microseconds. Words behind -- are a command to run "
        "and trace."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add("targets", metavar="FILE:FUNCTION", nargs="*", help="functions to probe")
        add(
            "--args",
            metavar="LETTERS",
            help="print each call with its arguments, a letter for each: d (signed) u x s (text)",
        )
        add("--errors", choices=FAILURES, help="count the calls that return such a value")
        add("--calls-only", action="store_true", help="count calls only: no probes at returns")
        add("--histogram", action="store_true", help="print a histogram of each function, too")
        add("--list", action="store_true", help="print the functions and their offsets, and end")

    def check_options(self) -> None:
        super().check_options()
        options = self.options
        letters = options.args or ""
        wrong = "".join(letter for letter in letters if letter not in LETTERS)
        if options.args is not None and (wrong or not 1 <= len(letters) <= 6):
            raise UsageError(
                f"--args {options.args!r}: one to six letters of d, u, x, s",
                hint="--args sd: the first argument as text, the second as a number",
            )
        if options.calls_only and options.errors:
            raise UsageError("--calls-only and --errors do not go together")
        if options.check and options.targets:
            raise UsageError("--check takes no functions", why="it verifies those of its demo")
        if not options.targets and (self.traces_one() or options.no_demo or options.list):
            raise UsageError("name a FILE:FUNCTION", hint="examples: c:malloc, /bin/bash:readline")

    def wants_demo(self) -> bool:
        return super().wants_demo() and not self.options.targets

    def capabilities(self) -> tuple[str, ...]:
        return () if self.options.list else super().capabilities()

    def enter(self) -> None:
        if not self.options.list:
            super().enter()

    def setup(self) -> None:
        self.targets = find_targets(self.options.targets or DEMO)
        if self.wants_demo():
            self.options.errors = "negative"
        if self.options.list:
            return
        from bpfkit.core.log import say

        for target in self.targets:
            say(f"{target.file}: {target.why}")
        self._choose_returns()
        self.way = self._attach()
        if self.options.pid is None or self.way == "uprobe.multi":
            self._require_probes()
        say(f"{count_of(len(self.targets), 'function')} by {self.way}")
        self.said: list[str] = self.for_check([])

    def run(self, signals: Signals) -> int | None:
        if not self.options.list:
            return None
        from bpfkit.show.jsonl import json_lines

        rows: list[Row] = [
            {"file": target.file, "function": target.name, "offset": target.offset}
            for target in self.targets
        ]
        if self.options.json:
            print(json_lines(rows), end="")
        else:
            for target in self.targets:
                print(f"{target.offset:#10x} {target.name}")
        return 0

    def _choose_returns(self) -> None:
        """Probe returns only where that is safe: the probe replaces the return address, which is
        on top of the stack at a function's first instruction and nowhere else."""
        options = self.options
        self.calls_only = options.calls_only
        if self.calls_only:
            return
        inner = [target for target in self.targets if not target.is_entry]
        if inner and len(inner) == len(self.targets) and not options.errors:
            self.calls_only = True
        elif inner:
            raise InputError(
                f"{inner[0].name} is no function's first instruction",
                why="its return cannot be probed",
                hint="--calls-only counts how often it is reached",
            )
        for file in dict.fromkeys(target.file for target in self.targets):
            from bpfkit.core.attach.symbols import Elf

            if not self.calls_only and Elf(file).section(".go.buildinfo"):
                raise InputError(
                    f"{file} is a Go program",
                    why="Go moves its stacks, and probes at returns would crash it",
                    hint="--calls-only counts calls",
                )

    # -- attaching

    def _attach(self) -> str:
        """Attach by uprobe.multi, or where the kernel has none by a probe each; returns which."""
        try:
            self._attach_multi()
            return "uprobe.multi"
        except UnsupportedError as error:
            refused = error.why or error.what
        if len(self.targets) > MOST_SINGLE:
            raise InputError(
                f"{len(self.targets)} functions are too many on this kernel",
                why=f"{MOST_SINGLE} at most without uprobe.multi links ({refused})",
            )
        self._attach_single()
        return "a uprobe each"

    def _require_probes(self) -> None:
        from bpfkit.core.attach.uprobe import require_probes

        for file in dict.fromkeys(target.file for target in self.targets):
            require_probes(file, [t.offset for t in self.targets if t.file == file])

    def _load(self, programs: tuple[str, str], function: int | None = None, **more: Any) -> Any:
        options = self.options
        kinds = [LETTERS[letter] for letter in options.args or ""]
        consts = {
            "failure": FAILURES.get(options.errors or "", 0),
            "format": sum(kind << 4 * i for i, kind in enumerate(kinds)),
            "entries_only": int(self.calls_only),
        }
        if function is not None:
            consts["function"] = function
        self._options = {"programs": programs[: 1 if self.calls_only else 2], **more}
        return self.load_traced(**consts).programs

    def load_options(self) -> dict[str, Any]:
        sizes = {"counts": len(self.targets), "slots": SLOTS * len(self.targets)}
        if "reuse_maps" in self._options:
            return self._options
        return {"max_entries": sizes, **self._options}

    def _attach_multi(self) -> None:
        programs = self._load(("multi_entry", "multi_return"))
        files: dict[str, list[int]] = {}
        for number, target in enumerate(self.targets):
            files.setdefault(target.file, []).append(number)
        # The returns first: a return without an entry is ignored, not the other way round.  The
        # kernel's own filter by process is not used: until 6.10 it was one by thread.
        for name in reversed(programs):
            for file, numbers in files.items():
                offsets = [self.targets[number].offset for number in numbers]
                self.keep(programs[name].attach_uprobe_multi(file, offsets, cookies=numbers))

    def _attach_single(self) -> None:
        first = None
        pid = self.options.pid or -1
        for number, target in enumerate(self.targets):
            more: dict[str, Any] = {"reuse_maps": first.maps} if first is not None else {}
            programs = self._load(("single_entry", "single_return"), number, **more)
            first = first or self.object
            for name in reversed(programs):
                self.keep(programs[name].attach_uprobe(target.file, target.offset, pid=pid))
        assert first is not None
        self.object = first

    # -- the demo

    def demo(self) -> None:
        """A child calls libc's functions and prints what it knows of them."""
        import sys

        if not self.options.check:
            self.note(
                "a child calls libc: usleep(1000) in 4 threads, getsid of which a quarter fails, "
                "lfind within lfind, and _exit, which never returns"
            )
        done = self.run_traced([sys.executable, "-I", "-S", "-c", CHILD])
        if done.returncode:
            raise BpfkitError("the demo's child failed", why=done.stderr.strip()[-300:])
        self.said.append(done.stdout)
        if not self.options.check:
            sleeps, mean, sids, failed, searches, _ = done.stdout.split()
            self.note(
                f"the child says: {sleeps} sleeps of {float(mean) * 1e6:.0f} us on average, "
                f"{failed} of {sids} getsid failed, {count_of(int(searches), 'search')}"
            )

    # -- figures

    def rows(self) -> list[Row]:
        counts = self.object["counts"].sums()
        slots = [count for _, count in self.object["slots"].sums()]
        many_files = len({target.file for target in self.targets}) > 1
        rows: list[Row] = []
        for number, target in enumerate(self.targets):
            count = counts[number][1]
            if not count.calls and len(self.targets) > len(self.options.targets or DEMO):
                continue  # of a pattern's functions only those that were called
            name = target.name
            if many_files:
                name = f"{os.path.basename(target.file)}:{name}"
            row: Row = {"function": name, "calls": count.calls}
            if not self.calls_only:
                mine = slots[SLOTS * number : SLOTS * (number + 1)]
                row |= self._latency(count, mine)
            if self.options.json:
                row |= {"file": target.file, "offset": target.offset}
            rows.append(row)
        rows.sort(key=lambda row: -row["calls"])
        return rows

    def _latency(self, count: Any, slots: list[int]) -> Row:
        def us(ns: float | None) -> float | None:
            return None if ns is None else round(ns / 1000, 2)

        row: Row = {"open": max(0, count.calls - count.returns)}
        if self.options.errors:
            row["errors"] = count.errors
        row["mean_us"] = us(count.time_ns / count.returns if count.returns else None)
        row["p50_us"] = us(percentile(slots, 0.5))
        row["p99_us"] = us(percentile(slots, 0.99))
        if self.options.json or self.options.histogram:
            row["histogram"] = histogram(slots)
        return row

    def lines(self, rows: list[Row]) -> Iterable[str]:
        """The table, and the histograms below it if they are asked for."""
        plain = [{k: v for k, v in row.items() if k != "histogram"} for row in rows]
        yield from super().lines(plain)
        if not self.options.histogram:
            return
        for row in rows:
            yield from histogram_lines(row["function"], row.get("histogram") or [])

    def text_cells(self, row: Row) -> dict[str, str]:
        return super().text_cells({k: v for k, v in row.items() if k != "histogram"})

    def notes(self, rows: list[Row]) -> list[str]:
        lost = self._lost()
        return [f"{count_of(lost, 'call')} not measured: a map was full"] if lost else []

    def _lost(self) -> int:
        lost = int(self.object["lost"][1])
        if lost:
            self._forget_dead_threads()
        return lost + self.missed()

    def _forget_dead_threads(self) -> None:
        """Make room: calls of threads that have ended never return."""
        for name in ("running", "arguments"):
            table = self.object[name]
            for key in table:
                if not os.path.exists(f"/proc/{key.tid}"):
                    try:
                        del table[key]
                    except KeyError:
                        pass

    # -- events

    def events(self) -> EventSource | None:
        if not self.options.args:
            return None
        lost = self.object["lost"]
        return self.source_of("calls", self._event, lambda: sum(lost.values()))

    def _event(self, record: Any) -> Event:
        from bpfkit.app.events import unix_seconds
        from bpfkit.show.rows import Event

        fields: dict[str, Any] = {
            "pid": record.pid,
            "tid": record.tid,
            "comm": record.comm,
            "function": self.targets[record.function].name,
            "args": [self._argument(record, i) for i in range(len(self.options.args))],
        }
        if record.has_returned:
            ret = record.ret
            low = ret & 0xFFFFFFFF
            # What returns int leaves the upper half 0: a small negative number is meant.
            small = low >= 0xFFFFF000 and ret >> 32 == 0
            fields["ret"] = low - (1 << 32) if small else ret - ((ret >> 63) << 64)
            fields["latency_us"] = round(record.took_ns / 1000, 2)
        return Event("call", unix_seconds(record.time_ns), fields)

    def event_line(self, event: Event) -> str:
        """``12:30:05.123 bash[17] getsid(0) = 17, 2.5 us``."""
        from bpfkit.show.text import cell, time_of_day

        fields = event.fields
        words = [
            f'"{cell(value)}"' if letter == "s" and value is not None else str(value)
            for letter, value in zip(self.options.args, fields["args"], strict=True)
        ]
        when = time_of_day(event.time)
        line = f"{when} {cell(fields['comm'])}[{fields['tid']}] "
        line += f"{cell(fields['function'])}({', '.join(words)})"
        if "ret" in fields:
            line += f" = {fields['ret']}, {fields['latency_us']} us"
        return line

    def _argument(self, record: Any, index: int) -> Any:
        letter = self.options.args[index]
        value = record.args[index]
        if letter == "s":
            size = record.text_len[index]
            if size < 0:
                return None
            data = bytes(record.text)[index * TEXT_SIZE :][: max(0, size - 1)]
            return data.decode(errors="backslashreplace")
        if letter == "d":
            low = value & 0xFFFFFFFF
            if value >> 32 == 0 and low >> 31:
                return low - (1 << 32)
            return value - ((value >> 63) << 64)
        return f"{value:#x}" if letter == "x" else value

    # -- --check

    def conclusion(self, rows: list[Row]) -> str:
        calls = sum(row["calls"] for row in rows)
        return f"seen: {count_of(calls, 'call')}; _exit stays open: it never returns"

    def verify(self) -> Iterable[Verdict]:
        """What the child counted and measured itself, against the rows."""
        rows = {row["function"]: row for row in self.rows()}
        said = [text.split() for text in self.said]
        sleeps, sids, failed, searches = (
            sum(int(words[i]) for words in said) for i in (0, 2, 3, 4)
        )
        mean = sum(float(words[1]) for words in said) / len(said) * 1e6
        for name, wanted in (("usleep", sleeps), ("getsid", sids), ("lfind", searches)):
            calls, still = rows[name]["calls"], rows[name]["open"]
            good = calls == wanted > 0 and not still
            yield good, f"{name}: {count_of(calls, 'call')}, {still} open; the child made {wanted}"
        took = rows["usleep"]["mean_us"]
        good = 1000 <= took <= mean
        yield good, f"usleep(1000) took {took} us; the child measured {mean:.1f} us around it"
        half = rows["usleep"]["p50_us"]
        yield half >= 1000 * 7 / 8, f"half of the sleeps took {half} us or less"
        errors = rows["getsid"]["errors"]
        yield (
            errors == failed,
            f"getsid: {count_of(errors, 'error')}; it failed {count_of(failed, 'time')}",
        )
        left = rows["_exit"]
        processes = 2 * len(said)  # the child, and the child of it whose status it got
        good = (left["calls"], left["open"]) == (processes, processes)
        good = good and all(words[5] == "True" for words in said)
        yield (
            good,
            f"_exit: {count_of(left['calls'], 'call')} of {processes} processes, none returned",
        )
        lost = self._lost()
        yield lost == 0, f"{count_of(lost, 'call')} not measured"
