# SPDX-License-Identifier: Apache-2.0
"""Perf events, by a link (kernel 5.15) or the ioctl, and tracepoints as one kind of them."""

from __future__ import annotations

import errno
import os
from struct import Struct

from bpfkit.core.attach.link import Link, attach_error
from bpfkit.core.errors import InputError, errno_text
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import attach_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.program import Program

__all__ = ["attach", "attach_tracepoint"]

_IOC_SET_BPF = 0x40042408  # PERF_EVENT_IOC_SET_BPF
_IOC_ENABLE = 0x2400  # PERF_EVENT_IOC_ENABLE
_TYPE_TRACEPOINT = 2  # PERF_TYPE_TRACEPOINT


def attach(
    program: Program, event_fd: int, target: str = "", cookie: int = 0, kind: str = "perf_event"
) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_perf_event`.

    :param cookie: what ``bpf_get_attach_cookie()`` returns (5.15); the ioctl has none.
    """
    import fcntl

    target = target or f"perf event fd {event_fd}"
    try:
        try:
            extra = cookie.to_bytes(8, "little") if cookie else b""
            fd = syscall.link_create(program.fd, event_fd, attach_type("PERF_EVENT"), extra=extra)
        except OSError as error:
            if error.errno != errno.EINVAL or cookie:
                raise
            fcntl.ioctl(event_fd, _IOC_SET_BPF, program.fd)
            fd = -1
        fcntl.ioctl(event_fd, _IOC_ENABLE, 0)
    except OSError as error:
        os.close(event_fd)
        raise attach_error(program, target, error) from None
    return Link(program, kind, target, fd, undo=lambda: os.close(event_fd))


def attach_tracepoint(program: Program, name: str = "") -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_tracepoint`."""
    from bpfkit.core.features.pseudofs import read_tracefs

    name = name or program.section.target
    try:
        number = int(read_tracefs(f"events/{name}/id"))
    except OSError as error:
        raise InputError(f"no tracepoint {name}", why=errno_text(error.errno or 0)) from None
    return _attach_event(program, _TYPE_TRACEPOINT, number, f"tracepoint {name}")


def _attach_event(
    program: Program, kind: int, config: int, target: str, pid: int = -1, cpu: int = 0
) -> Link:
    # struct perf_event_attr: type, size, config, sample_period 1, wakeup_events 1
    attr = Struct("<IIQQQQQI").pack(kind, 128, config, 1, 0, 0, 0, 1).ljust(128, b"\0")
    try:
        fd = syscall.perf_event_open(attr, pid, cpu)
    except OSError as error:
        raise attach_error(program, target, error) from None
    return attach(program, fd, target)
