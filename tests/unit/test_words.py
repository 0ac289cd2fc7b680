# SPDX-License-Identifier: Apache-2.0
"""Grammar of messages."""

from __future__ import annotations

import pytest

from bpfkit.core.words import count_of


@pytest.mark.parametrize(
    ("number", "noun", "plural", "text"),
    [
        (1, "packet", "", "1 packet"),
        (0, "packet", "", "0 packets"),
        (2, "packet", "", "2 packets"),
        (1, "prefix", "", "1 prefix"),
        (3, "prefix", "", "3 prefixes"),
        (2, "process", "", "2 processes"),
        (2, "search", "", "2 searches"),
        (2, "copy", "copies", "2 copies"),
        (1, "copy", "copies", "1 copy"),
        (-1, "packet", "", "-1 packets"),
    ],
)
def test_a_number_and_its_noun(number: int, noun: str, plural: str, text: str) -> None:
    assert count_of(number, noun, plural) == text
