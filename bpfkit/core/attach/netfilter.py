# SPDX-License-Identifier: Apache-2.0
"""Netfilter hooks of the caller's network namespace, by a link (kernel 6.4)."""

from __future__ import annotations

from struct import pack

from bpfkit.core.attach.link import Link, create_link
from bpfkit.core.kernel.constants import attach_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.program import Program

__all__ = ["attach"]

_DEFRAG = 1  # BPF_F_NETFILTER_IP_DEFRAG


def attach(program: Program, pf: int, hook: int, priority: int, defrag: bool = False) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_netfilter`."""
    extra = pack("<IIiI", pf, hook, priority, _DEFRAG if defrag else 0)
    target = f"netfilter pf {pf} hook {hook}"
    return create_link(program, "netfilter", target, 0, attach_type("NETFILTER"), extra=extra)
