# SPDX-License-Identifier: Apache-2.0
"""Network namespaces, by a link: flow dissector (kernel 5.8) and sk_lookup (5.9)."""

from __future__ import annotations

import os

from bpfkit.core.attach.link import Link, create_link
from bpfkit.core.errors import InputError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.program import Program

__all__ = ["attach"]


def attach(program: Program, netns: int | str) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_netns`."""
    opened = -1
    if isinstance(netns, str):
        try:
            opened = netns_fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(
                f"no network namespace {netns}", why=errno_text(error.errno or 0)
            ) from None
    else:
        netns_fd = netns
    try:
        number = program.section.expected_attach_type
        return create_link(program, "netns", f"netns {netns}", netns_fd, number)
    finally:
        if opened >= 0:
            os.close(opened)
