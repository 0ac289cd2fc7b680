# SPDX-License-Identifier: Apache-2.0
"""What programs show: rows, events, verdicts, and their form as JSON lines.

- A *row* is a line of a table of figures, printed anew every round.
- An *event* is something that happened at one moment and is printed once.
- A *verdict* is a result of ``--check``.
"""

from __future__ import annotations

from time import time as unix_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    #: Field name to value (int, float, str, None, list, dict), in the order of the output.
    Row: TypeAlias = dict[str, Any]
    #: (is it true, what was compared, with the numbers).
    Verdict: TypeAlias = tuple[bool, str]

__all__ = ["Event", "json_rows", "report", "stamp"]


class Event:
    """Something that happened at one moment: a connection, an exec, a dropped packet.

    :ivar kind: one word, lower case: ``connect``, ``exec``, ``drop``.
    :ivar time: UNIX time in seconds.
    :ivar fields: the rest, in the order of the output.
    """

    __slots__ = ("fields", "kind", "time")

    def __init__(self, kind: str, time: float, fields: Row) -> None:
        self.kind = kind
        self.time = time
        self.fields = fields

    def __repr__(self) -> str:
        return f"Event({self.kind!r}, {self.time!r}, {self.fields!r})"


def stamp(round_: int) -> Row:
    """The first two fields of every JSON row: ``ts``, UNIX seconds now, and ``round`` from 0."""
    return {"ts": round(unix_time(), 6), "round": round_}


def json_rows(rows: Iterable[Row], round_: int) -> str:
    """The rows of a round as JSON lines, all with the same stamp."""
    from bpfkit.show.jsonl import json_lines

    first = stamp(round_)
    return json_lines([{**first, **row} for row in rows])


def report(name: str, verdicts: Iterable[Verdict]) -> tuple[list[str], bool]:
    """(the verdicts and their sum as lines of text, whether there are any and all are true)."""
    found = list(verdicts)
    lines = [f"{'ok' if true else 'FAILED':8}{text}" for true, text in found]
    count = sum(true for true, _ in found)
    good = bool(found) and count == len(found)
    lines.append(f"{name}: {count} of {len(found)} verified{'' if good else ': FAILED'}")
    return lines, good
