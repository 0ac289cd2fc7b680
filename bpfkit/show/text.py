# SPDX-License-Identifier: Apache-2.0
"""Numbers and tables as text."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["cell", "clip", "human", "shorten", "table", "time_of_day", "unit_of", "width_of"]

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


def unit_of(field: str) -> str:
    """The unit of a field of figures, by its name: ``B`` for ``bytes`` and ``policed_bytes``."""
    return "B" if field == "bytes" or field.endswith("_bytes") else ""


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


def width_of(text: str) -> int:
    """Columns of a terminal that ``text`` takes: two for each wide character (Chinese, emoji)."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(one) else 2 if east_asian_width(one) in "WF" else 1 for one in text)


def clip(text: str, width: int, ellipsis: str = "…") -> str:
    """``text`` in at most ``width`` columns; what is cut off is marked by an ellipsis."""
    if width_of(text) <= width:
        return text
    if width <= 0:
        return ""
    kept, room = "", width - 1
    for one in text:
        room -= width_of(one)
        if room < 0:
            break
        kept += one
    return kept + ellipsis


def shorten(text: str, width: int, ellipsis: str = "…") -> str:
    """Like :func:`clip`, but the middle goes: both ends of ``2001:db8::1.443`` tell something."""
    if width_of(text) <= width:
        return text
    if width < 5 or width_of(text) != len(text):
        return clip(text, width, ellipsis)
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}{ellipsis}{text[len(text) - tail :]}"


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[bool] = (),
    indent: str = "",
) -> list[str]:
    """Aligned lines: the titles, then the rows; ``right`` says which columns hold numbers."""
    body = [list(row) for row in rows]
    widths = [
        max([width_of(title), *(width_of(row[i]) for row in body)])
        for i, title in enumerate(titles)
    ]
    aligned = list(right) + [False] * (len(widths) - len(right))
    lines = []
    for row in (list(titles), *body):
        cells = [
            " " * (width - width_of(text)) + text
            if to_right
            else text + " " * (width - width_of(text))
            for text, width, to_right in zip(row, widths, aligned, strict=True)
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines
