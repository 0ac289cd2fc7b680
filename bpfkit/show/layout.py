# SPDX-License-Identifier: Apache-2.0
"""Which columns of a table a window shows, and on which line of a row.

The rule, for a window that is too narrow for everything:

1. Columns that say what a row is about (its *identity*) stay whole.  Figures are left out, the
   least important first; the most important one stays.
2. Where the identity and that one figure are still too wide, every row folds onto two lines (or
   more): as much of the identity as fits on each, then the figures that fit beside it.
3. Only a cell of the identity that is wider than the window loses its middle.
"""

from __future__ import annotations

from bpfkit.show.text import shorten, width_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Column", "Piece", "cut", "lay_out", "pieces", "wrap"]

#: Blanks between columns, and in front of the second and further lines of a row.
GAP = INDENT = 2


class Column:
    """A column of a table.

    :ivar title: its title.
    :ivar cells: its texts, a row each.
    :ivar rank: 0 and up: a figure, the least important has the largest; -1: part of the identity.
    :ivar right: it is aligned to the right, as numbers are.
    :ivar width: its width in cells of a terminal.
    """

    __slots__ = ("cells", "rank", "right", "title", "width")

    def __init__(
        self, title: str, cells: Iterable[str], *, rank: int = -1, right: bool = False
    ) -> None:
        self.title = title
        self.cells = list(cells)
        self.rank = rank
        self.right = right
        self.width = max(map(width_of, (title, *self.cells)))

    def __repr__(self) -> str:
        return f"Column({self.title!r}, rank={self.rank}, width={self.width})"


class Piece:
    """A piece of a line: text of one kind (``title``, ``name``, ``figure`` or ``gap``)."""

    __slots__ = ("kind", "text")

    def __init__(self, text: str, kind: str) -> None:
        self.text = text
        self.kind = kind


def lay_out(columns: Sequence[Column], room: int) -> list[list[int]]:
    """The lines of a row, each a list of numbers of columns, for ``room`` characters."""

    def total(numbers: Iterable[int]) -> int:
        widths = [columns[i].width for i in numbers]
        return sum(widths) + GAP * (len(widths) - 1)

    names = [i for i, column in enumerate(columns) if column.rank < 0]
    figures = sorted(
        (i for i, column in enumerate(columns) if column.rank >= 0), key=lambda i: columns[i].rank
    )
    kept = figures[:]
    while len(kept) > 1 and total([*names, *kept]) > room:
        kept.pop()
    if total([*names, *kept]) <= room:
        return [sorted([*names, *kept])]
    lines: list[list[int]] = [[]]
    for i in names:
        space = room - (INDENT if len(lines) > 1 else 0)
        if lines[-1] and total([*lines[-1], i]) > space:
            lines.append([])
        lines[-1].append(i)
    if not figures:
        return lines
    # The figures stand on the second line or below it, whichever the identity ends on.
    last = lines[-1] if len(lines) > 1 else []
    if not last or total([*last, figures[0]]) > room - INDENT:
        last = []
        lines.append(last)
    for i in figures:
        if total([*last, i]) > room - INDENT:
            break
        last.append(i)
    if not last:  # not even one figure has room: it is cut by the window
        last.append(figures[0])
    last.sort()
    return [line for line in lines if line]


def cut(columns: Sequence[Column], room: int, ellipsis: str = "…") -> list[Column]:
    """The columns, with the identity's cells and titles that are wider than the window cut."""
    short = []
    for column in columns:
        if column.rank < 0 and column.width > room - INDENT:
            cells = [shorten(text, room - INDENT, ellipsis) for text in column.cells]
            title = shorten(column.title, room - INDENT, ellipsis)
            column = Column(title, cells, right=column.right)
        short.append(column)
    return short


def pieces(
    columns: Sequence[Column], lines: Sequence[Sequence[int]], row: int | None
) -> list[list[Piece]]:
    """The lines of a row (None: of the titles) as pieces, aligned."""
    drawn = []
    for number, line in enumerate(lines):
        parts = [Piece(" " * INDENT, "gap")] if number else []
        for at, i in enumerate(line):
            column = columns[i]
            text = column.title if row is None else column.cells[row]
            blank = " " * (column.width - width_of(text))
            kind = "title" if row is None else "name" if column.rank < 0 else "figure"
            if at:
                parts.append(Piece(" " * GAP, "gap"))
            before, behind = (blank, "") if column.right else ("", blank)
            parts.append(Piece(before, "gap"))
            parts.append(Piece(text, kind))
            parts.append(Piece(behind if at + 1 < len(line) else "", "gap"))
        drawn.append([part for part in parts if part.text])
    return drawn


def wrap(text: str, width: int) -> list[str]:
    """A line as lines of at most ``width`` characters, broken at blanks where there are any.

    A line with a run of blanks is a picture or a table, and is left as it is.
    """
    if width_of(text) <= width or "  " in text.strip():
        return [text]
    lines: list[str] = []
    for word in text.split(" "):
        if lines and width_of(lines[-1]) + 1 + width_of(word) <= width:
            lines[-1] += f" {word}"
            continue
        while width_of(word) > width:
            lines.append(word[:width])
            word = word[width:]
        lines.append(word)
    return lines
