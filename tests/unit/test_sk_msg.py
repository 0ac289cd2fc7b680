# SPDX-License-Identifier: Apache-2.0
"""sk_msg's command line."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from bpfkit.app.options import parser_of
from bpfkit.core.errors import UsageError
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
        ["--max", "-1"],
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
