# SPDX-License-Identifier: Apache-2.0
"""cgroups of the v2 hierarchy, by a link (kernel 5.7)."""

from __future__ import annotations

import os

from bpfkit.core.attach.link import Link, create_link
from bpfkit.core.errors import InputError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.program import Program

__all__ = ["attach"]


def attach(program: Program, cgroup: int | str, attach_type: int | None = None) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_cgroup`."""
    number = program.section.expected_attach_type if attach_type is None else attach_type
    opened = -1
    if isinstance(cgroup, str):
        try:
            opened = cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"no cgroup {cgroup}", why=errno_text(error.errno or 0)) from None
    else:
        cgroup_fd = cgroup
    try:
        return create_link(program, "cgroup", f"cgroup {cgroup}", cgroup_fd, number)
    finally:
        if opened >= 0:
            os.close(opened)
