# SPDX-License-Identifier: Apache-2.0
"""Characters that the encoding of an output lacks (ASCII, Latin-1): what is written for them."""

from __future__ import annotations

import codecs

__all__ = ["ASCII_FORMS", "encodable", "encoded", "use_ascii_forms"]

#: What stands for a character where the encoding of the output lacks it.
ASCII_FORMS = {
    "…": "...", "·": "-", "•": "*", "●": "*", "–": "-", "—": "-", "×": "x", "µ": "u", "±": "+-",
    "→": "->", "←": "<-", "↓": "v", "↑": "^", "▼": "v", "▲": "^", "≤": "<=", "≥": ">=", "≈": "~",
    "✓": "ok", "✗": "x", "─": "-", "│": "|", "└": "`", "├": "|", "┤": "|", "┼": "+", "╭": ".",
    "╮": ".", "╰": "`", "╯": "'", "╴": "-", "²": "^2", "³": "^3", "’": "'", "‘": "'", "“": '"',
    "”": '"', "\u202f": " ", "\u00a0": " ",
}  # fmt: skip
#: The error handler of :mod:`codecs` that writes these forms.
_HANDLER = "bpfkit.ascii"


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    forms = [
        ASCII_FORMS.get(one) or one.encode("ascii", "backslashreplace").decode() for one in lacking
    ]
    return "".join(forms), error.end


def encoded(text: str, encoding: str) -> bytes:
    """``text`` in ``encoding``, with an ASCII form, or an escape, of what it lacks."""
    return text.encode(encoding, _HANDLER)


def encodable(text: str, encoding: str) -> str:
    """``text`` as :func:`encoded` writes it, for a layout that has to know its width."""
    return text if text.isascii() else encoded(text, encoding).decode(encoding)


def use_ascii_forms(*streams: object) -> None:
    """From now on text streams write ASCII forms of what their encoding lacks, and never fail."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_HANDLER)


codecs.register_error(_HANDLER, _replace)
