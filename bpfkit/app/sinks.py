# SPDX-License-Identifier: Apache-2.0
"""Sinks: where the rows, events and notes of a program go.

Plain lines, JSON lines, or the live view of a terminal; :func:`sink_for` chooses.  A further
output is a class deriving from :class:`Sink`.
"""

from __future__ import annotations

import sys
from time import monotonic
from time import time as unix_time

from bpfkit.app.signals import output, say
from bpfkit.core.printable import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bpfkit.app.base import App
    from bpfkit.show.live import Frame
    from bpfkit.show.rows import Event, Row

__all__ = ["JsonSink", "LiveSink", "Sink", "TextSink", "sink_for"]

#: Events that the live view shows.
_LATEST = 8
_TAB = "\t"
#: Seconds between drawings of the live view that events ask for.
_REDRAW = 0.2


class Sink:
    """Where the output of a program goes; ``round_`` counts from 0."""

    #: Is the output a screen that each round is drawn on anew?
    is_view = False

    def __init__(self, app: App) -> None:
        self.app = app

    def round(self, round_: int, rows: list[Row]) -> None:
        """Show the rows of a round."""
        raise NotImplementedError

    def events(self, round_: int, events: Sequence[Event]) -> None:
        """Show events that came during a round."""
        raise NotImplementedError

    def lost(self, round_: int, count: int) -> None:
        """``count`` events were lost since the start; called when there are more of them."""
        self.note(f"{count} events lost: they came faster than they could be read")

    def note(self, text: str) -> None:
        """A line on standard error."""
        say(f"{self.app.name}: {text}")

    def report(self, lines: Sequence[str]) -> None:
        """Show the verdicts of ``--check``."""
        output("\n".join(lines) + "\n")


class TextSink(Sink):
    """Plain lines."""

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._shown = 0

    def round(self, round_: int, rows: list[Row]) -> None:
        if not self.app.rows_accumulate():
            lines = self.app.lines(rows)
        else:
            fresh = rows[self._shown :]
            lines = list(self.app.lines(fresh)) if fresh else []
            if self._shown:
                lines = lines[1:]  # the titles are there already
            self._shown = len(rows)
        output("".join([f"{printable(line, keep=_TAB)}\n" for line in lines]))

    def events(self, round_: int, events: Sequence[Event]) -> None:
        lines = [printable(self.app.event_line(event), keep=_TAB) for event in events]
        output("".join([f"{line}\n" for line in lines]))


class JsonSink(Sink):
    """JSON lines, and nothing else on standard output."""

    def round(self, round_: int, rows: list[Row]) -> None:
        from bpfkit.show.rows import json_rows

        output(json_rows(rows, round_))

    def events(self, round_: int, events: Sequence[Event]) -> None:
        from bpfkit.show.jsonl import json_lines

        output(json_lines([self.app.event_row(event, round_) for event in events]))

    def lost(self, round_: int, count: int) -> None:
        from bpfkit.show.jsonl import json_lines

        row = {"ts": round(unix_time(), 6), "round": round_, "event": "lost", "lost": count}
        output(json_lines([row]))

    def report(self, lines: Sequence[str]) -> None:
        say("\n".join(lines))


class LiveSink(Sink):
    """The live view of a terminal: the table with the counters' rates, the latest events below."""

    is_view = True

    def __init__(self, app: App) -> None:
        from collections import deque

        from bpfkit.show.live import LiveView

        super().__init__(app)
        self.view = LiveView()
        self._before: dict[tuple[str, ...], list[int]] = {}
        self._when = monotonic()
        self._latest: deque[str] = deque(maxlen=_LATEST)
        self._lost = ""
        self._frame: Frame | None = None
        self._drawn = 0.0

    def round(self, round_: int, rows: list[Row]) -> None:
        self._frame = self._frame_of(rows, self._rates(rows), round_)
        self._draw()

    def events(self, round_: int, events: Sequence[Event]) -> None:
        self._latest.extend(map(self.app.event_line, events[-_LATEST:]))
        if monotonic() >= self._drawn + _REDRAW:
            self._draw()

    def lost(self, round_: int, count: int) -> None:
        self._lost = f"{count} events lost"

    def note(self, text: str) -> None:
        try:
            self.view.note(printable(text, keep=_TAB))
        except (OSError, ValueError):  # a terminal that is gone, a full disk
            pass

    def _draw(self) -> None:
        if self._frame is None:
            return
        from bpfkit.show.live import Frame

        table = self._frame
        notes = [*self._latest, *filter(None, [self._lost]), *table.notes]
        rows = [[printable(text) for text in row] for row in table.rows]
        notes = [printable(text) for text in notes]
        title = printable(table.title)
        self.view.draw(Frame(title, table.titles, rows, right=table.right, notes=notes))
        self._drawn = monotonic()

    def _rates(self, rows: list[Row]) -> dict[int, list[float]]:
        """Row index -> its counters per second: the row's own, else since the round before."""
        now = monotonic()
        passed = max(now - self._when, 1e-6)
        counters = self.app.counters
        own = [f"{field}_per_s" for field in counters]
        seen: dict[tuple[str, ...], list[int]] = {}
        rates: dict[int, list[float]] = {}
        for i, row in enumerate(rows):
            if "summary" in row:
                continue
            if own and own[0] in row:
                rates[i] = [row[field] or 0 for field in own]
                continue
            key = tuple([str(row[field]) for field in row if field not in counters])
            totals = [row[field] for field in counters]
            before = self._before.get(key, [0] * len(counters))
            seen[key] = totals
            rates[i] = [max(0, a - b) / passed for a, b in zip(totals, before, strict=True)]
        self._before, self._when = seen, now
        return rates

    def _frame_of(self, rows: list[Row], rates: dict[int, list[float]], round_: int) -> Frame:
        """The table of a round: the columns of text, then the figures.

        Where the window has no room for all figures, those of the largest ranks are left out: the
        text says what a row is about.
        """
        from bpfkit.show.live import Frame

        app = self.app
        shown = [i for i, row in enumerate(rows) if "summary" not in row]
        texts = [app.text_cells(rows[i]) for i in shown]
        figures = [app.figure_cells(rows[i], rates[i]) for i in shown]
        # A column that is empty in all rows takes no room.
        titles = [title for title in (texts[0] if texts else ()) if any(t[title] for t in texts)]
        columns = [[title, *(t[title] for t in texts)] for title in titles]
        widths = [max(map(len, column)) + 2 for column in columns]
        left = {}
        for cells in zip(*figures, strict=True):
            title, _, rank = cells[0]
            left[title] = rank, [title, *(text for _, text, _ in cells)]
        room = self.view.room()[0] + 2 - sum(widths)
        while room < sum(max(map(len, column)) + 2 for _, column in left.values()):
            last = max(rank for rank, _ in left.values())
            if all(rank == last for rank, _ in left.values()):
                break
            left = {title: it for title, it in left.items() if it[0] != last}
        columns += [column for _, column in left.values()]
        right = [False] * len(titles) + [True] * len(left)
        body = [list(line) for line in zip(*(column[1:] for column in columns), strict=True)]
        heads = [column[0] for column in columns]
        return Frame(app.title(round_), heads, body, right=right, notes=app.notes(rows))


def sink_for(app: App, *, live: bool = True) -> Sink:
    """The sink that the options ask for.

    :param live: a live view is wanted where standard output is a terminal.
    """
    if app.options.json:
        return JsonSink(app)
    if live and app.has_live_view and sys.stdout.isatty():
        return LiveSink(app)
    return TextSink(app)
