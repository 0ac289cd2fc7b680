# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.syscounts: the system calls of processes, how many fail, how long they take.

The C side is bpf_c/trace/syscounts.bpf.c.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.trace import TraceApp
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.show.rows import Row, Verdict

#: What the demo calls: dd copies so many blocks, one read(2) and one write(2) each.
BLOCKS = 1000


def call_names() -> dict[int, str]:
    """Number -> name of the system calls of this architecture, from the C library's headers
    (linux-libc-dev); empty without them."""
    import re
    from glob import glob
    from os import uname

    machine = uname().machine
    name = {"x86_64": "unistd_64.h"}.get(machine, "unistd.h")
    places = [
        *glob(f"/usr/include/{machine}-linux-gnu/asm/{name}"),
        f"/usr/include/asm/{name}",
        "/usr/include/asm-generic/unistd.h",
    ]
    for path in places:
        try:
            with open(path) as file:
                text = file.read()
        except OSError:
            continue
        found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", text, re.MULTILINE)
        if found:
            return {int(number): call for call, number in found}
    return {}


class SysCounts(TraceApp):
    """Which system calls processes make, how many fail, how long they take."""

    name = "syscounts"
    source = "trace/syscounts.bpf.c"
    counters = ("calls", "errors")
    details = ("mean_us", "time_us")
    has_live_view = True

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add("--by-process", action="store_true", help="a row for each process name, too")
        add(
            "--sort",
            choices=("calls", "errors", "time"),
            default="calls",
            help="order of the rows (default: calls)",
        )

    def setup(self) -> None:
        self.names = call_names()
        programs = self.load_traced(by_process=self.options.by_process).programs
        # The exits first: an exit whose entry was not seen is ignored, not the other way round.
        self.keep(programs["ended"].attach_raw_tracepoint())
        self.keep(programs["returned"].attach_raw_tracepoint())
        self.keep(programs["entered"].attach_raw_tracepoint())
        self.copied: list[str] = self.for_check([])

    def demo(self) -> None:
        """dd copies 1000 blocks of a byte."""
        if self.is_first_demo():
            self.note(f"dd copies {BLOCKS} blocks: {BLOCKS} read(2) and {BLOCKS} write(2) at least")
        words = ["dd", "if=/dev/zero", "of=/dev/null", "bs=1", f"count={BLOCKS}"]
        self.copied.append(self.run_traced(words).stderr)

    def rows(self) -> list[Row]:
        rows = []
        for key, count in self.object["calls"].sums():
            row: Row = {"syscall": self.names.get(key.number, f"syscall_{key.number}")}
            if self.options.by_process:
                row["comm"] = key.comm
            row |= {
                "calls": count.entered,
                "errors": count.errors,
                "time_us": count.time_ns // 1000,
                "mean_us": round(count.time_ns / 1000 / count.returned, 2)
                if count.returned
                else None,
            }
            rows.append(row)
        field = {"calls": "calls", "errors": "errors", "time": "time_us"}[self.options.sort]
        rows.sort(key=lambda row: (-row[field], row["syscall"]))
        return rows

    def notes(self, rows: list[Row]) -> list[str]:
        lost = sum(self.object["lost"].values()) + self.missed()
        if not lost:
            return []
        why = "a map was full, or the program was running already"
        return [f"{count_of(lost, 'call')} not counted: {why}"]

    def conclusion(self, rows: list[Row]) -> str:
        calls = sum(row["calls"] for row in rows)
        return (
            f"seen: {count_of(calls, 'system call')}; most errors are searches: a program in "
            "$PATH, libraries"
        )

    def verify(self) -> Iterable[Verdict]:
        """What dd says it copied, against the rows."""
        import re

        rows: dict[str, int] = {}
        for row in self.rows():
            rows[row["syscall"]] = rows.get(row["syscall"], 0) + row["calls"]
        copied = sum(
            int(n) for said in self.copied for n in re.findall(r"^(\d+)\+0 records out", said, re.M)
        )
        for name in ("read", "write"):
            calls = rows.get(name, 0)
            # dd and the loader read and write a little more than the blocks.
            good = copied <= calls <= copied + 60 * len(self.copied)
            yield (
                good and copied > 0,
                f"dd copied {copied} blocks, {count_of(calls, 'call')} of {name}",
            )
        lost = sum(self.object["lost"].values()) + self.missed()
        yield lost == 0, f"{count_of(lost, 'call')} not counted"


if __name__ == "__main__":
    raise SystemExit(main(SysCounts))
