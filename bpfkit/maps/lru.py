# SPDX-License-Identifier: Apache-2.0
"""LRU_HASH and LRU_PERCPU_HASH: eviction in bounds.

Which element goes, and how early, depends on the kernel and its CPUs: free elements are handed to
the CPUs in batches.  So the checks are about what holds everywhere: updates never fail, there are
never more elements than max_entries, and about that many are kept.
"""

from __future__ import annotations

from bpfkit.core.cpus import possible_cpus
from bpfkit.core.kernel import syscall as sc
from bpfkit.maps.keyed import key
from bpfkit.maps.tour import Trial, failure, stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.maps.base import Map

#: Elements that a CPU may keep in reserve (LOCAL_FREE_TARGET of kernel/bpf/bpf_lru_list.c).
BATCH = 128
_NO_COMMON_LRU = 2


def _bounds(t: Trial, m: Map, width: int) -> None:
    side = t.load(m, "update", "lookup", "erase")
    entries = m.max_entries
    half = entries + entries // 2
    errors = {side.error("update", key(number), number) for number in range(half)}
    errors |= {
        failure(sc.map_update, m.fd, key(number), bytes(width))
        for number in range(half, 3 * entries)
    }
    t.equal(errors, {""}, f"{3 * entries} new keys, half by the program: no update fails")
    kept = set(m.keys())
    least = entries - BATCH * possible_cpus()
    t.check(
        max(1, least) <= len(kept) <= entries,
        f"{len(kept)} of {entries} elements are kept, at least {max(1, least)}",
    )
    t.check(
        3 * entries - 1 in kept and 0 not in kept,
        "the last key that was added is there, the first is not",
    )
    t.equal(
        sum(side.run("lookup", key(number)) == 0 for number in kept),
        len(kept),
        "the program finds just as many",
    )
    t.equal(
        (side.error("erase", key(0)), failure(sc.map_delete, m.fd, key(0))),
        ("ENOENT", "ENOENT"),
        "an evicted key is a missing key: ENOENT",
    )
    t.equal(
        side.error("update", key(3 * entries - 1), 0, 1), "EEXIST", "BPF_NOEXIST still is EEXIST"
    )


@stop("lru_hash", "a HASH that is never full")
def lru_hash(t: Trial) -> None:
    _bounds(t, t.map(entries=600), 8)
    own = t.map(entries=64 * possible_cpus(), flags=_NO_COMMON_LRU)
    side = t.load(own, "update")
    for number in range(4 * own.max_entries):
        side.run("update", key(number), 1)
    t.check(
        0 < len(own) <= own.max_entries,
        f"NO_COMMON_LRU, a list for each CPU: {len(own)} of {own.max_entries} are kept",
    )


@stop("lru_percpu_hash", "the same with a value per CPU")
def lru_percpu_hash(t: Trial) -> None:
    m = t.map(entries=600)
    _bounds(t, m, 8 * possible_cpus())
    side = t.load(m, "increment", "update")
    last = key(3 * m.max_entries - 1)
    side.request(last, value=3)
    side.once("increment", 10)
    t.equal(m.sum(last), 30, "counted in the value of the CPU")  # type: ignore[attr-defined]
    t.equal(len(m[last]), possible_cpus(), f"a value for each of {possible_cpus()} possible CPUs")
