# SPDX-License-Identifier: Apache-2.0
"""sk_msg's command line."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from types import ModuleType

import pytest

from bpfkit.app.options import parser_of
from bpfkit.core.errors import UnsupportedError, UsageError
from bpfkit.core.features.answer import NOT_SUPPORTED, WORKS, Feature
from bpfkit.sk_msg.demo import Segment, new_bytes
from bpfkit.sk_msg.kernel import check_kernel
from bpfkit.sk_msg.options import parse_ports
from bpfkit.sk_msg.program import SkMsg


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", [range(80, 81)]),
        ("80,8000-8099", [range(80, 81), range(8000, 8100)]),
        ("1-65535", [range(1, 65536)]),
        ("all", [range(1, 65536)]),
    ],
)
def test_ports_are_numbers_and_ranges(text: str, ports: list[range]) -> None:
    assert parse_ports(text) == ports


@pytest.mark.parametrize(
    "text", ["", "0", "65536", "80,", "90-80", "http", "80-", "-80", "1-2-3", "+80", "²", "8 0"]
)
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        parse_ports(text)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--cgroup", "/sys/fs/cgroup"], "--ports"),
        (["--deny-prefix", "x", "--cork", "100"], "--cork"),
        (["--deny-prefix", "x", "--apply", "100"], "--apply"),
        (["--check", "--cgroup", "/sys/fs/cgroup", "--ports", "80"], "--check"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], reason: str) -> None:
    options = parser_of(SkMsg).parse_args(words)
    with pytest.raises(UsageError, match=reason):
        SkMsg(options).check_options()


@pytest.mark.parametrize(
    "words",
    [
        ["--ports", "http"],
        ["--cork", "1"],
        ["--cork", "65537"],
        ["--cork", "many"],
        ["--apply", "0"],
        ["--max", "1"],
        ["--max", "99999999"],
        ["--drain", "0"],
        ["--deny-prefix", ""],
        ["--deny-prefix", "x" * 65],
    ],
)
def test_bad_values_are_refused_in_two_lines(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parser_of(SkMsg).parse_args(words)
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def answers(monkeypatch: pytest.MonkeyPatch, fionread: str, splice: str) -> None:
    """A kernel whose probes say this of redirected data, and that all else works."""
    module = ModuleType("sockmap")
    for name, state in (("fionread", fionread), ("splice", splice)):
        parts = [Feature("in a map", WORKS), Feature("redirected", state)]
        answer = Feature(name, WORKS, parts=parts)
        setattr(module, f"probe_{name}", lambda answer=answer: answer)
    monkeypatch.setitem(sys.modules, "bpfkit.core.features.sockmap", module)


def test_all_ports_are_refused_where_programs_would_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, fionread=NOT_SUPPORTED, splice=NOT_SUPPORTED)
    with pytest.raises(UnsupportedError, match="FIONREAD"):
        list(check_kernel(all_ports=True))
    assert len(list(check_kernel(all_ports=False))) == 1


def test_all_ports_are_warned_of_where_data_cannot_be_spliced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers(monkeypatch, fionread=WORKS, splice=NOT_SUPPORTED)
    assert ["splice" in text for text in check_kernel(all_ports=True)] == [True]
    assert list(check_kernel(all_ports=False)) == []
    answers(monkeypatch, fionread=WORKS, splice=WORKS)
    assert list(check_kernel(all_ports=True)) == []


def test_what_tcp_sends_again_counts_once() -> None:
    """Whole, in part, joined with new data, out of order, and over the wrap of the numbers."""
    first = (1 << 32) - 1001
    sent = [(0, 0), (1, 1000), (1, 1000), (501, 1000), (3001, 500), (1501, 1500)]
    segments = [Segment(5299, (first + seq) % (1 << 32), 16, size) for seq, size in sent]
    assert new_bytes(segments) == 3500
    assert new_bytes([*segments, Segment(40000, 7, 2, 0), Segment(40000, 8, 16, 10)]) == 3510
