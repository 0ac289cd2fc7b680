# SPDX-License-Identifier: Apache-2.0
"""The live view of a terminal: a table that is drawn again in place every round.

With :mod:`rich` the table has colours; without it is plain text.  Either way it is laid out for
the window (:mod:`bpfkit.show.layout`), and the last frame stays on the screen when the program
ends.
"""

from __future__ import annotations

import os
import sys

from bpfkit.show.encoding import encodable
from bpfkit.show.layout import Column, Piece, cut, lay_out, pieces, wrap
from bpfkit.show.text import clip, width_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

__all__ = ["Frame", "LiveView", "is_terminal", "render"]

#: A colour or a weight per kind of piece, as rich names them.
_STYLES = {"title": "bold underline", "name": "cyan", "figure": "green", "head": "bold"}


class Frame:
    """What one round shows.

    :ivar title: the first line.
    :ivar columns: the table.
    :ivar status: a line under the title; "": none.
    :ivar notes: lines under the table.
    :ivar hidden: how many more rows there are than the columns have.
    """

    __slots__ = ("columns", "hidden", "notes", "status", "title")

    def __init__(
        self,
        title: str,
        columns: Sequence[Column],
        *,
        status: str = "",
        notes: Sequence[str] = (),
        hidden: int = 0,
    ) -> None:
        self.title = title
        self.columns = columns
        self.status = status
        self.notes = notes
        self.hidden = hidden


def render(frame: Frame, width: int, height: int, encoding: str = "utf-8") -> list[list[Piece]]:
    """The frame as at most ``height`` lines of at most ``width`` columns.

    Rows that have no room are counted in a line under the table; of many notes, the last ones
    are shown.
    """
    ellipsis = "…" if encodable("…", encoding) == "…" else "~"

    def text(line: str, kind: str) -> list[list[Piece]]:
        lines = wrap(encodable(line, encoding), width)
        return [[Piece(clip(part, width, ellipsis), kind)] for part in lines]

    head = text(frame.title, "head")
    if frame.status:
        head += text(frame.status, "status")
    columns = [
        Column(
            encodable(one.title, encoding),
            [encodable(cell, encoding) for cell in one.cells],
            rank=one.rank,
            right=one.right,
        )
        for one in frame.columns
    ]
    columns = cut(columns, width, ellipsis)
    lines = lay_out(columns, width) if columns else []
    total = len(columns[0].cells) if columns else 0
    # Where not all fits, notes get a third of the window, after a few rows, and the last one first.
    space = height - len(head)
    some, every = (len(lines) * (1 + rows) + 1 for rows in (min(total, 3), total))
    notes = _last_notes(
        frame.notes, width, max(1, min(space - some, max(space - every, height // 3))), text
    )
    room = height - len(head) - len(notes)
    shown = total
    if lines and (1 + total) * len(lines) + (frame.hidden > 0) > room:
        shown = min(total, max(1, (room - 1) // len(lines) - 1))
    body = pieces(columns, lines, None) if lines else []
    for row in range(shown):
        body += pieces(columns, lines, row)
    more = total - shown + frame.hidden
    if more:
        body += text(f"… and {more} more", "note")
    kept = [*head, *body, *notes][: max(1, height)]
    return [_clipped(line, width, ellipsis) for line in kept]


def _last_notes(
    notes: Sequence[str],
    width: int,
    room: int,
    text: Callable[[str, str], list[list[Piece]]],
) -> list[list[Piece]]:
    """The last of the notes as at most ``room`` lines; the very last is cut if it has more."""
    kept: list[list[Piece]] = []
    for note in reversed(notes):
        lines = text(note, "note")
        if len(lines) > room and not kept:
            lines = lines[:room]
            lines[-1] = [Piece(lines[-1][0].text + " " * width, "note")]  # marked as cut
        if len(lines) > room:
            break
        kept = lines + kept
        room -= len(lines)
    return kept


def _clipped(line: list[Piece], width: int, ellipsis: str) -> list[Piece]:
    """The line, cut at the end of the window: only where a single figure is wider than that."""
    done: list[Piece] = []
    for piece in line:
        if width <= 0:
            break
        done.append(Piece(clip(piece.text, width, ellipsis), piece.kind))
        width -= width_of(piece.text)
    return done


def is_terminal() -> bool:
    """Whether standard output is a terminal that a live view can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


class LiveView:
    """Draws frames one over the other on standard output, which is a terminal."""

    def __init__(self, *, use_rich: bool = True) -> None:
        self._drawn: list[int] = []
        self._console: Any = None
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
        # The cursor stands on a line of its own.
        lines = render(frame, width, max(1, height - 1), sys.stdout.encoding or "utf-8")
        back = self._wiped(width, height)
        self._drawn = [sum(width_of(piece.text) for piece in line) for line in lines]
        texts = self._styled(lines, width) if self._console else map(_plain, lines)
        sys.stdout.write(back + "".join([f"{line}\n" for line in texts]))
        sys.stdout.flush()

    def note(self, text: str) -> bool:
        """A line on standard error.

        Returns whether it stands where the frame was, which is to be drawn again then; not where
        standard error is no terminal.
        """
        if not sys.stderr.isatty():
            print(text, file=sys.stderr, flush=True)
            return False
        width, height = self.room()
        sys.stdout.write(self._wiped(width, height))
        sys.stdout.flush()
        self._drawn = []
        lines = [part for line in text.split("\n") for part in wrap(line, width)]
        print("\n".join(lines), file=sys.stderr, flush=True)
        return True

    def _wiped(self, width: int, height: int) -> str:
        """What takes the cursor to the first line of the last frame and wipes that.

        In a window that became narrower, lines of that frame take several.
        """
        used = sum(max(1, -(-drawn // width)) for drawn in self._drawn)
        return f"\x1b[{min(used, height - 1)}F\x1b[J" if used else ""

    def _styled(self, lines: list[list[Piece]], width: int) -> list[str]:
        from rich.text import Text

        console = self._console
        console.width = width + 1  # the layout is done: nothing is to be wrapped
        with console.capture() as captured:
            for line in lines:
                styled = [(piece.text, _STYLES.get(piece.kind, "")) for piece in line]
                if styled and line[0].kind in ("note", "status"):
                    styled = [(piece.text, "dim") for piece in line]
                console.print(Text.assemble(*styled), no_wrap=True, crop=False, overflow="ignore")
        text: str = captured.get()
        return text[:-1].split("\n")


def _plain(line: list[Piece]) -> str:
    return "".join([piece.text for piece in line]).rstrip()
