# SPDX-License-Identifier: Apache-2.0
"""Numbers in the rules of cgroup_sock and cgroup_device: decimal digits, nothing else."""

from __future__ import annotations

import pytest

from bpfkit.cgroup_device import ANY, parse_rule
from bpfkit.cgroup_sock import port_range
from bpfkit.core.errors import InputError

ODD = ["5_2", "\u0665", "+5", "0x5", "-5", "5.0", ""]


@pytest.mark.parametrize("text", [*ODD, "0", "65536", "7-6", "5-", "5--6"])
def test_a_port_is_decimal_digits(text: str) -> None:
    with pytest.raises(InputError, match="is not a port"):
        port_range(text)


@pytest.mark.parametrize("text", [*ODD, "4294967296"])
def test_a_device_number_is_decimal_digits(text: str) -> None:
    for rule in (f"char {text}:1", f"block 1:{text}"):
        with pytest.raises(InputError, match="is not a device"):
            parse_rule(rule)


def test_numbers_and_stars_are_read() -> None:
    assert port_range("6000-6999") == range(6000, 7000)
    assert parse_rule("char 1:3:r") == ((2, 1, 3), 2)
    assert parse_rule("block 7: *") == ((1, 7, ANY), 7)
