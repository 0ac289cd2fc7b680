# SPDX-License-Identifier: Apache-2.0
"""A thing as a notebook or a Python prompt shows it: a title, facts, tables, a drawing.

A :class:`View` is plain data; :meth:`View.html` and :meth:`View.text` render the same content.
"""

from __future__ import annotations

from html import escape

from bpfkit.show.text import table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Table", "View"]

#: Colours are left to the notebook's theme, except where they carry meaning.
_STYLE = "border-collapse:collapse;font-variant-numeric:tabular-nums"
_NUMBER = ' style="text-align:right"'
_WORD = ' style="text-align:left"'


class Table:
    """Titles and rows.

    :param right: which columns hold numbers.
    :param more: a line below the table ("… 980 more").
    :param title: a line above it.
    """

    __slots__ = ("more", "right", "rows", "title", "titles")

    def __init__(
        self,
        titles: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        right: Sequence[bool] = (),
        more: str = "",
        title: str = "",
    ) -> None:
        self.titles = list(titles)
        self.rows = [list(row) for row in rows]
        self.right = [*right, *[False] * (len(self.titles) - len(right))]
        self.more = more
        self.title = title

    def html(self) -> str:
        """``<table>``; every text is escaped."""
        styles = [_NUMBER if number else _WORD for number in self.right]
        head = _cells("th", self.titles, styles)
        body = "".join(f"<tr>{_cells('td', row, styles)}</tr>" for row in self.rows)
        title = f"<caption{_WORD}>{escape(self.title)}</caption>" if self.title else ""
        more = f"<div>{escape(self.more)}</div>" if self.more else ""
        return (
            f'<table style="{_STYLE}">{title}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table>{more}"
        )

    def text(self) -> list[str]:
        """Aligned lines."""
        lines = [self.title] if self.title else []
        lines += table(self.titles, self.rows, right=self.right, indent="  ")
        return [*lines, f"  {self.more}"] if self.more else lines


def _cells(tag: str, texts: Sequence[str], styles: Sequence[str]) -> str:
    return "".join(
        f"<{tag}{style}>{escape(text)}</{tag}>" for text, style in zip(texts, styles, strict=True)
    )


class View:
    """What is shown of a thing.

    :param title: its kind and name ("Map flows").
    :param facts: (name, value) pairs, in order.
    :param tables: what it holds.
    :param drawing: (HTML or SVG markup, the same as text).
    :param note: a sentence below everything.
    """

    __slots__ = ("drawing", "facts", "note", "tables", "title")

    def __init__(
        self,
        title: str,
        facts: Iterable[tuple[str, str]] = (),
        tables: Iterable[Table] = (),
        *,
        drawing: tuple[str, str] = ("", ""),
        note: str = "",
    ) -> None:
        self.title = title
        self.facts = [(name, value) for name, value in facts if value]
        self.tables = list(tables)
        self.drawing = drawing
        self.note = note

    def html(self) -> str:
        """A ``<div>`` for a notebook's cell."""
        facts = " · ".join(f"{escape(name)} <b>{escape(value)}</b>" for name, value in self.facts)
        parts = [
            f"<div><b>{escape(self.title)}</b></div>",
            f"<div>{facts}</div>" if facts else "",
            self.drawing[0],
            *(found.html() for found in self.tables),
            f"<div><i>{escape(self.note)}</i></div>" if self.note else "",
        ]
        return f'<div class="bpfkit">{"".join(parts)}</div>'

    def text(self) -> str:
        """The same for a terminal."""
        lines = [self.title]
        if self.facts:
            lines.append("  " + ", ".join(f"{name} {value}" for name, value in self.facts))
        if self.drawing[1]:
            lines.append(self.drawing[1])
        for found in self.tables:
            lines += found.text()
        if self.note:
            lines.append(f"  {self.note}")
        return "\n".join(lines)
