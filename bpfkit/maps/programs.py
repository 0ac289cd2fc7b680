# SPDX-License-Identifier: Apache-2.0
"""References to programs, maps and cgroups, and stacks: PROG_ARRAY, maps of maps, CGROUP_ARRAY,
STACK_TRACE."""

from __future__ import annotations

import os
from struct import pack

from bpfkit.core.kernel import syscall as sc
from bpfkit.maps.keyed import key
from bpfkit.maps.tour import PACKET, Trial, failure, stop

ENTRIES = 4
_REUSE_STACKID = 1 << 10


@stop("prog_array", "programs to go on with: tail calls")
def prog_array(t: Trial) -> None:
    m = t.map(4, 4, ENTRIES)
    side = t.load(m, "jump", "target")
    jump, target = side.programs["jump"], side.programs["target"]

    def result(slot: int) -> int:
        return jump.run(PACKET, skb={"mark": slot}).retval

    t.equal(result(2), 1, "an empty slot: the tail call fails, the caller goes on")
    m[2] = target
    t.equal(result(2), 42, "Python enters a program: the same run ends in that one")
    t.equal(m[2], target.id, "what Python reads back is the program's id")
    t.equal(result(ENTRIES), 1, "behind the end: the caller goes on")
    m[3] = jump  # ends with the kernel's limit
    t.equal(result(3), 1, "a program that calls itself ends after the kernel's limit of calls")
    from bpfkit.core.kernel.asm import assemble, exit_, mov, r0

    other = t.assembled("xdp", assemble(mov(r0, 2), exit_()))
    t.equal(
        failure(sc.map_update, m.fd, key(1), pack("=i", other.fd)),
        "EINVAL",
        "a program of another type: EINVAL",
    )
    t.equal(
        failure(sc.map_update, m.fd, key(1), pack("=i", m.fd)),
        "EINVAL",
        "a descriptor that is no program: EINVAL",
    )
    del m[2]
    t.equal(result(2), 1, "deleted: the caller goes on again")
    t.equal(failure(sc.map_delete, m.fd, key(2)), "ENOENT", "an empty slot is a missing key")


def _maps_inside(t: Trial, keys: tuple[int, int], missing: int) -> None:
    """Maps as values: swapped while programs run.

    :param keys: two keys, the second stays empty at first.
    """
    template = t.map(4, 8, 1, type="array")
    m = t.map(4, 4, ENTRIES, inner=template)
    side = t.load(m, "inner")
    first, second = (t.map(4, 8, 1, type="array") for _ in range(2))
    first[0], second[0] = 111, 222
    a, b = keys
    m[a] = first
    t.equal(side.value("inner", key(a)), 111, "the program reads the map inside")
    t.equal(m[a], first.id, "what Python reads back is the map's id")
    t.equal(side.value("inner", key(b)), None, "an empty place: NULL for the program")
    m[a] = second
    t.equal(side.value("inner", key(a)), 222, "another map put there is read at once")
    second.close()
    t.equal(side.value("inner", key(a)), 222, "it stays when Python closes its descriptor")
    wrong = t.map(4, 16, 1, type="array")
    t.equal(
        failure(sc.map_update, m.fd, key(a), pack("=i", wrong.fd)),
        "EINVAL",
        "a map that differs from the template: EINVAL",
    )
    t.equal(
        failure(sc.map_update, m.fd, key(a), pack("=i", side.programs["inner"].fd)),
        "EINVAL",
        "a descriptor that is no map: EINVAL",
    )
    del m[a]
    t.equal(side.value("inner", key(a)), None, "deleted: NULL again")
    t.equal(side.value("inner", key(missing)), None, "a missing key: NULL")


@stop("array_of_maps", "maps by index, swapped as a whole")
def array_of_maps(t: Trial) -> None:
    _maps_inside(t, (0, 1), ENTRIES)


