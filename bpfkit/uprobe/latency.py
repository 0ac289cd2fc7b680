# SPDX-License-Identifier: Apache-2.0
"""Histograms of latencies as bpf_c/trace/uprobe.bpf.c counts them: four slots per power of 2."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["SLOTS", "bounds", "histogram", "histogram_lines", "percentile"]

#: Slots of a function.
SLOTS = 256


def bounds(slot: int) -> tuple[int, int]:
    """Nanoseconds, from and to (excluded), of a slot: a quarter of a power of 2."""

    def start(number: int) -> int:
        log, quarter = divmod(number, 4)
        return ((4 + quarter) << log) >> 2

    return start(slot), max(start(slot + 1), start(slot) + 1)


def percentile(slots: list[int], share: float) -> float | None:
    """Nanoseconds within which ``share`` of the calls returned, interpolated in the slot."""
    left = sum(slots) * share
    for slot, count in enumerate(slots):
        if count and left <= count:
            first, last = bounds(slot)
            return first + (last - first) * left / count
        left -= count
    return None


def histogram(slots: Sequence[int]) -> list[list[int]]:
    """[nanoseconds from, calls] for each power of 2 that has calls; it ends at twice that."""
    by_log = [sum(slots[4 * log : 4 * log + 4]) for log in range(SLOTS // 4)]
    return [[1 << log, n] for log, n in enumerate(by_log) if n]


def histogram_lines(name: str, found: list[list[int]]) -> Iterator[str]:
    """A histogram for people, powers of 2 without calls between others included."""
    if not found:
        return
    known = {pair[0]: pair[1] for pair in found}
    most = max(known.values())
    yield f"{name}, ns"
    start = found[0][0]
    while start <= found[-1][0]:
        n = known.get(start, 0)
        yield f"{start:>14} {n:>10} {'#' * round(40 * n / most)}"
        start *= 2
