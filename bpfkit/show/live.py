# SPDX-License-Identifier: Apache-2.0
"""The live view of a terminal: a table that is drawn again in place every round.

With :mod:`rich` the table has colours and rules; without it is plain text.  Either way the
frame is cut to the window, and the last one stays on the screen when the program ends.
"""

from __future__ import annotations

import os
import sys

from bpfkit.show.text import clip, fit, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["Frame", "LiveView"]


class Frame:
    """What one round shows: a title line, a table, lines under it.

    ``rows`` are cells as text, ``right`` says which columns hold numbers, ``hidden`` is how many
    more rows there are than were given.
    """

    __slots__ = ("hidden", "notes", "right", "rows", "title", "titles")

    def __init__(
        self,
        title: str,
        titles: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[bool] = (),
        notes: Sequence[str] = (),
        hidden: int = 0,
    ) -> None:
        self.title = title
        self.titles = titles
        self.rows = rows
        self.right = right
        self.notes = notes
        self.hidden = hidden

    def limited(self, rows: int) -> Frame:
        """The same frame with at most ``rows`` rows; the others are counted in ``hidden``."""
        cut = max(0, len(self.rows) - rows)
        return Frame(
            self.title,
            self.titles,
            self.rows[: len(self.rows) - cut],
            right=self.right,
            notes=self.notes,
            hidden=self.hidden + cut,
        )

    def footer(self) -> list[str]:
        """The lines under the table."""
        more = [f"… and {self.hidden} more"] if self.hidden else []
        return [*more, *self.notes]


class LiveView:
    """Draws frames one over the other on standard output, which is a terminal."""

    def __init__(self, *, use_rich: bool | None = None) -> None:
        self._drawn = 0
        self._console: Any = None
        if use_rich is None:
            use_rich = os.environ.get("TERM", "dumb") != "dumb"
        if use_rich:
            try:
                from rich.console import Console
            except ImportError:
                pass
            else:
                self._console = Console(highlight=False)

    def room(self) -> tuple[int, int]:
        """(columns, lines) of the window."""
        try:
            size = os.get_terminal_size(sys.stdout.fileno())
        except (OSError, ValueError):
            return 80, 24
        # A terminal that does not know its size (a serial line) says 0.
        return size.columns or 80, size.lines or 24

    def draw(self, frame: Frame) -> None:
        """Show ``frame`` in place of the one before."""
        width, height = self.room()
        # Title, table head, "and n more", and the line on which the cursor stands.
        used = 1 + 1 + len(frame.notes) + 1 + 1
        shown = frame.limited(max(1, height - used))
        lines = self._rich(shown, width) if self._console else self._plain(shown, width)
        lines = lines[: max(1, height - 1)]
        # Back to the first line of the last frame and wipe it: nothing above is touched.
        back = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        sys.stdout.write(back + "".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
        self._drawn = len(lines)

    def note(self, text: str) -> None:
        """A line on standard error that does not spoil the frame; the next one goes below it."""
        print(text, file=sys.stderr, flush=True)
        self._drawn = 0

    def _plain(self, frame: Frame, width: int) -> list[str]:
        gaps = 2 * (len(frame.titles) - 1)
        titles, rows = fit(frame.titles, frame.rows, frame.right, width - gaps)
        lines = [frame.title, *table(titles, rows, right=frame.right), *frame.footer()]
        return [clip(line, width) for line in lines]

    def _rich(self, frame: Frame, width: int) -> list[str]:
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold underline")
        gaps = 2 * (len(frame.titles) - 1)
        titles, rows = fit(frame.titles, frame.rows, frame.right, width - gaps)
        for i, title in enumerate(titles):
            right = i < len(frame.right) and frame.right[i]
            drawn.add_column(
                Text(title),
                justify="right" if right else "left",
                style="green" if right else "cyan",
                no_wrap=True,
                overflow="ellipsis",
            )
        for row in rows:
            drawn.add_row(*map(Text, row))
        console = self._console
        console.width = width
        with console.capture() as captured:
            console.print(Text(frame.title, style="bold"), no_wrap=True, overflow="ellipsis")
            console.print(drawn)
            for line in frame.footer():
                console.print(Text(line, style="dim"), no_wrap=True, overflow="ellipsis")
        text: str = captured.get()
        return text.rstrip("\n").split("\n")
