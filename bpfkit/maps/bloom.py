# SPDX-License-Identifier: Apache-2.0
"""BLOOM_FILTER: the rate of false positives, against the formula."""

from __future__ import annotations

from math import exp, sqrt

from bpfkit.core.kernel import syscall as sc
from bpfkit.core.maps.batch import ENTRY
from bpfkit.maps.tour import Trial, failure, stop

VALUES = 1000
PROBES = 4000


def bits(entries: int, hashes: int) -> int:
    """The kernel's size of the bitmap: entries * hashes / ln 2, with 7/5 for 1 / ln 2, rounded up
    to a power of two (kernel/bpf/bloom_filter.c)."""
    wanted = entries * hashes * 7 // 5
    return 1 << max(6, (wanted - 1).bit_length())


def rate(values: int, hashes: int, size: int) -> float:
    """The chance that a value that was not added is said to be in: (1 - e^(-kn/m))^k."""
    return float((1 - exp(-hashes * values / size)) ** hashes)


@stop("bloom_filter", "was this value added? No is certain")
def bloom_filter(t: Trial) -> None:
    m = t.map(0, 8, VALUES, map_extra=3)
    side = t.load(m, "push", "peek")
    for number in range(VALUES):
        if number % 2:
            m.add(number)  # type: ignore[attr-defined]
        else:
            side.run("push", value=number)
    t.equal(
        sum(side.run("peek", value=number) == 0 for number in range(VALUES)),
        VALUES,
        f"all {VALUES} values are found by the program, half of them Python's: none missed",
    )
    t.equal(sum(number in m for number in range(VALUES)), VALUES, "and by Python")
    for hashes in (1, 3, 5):
        _measure(t, hashes)
    remove = failure(sc.bpf, sc.MAP_DELETE_ELEM, ENTRY.pack(m.fd, 0, 0, 0))
    t.equal(remove, "EOPNOTSUPP", "no value can be removed: EOPNOTSUPP")


def _measure(t: Trial, hashes: int) -> None:
    """False positives of values that were not added, within five standard deviations."""
    m = t.map(0, 8, VALUES, map_extra=hashes)
    for number in range(VALUES):
        m.add(number)  # type: ignore[attr-defined]
    wrong = sum(number in m for number in range(1 << 32, (1 << 32) + PROBES))
    expected = rate(VALUES, hashes, bits(VALUES, hashes))
    deviation = sqrt(PROBES * expected * (1 - expected))
    t.check(
        abs(wrong - PROBES * expected) <= 5 * deviation + 3,
        f"k = {hashes}: {wrong} of {PROBES} false positives ({wrong / PROBES:.2%}), "
        f"by the formula {expected:.2%}",
    )
