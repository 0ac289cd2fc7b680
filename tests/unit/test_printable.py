# SPDX-License-Identifier: Apache-2.0
"""Text that others chose neither drives a terminal nor breaks an encoder."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfkit.core.printable import printable


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"eth0", "eth0"),
        (b"f\xe9w", "f\\xe9w"),
        (b"a\x1b]0;owned\x07b", "a\\x1b]0;owned\\x07b"),
        (b"a\x7fb", "a\\x7fb"),
        ("a\x9bb".encode(), "a\\x9bb"),
        ("caf\u00e9 \u65e5\u672c".encode(), "caf\u00e9 \u65e5\u672c"),
        ("a\u202egnp.exe".encode(), "a\\u202egnp.exe"),
        (b"a\nb\tc", "a\\x0ab\\x09c"),
    ],
)
def test_names_of_the_kernel(raw: bytes, shown: str) -> None:
    assert printable(os.fsdecode(raw)) == shown


def test_the_ends_of_our_own_lines_stay() -> None:
    assert printable("one\ntwo\x1b", keep="\n") == "one\ntwo\\x1b"


@given(st.binary())
def test_every_name_can_be_written(raw: bytes) -> None:
    text = printable(os.fsdecode(raw))
    assert text.encode("utf-8").isascii() or True in [c > "\x9f" for c in text]
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in text)
    assert json.loads(json.dumps(text)) == text


def test_plain_text_is_returned_as_it_is() -> None:
    text = "eth0"
    assert printable(text) is text
