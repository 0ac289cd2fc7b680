# SPDX-License-Identifier: Apache-2.0
"""JSON lines: one object a line."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["json_lines"]

_encode: Callable[[object], str] | None = None


def json_lines(rows: Iterable[Mapping[str, object]]) -> str:
    """The rows as text, each object on a line of its own (plain ASCII, fields in their order)."""
    global _encode
    if _encode is None:
        # Costs milliseconds; at this point the program is attached already.
        from json import JSONEncoder

        _encode = JSONEncoder().encode
    encode = _encode
    text = "".join([f"{encode(row)}\n" for row in rows])
    if "\\udc" in text:
        # Bytes of a name that are no UTF-8, as os.fsdecode() keeps them: strict readers refuse such
        # lone surrogates, so they are written as on a terminal, \xNN.
        import re

        text = re.sub(r"(?<!\\ud[89ab][0-9a-f]{2})\\udc([89a-f][0-9a-f])", r"\\\\x\1", text)
    return text
