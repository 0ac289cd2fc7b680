# SPDX-License-Identifier: Apache-2.0
"""Lists of CPUs, as the kernel and the command line write them, and the number of CPUs."""

from __future__ import annotations

__all__ = ["cpu_list", "online", "possible_cpus"]

_possible = 0


def cpu_list(text: str) -> list[int]:
    """``0,2-3`` -> [0, 2, 3].

    :raises ValueError: the text is not a list of CPUs.
    """
    found: list[int] = []
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if not all(word.isascii() and word.isdigit() for word in (first, last if dash else first)):
            raise ValueError(f"{part!r} is neither a CPU nor a range of CPUs")
        numbers = range(int(first), int(last if dash else first) + 1)
        if not numbers or numbers[-1] >= 1 << 16:
            raise ValueError(f"{part!r} is not a range of CPUs")
        found += [number for number in numbers if number not in found]
    return found


def online() -> list[int]:
    """The CPUs that are online."""
    try:
        with open("/sys/devices/system/cpu/online") as file:
            return cpu_list(file.read())
    except OSError:
        import os

        return sorted(os.sched_getaffinity(0))


def possible_cpus() -> int:
    """Number of possible CPUs: a per-CPU map has that many values, however many are online."""
    global _possible
    if not _possible:
        with open("/sys/devices/system/cpu/possible", "rb") as file:
            text = file.read().decode()
        # "0-3,8-11": the kernel sizes by the number of CPUs, not by the highest
        for part in text.strip().split(","):
            low, _, high = part.partition("-")
            _possible += int(high or low) - int(low) + 1
    return _possible
