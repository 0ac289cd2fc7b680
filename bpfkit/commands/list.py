# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit list: the programs."""

from __future__ import annotations

from bpfkit.app.signals import output
from bpfkit.commands.catalog import programs, row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable


HELP = "list the programs"

_WIDTH = 118


def _short_list(words: list[str]) -> str:
    """The first word, and how many more there are: one program has nine types."""
    return words[0] if len(words) == 1 else f"{words[0]} +{len(words) - 1}" if words else ""


def _folded(lines: Iterable[str], cells: list[list[str]]) -> list[str]:
    """The table with summaries that are too long on two lines."""
    from textwrap import wrap

    made = list(lines)
    indent = made[0].index("what it shows")
    folded = made[: len(made) - len(cells)]
    for line in made[len(made) - len(cells) :]:
        first, *more = wrap(line[indent:], _WIDTH - indent) or [""]
        folded += [line[:indent] + first, *(" " * indent + part for part in more)]
    return folded


def run(options: Namespace) -> int:
    """Print it; returns the exit status."""
    rows = [row(cls) for cls in programs()]
    if options.json:
        from bpfkit.show.jsonl import json_lines

        output(json_lines(rows))
        return 0
    from bpfkit.show.text import table

    short = "BPF_PROG_TYPE_"
    cells = [
        [
            str(row["name"]),
            _short_list([name.removeprefix(short).lower() for name in row["types"]]),  # type: ignore[attr-defined]
            str(row["summary"]),
        ]
        for row in rows
    ]
    lines = _folded(table(["program", "program type", "what it shows"], cells), cells)
    lines += [
        "",
        "Run one: sudo python3 -m bpfkit.NAME     More on one: python3 -m bpfkit info NAME",
    ]
    output("\n".join(lines) + "\n")
    return 0
