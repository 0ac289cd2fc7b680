# SPDX-License-Identifier: Apache-2.0
"""Foreign text made printable: names of interfaces, processes, cgroups, files, hosts.

Such a name is bytes that somebody else chose.  A terminal acts upon control characters in it, a
strict encoder fails on bytes that are no UTF-8 (:func:`os.fsdecode` keeps them as surrogate
escapes), and characters that change the direction of writing make one name look like another.
"""

from __future__ import annotations

__all__ = ["printable"]

# Unicode Standard Annex 9 (bidirectional formatting), line and paragraph separators, BOM.
_DIRECTIONS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SEPARATORS = frozenset("\u2028\u2029\ufeff")


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20 or 0x7F <= code < 0xA0:
        return f"\\x{code:02x}"
    if 0xD800 <= code < 0xE000 or character in _DIRECTIONS or character in _SEPARATORS:
        return f"\\u{code:04x}"
    return character


def printable(text: str, *, keep: str = "") -> str:
    """``text`` with what must not reach a terminal, JSON or HTML as it is written as an escape.

    Control characters and bytes that are no UTF-8 become ``\\xNN``, characters that change the
    direction of writing and lone surrogates ``\\uNNNN``.

    :param keep: control characters that stay, such as the ends of lines in a text of our own.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join([c if c in keep else _escaped(c) for c in text])
