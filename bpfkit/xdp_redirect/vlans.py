# SPDX-License-Identifier: Apache-2.0
"""Which VLANs a port is of, as the command line and the map have it."""

from __future__ import annotations

from bpfkit.core.errors import UsageError

__all__ = ["parse_vlans", "vlan_bits"]


def parse_vlans(text: str) -> tuple[str, set[int]]:
    """``eth0=10,20,untagged`` -> name and VLAN ids, 0 for untagged.

    :raises UsageError: it is not such a text.
    """
    name, equals, words = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--vlan {text}", why="it is PORT=ID[,ID…]")
    ids = set()
    for word in words.split(","):
        number = "0" if word == "untagged" else word
        if not (number.isascii() and number.isdigit() and int(number) < 4095):
            raise UsageError(
                f"--vlan {text}", why=f"{word!r} is no VLAN id (1 to 4094) or untagged"
            )
        ids.add(int(number))
    return name, ids


def vlan_bits(vlans: set[int]) -> bytes:
    """A bit for each VLAN id, the lowest first."""
    return sum(1 << vlan for vlan in vlans).to_bytes(512, "little")
