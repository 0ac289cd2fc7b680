# SPDX-License-Identifier: Apache-2.0
"""HASH, ARRAY and their per-CPU forms."""

from __future__ import annotations

from struct import pack

from bpfkit.core.cpus import online, possible_cpus
from bpfkit.core.kernel import syscall as sc
from bpfkit.maps.tour import Trial, errno_name, failure, pinned_to, read_fdinfo, stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.maps.base import Map
    from bpfkit.maps.tour import Side

ENTRIES = 8
_NO_PREALLOC = 1


def key(number: int) -> bytes:
    """A key of 4 bytes."""
    return pack("=I", number)


def same_errors(t: Trial, m: Map, side: Side, wanted: dict[str, str], width: int = 8) -> None:
    """A missing key, a key that is there, and a full map: both sides get the kernel's errnos.

    :param m: full, with the keys 0 to ENTRIES - 1.
    :param wanted: ``full``, ``there``, ``missing`` -> errno.
    """
    full, there, missing = key(ENTRIES), key(0), key(ENTRIES + 1)
    value = bytes(width)
    for text, python, program, errno in (
        (
            "full",
            failure(sc.map_update, m.fd, full, value),
            side.error("update", full),
            wanted["full"],
        ),
        (
            "BPF_NOEXIST on a key that is there",
            failure(sc.map_update, m.fd, there, value, 1),
            side.error("update", there, flags=1),
            wanted["there"],
        ),
        (
            "BPF_EXIST on a missing key",
            failure(sc.map_update, m.fd, missing, value, 2),
            side.error("update", missing, flags=2),
            wanted["missing"],
        ),
    ):
        t.equal((python, program), (errno, errno), f"{text}: {errno}, from Python and the program")


@stop("hash", "state for each key: flow, process")
def hash_(t: Trial) -> None:
    m = t.map(entries=ENTRIES)
    side = t.load(m, "lookup", "update", "erase")
    t.equal(side.error("update", key(0), 100), "", "an element that the program adds")
    t.equal(m[0], 100, "is read by Python")
    for number in range(1, ENTRIES):
        m[number] = number + 100
    t.equal(side.value("lookup", key(5)), 105, "and one of Python's by the program")
    t.equal(side.value("lookup", key(99)), None, "a missing key: NULL for the program")
    t.equal(failure(sc.map_lookup, m.fd, key(99), 8), "ENOENT", "and ENOENT for Python")
    same_errors(t, m, side, {"full": "E2BIG", "there": "EEXIST", "missing": "ENOENT"})
    t.equal(len(m), ENTRIES, f"a walk finds each of the {ENTRIES} keys once")
    t.equal(
        (side.error("erase", key(5)), side.error("erase", key(5))),
        ("", "ENOENT"),
        "deleted once, then ENOENT",
    )
    t.equal(side.error("update", key(ENTRIES)), "", "and there is room again")
    _memory(t)


def _memory(t: Trial) -> None:
    """BPF_F_NO_PREALLOC takes memory by element; /proc/self/fdinfo is the kernel's count."""
    entries = 10_000
    whole = read_fdinfo(t.map(entries=entries).fd)
    grown = read_fdinfo(t.map(entries=entries, flags=_NO_PREALLOC).fd)
    taken, lazy = int(whole["memlock"]), int(grown["memlock"])
    t.check(
        (taken > entries * 16 and lazy < taken) or lazy == taken,
        f"{entries} elements take {taken >> 10} KiB at once, {lazy >> 10} KiB with NO_PREALLOC",
    )


