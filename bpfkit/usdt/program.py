# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.usdt: the probes that programs have built in, counted and with their arguments.

The C side is bpf_c/trace/usdt.bpf.c.

::

    FILE:PROVIDER:NAME … ─▶ notes.py ─▶ places, semaphores ─▶ uprobe.multi, a link for each file;
                                                              else a program for each place
                             counts ─▶ rows        hits ─▶ events (--args)
"""

from __future__ import annotations

import os

from bpfkit.app.trace import TraceApp
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.app.signals import Signals
    from bpfkit.show.rows import Event, Row, Verdict
    from bpfkit.usdt.notes import Place

TEXT_SIZE = 64
#: Places of one run; without uprobe.multi each has a program.
MOST, MOST_SINGLE = 1024, 128

#: The demo's probes, of the Python that runs its child.
DEMO = ("python:gc__start", "python:gc__done", "python:import__find__load__start")
MODULES = ("colorsys", "sndhdr", "this_module_is_not_there")
#: Collects garbage of each generation, imports, and prints how often: gc's own statistics.  It
#: leaves by _exit, because Python collects once more at its end.
CHILD = f"""
import gc, os, sys
for generation, times in ((0, 30), (1, 20), (2, 10)):
    for _ in range(times): gc.collect(generation)
for name in {MODULES!r}:
    try: __import__(name)
    except ImportError: pass
