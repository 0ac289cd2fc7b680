# SPDX-License-Identifier: Apache-2.0
"""tc ingress and egress, by tcx links (kernel 6.6) or by clsact."""

from __future__ import annotations

from bpfkit.core.attach.link import Link, create_link, find_interface
from bpfkit.core.entries import find_entry
from bpfkit.core.errors import InputError, UnsupportedError
from bpfkit.core.kernel.constants import attach_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.core.program import Program

__all__ = ["attach", "attach_tcx"]


def attach(
    program: Program, interface: int | str, direction: str, how: str, **options: Any
) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_tc`."""
    if how == "auto":
        try:
            return attach_tcx(program, interface, direction)
        except UnsupportedError:
            how = "clsact"
    if how == "tcx":
        return attach_tcx(program, interface, direction)
    attach_by_netlink = find_entry("attach", how)
    if attach_by_netlink is None:
        raise InputError(f"unknown tc attach method '{how}'", why="the methods are clsact and tcx")
    ingress = _direction(program, direction) == attach_type("TCX_INGRESS")
    ifindex, _ = find_interface(program, interface)
    link: Link = attach_by_netlink(program, ifindex, "ingress" if ingress else "egress", **options)
    return link


def attach_tcx(program: Program, interface: int | str, direction: str = "") -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_tcx`."""
    number = _direction(program, direction)
    ifindex, name = find_interface(program, interface)
    return create_link(program, "tcx", name, ifindex, number, extra=bytes(16))


def _direction(program: Program, direction: str) -> int:
    """The attach type for a direction; by default the one that ``SEC("tc/…")`` named."""
    types = {"ingress": attach_type("TCX_INGRESS"), "egress": attach_type("TCX_EGRESS")}
    if not direction and program.section.expected_attach_type in types.values():
        return program.section.expected_attach_type
    if direction not in types:
        raise InputError(
            f"'{program.name}' needs a direction", why="it must be 'ingress' or 'egress'"
        )
    return types[direction]
