# SPDX-License-Identifier: Apache-2.0
"""Raw tracepoints, and programs that know their target by BTF (BPF_RAW_TRACEPOINT_OPEN; 4.17)."""

from __future__ import annotations

from bpfkit.core.attach.link import Link, attach_error
from bpfkit.core.kernel import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.program import Program

__all__ = ["attach"]


def attach(program: Program, name: str = "") -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_raw_tracepoint`."""
    name = name or program.section.target
    by_btf = program.section.attach_btf
    try:
        fd = syscall.raw_tracepoint_open(program.fd, None if by_btf else name.encode())
    except OSError as error:
        raise attach_error(program, f"tracepoint {name}", error) from None
    return Link(program, "raw_tracepoint", name, fd)
