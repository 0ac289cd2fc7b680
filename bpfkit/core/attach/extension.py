# SPDX-License-Identifier: Apache-2.0
"""EXT programs: another program's function is replaced, by a link (kernel 5.10).

Source: bpf_tracing_prog_attach() in kernel/bpf/syscall.c.
"""

from __future__ import annotations

from struct import pack

from bpfkit.core.attach.link import Link, create_link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.program import Program

__all__ = ["attach"]


def attach(program: Program, target: Program, function_id: int) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_extension`."""
    # The target is named although the program was loaded for it: the kernel forgets it with the
    # first link, so that without it a second attachment is EINVAL.
    where = f"a function of program {target.id}"
    return create_link(program, "extension", where, target.fd, 0, extra=pack("<I", function_id))
