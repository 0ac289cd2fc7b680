# SPDX-License-Identifier: Apache-2.0
"""Iterators, by a link (kernel 5.8)."""

from __future__ import annotations

import os

from bpfkit.core.attach.link import Link, create_link
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import attach_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.program import Program

__all__ = ["attach", "read_iter"]

_CHUNK = 1 << 16


def attach(program: Program, extra: bytes = b"") -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_iter`."""
    number = attach_type("TRACE_ITER")
    return create_link(program, "iter", program.section.target, 0, number, extra=extra)


def read_iter(link: Link) -> bytes:
    """Everything that an iterator's program writes in one walk (BPF_ITER_CREATE, read(2)).

    :raises OSError: the program or the walk failed.
    """
    fd = syscall.iter_create(link.fd)
    try:
        return b"".join(iter(lambda: os.read(fd, _CHUNK), b""))
    finally:
        os.close(fd)
