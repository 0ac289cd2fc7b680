# SPDX-License-Identifier: Apache-2.0
"""The live view of a program: its rows with the counters' rates, the latest events, its keys.

::

    rows ─▶ rates ─▶ filter ─▶ sort ─▶ columns ─▶ Frame ─▶ LiveView (show/live.py)
                       ▲         ▲
    keys ─────────────────────────    q p s / b ? and the arrows
"""

from __future__ import annotations

from collections import deque
from threading import current_thread, main_thread
from time import monotonic

from bpfkit.app.signals import say
from bpfkit.app.sinks import Sink
from bpfkit.core.printable import printable
from bpfkit.core.words import count_of
from bpfkit.show.keys import RESIZED, Keyboard
from bpfkit.show.layout import Column
from bpfkit.show.live import Frame, LiveView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bpfkit.app.base import App
    from bpfkit.show.rows import Event, Row

__all__ = ["LiveSink"]

#: Events that the live view shows.
_LATEST = 8
_LAYOUT = "\n\t"
#: Seconds between drawings of the live view that events ask for.
_REDRAW = 0.2
_KEYS = (
    ("q", "quit; the last figures stay"),
    ("p", "pause: the figures stand still, counting goes on"),
    ("s", "sort by the next figure"),
    ("left, right", "sort by the column before, behind"),
    ("up, down", "sort rising, falling"),
    ("/", "show rows with these words only; Enter keeps them"),
    ("Esc", "all rows, in the program's order"),
    ("b", "group by something else"),
    ("?", "these keys; any key goes back"),
)


