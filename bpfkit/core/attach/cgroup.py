# SPDX-License-Identifier: Apache-2.0
"""cgroups of the v2 hierarchy, by a link (kernel 5.7; order among programs 6.17).

Links let other programs stand beside them (BPF_F_ALLOW_MULTI).  The kernel runs the programs of the
innermost cgroup first, those of its ancestors after them, within a cgroup in the order of
attachment; ``preorder`` programs run before all others, the outermost cgroup's first.
"""

from __future__ import annotations

import errno
import os
from struct import pack

from bpfkit.core.attach.link import Link, attach_error, create_link
from bpfkit.core.errors import AttachError, BpfkitError, InputError, UnsupportedError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.program import Program

__all__ = ["attach"]

_BEFORE, _AFTER, _ID, _PREORDER, _LINK = 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 13


def attach(
    program: Program,
    cgroup: int | str,
    attach_type: int | None = None,
    *,
    before: Link | Program | int | None = None,
    after: Link | Program | int | None = None,
    preorder: bool = False,
) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_cgroup`."""
    number = program.section.expected_attach_type if attach_type is None else attach_type
    flags, extra = _order(before, after, preorder)
    opened = -1
    if isinstance(cgroup, str):
        try:
            opened = cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"no cgroup {cgroup}", why=errno_text(error.errno or 0)) from None
    else:
        cgroup_fd = cgroup
    target = f"cgroup {cgroup}"
    try:
        return create_link(program, "cgroup", target, cgroup_fd, number, flags, extra)
    except BpfkitError as error:
        raise _explained(error, program, target, flags) from None
    finally:
        if opened >= 0:
            os.close(opened)


def _order(
    before: Link | Program | int | None, after: Link | Program | int | None, preorder: bool
) -> tuple[int, bytes]:
    """The flags and ``link_create.cgroup`` of an order among the programs of a cgroup."""
    if before is not None and after is not None:
        raise InputError("before and after do not go together")
    flags = _PREORDER if preorder else 0
    anchor = before if before is not None else after
    if anchor is None:
        return flags, b""
    flags |= _BEFORE if before is not None else _AFTER
    if isinstance(anchor, int):
        flags |= _ID if anchor else 0  # without an anchor: before or after all others
        relative = anchor
    else:
        relative = anchor.fd
        if isinstance(anchor, Link):
            flags |= _LINK
    return flags, pack("<IIQ", relative, 0, 0)


def _explained(error: BpfkitError, program: Program, target: str, flags: int) -> BpfkitError:
    """The error with the reasons that only cgroups have."""
    number = getattr(error, "errno", None)
    if number == errno.EPERM and os.geteuid() == 0:
        refused = AttachError(
            error.what,
            why="a program on a cgroup above forbids programs below it, or one without "
            "BPF_F_ALLOW_MULTI is attached here [EPERM]",
            hint="`bpftool cgroup tree` shows which one",
        )
        refused.errno = number
        return refused
    if number in (errno.EINVAL, errno.EOPNOTSUPP) and flags:
        plain = attach_error(program, target, OSError(number, ""))
        return UnsupportedError(
            plain.what,
            why="the kernel does not order the programs of a cgroup (BPF_F_BEFORE, BPF_F_AFTER: "
            "Linux 6.17; BPF_F_PREORDER: 6.15), or there is no such anchor",
        )
    return error
