# SPDX-License-Identifier: Apache-2.0
"""Sinks: where the rows, events and notes of a program go.

Plain lines, JSON lines, or the live view of a terminal (live.py); :func:`sink_for` chooses.  A
further output is a class deriving from :class:`Sink`.
"""

from __future__ import annotations

import sys
from time import time as unix_time

from bpfkit.app.signals import output, say
from bpfkit.core.printable import printable
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bpfkit.app.base import App
    from bpfkit.show.keys import Keyboard
    from bpfkit.show.rows import Event, Row

__all__ = ["JsonSink", "Sink", "TextSink", "sink_for"]

_TAB = "\t"


class Sink:
    """Where the output of a program goes; ``round_`` counts from 0."""

    #: Is the output a screen that each round is drawn on anew?
    is_view = False
    #: Where its keys come from.
    keyboard: Keyboard | None = None

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
        self.note(f"{count_of(count, 'event')} lost: they came faster than they could be read")

    def note(self, text: str) -> None:
        """A line on standard error."""
        say(f"{self.app.name}: {text}")

    def press(self, keys: Sequence[str]) -> bool:
        """Act on keys of :attr:`keyboard`; True: they ask for the end."""
        return False

    def end(self) -> None:
        """Called after the last round."""

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


def sink_for(app: App, *, live: bool = True) -> Sink:
    """The sink that the options ask for.

    :param live: a live view is wanted where standard output is a terminal.
    """
    if app.options.json:
        return JsonSink(app)
    if live and app.has_live_view and sys.stdout.isatty():
        from bpfkit.show.live import is_terminal

        if is_terminal():
            from bpfkit.app.live import LiveSink

            return LiveSink(app)
    return TextSink(app)