@stop("array", "counters and settings by index")
def array(t: Trial) -> None:
    m = t.map(entries=ENTRIES, flags=1 << 10)
    side = t.load(m, "lookup", "update", "increment")
    t.equal(list(m.values()), [0] * ENTRIES, "every element is there, and zero")
    side.request(key(3), value=5)
    side.once("increment", 1000)
    t.equal(m[3], 5000, "1000 runs of the program added 5 each")
    m[7] = 77
    t.equal(side.value("lookup", key(7)), 77, "the program reads what Python wrote")
    end = key(ENTRIES)
    t.equal(side.value("lookup", end), None, "no element behind the end")
    t.equal(
        (failure(sc.map_update, m.fd, end, bytes(8)), side.error("update", end)),
        ("E2BIG", "E2BIG"),
        "writing behind the end: E2BIG",
    )
    t.equal(
        (failure(sc.map_update, m.fd, key(0), bytes(8), 1), side.error("update", key(0), 0, 1)),
        ("EEXIST", "EEXIST"),
        "BPF_NOEXIST: EEXIST, always",
    )
    t.equal(failure(sc.map_delete, m.fd, key(0)), "EINVAL", "nothing can be deleted: EINVAL")
    memory = t.keep(m.mmap())
    t.equal(int.from_bytes(memory[24:32], "little"), 5000, "mmap shows the program's counter")
    memory[24:32] = pack("=Q", 9)
    t.equal(side.value("lookup", key(3)), 9, "and writes it without a system call")
    _frozen(t)


def _frozen(t: Trial) -> None:
    m = t.map(entries=1)
    m.freeze()
    side = t.load(m, "update", "lookup")
    t.equal(
        (failure(sc.map_update, m.fd, key(0), bytes(8)), side.error("update", key(0), 3)),
        ("EPERM", ""),
        "frozen: EPERM for Python, the program still writes",
    )


def _per_cpu(t: Trial, m: Map, side: Side) -> None:
    """A value for each CPU: what ran on one CPU is in that CPU's value only."""
    cpus = online()
    for cpu in cpus:
        with pinned_to(cpu):
            side.request(key(1), value=cpu + 1)
            side.once("increment", 100)
    values = m[1]
    t.equal(len(values), possible_cpus(), f"a value for each of {possible_cpus()} possible CPUs")
    t.equal(
        [values[cpu] for cpu in cpus],
        [100 * (cpu + 1) for cpu in cpus],
        f"runs on CPU {cpus[0]} to {cpus[-1]} counted by CPU",
    )
    t.equal(m.sum(1), sum(100 * (cpu + 1) for cpu in cpus), "their sum, without atomics")  # type: ignore[attr-defined]
    with pinned_to(cpus[-1]):
        t.equal(
            side.value("lookup", key(1)),
            100 * (cpus[-1] + 1),
            "the program reads the value of the CPU that it runs on",
        )
        side.run("update", key(2), 7)
        t.equal(
            [m[2][cpu] for cpu in cpus],
            [0] * (len(cpus) - 1) + [7] if len(cpus) > 1 else [7],
            "and writes only that one",
        )


@stop("percpu_hash", "a HASH, counted without atomics")
def percpu_hash(t: Trial) -> None:
    m = t.map(entries=ENTRIES)
    side = t.load(m, "lookup", "update", "increment", "erase")
    m[1] = [0] * possible_cpus()
    _per_cpu(t, m, side)
    for number in (0, *range(3, ENTRIES)):
        m[number] = [number] * possible_cpus()
    wanted = {"full": "E2BIG", "there": "EEXIST", "missing": "ENOENT"}
    same_errors(t, m, side, wanted, 8 * possible_cpus())
    t.equal(errno_name(side.run("erase", key(99))), "ENOENT", "deleting a missing key: ENOENT")


@stop("percpu_array", "an ARRAY, counted without atomics")
def percpu_array(t: Trial) -> None:
    m = t.map(entries=ENTRIES)
    side = t.load(m, "lookup", "update", "increment")
    _per_cpu(t, m, side)
    t.equal(
        (
            failure(sc.map_update, m.fd, key(ENTRIES), bytes(8 * possible_cpus())),
            side.error("update", key(ENTRIES)),
        ),
        ("E2BIG", "E2BIG"),
        "writing behind the end: E2BIG",
    )
    t.equal(failure(sc.map_delete, m.fd, key(0)), "EINVAL", "nothing can be deleted: EINVAL")
