# SPDX-License-Identifier: Apache-2.0
"""Numbers and tables as text."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["cell", "clip", "fit", "human", "shorten", "table", "time_of_day"]

_UNITS = ("", "k", "M", "G", "T", "P", "E")


def human(value: float, unit: str = "") -> str:
    """Four figures at most and an SI prefix: ``999 B``, ``1.50 kB``, ``12.3 Mbit/s``."""
    size = abs(value)
    step = 0
    # 999.5 would be shown as 1000 by three figures: it already belongs to the next prefix.
    while size >= 999.5 and step < len(_UNITS) - 1:
        size /= 1000
        step += 1
    if step == 0:
        digits = 0 if size == int(size) or size >= 99.95 else 1
    else:
        digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    text = f"{'-' if value < 0 else ''}{size:.{digits}f}"
    prefix = _UNITS[step]
    return f"{text} {prefix}{unit}" if prefix or unit else text


def time_of_day(seconds: float) -> str:
    """A UNIX time as local time of day, with milliseconds: ``12:30:05.123``."""
    from time import localtime, strftime

    ms = int(seconds * 1000)
    return f"{strftime('%H:%M:%S', localtime(ms // 1000))}.{ms % 1000:03}"


def cell(value: object) -> str:
    """A value in a table: numbers with blanks between thousands, nothing for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, (list, tuple)):
        return " ".join(map(cell, value))
    return str(value)


def clip(text: str, width: int) -> str:
    """``text`` in at most ``width`` characters; what is cut off is marked by an ellipsis."""
    if len(text) <= width:
        return text
    return text[: width - 1] + "…" if width > 0 else ""


def shorten(text: str, width: int) -> str:
    """Like :func:`clip`, but the middle goes: both ends of ``2001:db8::1.443`` tell something."""
    if len(text) <= width or width < 5:
        return clip(text, width)
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def fit(
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Sequence[bool],
    room: int,
) -> tuple[list[str], list[list[str]]]:
    """Titles and rows with their words cut so that all columns together take ``room`` characters.

    Numbers are never cut: a figure without its end is another figure.
    """
    body = [list(row) for row in rows]
    widths = [max([len(title), *(len(row[i]) for row in body)]) for i, title in enumerate(titles)]
    words = [i for i in range(len(widths)) if not (i < len(right) and right[i])]
    most = max((widths[i] for i in words), default=0)
    # The widest give first: lower the most that a column of words may have.
    while sum(widths) > room and most > 4:
        most -= 1
        for i in words:
            widths[i] = min(widths[i], most)
    for line in body:
        for i in words:
            line[i] = shorten(line[i], widths[i])
    return [clip(title, width) for title, width in zip(titles, widths, strict=True)], body


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[bool] = (),
    indent: str = "",
) -> list[str]:
    """Aligned lines: the titles, then the rows; ``right`` says which columns hold numbers."""
    body = [list(row) for row in rows]
    widths = [max([len(title), *(len(row[i]) for row in body)]) for i, title in enumerate(titles)]
    aligned = list(right) + [False] * (len(widths) - len(right))
    lines = []
    for row in (list(titles), *body):
        cells = [
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, aligned, strict=True)
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines
