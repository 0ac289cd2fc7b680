# SPDX-License-Identifier: Apache-2.0
"""Grammar of messages: numbers and their nouns."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["count_of", "thousands"]


def thousands(number: int) -> str:
    """``12 345``: blanks between thousands."""
    return f"{number:,}".replace(",", " ")


def count_of(
    number: int, noun: str, plural: str = "", *, form: Callable[[int], str] = thousands
) -> str:
    """``1 packet``, ``2 packets``, ``12 345 packets``, ``1 prefix``, ``0 prefixes``.

    :param plural: the noun's plural, where it is not the noun and an s (es behind ``s, x, ch``).
    :param form: the number's text; :func:`bpfkit.show.text.human` under a table of such figures.
    """
    if number == 1:
        return f"1 {noun}"
    if not plural:
        plural = noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")
    return f"{form(number)} {plural}"
