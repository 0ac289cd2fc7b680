# SPDX-License-Identifier: Apache-2.0
"""The VLANs of a port: parsed from the command line, and encoded for the map."""

from __future__ import annotations

from bpfkit.core.errors import UsageError

__all__ = ["parse_vlans", "vlan_bits"]


def parse_vlans(text: str) -> tuple[str, set[int]]:
    """``eth0=10,20,untagged`` -> name and VLAN ids, 0 for untagged.

    :raises UsageError: not of that form.
    """
    name, equals, words = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--vlan {text}", why="the form is PORT=ID[,ID…]")
    ids = set()
    for word in words.split(","):
        number = "0" if word == "untagged" else word
        if not (number.isascii() and number.isdigit() and int(number) < 4095):
            raise UsageError(
                f"--vlan {text}", why=f"{word!r} is neither a VLAN id (1 to 4094) nor untagged"
            )
        ids.add(int(number))
    return name, ids


def vlan_bits(vlans: set[int]) -> bytes:
    """A bitmap of VLAN ids, little endian, 512 bytes."""
    return sum(1 << vlan for vlan in vlans).to_bytes(512, "little")
