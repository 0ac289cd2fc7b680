# SPDX-License-Identifier: Apache-2.0
"""Maglev's table: full, balanced, the same for the same backends, nearly so for others."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfkit.xdp_lb.maglev import EMPTY, SIZES, build, is_prime, shares, unavoidable

SIZE = 4093
names = st.lists(st.ip_addresses().map(str), min_size=1, max_size=40, unique=True)


def even(chosen: list[str]) -> dict[str, tuple[int, int]]:
    return {name: (i, 1) for i, name in enumerate(chosen)}


@settings(max_examples=60, deadline=None)
@given(names)
def test_every_slot_is_filled_and_the_difference_is_one_slot(chosen: list[str]) -> None:
    table = build(even(chosen), SIZE)
    counts = Counter(table)
    assert len(table) == SIZE and set(counts) == set(range(len(chosen)))
    assert max(counts.values()) - min(counts.values()) <= 1


@settings(max_examples=60, deadline=None)
@given(names, st.randoms(use_true_random=False))
def test_order_and_numbers_do_not_matter(chosen: list[str], rng) -> None:  # type: ignore[no-untyped-def]
    table = build(even(chosen), SIZE)
    other = chosen.copy()
    rng.shuffle(other)
    again = build({name: (1000 + i, 1) for i, name in enumerate(other)}, SIZE)
    assert [chosen[i] for i in table] == [other[i - 1000] for i in again]


@settings(max_examples=60, deadline=None)
@given(names.filter(lambda chosen: len(chosen) > 1), st.data())
def test_removing_one_moves_little_else(chosen: list[str], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(chosen))
    all_of_them = even(chosen)
    old = build(all_of_them, SIZE)
    new = build({name: row for name, row in all_of_them.items() if name != gone}, SIZE)
    number = all_of_them[gone][0]
    pairs = list(zip(old, new, strict=True))
    ideal = sum(a == number for a, _ in pairs)
    needless = sum(a not in (number, b) for a, b in pairs)
    assert number not in new
    assert unavoidable(old, new) in (ideal, ideal + 1), "rounding may cost one more its slot"
    # the paper's section 5.3: some per cent of the table for a hundred slots a backend and more
    assert needless < 0.06 * SIZE
    assert unavoidable(new, old) >= ideal - 1, "and the same way back"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
def test_weights_are_shares(weights: list[int]) -> None:
    table = build({f"10.0.0.{i}": (i, weight) for i, weight in enumerate(weights)}, SIZE)
    total = sum(weights)
    counts = shares(table)
    for i, weight in enumerate(weights):
        assert abs(counts.get(i, 0) - SIZE * weight / total) <= max(weight, 1)


def test_without_backends_it_is_empty() -> None:
    assert set(build({}, 251)) == {EMPTY}
    assert set(build({"10.0.0.1": (3, 0)}, 251)) == {EMPTY}


@pytest.mark.parametrize(("size", "weight"), [(4094, 1), (1, 1), (0, 1), (251, 252)])
def test_sizes_that_cannot_be(size: int, weight: int) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        build({"10.0.0.1": (0, weight)}, size)


def test_primes() -> None:
    assert all(map(is_prime, SIZES))
    sieve = [n for n in range(200) if n > 1 and all(n % i for i in range(2, n))]
    assert [n for n in range(200) if is_prime(n)] == sieve


def test_the_largest_table_is_made_in_time() -> None:
    """A twentieth of a second of CPU time here; fifty times that is a mistake, not a slow CPU."""
    started = time.process_time()
    build({f"10.0.{i >> 8}.{i & 255}": (i, 1) for i in range(500)}, SIZES[-1])
    assert time.process_time() - started < 2.5
