# SPDX-License-Identifier: Apache-2.0
"""Fields of keys, values and events as text, in the forms of core.types.forms."""

from __future__ import annotations

from bpfkit.core.printable import printable
from bpfkit.core.types.forms import family_of, form_of, shown
from bpfkit.core.types.layout import EnumValue, Field, StructValue
from bpfkit.show.text import cell, time_of_day

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bpfkit.core.types.layout import Layout

__all__ = ["Column", "columns_of", "texts"]


class Column:
    """A column of a map's or buffer's table.

    :ivar title: the field's name in C.
    :ivar number: whether it holds numbers, which are aligned to the right.
    """

    __slots__ = ("_form", "field", "number", "title")

    def __init__(self, field: Field) -> None:
        self.field = field
        self.title = field.name
        self._form = form_of(field)
        scalar = not (field.layout.fields or "[" in field.layout.name)
        self.number = scalar and self._form in ("", "number")

    def shown(self, value: Any, family: int = 0) -> Any:
        """The value in its field's form.

        :param family: 4 or 6 where the same struct says which one its 16-byte addresses are of.
        """
        return shown(self._form, self.field.layout, value, family)

    def text(self, value: Any, family: int = 0) -> str:
        """The value in its field's form, as text."""
        found = self.shown(value, family)
        return time_of_day(found) if self._form == "time" else _text(found)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        start = value[:24].hex(" ")
        return f"{start} …" if len(value) > 24 else start
    if isinstance(value, StructValue):
        inner = columns_of(value._layout, "")
        return ", ".join(
            f"{column.title} {text}"
            for column, text in zip(inner, texts(inner, value), strict=True)
        )
    if isinstance(value, EnumValue):
        return str(value)
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    if isinstance(value, str):
        return printable(value)
    return cell(value)


def columns_of(layout: Layout, name: str) -> list[Column]:
    """The columns of a layout: its fields, or one of this name if it has none."""
    return [Column(field) for field in layout.fields or (Field(name, 0, 0, layout),)]


def texts(columns: Sequence[Column], values: Sequence[Any]) -> list[str]:
    """A row of values as text."""
    family = family_of([column.field for column in columns], values)
    return [column.text(value, family) for column, value in zip(columns, values, strict=True)]
