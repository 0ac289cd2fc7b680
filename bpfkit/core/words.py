# SPDX-License-Identifier: Apache-2.0
"""Grammar of messages: numbers and their nouns."""

from __future__ import annotations

__all__ = ["count_of"]


def count_of(number: int, noun: str, plural: str = "") -> str:
    """``1 packet``, ``2 packets``, ``1 prefix``, ``0 prefixes``.

    :param plural: the noun's plural, where it is not the noun and an s (es behind ``s, x, ch``).
    """
    if number == 1:
        return f"{number} {noun}"
    if not plural:
        plural = noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")
    return f"{number} {plural}"
