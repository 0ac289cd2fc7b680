# SPDX-License-Identifier: Apache-2.0
"""XDP on an interface, by a link (BPF_LINK_CREATE; kernel 5.9)."""

from __future__ import annotations

from bpfkit.core.attach.link import Link, create_link, interface_name
from bpfkit.core.errors import InputError
from bpfkit.core.kernel.constants import attach_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.program import Program

__all__ = ["attach"]

#: XDP_FLAGS_*_MODE
_MODES = {"auto": 0, "generic": 1 << 1, "native": 1 << 2, "offload": 1 << 3}


def attach(program: Program, ifindex: int, mode: str = "auto") -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_xdp`."""
    if mode not in _MODES:
        raise InputError(f"unknown XDP mode '{mode}'", why="the modes are " + ", ".join(_MODES))
    name = interface_name(program, ifindex)
    return create_link(program, "xdp", name, ifindex, attach_type("XDP"), _MODES[mode])
