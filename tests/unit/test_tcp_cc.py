# SPDX-License-Identifier: Apache-2.0
"""tcp_cc: the series of cwnd, its comparison with TCP_INFO, its plot; struct_ops without BTF."""

from __future__ import annotations

import pytest

from bpfkit.core.attach import struct_ops
from bpfkit.core.errors import InputError, UnsupportedError
from bpfkit.core.kernel.sections import resolve
from bpfkit.core.program import Program
from bpfkit.core.types import btf
from bpfkit.tcp_cc.plot import plot
from bpfkit.tcp_cc.series import INFINITE, Change, Sample, Series

MS = 1_000_000


def series_of(*changes: tuple[int, int, int]) -> Series:
    series = Series()
    for at, cwnd, ssthresh in changes:
        series.add(Change(at * MS, cwnd, ssthresh))
    return series


def sample(at: int, cwnd: int, ssthresh: int) -> Sample:
    return Sample(at * MS, at * MS + 1000, cwnd, ssthresh)


def test_a_sample_agrees_with_the_value_in_force_or_the_next_one_only() -> None:
    series = series_of((0, 10, INFINITE), (10, 20, INFINITE), (20, 10, 10), (30, 11, 10))
    assert series.has(sample(15, 20, INFINITE))
    assert series.has(sample(15, 10, 10)), "what the kernel changed is noted at the next ACK"
    assert not series.has(sample(15, 10, INFINITE)), "of an earlier moment"
    assert not series.has(sample(15, 11, 10)), "of a later moment"
    assert not series.has(sample(15, 20, 10)), "cwnd and ssthresh of different moments"
    assert series.has(sample(40, 11, 10))
    assert not series.has(sample(40, 12, 10))
    assert series.missing([sample(15, 20, INFINITE), sample(15, 7, 7)])[0].cwnd == 7
    assert not Series().has(sample(1, 10, 10))


def test_changes_of_two_cpus_are_put_in_order() -> None:
    series = series_of((10, 1, 1), (30, 3, 1), (20, 2, 1))
    assert [change.cwnd for change in series.changes] == [1, 2, 3]


def test_a_series_is_limited_and_keeps_the_newest() -> None:
    series = Series(limit=100)
    for number in range(1000):
        series.add(Change(number, number, 1))
    assert len(series.changes) <= 100
    assert series.changes[-1].cwnd == 999


def test_the_plot_fits_80_columns_and_shows_each_extreme() -> None:
    changes = [Change(t * MS, 10 + t % 30, 20) for t in range(3000)]
    lines = plot(changes, ascii=True)
    assert len(lines) == 12
    assert max(map(len, lines)) == 80
    assert "".join(lines).isascii()
    rows = [line.partition("|") for line in lines[:10]]
    assert [int(label) for label, _, _ in rows] == [36, 32, 28, 24, 20, 16, 12, 8, 4, 0]
    # 10 to 39: every row from 8 to 36 has a dot in every column, and none is below.
    assert all(dots == "*" * 72 for _, _, dots in rows[:8])
    assert all("*" not in dots for _, _, dots in rows[8:])
    assert lines[-1].endswith("3.00 s")


def test_the_plot_keeps_a_value_until_the_next_change() -> None:
    lines = plot([Change(0, 9, INFINITE), Change(1000 * MS, 1, 4)], ascii=True)
    assert lines[0].startswith("     9 |***")
    assert lines[0].count("*") >= 71
    assert lines[8].rstrip().endswith("*")  # 1, in the last column
    assert "-" not in "".join(lines[:5]), "no line for an infinite ssthresh"


def test_the_last_seconds_only() -> None:
    changes = [Change(t * MS, 100 if t < 500 else 5, 3) for t in range(1000)]
    top = int(plot(changes, seconds=0.3, ascii=True)[0].split("|")[0])
    assert top < 10


def test_nothing_to_plot() -> None:
    assert plot([]) == []
    assert plot([Change(0, 1, 1)], width=10) == []


def _program() -> Program:
    return Program("cong_avoid", resolve("struct_ops/tcp_congestion_ops.cong_avoid"), -1)


def test_a_kernel_without_btf_is_77_and_says_which_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(btf, "vmlinux", lambda: None)
    with pytest.raises(UnsupportedError, match="CONFIG_DEBUG_INFO_BTF") as caught:
        struct_ops.attach([_program()], "tcp_congestion_ops", {"name": "x"})
    assert caught.value.exit_status == 77


def test_a_struct_without_programs_is_the_callers_mistake() -> None:
    with pytest.raises(InputError, match=r"struct_ops/Qdisc_ops\.member"):
        struct_ops.attach([_program()], "Qdisc_ops", {})
