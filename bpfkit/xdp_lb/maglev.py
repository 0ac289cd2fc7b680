# SPDX-License-Identifier: Apache-2.0
"""Maglev hashing: a table that says for every hash which backend has it.

Every backend has a permutation of the table's slots, made from its name alone.  Turn by turn each
takes the first slot of its permutation that is free, until none is.  So all have the same number of
slots (one more or less), and when one leaves or joins, the others keep nearly all of theirs: the
table for the same backends is the same on every machine, in whatever order they are given.

Source: Eisenbud et al., *Maglev: A Fast and Reliable Software Network Load Balancer*, NSDI 2016.
"""

from __future__ import annotations

from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["EMPTY", "SIZES", "build", "is_prime", "shares", "unavoidable"]

#: Sizes that are good for a few backends, tens and hundreds: at least a hundred slots for each.
SIZES = (251, 1021, 4093, 16381, 65537)
#: Owner of the slots where there are no backends.
EMPTY = 0xFFFF


def is_prime(number: int) -> bool:
    """Is it?  Only then is every step through the table a permutation of it."""
    if number < 4:
        return number > 1
    return all(number % i for i in range(2, int(number**0.5) + 1))


def _permutation(name: str, size: int) -> tuple[int, int]:
    """The first slot that a backend wants, and the step to the next."""
    from hashlib import blake2b

    digest = blake2b(name.encode(), digest_size=16, person=b"bpfkit maglev").digest()
    first = int.from_bytes(digest[:8], "big") % size
    return first, int.from_bytes(digest[8:], "big") % (size - 1) + 1


def build(backends: Mapping[str, tuple[int, int]], size: int) -> array[int]:
    """The table: for each slot the number of its backend; :data:`EMPTY` where there are none.

    :param backends: name -> (number, 0 to 65534; weight).  A backend takes ``weight`` slots a turn;
        with weight 0 it gets none.
    :param size: a prime; at least a hundred times the weights' sum for a balance of 1 %.
    :raises ValueError: the size is no prime, or smaller than the weights' sum.
    """
    wanted = sorted((name, *row) for name, row in backends.items() if row[1])
    total = sum(weight for _, _, weight in wanted)
    if not is_prime(size):
        raise ValueError(f"{size} is no prime number")
    if total > size:
        raise ValueError(f"{size} slots are too few for backends that want {total} a turn")
    table = array("H", [EMPTY]) * size
    if not wanted:
        return table
    numbers = [number for _, number, _ in wanted]
    weights = [weight for _, _, weight in wanted]
    starts = [_permutation(name, size) for name, _, _ in wanted]
    places = [first for first, _ in starts]
    steps = [step for _, step in starts]
    turns = [i for i in range(len(wanted)) for _ in range(weights[i])]
    free = bytearray(b"\1") * size
    left = size
    while True:
        for i in turns:
            at, step = places[i], steps[i]
            while not free[at]:
                at += step
                if at >= size:
                    at -= size
            free[at] = 0
            table[at] = numbers[i]
            places[i] = at
            left -= 1
            if not left:
                return table


def shares(table: Sequence[int]) -> dict[int, int]:
    """Number of a backend -> its slots."""
    from collections import Counter

    return dict(Counter(table))


def unavoidable(old: Sequence[int], new: Sequence[int]) -> int:
    """Slots that no way of hashing could leave where they were: what somebody has less of now."""
    before, now = shares(old), shares(new)
    return sum(max(0, count - now.get(owner, 0)) for owner, count in before.items())
