# SPDX-License-Identifier: Apache-2.0
"""The tour of map types: its list, its formulas, its verdicts.  No map is made here."""

from __future__ import annotations

import errno
from ipaddress import ip_address, ip_network
from math import exp
from pathlib import Path

import pytest

from bpfkit.app.lifecycle import main
from bpfkit.commands.guide import MAPS
from bpfkit.core.kernel.constants import MAP_TYPES
from bpfkit.maps import bloom, prefixes, tour
from bpfkit.maps.program import Maps

ROOT = Path(__file__).parents[2]


def test_every_map_type_has_one_stop() -> None:
    names = tour.names()
    assert names == [name.lower() for name in MAP_TYPES[1:]]
    assert sorted(tour.stops()) == sorted(names)


def test_every_family_file_is_part_of_the_tour() -> None:
    frame = {"__init__", "__main__", "program", "tour"}
    files = {path.stem for path in (ROOT / "bpfkit" / "maps").glob("*.py")}
    assert files - frame == set(tour.FAMILIES)


def test_what_a_type_is_for_fits_into_the_table() -> None:
    longest = max(map(len, tour.names()))
    for name, (purpose, _) in tour.stops().items():
        # name, two blanks, purpose, two blanks, "checks", two blanks, "unsupported"
        assert longest + 2 + len(purpose) + 2 + 6 + 2 + 11 <= 80, name


def test_the_guide_names_the_tour_for_every_type() -> None:
    assert {guide.example for guide in MAPS.values()} == {"maps"}
    assert {name.lower() for name in MAPS} <= set(tour.names())


@pytest.mark.parametrize(
    ("entries", "hashes", "wanted"),
    # kernel/bpf/bloom_filter.c: nr_hash_funcs * max_entries / 5 * 7, to the next power of two
    [(1000, 1, 2048), (1000, 3, 8192), (1000, 5, 8192), (1, 1, 64), (100_000, 5, 1 << 20)],
)
def test_size_of_a_bloom_filter(entries: int, hashes: int, wanted: int) -> None:
    assert bloom.bits(entries, hashes) == wanted


def test_rate_of_false_positives_is_the_textbooks() -> None:
    assert bloom.rate(1000, 3, 8192) == pytest.approx((1 - exp(-3000 / 8192)) ** 3)
    # With the best number of hashes, m/n ln 2, the rate is 0.6185^(m/n).
    assert bloom.rate(1000, 7, 10_000) == pytest.approx(0.6185**10, rel=0.01)


@pytest.mark.parametrize("address", prefixes.ADDRESSES)
def test_longest_match_is_the_one_that_no_other_is_in(address: str) -> None:
    value = prefixes.longest(address, prefixes.ROUTES)
    text = next(text for text, number in prefixes.ROUTES.items() if number == value)
    assert ip_address(address) in ip_network(text)
    for other in prefixes.ROUTES:
        if ip_address(address) in ip_network(other):
            assert ip_network(text).subnet_of(ip_network(other))  # type: ignore[arg-type]


def test_names_of_errnos_are_the_kernels() -> None:
    assert tour.errno_name(-7) == "E2BIG"
    assert tour.errno_name(524) == "ENOTSUPP"
    assert tour.errno_name(errno.EOPNOTSUPP) == "EOPNOTSUPP"
    assert tour.errno_name(0) == ""


def visited(monkeypatch: pytest.MonkeyPatch, function: tour.Stop) -> tour.Result:
    monkeypatch.setattr(tour, "stops", lambda: {"hash": ("a purpose", function)})
    monkeypatch.setattr(tour, "_missing", lambda name: "")
    return tour.Tour().visit("hash")


def test_one_wrong_check_makes_a_type_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(t: tour.Trial) -> None:
        t.equal(1, 1, "one")
        t.equal(1, 2, "two")

    result = visited(monkeypatch, stop)
    assert result.status == "failed"
    assert result.checks == [(True, "one"), (False, "two: 1, not 2")]


def test_a_stop_without_checks_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visited(monkeypatch, lambda t: None).status == "failed"


def test_an_unexpected_errno_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(t: tour.Trial) -> None:
        t.check(True, "before")
        raise OSError(errno.EPERM, "")

    result = visited(monkeypatch, stop)
    assert result.status == "failed"
    assert "EPERM" in result.checks[-1][1]


def test_what_a_stop_keeps_is_closed_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []

    class Thing:
        def __init__(self, number: int) -> None:
            self.number = number

        def close(self) -> None:
            closed.append(self.number)

    def stop(t: tour.Trial) -> None:
        t.keep(Thing(1))
        t.keep(Thing(2))
        raise KeyError(3)

    assert visited(monkeypatch, stop).status == "failed"
    assert closed == [2, 1]


def test_an_unknown_type_is_bad_input_with_a_near_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(Maps, ["--type", "lpm_tree"]) == 2
    assert "lpm_trie" in capsys.readouterr().err
