# SPDX-License-Identifier: Apache-2.0
"""netkit devices, by a link (kernel 6.7)."""

from __future__ import annotations

from bpfkit.core.attach.link import Link, create_link, find_interface

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.program import Program

__all__ = ["attach"]


def attach(program: Program, interface: int | str) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_netkit`."""
    number = program.section.expected_attach_type
    ifindex, name = find_interface(program, interface)
    return create_link(program, "netkit", name, ifindex, number, extra=bytes(16))