print(*(each["collections"] for each in gc.get_stats()), flush=True)
os._exit(0)
"""


def _texts(value: str) -> frozenset[int]:
    """Numbers of arguments (argparse type)."""
    from argparse import ArgumentTypeError

    try:
        numbers = frozenset(int(word) for word in value.split(","))
    except ValueError:
        numbers = frozenset()
    if not numbers or min(numbers) < 1 or max(numbers) > 12:
        raise ArgumentTypeError(f"{value!r} is no list of arguments, from 1 to 12")
    return numbers


class Usdt(TraceApp):
    """USDT probes of programs and libraries: how often they are reached, with which arguments."""

    name = "usdt"
    source = "trace/usdt.bpf.c"
    counters = ("hits",)
    details = ("places",)
    demo_rounds = 1
    has_live_view = True
    takes_targets = True
    epilog = (
        "FILE:PROVIDER:NAME is a program or library and a probe of it: python3:python:gc__start; "
        "PROVIDER may be left out, and both may be patterns ('c:libc:*'). --list FILE shows the "
        "probes of a file. Words behind -- are a command to run and trace."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add("targets", metavar="FILE:PROBE", nargs="*", help="probes, as FILE:PROVIDER:NAME")
        add("--args", action="store_true", help="print each hit with the probe's arguments")
        add(
            "--text",
            metavar="N,…",
            type=_texts,
            default=frozenset(),
            help="arguments (from 1) that are text, for --args",
        )
        add(
            "--nop5",
            action="store_true",
            help="probe nops of 5 bytes, too: not safe on 6.18 to 7.1",
        )
        add("--list", metavar="FILE", help="print the probes of a file, and end")

    def check_options(self) -> None:
        super().check_options()
        options = self.options
        if options.check and options.targets:
            raise UsageError("--check takes no probes", why="it verifies those of its demo")
        if options.list and options.targets:
            raise UsageError("--list takes one file and no probes")
        if options.text and not options.args:
            raise UsageError("--text needs --args")
        if not options.targets and not options.list and (self.traces_one() or options.no_demo):
            raise UsageError("name a FILE:PROBE", hint="--list FILE shows the probes of a file")

    def wants_demo(self) -> bool:
        return super().wants_demo() and not self.options.targets and not self.options.list

    def capabilities(self) -> tuple[str, ...]:
        return () if self.options.list else super().capabilities()

    def enter(self) -> None:
        if not self.options.list:
            super().enter()

    def setup(self) -> None:
        if self.options.list:
            return
        from bpfkit.core.attach.usdt import refuse_nop5
        from bpfkit.core.log import say

        self.python = ""
        words = self.options.targets
        if self.wants_demo():
            self.python = self._python_with_probes()
            words = [f"{self.python}:{probe}" for probe in DEMO]
            self.options.args = True
            self.texts = {"python:import__find__load__start": frozenset({1})}
        else:
            self.texts = {}
        self.places = self._find(words)
        for place in self.places:
            say(
                f"{place.file}: {place.probe}: address {place.address:#x}, offset "
                f"{place.offset:#x}, semaphore {place.semaphore:#x}, "
                f"arguments {' '.join(a.text for a in place.arguments) or '-'}"
            )
            if not self.options.nop5:
                refuse_nop5(place, "--nop5 probes it all the same")
        self._warn_of_unknown()
        self.way = self._attach()
        if self.options.pid is None or self.way == "uprobe.multi":
            self._require_probes()
        say(f"{count_of(len(self.places), 'place')} by {self.way}")
        self.said: list[tuple[int, ...]] = self.for_check([])

    def _warn_of_unknown(self) -> None:
        if not self.options.args:
            return
        if os.uname().machine != "x86_64":
            raise UnsupportedError(
                "--args does not work on this machine",
                why="arguments are decoded for x86-64 only",
                hint="without --args hits are counted",
            )
        for place in self.places:
            unknown = [a.text for a in place.arguments if not a.is_known]
            if unknown:
                self.note(f"{place.probe}: no value for {' '.join(unknown)}, a form not decoded")

    def _find(self, words: Iterable[str]) -> list[Place]:
        """The places of the probes that the words name, each once."""
        from bpfkit.core.attach.uprobe import find_file
        from bpfkit.core.attach.usdt import matching
        from bpfkit.usdt.notes import places_of

        known: dict[str, list[Place]] = {}
        found: dict[tuple[str, int, str], Place] = {}
        for word in words:
            name, colon, probe = word.partition(":")
            if not colon or not name or not probe:
                raise UsageError(f"{word!r} is no FILE:PROBE", hint="an example: python3:gc__start")
            path = find_file(name)
            places = known.get(path)
            if places is None:
                places = known[path] = places_of(path)
            for place in matching(places, path, probe):
                found.setdefault((path, place.offset, place.probe), place)
        if len(found) > MOST:
            raise InputError(f"{len(found)} places are too many", why=f"{MOST} at most")
        return list(found.values())

    def run(self, signals: Signals) -> int | None:
        if not self.options.list:
            return None
        from bpfkit.core.attach.uprobe import find_file
        from bpfkit.show.jsonl import json_lines
        from bpfkit.show.text import cell
        from bpfkit.usdt.notes import places_of

        path = find_file(self.options.list)
        places = places_of(path)
        if not places:
            raise InputError(f"{path} has no USDT probes")
        if self.options.json:
            rows: list[Row] = [
                {
                    "probe": place.probe,
                    "offset": place.offset,
                    "semaphore": place.semaphore or None,
                    "args": [a.text for a in place.arguments],
                }
                for place in places
            ]
            print(json_lines(rows), end="")
            return 0
        for place in places:
            arguments = " ".join(a.text for a in place.arguments)
            print(cell(f"{place.offset:#10x} {place.probe} {arguments}".rstrip()))
        return 0

    # -- attaching

    def _attach(self) -> str:
        """Attach by uprobe.multi, or where the kernel has none by a probe each; returns which."""
        try:
            program = self._load("multi")
            files: dict[str, list[int]] = {}
            for number, place in enumerate(self.places):
                files.setdefault(place.file, []).append(number)
            for file, numbers in files.items():
                places = [self.places[number] for number in numbers]
                semaphores = [place.semaphore for place in places]
                self.keep(
                    program.attach_uprobe_multi(
                        file,
                        [place.offset for place in places],
                        cookies=numbers,
                        ref_ctr_offsets=semaphores if any(semaphores) else (),
                    )
                )
            return "uprobe.multi"
        except UnsupportedError as error:
            refused = error.why or error.what
        if len(self.places) > MOST_SINGLE:
            raise InputError(
                f"{len(self.places)} places are too many on this kernel",
                why=f"{MOST_SINGLE} at most without uprobe.multi links ({refused})",
            )
        first = None
        pid = self.options.pid or -1
        for number, place in enumerate(self.places):
            program = self._load("single", number, first)
            first = first or self.object
            self.keep(
                program.attach_uprobe(
                    place.file, place.offset, pid=pid, ref_ctr_offset=place.semaphore
                )
            )
        assert first is not None
        self.object = first
        return "a uprobe each"

    def _require_probes(self) -> None:
        from bpfkit.core.attach.uprobe import require_probes

        for file in dict.fromkeys(place.file for place in self.places):
            require_probes(file, [p.offset for p in self.places if p.file == file])

    def _load(self, name: str, number: int | None = None, first: Any = None) -> Any:
        consts = {"with_events": int(self.options.args)}
        if number is not None:
            consts["place_number"] = number
        sizes = {"places": len(self.places), "counts": len(self.places)}
        more = {"reuse_maps": first.maps} if first is not None else {"max_entries": sizes}
        self._options: dict[str, Any] = {"programs": [name], **more}
        loaded = self.load_traced(**consts)
        if first is None:
            for index, place in enumerate(self.places):
                texts = self.texts.get(place.probe, self.options.text)
                key = index.to_bytes(4, "little")
                loaded["places"].update_raw(key, place.pack(texts))
        return loaded.programs[name]

    def load_options(self) -> dict[str, Any]:
        return self._options

    # -- the demo

    @staticmethod
    def _python_with_probes() -> str:
        """A Python that was built with its probes (``--with-dtrace``)."""
        import sys

        from bpfkit.usdt.notes import places_of

        for path in dict.fromkeys((sys.executable, "/usr/bin/python3")):
            if path and os.path.exists(path):
                real = os.path.realpath(path)
                if {place.probe for place in places_of(real)} >= set(DEMO):
                    return real
        raise UnsupportedError(
            "the demo needs a Python with USDT probes",
            why="none is installed: a Python has them if it was built with --with-dtrace",
            hint="probes of other programs: --list FILE",
        )

    def demo(self) -> None:
        """A child collects garbage and imports, and prints its own statistics of that."""
        if not self.options.check:
            self.note(
                f"{os.path.basename(self.python)} collects garbage of each generation and imports "
                f"{', '.join(MODULES)}; events show 5 of each"
            )
        done = self.run_traced([self.python, "-I", "-S", "-W", "ignore", "-c", CHILD])
        if done.returncode:
            raise BpfkitError("the demo's child failed", why=done.stderr.strip()[-300:])
        self.said.append(tuple(map(int, done.stdout.split())))
        if not self.options.check:
            words = done.stdout.split()
            self.note(f"gc says: {' + '.join(words)} collections of generations 0, 1, 2")

    # -- figures

    def rows(self) -> list[Row]:
        hits: dict[tuple[str, str], list[int]] = {}
        for number, count in self.object["counts"].sums():
            place = self.places[number]
            found = hits.setdefault((place.file, place.probe), [0, 0])
            found[0] += count
            found[1] += 1
        many = len({file for file, _ in hits}) > 1
        rows: list[Row] = []
        for (file, probe), (count, places) in hits.items():
            row: Row = {
                "probe": f"{os.path.basename(file)}:{probe}" if many else probe,
                "hits": count,
                "places": places,
            }
            if self.options.json:
                row["file"] = file
            rows.append(row)
        return rows

    # -- events

    def events(self) -> EventSource | None:
        if not self.options.args:
            return None
        self._shown: dict[str, int] = {}
        return self.source_of("hits", self._event, lambda: int(self.object["lost"][0]))

    def _event(self, record: Any) -> Event | None:
        from bpfkit.app.events import unix_seconds
        from bpfkit.show.rows import Event

        place = self.places[record.place]
        if self.wants_demo() and not self.options.check:
            shown = self._shown[place.probe] = self._shown.get(place.probe, 0) + 1
            if shown > 5:
                return None
        fields = {
            "pid": record.pid,
            "tid": record.tid,
            "comm": record.comm,
            "probe": place.probe,
            "args": [self._argument(place, record, i) for i in range(len(place.arguments))],
        }
        return Event("probe", unix_seconds(record.time_ns), fields)

    def _argument(self, place: Place, record: Any, index: int) -> Any:
        argument = place.arguments[index]
        if not argument.is_known or record.unreadable >> index & 1:
            return None
        if index + 1 in self.texts.get(place.probe, self.options.text):
            size = record.text_len[index]
            if size < 0:
                return None
            data = bytes(record.text)[index * TEXT_SIZE :][: max(0, size - 1)]
            return data.decode(errors="backslashreplace")
        value = int(record.values[index])
        return value - ((value >> 63) << 64) if argument.is_signed else value

    def event_line(self, event: Event) -> str:
        """``12:30:05.123 python3[17] python:gc__start(2)``."""
        from bpfkit.show.text import cell, time_of_day

        fields = event.fields
        words = [f'"{cell(a)}"' if isinstance(a, str) else str(a) for a in fields["args"]]
        when = time_of_day(event.time)
        return (
            f"{when} {cell(fields['comm'])}[{fields['tid']}] "
            f"{cell(fields['probe'])}({', '.join(words)})"
        )

    # -- --check

    def conclusion(self, rows: list[Row]) -> str:
        hits = sum(row["hits"] for row in rows)
        return (
            f"seen: {count_of(hits, 'hit')} of probes that Python was built with; unused they "
            "cost a nop"
        )

    def verify(self) -> Iterable[Verdict]:
        """What gc counted itself, against the hits and their arguments."""
        rows = {row["probe"]: row["hits"] for row in self.rows()}
        generations = [sum(each) for each in zip(*self.said, strict=True)]
        total = sum(generations)
        assert self.channel is not None
        channel = self.channel
        channel.wait(lambda: len(channel.waiting) >= sum(rows.values()))
        seen = [event.fields for event in channel.waiting]
        for probe in DEMO[:2]:
            good = rows[probe] == total > 0
            text = f"{probe}: {count_of(rows[probe], 'hit')}; gc counts {total}"
            yield good, text
        for generation, wanted in enumerate(generations):
            args = [f["args"] for f in seen if f["probe"] == DEMO[0]]
            found = args.count([generation])
            text = f"gc__start({generation}): {count_of(found, 'event')}; gc counts {wanted}"
            yield found == wanted, text
        names = [f["args"][0] for f in seen if f["probe"] == DEMO[2]]
        for name in MODULES:
            found = names.count(name)
            yield found == len(self.said), f"import of {name}: {found} in {len(self.said)} rounds"
        yield channel.lost == 0, f"{count_of(channel.lost, 'event')} lost"
