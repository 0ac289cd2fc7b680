# SPDX-License-Identifier: Apache-2.0
"""SOCKMAP and SOCKHASH: sk_skb and sk_msg programs, by a link (kernel 6.10) or BPF_PROG_ATTACH."""

from __future__ import annotations

import errno

from bpfkit.core.attach.link import Link, attach_error
from bpfkit.core.kernel import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.maps.base import Map
    from bpfkit.core.program import Program

__all__ = ["attach"]


def attach(program: Program, sockmap: Map) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_sockmap`."""
    number = program.section.expected_attach_type
    target = f"map {sockmap.name}"
    try:
        fd = syscall.link_create(program.fd, sockmap.fd, number)
        return Link(program, "sockmap", target, fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise attach_error(program, target, error) from None
    try:
        syscall.prog_attach(sockmap.fd, program.fd, number)
    except OSError as error:
        raise attach_error(program, target, error) from None

    fd = program.fd  # and not the program, which would then never go

    def undo() -> None:
        try:
            syscall.prog_detach(sockmap.fd, fd, number)
        except OSError:
            pass  # the map is gone, and the attachment with it

    return Link(program, "sockmap", target, undo=undo)
