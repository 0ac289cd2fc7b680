# SPDX-License-Identifier: Apache-2.0
"""A network device of a lab as it was made: what the drawing shows."""

from __future__ import annotations

__all__ = ["Device"]


class Device:
    """A network device of a lab.

    :ivar kind: ``loopback``, ``veth``, ``bridge`` or ``vlan``.
    :ivar addresses: ``address/prefix length`` each.
    :ivar master: the bridge that it is a port of; "": none.
    :ivar peer: (namespace, device) of the other end of a veth pair.
    :ivar notes: lines for the drawing, such as the programs attached to it.
    """

    __slots__ = ("addresses", "kind", "master", "name", "notes", "peer")

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.addresses: list[str] = []
        self.master = ""
        self.peer: tuple[str, str] | None = None
        self.notes: list[str] = []
