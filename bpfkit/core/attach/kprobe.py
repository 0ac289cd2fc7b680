# SPDX-License-Identifier: Apache-2.0
"""Kernel functions: a kprobe or kretprobe by a perf event (kernel 4.17), many by one link (5.18).

The perf event needs no tracefs.  Source: Documentation/trace/kprobes.rst; kprobe.multi:
samples/bpf and tools/testing/selftests/bpf/prog_tests/kprobe_multi_test.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
from struct import Struct, pack

from bpfkit.core.attach.link import Link, attach_error, create_link
from bpfkit.core.attach.perf_event import attach as attach_event
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, errno_text
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import attach_type
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bpfkit.core.program import Program

__all__ = ["attach", "attach_multi", "event_source"]

_RETURN = 1  # BPF_F_KPROBE_MULTI_RETURN


def event_source(kind: str, setting: str) -> int:
    """The type of perf event of a PMU without hardware ("kprobe", "uprobe").

    :raises UnsupportedError: the kernel does not have it; names ``setting``.
    """
    try:
        with open(f"/sys/bus/event_source/devices/{kind}/type") as file:
            return int(file.read())
    except OSError:
        raise UnsupportedError(
            f"cannot attach a {kind}", why=f"this kernel has no {kind}s ({setting})"
        ) from None


def attach(program: Program, function: str = "", offset: int = 0, cookie: int = 0) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_kprobe`."""
    name, _, more = (function or program.section.target).partition("+")
    offset += int(more, 0) if more else 0
    is_return = program.section.name.startswith("kret")
    kind = "kretprobe" if is_return else "kprobe"
    number = event_source("kprobe", "CONFIG_KPROBE_EVENTS")
    text = ctypes.create_string_buffer(name.encode())
    # struct perf_event_attr: type, size, config, …, config1 at 56, config2 at 64.
    attr = bytearray(128)
    Struct("<IIQ").pack_into(attr, 0, number, 128, int(is_return))
    Struct("<QQ").pack_into(attr, 56, ctypes.addressof(text), offset)
    target = f"{kind} {name}" + (f"+{offset:#x}" if offset else "")
    try:
        fd = syscall.perf_event_open(bytes(attr), -1, 0)
    except OSError as error:
        raise _refused(program, target, name, error) from None
    return attach_event(program, fd, target, cookie, kind)


def attach_multi(program: Program, functions: Sequence[str], cookies: Sequence[int] = ()) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_kprobe_multi`."""
    names = [ctypes.create_string_buffer(name.encode()) for name in functions]
    symbols = (ctypes.c_void_p * len(names))(*map(ctypes.addressof, names))
    values = (ctypes.c_uint64 * len(cookies))(*cookies)
    flags = _RETURN if program.section.name.startswith("kret") else 0
    extra = pack(
        "<IIQQQ",
        flags,
        len(names),
        ctypes.addressof(symbols),
        0,
        ctypes.addressof(values) if cookies else 0,
    )
    number = program.section.expected_attach_type or attach_type("TRACE_KPROBE_MULTI")
    target = functions[0] if len(functions) == 1 else f"{count_of(len(functions), 'function')}"
    try:
        return create_link(program, "kprobe.multi", target, 0, number, 0, extra)
    except BpfkitError as error:
        code = getattr(error, "errno", None)
        if code == errno.EOPNOTSUPP:
            raise UnsupportedError(
                error.what, why="this kernel has no kprobe.multi links (CONFIG_FPROBE; 5.18)"
            ) from None
        if code == errno.ESRCH and len(functions) == 1:
            raise _refused(program, target, functions[0], OSError(errno.ENOENT, "")) from None
        raise


def _refused(program: Program, target: str, name: str, error: OSError) -> BpfkitError:
    """The error with the reasons that only kprobes have."""
    number = error.errno or 0
    if number in (errno.ENOENT, errno.EINVAL, errno.EILSEQ):
        from bpfkit.core.attach.symbols import kernel_functions, nearest

        try:
            known = kernel_functions()
        except OSError:
            known = []
        what = f"cannot attach '{program.name}' to {target}"
        if name not in known:
            return InputError(
                what, why="the kernel has no such function", hint=nearest(name, known)
            )
        return InputError(
            what,
            why=f"the kernel does not let this function be probed [{errno_text(number)}]",
            hint="inlined, __kprobes and noinstr functions and those of the probing machinery "
            "cannot be; /sys/kernel/debug/kprobes/blacklist lists them",
        )
    if number == errno.EACCES and os.geteuid() == 0:
        return UnsupportedError(
            f"cannot attach '{program.name}' to {target}",
            why="the kernel's policy refuses it (lockdown, kernel.perf_event_paranoid)",
        )
    return attach_error(program, target, error)
