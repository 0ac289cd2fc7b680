# SPDX-License-Identifier: Apache-2.0
"""Places of USDT arguments, as assembler text; latencies' slots."""

from __future__ import annotations

import pytest

from bpfkit.uprobe.latency import bounds, histogram, percentile
from bpfkit.usdt.notes import Argument

CONSTANT, REGISTER, MEMORY = 1, 2, 3
NO = 0xFFFF


@pytest.mark.parametrize(
    ("text", "packed"),
    [
        ("-4@%edi", (0, 112, NO, 0, REGISTER, 32, 1)),
        ("8@-8(%rbp)", (2**64 - 8, 32, NO, 0, MEMORY, 0, 0)),
        ("4@$3", (3, 0, NO, 0, CONSTANT, 32, 0)),
        ("-8@$-7", (2**64 - 7, 0, NO, 0, CONSTANT, 0, 1)),
        ("-1@%ah", (0, 81, NO, 0, REGISTER, 56, 1)),
        ("1@%sil", (0, 104, NO, 0, REGISTER, 56, 0)),
        ("2@%r10w", (0, 56, NO, 0, REGISTER, 48, 0)),
        ("8@16(%rax,%rbx,4)", (16, 80, 40, 2, MEMORY, 0, 0)),
        ("4@(%rsp)", (0, 152, NO, 0, MEMORY, 32, 0)),
        ("8@(,%rcx,8)", (0, NO, 88, 3, MEMORY, 0, 0)),
        ("%rax", (0, 80, NO, 0, REGISTER, 0, 0)),
    ],
)
def test_a_place_is_where_the_assembler_has_it(text: str, packed: tuple[int, ...]) -> None:
    """Register offsets are those of struct pt_regs in arch/x86/include/uapi/asm/ptrace.h."""
    from struct import unpack

    argument = Argument(text)
    assert argument.is_known
    assert unpack("<QHHBBBBB7x", argument.pack(False))[:7] == packed


@pytest.mark.parametrize(
    "text", ["8f@%xmm0", "4@counter(%rip)", "4@8(%rip)", "8@%st", "x@y", "9@%rax"]
)
def test_forms_that_are_not_decoded_are_known_as_such(text: str) -> None:
    argument = Argument(text)
    assert not argument.is_known
    assert set(argument.pack(True)[13:14] + argument.pack(True)[16:17]) == {0}


def test_the_slots_follow_each_other_without_gaps() -> None:
    last = bounds(8)[0]
    for slot in range(8, 250):
        first, behind = bounds(slot)
        assert first == last < behind
        last = behind


def test_percentiles_are_within_their_slot() -> None:
    slots = [0] * 256
    slots[4 * 10] = 99  # 1024 to 1279 ns
    slots[4 * 20 + 2] = 1  # 1.5 ms
    half, late = percentile(slots, 0.5), percentile(slots, 1)
    assert half is not None
    assert late is not None
    assert 1024 <= half < 1280
    assert 1.5 * 2**20 <= late <= 1.75 * 2**20
    assert percentile([0] * 256, 0.5) is None
    assert histogram(slots) == [[1024, 99], [1 << 20, 1]]
