# SPDX-License-Identifier: Apache-2.0
"""Grammar of messages."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

from bpfkit.core.words import count_of
from bpfkit.show.text import human

ROOT = Path(__file__).resolve().parents[2]


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


def test_thousands_are_apart() -> None:
    assert count_of(12345, "packet") == "12 345 packets"
    assert count_of(12345, "packet", form=human) == "12.3 k packets"


#: What programs count, and nothing else is called in their texts.
NOUNS = {
    "calls", "connections", "datagrams", "events", "flows", "hits", "packets", "pings", "processes",
    "requests", "samples",
}  # fmt: skip


def counted_by_hand(source: str) -> list[tuple[int, str]]:
    """(line, text) of ``f"{number} packets"`` where one packet would be ``1 packets``.

    Constants, what is text already (:func:`human`), the whole of ``1 of {number} packets`` and the
    label of the next value (``bytes {size} packets {number}``) are left out.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        before = ""
        for value, behind in pairwise(node.values):
            if isinstance(value, ast.FormattedValue) and isinstance(behind, ast.Constant):
                noun = re.match(r" (\w+)(?! $)\b", str(behind.value))
                text = ast.unparse(value.value)
                if (
                    noun is not None
                    and noun[1] in NOUNS
                    and not re.match(r"(?!len|sum)[\w.]+\(", text)
                    and not text.rpartition(".")[2].isupper()
                    and not before.endswith(("of ", " + ", "After "))
                ):
                    found.append((value.lineno, f"{{{text}}} {noun[1]}"))
            before = str(value.value) if isinstance(value, ast.Constant) else ""
    return found


def test_one_packet_is_not_called_one_packets() -> None:
    for wrong in ("{row[0]} packets", "{len(seen)} packets", "lost: {n} packets, all"):
        assert len(counted_by_hand(f'f"{wrong}"')) == 1
    for fine in (
        "{count_of(n, 'packet')}",
        "1 of {n} packets",
        "{human(n)} packets",
        "{MOST} calls",
    ):
        assert counted_by_hand(f'f"{fine}"') == []
    found = {
        str(path.relative_to(ROOT)): hits
        for path in sorted(ROOT.glob("bpfkit/**/*.py"))
        if (hits := counted_by_hand(path.read_text()))
    }
    assert not found
