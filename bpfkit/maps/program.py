# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.maps: every map type, created, used from a program and from Python, checked.

The C side is bpf_c/misc/maps.bpf.c; what C of clang 14 cannot say is assembled in the stops.
Rows: ``type``, ``status`` (``verified``, ``unsupported``, ``failed``), ``why``, ``for``, ``checks``
(texts of what was verified) and ``failed`` (texts of what was not).
"""

from __future__ import annotations

from bpfkit.app.base import App
from bpfkit.core.errors import InputError, UnsupportedError
from bpfkit.core.words import count_of
from bpfkit.maps.tour import SOURCE, Tour, names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.maps.tour import Result
    from bpfkit.show.rows import Row, Verdict

#: Characters of a line of text.
_WIDTH = 80


class Maps(App):
    """Every map type in one tour: used from a program and from Python, checked at its edges."""

    name = "maps"
    source = SOURCE
    needs = ("BPF", "PERFMON", "NET_ADMIN", "SYS_ADMIN")
    demo_rounds = check_rounds = 1
    demo_in_background = False
    has_live_view = False
    epilog = (
        "A type that this kernel does not have is listed as unsupported, with the reason; a check "
        "that fails makes the exit status 1."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--type", metavar="TYPE", help="only this map type: hash, lpm_trie, ringbuf, …"
        )

    def check_options(self) -> None:
        options = self.options
        if options.no_demo:
            from bpfkit.core.errors import UsageError

            raise UsageError("maps is its demo", why="--no-demo leaves nothing to observe")
        self.chosen = names()
        if options.type is not None:
            name = options.type.lower().removeprefix("bpf_map_type_").replace("-", "_")
            if name not in self.chosen:
                from difflib import get_close_matches

                near = get_close_matches(name, self.chosen) or self.chosen
                raise InputError(f"no map type '{options.type}'", why=f"try {', '.join(near)}")
            self.chosen = [name]

    def enter(self) -> None:
        """A network namespace for the sockets of the tour."""
        self.enter_namespace(self.place.new_namespace("maps"))

    def setup(self) -> None:
        self.results: list[Result] = []
        self.tour = self.keep(Tour(cache=not self.options.no_cache))
        if self.options.json or self.options.check:
            return
        if self.options.type is None:
            self.note(f"{len(self.chosen)} map types, each used by a program and by Python")

    def describe_target(self) -> str:
        return "maps and a namespace of its own"

    def demo(self) -> None:
        import sys

        shown = sys.stderr.isatty()
        found = []
        for name in self.chosen:
            if shown:
                sys.stderr.write(f"\rmaps: {name}\x1b[K")
                sys.stderr.flush()
            found.append(self.tour.visit(name))
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self.results = found

    def rows(self) -> list[Row]:
        return [
            {
                "type": result.name,
                "status": result.status,
                "why": result.why,
                "for": result.purpose,
                "checks": [text for ok, text in result.checks if ok],
                "failed": [text for ok, text in result.checks if not ok],
            }
            for result in self.results
        ]

    def lines(self, rows: list[Row]) -> Iterable[str]:
        """A table with the number of checks; one type alone with their texts."""
        from textwrap import wrap

        from bpfkit.show.text import table

        if not rows:
            return
        body = [
            [row["type"], row["for"], str(len(row["checks"])) if row["checks"] else "-"]
            for row in rows
        ]
        for row, line in zip(rows, body, strict=True):
            if row["status"] != "verified":
                line.append(row["status"])
            else:
                line.append("in part" if row["why"] else "")
        yield from table(["type", "what for", "checks", ""], body, right=[False, False, True])
        for row in rows:
            texts = row["checks"] if len(rows) == 1 else []
            marked = [("", row["why"])] if row["why"] else []
            marked += [("ok", text) for text in texts]
            marked += [("FAILED", text) for text in row["failed"]]
            for mark, text in marked:
                head = f"{mark:8}" if len(rows) == 1 else f"{row['type']}: "
                if mark == "FAILED" and len(rows) > 1:
                    head += "FAILED: "
                yield from wrap(head + text, _WIDTH, subsequent_indent=" " * 8)
        done = sum(row["status"] == "verified" for row in rows)
        missing = sum(row["status"] == "unsupported" for row in rows)
        checks = sum(len(row["checks"]) for row in rows)
        yield f"{done} of {len(rows)} types verified by {checks} checks, {missing} unsupported"

    def conclusion(self, rows: list[Row]) -> str:
        good = sum(1 for row in rows if row.get("status") == "verified")
        return (
            f"seen: {count_of(good, 'type')} used from a program and from Python; what the "
            "others need is said above"
        )

    def verify(self) -> Iterable[Verdict]:
        for result in self.results:
            for ok, text in result.checks:
                yield ok, f"{result.name}: {text}"
        if not any(result.checks for result in self.results):
            only = self.results[0]
            raise UnsupportedError(f"this kernel has no {only.name}", why=only.why)

    def exit_status(self) -> int:
        """1 where a check failed; 77 where the one type asked for is not there."""
        if any(result.status == "failed" for result in self.results):
            return 1
        if len(self.results) == 1 and not self.results[0].supported:
            self.note(f"this kernel has no {self.results[0].name}: {self.results[0].why}")
            return 77
        return 0
