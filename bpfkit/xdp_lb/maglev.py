# SPDX-License-Identifier: Apache-2.0
"""Maglev hashing: a table that maps every hash to a backend.

Each backend has a permutation of the table's slots, derived from its name only.  In turns, each
takes the first free slot of its permutation until none is free.  So all have the same number of
slots (give or take one), and when one is added or removed, the others keep nearly all of theirs.
The table for the same backends is the same on every machine, in any order of the backends.

Source: Eisenbud et al., *Maglev: A Fast and Reliable Software Network Load Balancer*, NSDI 2016.
"""

from __future__ import annotations

from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["EMPTY", "SIZES", "build", "is_prime", "shares", "unavoidable"]

#: Sizes for a few, tens and hundreds of backends: at least a hundred slots for each.
SIZES = (251, 1021, 4093, 16381, 65537)
#: Value of all slots if there are no backends.
EMPTY = 0xFFFF


def is_prime(number: int) -> bool:
    """Whether ``number`` is prime: then stepping by any amount visits every slot."""
    if number < 4:
        return number > 1
    return all(number % i for i in range(2, int(number**0.5) + 1))


def _permutation(name: str, size: int) -> tuple[int, int]:
    """First slot of a backend's permutation, and the step to the next."""
    from hashlib import blake2b

    digest = blake2b(name.encode(), digest_size=16, person=b"bpfkit maglev").digest()
    first = int.from_bytes(digest[:8], "big") % size
    return first, int.from_bytes(digest[8:], "big") % (size - 1) + 1


def build(backends: Mapping[str, tuple[int, int]], size: int) -> array[int]:
    """The table: the backend number of each slot; :data:`EMPTY` if there are no backends.

    :param backends: name -> (number, 0 to 65534; weight).  A backend takes ``weight`` slots per
        turn, none with weight 0.
    :param size: a prime; at least a hundred times the sum of the weights for a balance of 1 %.
    :raises ValueError: the size is not prime, or smaller than the sum of the weights.
    """
    wanted = sorted((name, *row) for name, row in backends.items() if row[1])
    total = sum(weight for _, _, weight in wanted)
    if not is_prime(size):
        raise ValueError(f"{size} is not a prime number")
    if total > size:
        raise ValueError(f"{size} slots are too few: the weights add up to {total}")
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
    """Backend number -> number of its slots."""
    from collections import Counter

    return dict(Counter(table))


def unavoidable(old: Sequence[int], new: Sequence[int]) -> int:
    """Slots that any hashing would have to move: the sum of the backends' losses."""
    before, now = shares(old), shares(new)
    return sum(max(0, count - now.get(owner, 0)) for owner, count in before.items())
