# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.syscall: a program that makes bpf(2) calls itself: it creates and fills a map.

The C side is bpf_c/misc/syscall.bpf.c.  The map that it makes is an ordinary one of this process;
it is read here and, where there is bpftool, from outside.
"""

from __future__ import annotations

import os
from struct import Struct

from bpfkit.app.base import App
from bpfkit.app.lifecycle import main
from bpfkit.core.errors import BpfkitError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.core.maps.base import Map
    from bpfkit.show.rows import Row, Verdict

#: struct request of the C side: entries, factor, map_fd, error, filled, tgid.
_REQUEST = Struct("<IIiiII")
MAX_ENTRIES = 1024


def _entries(text: str) -> int:
    """A number of elements (argparse type)."""
    from argparse import ArgumentTypeError

    if not text.isdigit() or not 0 < int(text) <= MAX_ENTRIES:
        raise ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_ENTRIES}")
    return int(text)


class SyscallProgram(App):
    """A program that makes bpf(2) calls: it creates a map, fills it, returns its descriptor."""

    name = "syscall"
    source = "misc/syscall.bpf.c"
    demo_rounds = 2
    check_rounds = 1
    #: The latest map that the program made.
    made: Map | None = None
    demo_in_background = False
    has_live_view = False

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add(
            "--entries",
            metavar="N",
            type=_entries,
            default=100,
            help="elements of the map that the program makes (default: 100)",
        )

    def setup(self) -> None:
        self.object = self.load()
        self.program = self.object.programs["make_map"]
        self._rows: list[Row] = []

    def demo(self) -> None:
        """Run the program once."""
        from bpfkit.core.maps.base import Map

        factor = len(self._rows) + 7
        if not self._rows and not self.options.check:
            self.note(
                f"the program makes a hash with {self.options.entries} elements in the kernel, "
                f"n -> {factor}n, in one system call of this process"
            )
        context = _REQUEST.pack(self.options.entries, factor, 0, 0, 0, 0)
        result = self.program.run(ctx=context)
        entries, factor, fd, error, filled, tgid = _REQUEST.unpack(result.ctx)
        if fd < 0:
            raise BpfkitError("the program could not create a map", why=errno_text(-fd))
        if self.made is not None:
            self.made.close()
        self.made = Map.from_fd(fd)
        self._rows.append(
            {
                "entries": entries,
                "factor": factor,
                "map_id": self.made.id,
                "filled": filled,
                "error": error,
                "ran_in": tgid,
            }
        )

    def close(self) -> None:
        if self.made is not None:
            self.made.close()
        super().close()

    def rows(self) -> list[Row]:
        return self._rows

    def rows_accumulate(self) -> bool:
        return True

    def describe_target(self) -> str:
        return "nothing: it runs when it is asked to"

    def conclusion(self, rows: list[Row]) -> str:
        return (
            "seen: a program made a map and filled it by itself: no system call of this process did"
        )

    def verify(self) -> Iterable[Verdict]:
        """The map, read by this process and by bpftool."""
        row = self._rows[-1]
        wanted = {n: n * row["factor"] for n in range(self.options.entries)}
        assert self.made is not None
        found = dict(self.made.items())
        yield found == wanted, f"the map has {len(found)} elements, n -> {row['factor']}n"
        yield row["ran_in"] == os.getpid(), f"the program ran in process {row['ran_in']}, this one"
        yield (
            row["filled"] == self.options.entries,
            f"the context came back: {row['filled']} filled",
        )
        yield from self._verify_outside(row, wanted)

    @staticmethod
    def _verify_outside(row: Row, wanted: dict[int, int]) -> Iterable[Verdict]:
        import json
        import subprocess
        from shutil import which

        if which("bpftool") is None:
            return
        words = ["bpftool", "-j", "map", "dump", "id", str(row["map_id"])]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        dumped = json.loads(done.stdout) if done.returncode == 0 else []

        def number(words: list[str]) -> int:
            return int.from_bytes(bytes(int(word, 16) for word in words), "little")

        seen = {number(entry["key"]): number(entry["value"]) for entry in dumped}
        yield seen == wanted, f"bpftool dumps the same {len(seen)} elements of map {row['map_id']}"


if __name__ == "__main__":
    raise SystemExit(main(SyscallProgram))
