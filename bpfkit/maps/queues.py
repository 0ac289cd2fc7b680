# SPDX-License-Identifier: Apache-2.0
"""QUEUE and STACK."""

from __future__ import annotations

from struct import pack

from bpfkit.core.kernel import syscall as sc
from bpfkit.maps.tour import Trial, failure, stop

ENTRIES = 4
_EXIST, _NOEXIST = 2, 1


def _order(t: Trial, last_in_first_out: bool) -> None:
    m = t.map(0, 8, ENTRIES)
    side = t.load(m, "push", "pop", "peek")
    t.equal(
        (side.error("pop"), failure(sc.map_lookup_and_delete, m.fd, None, 8), side.error("peek")),
        ("ENOENT",) * 3,
        "empty: ENOENT for pop and peek",
    )
    numbers = list(range(1, ENTRIES + 1))
    for number in numbers:  # in turn from both sides
        if number % 2:
            m.push(number)  # type: ignore[attr-defined]
        else:
            side.run("push", value=number)
    t.equal(
        (failure(sc.map_update, m.fd, None, bytes(8)), side.error("push")),
        ("E2BIG", "E2BIG"),
        f"full with {ENTRIES} values: E2BIG",
    )
    t.equal(
        (failure(sc.map_update, m.fd, None, bytes(8), _NOEXIST), side.error("push", flags=1)),
        ("EINVAL", "EINVAL"),
        "BPF_NOEXIST has no meaning here: EINVAL",
    )
    following = numbers[-1] if last_in_first_out else numbers[0]
    t.equal(
        (side.value("peek"), m.peek()),  # type: ignore[attr-defined]
        (following, following),
        "peek leaves the next value where it is",
    )
    side.run("push", value=5, flags=_EXIST)
    numbers = [*numbers[1:], 5]
    wanted = numbers[::-1] if last_in_first_out else numbers
    order = "last in, first out" if last_in_first_out else "first in, first out"
    # Both sides take in turn.
    found = [side.value("pop") if i % 2 else m.pop() for i in range(ENTRIES)]  # type: ignore[call-arg]
    t.equal(found, wanted, f"BPF_EXIST on a full map dropped the oldest; {order}: {wanted}")
    t.equal(side.error("pop"), "ENOENT", "then it is empty again")
    t.equal(
        failure(sc.map_update, m.fd, pack("=I", 1), bytes(8)),
        "EINVAL",
        "there are no keys: EINVAL with one",
    )


@stop("queue", "first in, first out: work, ports")
def queue(t: Trial) -> None:
    _order(t, False)


@stop("stack", "last in, first out")
def stack(t: Trial) -> None:
    _order(t, True)
