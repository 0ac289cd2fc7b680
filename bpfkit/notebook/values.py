# SPDX-License-Identifier: Apache-2.0
"""Fields of keys, values and events as people read them: addresses, ports, protocols."""

from __future__ import annotations

from bpfkit.core.printable import printable
from bpfkit.core.types.layout import EnumValue, StructValue
from bpfkit.show.address import address_text
from bpfkit.show.protocols import protocol_name
from bpfkit.show.text import cell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bpfkit.core.types.layout import Layout

__all__ = ["Column", "columns_of", "texts"]

#: Words by which fields that hold an address are named.
_ADDRESS = ("addr", "src", "dst", "source", "dest", "ip", "ip4", "ip6", "host", "peer", "local")
_MAC = 6


class Column:
    """A column of a map's or buffer's table.

    :ivar title: the field's name in C.
    :ivar number: whether it holds numbers, which are aligned to the right.
    """

    __slots__ = ("_be32", "number", "title")

    def __init__(self, title: str, layout: Layout | None) -> None:
        self.title = title
        kind = layout.name if layout is not None else ""
        self._be32 = kind == "__be32" and _is_address(title)
        scalar = layout is None or not (layout.fields or "[" in kind)
        self.number = scalar and not self._be32 and "proto" not in title

    def text(self, value: Any, family: int = 0) -> str:
        """The value as text.

        :param family: 4 or 6 where the same struct says which one its 16-byte addresses are of.
        """
        if isinstance(value, bytes):
            return self._bytes(value, family)
        if isinstance(value, StructValue):
            inner = columns_of(value._layout, ("",))
            return ", ".join(
                f"{column.title} {text}"
                for column, text in zip(inner, texts(inner, value), strict=True)
            )
        if isinstance(value, EnumValue):
            return str(value)
        if isinstance(value, tuple):
            return " ".join(self.text(item) for item in value)
        if isinstance(value, str):
            return printable(value)
        if self._be32 and type(value) is int:
            return address_text(value.to_bytes(4, "big"))
        if type(value) is int and self.title in ("proto", "protocol") and 0 <= value < 256:
            return protocol_name(value)
        return cell(value)

    def _bytes(self, value: bytes, family: int) -> str:
        if len(value) == _MAC and not _is_text(value):
            return value.hex(":")
        if len(value) == 16 and _is_address(self.title):
            return address_text(value[:4] if family == 4 else value)
        if len(value) == 4 and _is_address(self.title):
            return address_text(value)
        shown = value[:24].hex(" ")
        return f"{shown} …" if len(value) > 24 else shown


def _is_address(name: str) -> bool:
    words = name.lower().split("_")
    return any(word in _ADDRESS or word.endswith("addr") for word in words)


def _is_text(value: bytes) -> bool:
    text = value.rstrip(b"\0")
    return bool(text) and text.isascii() and text.decode().isprintable()


def columns_of(layout: Layout, names: Sequence[str]) -> list[Column]:
    """The columns of a layout: its fields, or one of the name in ``names`` if it has none."""
    fields = layout.fields
    if fields:
        return [Column(field.name, field.layout) for field in fields]
    return [Column(names[0], layout)]


def texts(columns: Sequence[Column], values: Sequence[Any]) -> list[str]:
    """A row of values as text."""
    family = 0
    for column, value in zip(columns, values, strict=True):
        if column.title in ("family", "version") and type(value) is int:
            family = {2: 4, 10: 6}.get(value, value)
    return [column.text(value, family) for column, value in zip(columns, values, strict=True)]
