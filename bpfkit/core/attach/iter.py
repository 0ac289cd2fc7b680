# SPDX-License-Identifier: Apache-2.0
"""Iterators, by a link (kernel 5.8)."""

from __future__ import annotations

from bpfkit.core.attach.link import Link, create_link
from bpfkit.core.kernel.constants import attach_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.program import Program

__all__ = ["attach"]


def attach(program: Program, extra: bytes = b"") -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_iter`."""
    number = attach_type("TRACE_ITER")
    return create_link(program, "iter", program.section.target, 0, number, extra=extra)
