# SPDX-License-Identifier: Apache-2.0
"""Names of keys: ``KEY_VOLUMEUP`` for 115, from the header file of the input layer."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["key_name", "key_number"]

_HEADER = "/usr/include/linux/input-event-codes.h"
#: The keys of the demo, where the header (linux-libc-dev) is missing.
_KNOWN = {"KEY_MUTE": 113, "KEY_VOLUMEDOWN": 114, "KEY_VOLUMEUP": 115, "KEY_OK": 0x160}


@lru_cache(maxsize=1)
def _numbers() -> dict[str, int]:
    import re

    found = dict(_KNOWN)
    try:
        with open(_HEADER, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return found
    for name, value in re.findall(r"^#define\s+((?:KEY|BTN)_\w+)\s+(\w+)", text, re.M):
        number = found.get(value)  # #define KEY_SCREENLOCK KEY_COFFEE
        try:
            found[name] = int(value, 0) if number is None else number
        except ValueError:
            pass
    return found


@lru_cache(maxsize=1)
def _names() -> dict[int, str]:
    names: dict[int, str] = {}
    for name, number in _numbers().items():
        names.setdefault(number, name)
    return names


def key_name(number: int) -> str | None:
    """The key's name, its number as text where it has none, None for no key (KEY_RESERVED)."""
    return _names().get(number, str(number)) if number else None


def key_number(name: str) -> int | None:
    """The number of ``KEY_MUTE``, ``mute`` or ``113``; None if there is no such key."""
    if name.isascii() and name.isdigit():
        return int(name) if 0 < int(name) < 0x300 else None
    name = name.upper()
    return _numbers().get(name, _numbers().get(f"KEY_{name}")) or None