class LiveSink(Sink):
    """The live view of a terminal."""

    is_view = True

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self.view = LiveView()
        self.keyboard = Keyboard.open()
        if self.keyboard is not None:
            app.keep(self.keyboard)
        #: Key of a row -> its counters; None: the rates are not known yet.
        self._before: dict[tuple[str, ...], list[int]] | None = None
        self._when = monotonic()
        self._latest: deque[str] = deque(maxlen=_LATEST)
        self._lost = ""
        self._drawn = 0.0
        self._round = -1
        #: The latest rows with their rates, and those that are shown; not the same in a pause.
        self._newest: list[tuple[Row, list[float]]] = []
        self._shown: list[tuple[Row, list[float]]] = []
        self._notes: list[str] = []
        #: The last frame is there: what is said now stands below it.
        self._ended = False
        self._paused = False
        self._help = False
        self._words = ""
        self._typing = False
        #: The title of the column that rows are sorted by; "": as the program lists them.
        self._sort = ""
        self._falling = True
        self._titles: list[str] = []
        self._figures: list[str] = []

    # -- what comes from the program

    def round(self, round_: int, rows: list[Row]) -> None:
        rates = self._rates(rows)
        self._newest = [(row, rates[i]) for i, row in enumerate(rows) if i in rates]
        self._round = round_
        if not self._paused:
            self._shown = self._newest
            self._notes = self.app.notes(rows)
            self._draw()

    def events(self, round_: int, events: Sequence[Event]) -> None:
        self._latest.extend(map(self.app.event_line, events[-_LATEST:]))
        if not self._paused and monotonic() >= self._drawn + _REDRAW:
            self._draw()

    def lost(self, round_: int, count: int) -> None:
        self._lost = f"{count_of(count, 'event')} lost"

    def note(self, text: str) -> None:
        try:
            # Other threads note things too: the last of the frame is then drawn by the next round.
            text = printable(text, keep=_LAYOUT)
            if self._ended:
                say(text)
            elif self.view.note(text) and current_thread() is main_thread():
                self._draw()
        except (OSError, ValueError):  # a terminal that is gone, a full disk
            pass

    def end(self) -> None:
        """The last figures, whatever was shown; the terminal is given back."""
        if self._paused or self._help or self._typing:
            self._paused = self._help = self._typing = False
            self._shown = self._newest
        if self.keyboard is not None:
            self.keyboard.leave()
        self._draw()
        self._ended = True

    # -- keys

    def press(self, keys: Sequence[str]) -> bool:
        """Act on keys; True: the user wants the end."""
        for key in keys:
            if key == RESIZED:
                pass
            elif self._typing:
                self._type(key)
            elif self._help:
                self._help = False
            elif key == "q":
                return True
            else:
                self._act(key)
        if keys:
            self._draw()
        return False

    def _act(self, key: str) -> None:
        if key == "p":
            self._paused = not self._paused
            self._shown = self._newest
        elif key in ("s", "left", "right"):
            self._sort_by_next(self._figures if key == "s" else self._titles, key == "left")
        elif key in ("up", "down"):
            self._falling = key == "down"
        elif key == "/":
            self._typing = True
        elif key == "escape":
            self._words = self._sort = ""
        elif key == "?":
            self._help = True
        elif key == "b" and self.app.cycle_by():
            # Rows of another kind: their rates are known one round later.
            self._before = None
            self.round(self._round, self.app.rows())

    def _type(self, key: str) -> None:
        if key == "enter":
            self._typing = False
        elif key == "escape":
            self._typing, self._words = False, ""
        elif key == "backspace":
            self._words = self._words[:-1]
        elif len(key) == 1:
            self._words += key

    def _sort_by_next(self, titles: list[str], back: bool) -> None:
        """Sort by the next column, or the one before; behind the last: the program's order."""
        ring = ["", *titles]
        at = ring.index(self._sort) if self._sort in ring else 0
        self._sort = ring[(at + (-1 if back else 1)) % len(ring)]
        self._falling = self._sort in self._figures

    # -- the table

    def _rates(self, rows: list[Row]) -> dict[int, list[float]]:
        """Row index -> its counters per second since the round before; not of a summary.

        A program that computes rates itself has them in fields ``bytes_per_s``.
        """
        now = monotonic()
        passed = max(now - self._when, 1e-6)
        counters = self.app.counters
        rated = [f"{field}_per_s" for field in counters]
        seen: dict[tuple[str, ...], list[int]] = {}
        rates: dict[int, list[float]] = {}
        for i, row in enumerate(rows):
            if "summary" in row:
                continue
            own: list[Any] = [row.get(field) for field in rated]
            if rated and None not in own:
                rates[i] = own
                continue
            key = tuple(
                [str(row[field]) for field in row if field not in counters and field not in rated]
            )
            totals = [row[field] for field in counters]
            seen[key] = totals
            if self._before is None:
                rates[i] = [-1.0] * len(counters)
            else:
                before = self._before.get(key, [0] * len(counters))
                rates[i] = [max(0, a - b) / passed for a, b in zip(totals, before, strict=True)]
            for at, rate in enumerate(own):
                if rate is not None:
                    rates[i][at] = rate
        self._before, self._when = seen, now
        return rates

    def columns(self, most: int) -> tuple[list[Column], int]:
        """The columns of the first ``most`` rows that are to be shown, and how many rows are.

        Text first, then each counter and its rate.  A column that is empty in all rows is left
        out.
        """
        app = self.app
        table: list[tuple[dict[str, str], list[tuple[str, str, int]]]] = []
        words = self._words.casefold().split()
        # Text is made of those rows only that are drawn, unless it says which rows those are.
        all_rows = bool(words or self._sort)
        for row, rates in self._shown if all_rows else self._shown[:most]:
            texts = {title: printable(text) for title, text in app.text_cells(row).items()}
            line = " ".join(texts.values()).casefold()
            if all(word in line for word in words):
                table.append((texts, app.figure_cells(row, rates)))
        if self._sort:
            self._order(table)
        total = len(table) if all_rows else len(self._shown)
        table = table[:most]
        texts, figures = table[0] if table else ({}, [])
        ranks = _ranks(app, [*texts], {title: rank for title, _, rank in figures})
        columns = []
        for title in texts:
            cells = [row[0].get(title, "") for row in table]
            if any(cells):
                right = _are_numbers(cells)
                columns.append(Column(title, cells, rank=ranks.get(title, -1), right=right))
        for at, (title, _, _) in enumerate(figures):
            cells = [row[1][at][1] for row in table]
            columns.append(Column(title, cells, rank=ranks[title], right=True))
        if table:
            self._titles = [column.title for column in columns]
            self._figures = [title for title, _, _ in figures]
        return columns, total

    def _order(self, table: list[tuple[dict[str, str], list[tuple[str, str, int]]]]) -> None:
        title = self._sort

        def key(row: tuple[dict[str, str], list[tuple[str, str, int]]]) -> Any:
            texts, figures = row
            text = next((text for name, text, _ in figures if name == title), None)
            return _natural(texts.get(title, "")) if text is None else _amount(text)

        table.sort(key=key, reverse=self._falling)

    def _status(self, total: int) -> str:
        """What the keys have changed, for people."""
        parts = []
        if self._paused:
            parts.append("paused")
        if self._sort:
            parts.append(f"sorted by {self._sort}, {'falling' if self._falling else 'rising'}")
        if self._typing:
            parts.append(f"show rows with: {self._words}_")
        elif self._words:
            parts.append(f"rows with {self._words!r}: {total} of {len(self._shown)}")
        return " · ".join(parts)

    def _draw(self) -> None:
        if self._round < 0:
            return
        if self._help:
            keys = [Column("key", [key for key, _ in _KEYS])]
            keys.append(Column("in the live view", [text for _, text in _KEYS]))
            self.view.draw(Frame(printable(self.app.title(self._round)), keys))
            return
        columns, total = self.columns(self.view.room()[1])
        hidden = total - (len(columns[0].cells) if columns else 0)
        notes = [*self._latest, *filter(None, [self._lost]), *self._notes]
        title = printable(self.app.title(self._round))
        if self.keyboard is not None and self.keyboard.active:
            title += " · ? keys"
        self.view.draw(
            Frame(
                title,
                columns,
                status=printable(self._status(total)),
                notes=[printable(text) for text in notes],
                hidden=hidden,
            )
        )
        self._drawn = monotonic()


