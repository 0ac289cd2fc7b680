# SPDX-License-Identifier: Apache-2.0
"""The youngest types: INSN_ARRAY (6.19) and RHASH (7.2)."""

from __future__ import annotations

from struct import pack, unpack
from time import monotonic, sleep

from bpfkit.core.kernel import syscall as sc
from bpfkit.core.kernel.constants import map_type
from bpfkit.maps.keyed import key, same_errors
from bpfkit.maps.tour import PACKET, Trial, failure, read_fdinfo, stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.kernel.asm import Code, Insn, Reg

ENTRIES = 8
_NO_PREALLOC = 1
_ZERO_SEED = 1 << 6
_MARK = 8  # offset of __sk_buff.mark
_BRANCHES = 3


@stop("rhash", "a HASH that grows and shrinks")
def rhash(t: Trial) -> None:
    m = t.map(entries=ENTRIES, flags=_NO_PREALLOC)
    side = t.load(m, "lookup", "update", "erase")
    t.equal(side.error("update", key(0), 100), "", "an element that the program adds")
    t.equal(m[0], 100, "is read by Python")
    for number in range(1, ENTRIES):
        m[number] = number + 100
    t.equal(side.value("lookup", key(5)), 105, "and one of Python's by the program")
    t.equal(sorted(m.keys()), list(range(ENTRIES)), f"a walk finds the {ENTRIES} keys once")
    same_errors(t, m, side, {"full": "E2BIG", "there": "EEXIST", "missing": "ENOENT"})
    t.equal(
        (side.error("erase", key(5)), side.error("erase", key(5))),
        ("", "ENOENT"),
        "deleted once, then ENOENT",
    )
    number = map_type("rhash")
    t.equal(
        (
            failure(sc.map_create, number, 4, 8, 8, 0),
            failure(sc.map_create, number, 4, 8, 8, _NO_PREALLOC | _ZERO_SEED),
        ),
        ("EINVAL", "EINVAL"),
        "without BPF_F_NO_PREALLOC, or with BPF_F_ZERO_SEED: EINVAL",
    )
    _size(t)


def _size(t: Trial) -> None:
    """The kernel's own figure of the memory, while the map is filled and emptied."""
    count = 20_000
    m = t.map(entries=1 << 20, flags=_NO_PREALLOC)

    def memory() -> int:
        return int(read_fdinfo(m.fd)["memlock"])

    empty = memory()
    keys = b"".join(key(number) for number in range(count))
    m.update_raw(keys, bytes(8))
    full = memory()
    t.check(
        full > empty + 8 * count,
        f"{count} of {1 << 20} elements: memory grows from {empty >> 10} to {full >> 10} KiB",
    )
    for number in range(count):
        sc.map_delete(m.fd, key(number))
    deadline = monotonic() + 2  # a work item of the kernel's shrinks the table
    while memory() >= full // 2 and monotonic() < deadline:
        sleep(0.01)
    left = memory()
    t.check(left < full // 2, f"all deleted: it shrinks to {left >> 10} KiB")


def _gotox(target: Reg) -> Insn:
    """Jump to the address in a register, which comes from an INSN_ARRAY."""
    from bpfkit.core.kernel.asm import Insn

    return Insn(0x0D, target.number)  # BPF_JMP | BPF_JA | BPF_X


def _table_program(fd: int) -> Code:
    """Goes on at the instruction that entry number skb->mark of the table names."""
    from bpfkit.core.kernel.asm import (
        add,
        assemble,
        exit_,
        jgt,
        label,
        ld_map_value,
        ldx,
        lsh,
        mov,
        r0,
        r1,
        r2,
        r3,
        u32,
        u64,
    )

    return assemble(
        ldx(u32, r2, r1 + _MARK),
        jgt(r2, _BRANCHES - 1, "none"),
        ld_map_value(r3, fd),
        lsh(r2, 3),
        add(r3, r2),
        ldx(u64, r3, r3 + 0),
        _gotox(r3),
        label("none"),
        mov(r0, 99),
        exit_(),
        [
            [label(f"branch {number}"), mov(r0, 10 * (number + 1)), exit_()]
            for number in range(_BRANCHES)
        ],
    )


@stop("insn_array", "a program's jump table")
def insn_array(t: Trial) -> None:
    m = t.map(4, 16, _BRANCHES)
    labels = {name: slot for slot, all_ in _table_program(m.fd).labels.items() for name in all_}
    # The other way round: the order of the table, not of the instructions, decides.
    slots = [labels[f"branch {_BRANCHES - 1 - number}"] for number in range(_BRANCHES)]
    for number, slot in enumerate(slots):
        sc.map_update(m.fd, key(number), pack("=IIII", slot, 0, 0, 0))
    t.equal(
        failure(sc.map_update, m.fd, key(_BRANCHES), pack("=IIII", 1, 0, 0, 0)),
        "E2BIG",
        "behind the end: E2BIG",
    )
    t.equal(failure(sc.map_delete, m.fd, key(0)), "EINVAL", "no entry can be deleted: EINVAL")
    m.freeze()
    t.equal(
        failure(sc.map_update, m.fd, key(0), pack("=IIII", 1, 0, 0, 0)),
        "EPERM",
        "the table is frozen before the program is loaded: then EPERM",
    )
    program = t.assembled("sched_cls", _table_program(m.fd))
    found = [program.run(PACKET, skb={"mark": mark}).retval for mark in range(_BRANCHES + 1)]
    t.equal(
        found,
        [*(10 * (_BRANCHES - number) for number in range(_BRANCHES)), 99],
        "one indirect jump goes to the branch that the table names",
    )
    entries = [unpack("=IIII", sc.map_lookup(m.fd, key(i), 16)) for i in range(_BRANCHES)]
    t.equal([entry[0] for entry in entries], slots, "Python reads back the original offsets")
    jitted = [entry[2] for entry in entries]
    t.check(
        not program.jited or (jitted == sorted(jitted, reverse=True) and len(set(jitted)) == 3),
        f"and where the kernel put them: instructions {[e[1] for e in entries]}, "
        f"bytes of machine code {jitted}",
    )