@stop("hash_of_maps", "a map for each tenant, interface, …")
def hash_of_maps(t: Trial) -> None:
    _maps_inside(t, (1000, 2000), 3000)
    template = t.map(4, 8, 1, type="array")
    m = t.map(4, 4, 1, inner=template)
    m[1] = template
    t.equal(failure(sc.map_update, m.fd, key(2), pack("=i", template.fd)), "E2BIG", "full: E2BIG")


@stop("cgroup_array", "cgroups to ask about")
def cgroup_array(t: Trial) -> None:
    group = t.tour.group()
    m = t.map(4, 4, ENTRIES)
    side = t.load(m, "under_cgroup")
    t.equal(side.error("under_cgroup", value=0), "EAGAIN", "an empty slot: EAGAIN")
    m[0] = group.path
    t.equal(side.run("under_cgroup", value=0), 0, "this process is not in the cgroup")
    with group.entered():
        t.equal(side.run("under_cgroup", value=0), 1, "moved into the cgroup, it is")
    t.equal(side.run("under_cgroup", value=0), 0, "moved out, it is not")
    m[1] = os.path.dirname(group.path)
    with group.entered():
        t.equal(side.run("under_cgroup", value=1), 1, "being below it counts")
    t.equal(side.error("under_cgroup", value=ENTRIES), "E2BIG", "behind the end: E2BIG")
    t.equal(failure(sc.map_lookup, m.fd, key(0), 4), "ENOTSUPP", "it cannot be read back")
    wrong = failure(sc.map_update, m.fd, key(0), pack("=i", m.fd))
    t.equal(wrong, "EBADF", "a descriptor that is no cgroup: EBADF")
    del m[0]
    t.equal(side.error("under_cgroup", value=0), "EAGAIN", "deleted: EAGAIN again")


@stop("stack_trace", "stacks by their id")
def stack_trace(t: Trial) -> None:
    depth = 16
    m = t.map(4, 8 * depth, 64)
    side = t.load(m, "stack_id")
    first = side.run("stack_id")
    if first == -22 or first == -14:
        t.check(False, f"no stack here: {first}")
        return
    t.check(first >= 0, "the program stores its stack and gets an id")
    t.equal(side.run("stack_id"), first, "the same stack has the same id")
    stack = m.walk(first)  # type: ignore[attr-defined]
    names = _symbols(stack)
    t.check(
        0 < len(stack) <= depth and (not names or any("bpf" in name for name in names)),
        f"Python reads {len(stack)} addresses, by /proc/kallsyms of "
        + (", ".join(names[:3]) if names else "hidden symbols"),
    )
    t.check(side.run("stack_id", flags=_REUSE_STACKID) >= 0, "BPF_F_REUSE_STACKID replaces it")
    short = t.load(m, "stack_id")
    skipped = short.run("stack_id", flags=1)  # one frame less: another stack
    t.check(skipped != first, "without the innermost frame: another id")
    t.equal(failure(sc.map_update, m.fd, key(1), bytes(8 * depth)), "EINVAL", "Python adds none")
    del m[first]
    t.equal(failure(sc.map_lookup, m.fd, key(first), 8 * depth), "ENOENT", "deleted: ENOENT")
    _collision(t, depth)


def _collision(t: Trial, depth: int) -> None:
    """One bucket: two stacks collide, and the second is refused."""
    m = t.map(4, 8 * depth, 1)
    side = t.load(m, "stack_id")
    side.run("stack_id")
    t.equal(side.error("stack_id", flags=1), "EEXIST", "two stacks in one bucket: EEXIST")


def _symbols(addresses: tuple[int, ...]) -> list[str]:
    """The functions at the addresses; none where /proc/kallsyms hides them."""
    from bisect import bisect_right

    table = []
    with open("/proc/kallsyms") as file:
        for line in file:
            address, _, name = line.split()[:3]
            table.append((int(address, 16), name))
    table.sort()
    if not table or not table[-1][0]:
        return []
    starts = [address for address, _ in table]
    return [table[max(0, bisect_right(starts, address) - 1)][1] for address in addresses]