def _ranks(app: App, texts: list[str], figures: dict[str, int]) -> dict[str, int]:
    """Title -> rank, of every column that a narrow window may leave out.

    :param figures: title -> the rank that the program gives.
    """
    order: dict[str, tuple[float, ...]] = {title: (2, rank) for title, rank in figures.items()}
    if figures:
        first = min(figures, key=lambda title: figures[title])
        order[first] = (1, -1)
    for at, title in enumerate(app.details):
        if title in texts:
            order[title] = (1, at)
    for at, title in enumerate(app.importance):
        if title in order:
            order[title] = (0, at)
    return {title: rank for rank, title in enumerate(sorted(order, key=lambda one: order[one]))}


def _amount(text: str) -> float:
    """The number that :func:`bpfkit.show.text.human` wrote; -1 for an empty cell."""
    number, _, unit = text.partition(" ")
    try:
        return float(number) * 1000.0 ** max(0, "kMGTPE".find(unit[:1] or "?") + 1)
    except ValueError:
        return -1.0


def _are_numbers(cells: Sequence[str]) -> bool:
    """Whether a column of text is one of numbers, for its alignment."""
    bare = [cell.replace(" ", "").replace(".", "", 1) for cell in cells if cell not in ("", "-")]
    return bool(bare) and all(cell.isascii() and cell.isdigit() for cell in bare)


def _natural(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts ``10.0.0.9`` before ``10.0.0.10``, and empty cells last."""
    import re

    if not text:
        return [(2, 0, "")]
    parts = re.findall(r"\d+|\D+", text.casefold())
    return [(0, int(one), "") if one.isdecimal() else (1, 0, one) for one in parts]
