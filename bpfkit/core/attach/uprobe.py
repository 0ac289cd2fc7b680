# SPDX-License-Identifier: Apache-2.0
"""Functions of programs and libraries: a uprobe or uretprobe by a perf event (kernel 4.17), many by
one link (uprobe.multi, 6.6).

Source: Documentation/trace/uprobetracer.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
from struct import Struct, pack

from bpfkit.core.attach.kprobe import event_source
from bpfkit.core.attach.link import Link, attach_error, create_link
from bpfkit.core.attach.perf_event import attach as attach_event
from bpfkit.core.attach.symbols import Elf
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, errno_text
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import attach_type
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bpfkit.core.program import Program

__all__ = ["attach", "attach_multi", "find_file", "find_offset", "require_probes"]

_RETURN = 1  # BPF_F_UPROBE_MULTI_RETURN
_REF_CTR_SHIFT = 32  # of perf_event_attr.config: the semaphore's offset
_BREAKPOINT = 0xCC  # int3
_ENOTSUPP = 524  # the kernel's own, for an instruction that it does not probe
_PLACES = ("/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib")


def find_file(name: str) -> str:
    """The path of a program or library: a path, a program in $PATH, or ``c`` for libc.so.6.

    :raises InputError: there is none.
    """
    if "/" in name:
        if not os.path.exists(name):
            raise InputError(f"no file {name}", why=errno_text(errno.ENOENT))
        return os.path.realpath(name)
    from glob import glob
    from shutil import which

    found = which(name)
    if found:
        return os.path.realpath(found)
    machine = os.uname().machine
    for place in _PLACES:
        for pattern in (f"{place}/{machine}-linux-gnu/lib{name}.so*", f"{place}/lib{name}.so*"):
            # libc.so is a linker's script where development files are installed.
            for path in sorted(glob(pattern), reverse=True):
                with open(path, "rb") as file:
                    if file.read(4) == b"\x7fELF":
                        return os.path.realpath(path)
    raise InputError(f"no program and no library {name}", hint="give a path")


def find_offset(path: str, where: str) -> int:
    """The offset in the file of ``symbol``, ``symbol+0x10`` or ``0x1139``.

    :raises InputError: the file has no such function.
    """
    name, _, more = where.partition("+")
    try:
        extra = int(more, 0) if more else 0
        if name[:1].isdigit():
            return int(name, 0) + extra
    except ValueError:
        raise InputError(f"{where!r} is neither a symbol nor an offset") from None
    return Elf(path).function(name).offset + extra


def attach(
    program: Program, path: str, where: str | int, *, pid: int = -1, ref_ctr_offset: int = 0
) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_uprobe`."""
    file = find_file(path)
    offset = where if isinstance(where, int) else find_offset(file, where)
    is_return = program.section.name.startswith("uret")
    number = event_source("uprobe", "CONFIG_UPROBE_EVENTS")
    text = ctypes.create_string_buffer(os.fsencode(file))
    attr = bytearray(128)
    config = ref_ctr_offset << _REF_CTR_SHIFT | int(is_return)
    Struct("<IIQ").pack_into(attr, 0, number, 128, config)
    Struct("<QQ").pack_into(attr, 56, ctypes.addressof(text), offset)
    target = f"{'uretprobe' if is_return else 'uprobe'} {file}:{where}"
    try:
        fd = syscall.perf_event_open(bytes(attr), pid, -1 if pid > 0 else 0)
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise InputError(f"no process {pid}") from None
        if error.errno in (errno.EINVAL, errno.EIO, errno.EOPNOTSUPP):
            raise InputError(
                f"cannot attach '{program.name}' to {target}",
                why=f"there is no instruction to probe there [{errno_text(error.errno)}]",
            ) from None
        if error.errno == _ENOTSUPP:
            raise _no_probe(program, target) from None
        raise attach_error(program, target, error) from None
    return attach_event(program, fd, target)


def attach_multi(
    program: Program,
    path: str,
    offsets: Sequence[int],
    *,
    cookies: Sequence[int] = (),
    ref_ctr_offsets: Sequence[int] = (),
    pid: int = 0,
) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_uprobe_multi`."""
    file = find_file(path)
    text = ctypes.create_string_buffer(os.fsencode(file))

    def array(values: Sequence[int]) -> ctypes.Array[ctypes.c_uint64]:
        return (ctypes.c_uint64 * max(len(values), 1))(*values)

    places, marks, counters = array(offsets), array(cookies), array(ref_ctr_offsets)
    flags = _RETURN if program.section.name.startswith("uret") else 0
    extra = pack(
        "<QQQQIII4x",
        ctypes.addressof(text),
        ctypes.addressof(places),
        ctypes.addressof(counters) if ref_ctr_offsets else 0,
        ctypes.addressof(marks) if cookies else 0,
        len(offsets),
        flags,
        pid,
    )
    number = program.section.expected_attach_type or attach_type("TRACE_UPROBE_MULTI")
    target = f"{count_of(len(offsets), 'place')} of {file}"
    try:
        return create_link(program, "uprobe.multi", target, 0, number, 0, extra)
    except BpfkitError as error:
        code = getattr(error, "errno", None)
        if code == errno.ESRCH:
            raise InputError(f"no process {pid}") from None
        if code == _ENOTSUPP:
            raise _no_probe(program, target) from None
        if code in (errno.EINVAL, errno.EOPNOTSUPP):
            raise UnsupportedError(
                error.what, why=f"no uprobe.multi links (6.6), or a place without code: {error.why}"
            ) from None
        raise


def _no_probe(program: Program, target: str) -> InputError:
    return InputError(
        f"cannot attach '{program.name}' to {target}",
        why="the kernel does not probe the instruction there (ENOTSUPP)",
        hint="give another offset: an instruction without prefixes, such as a one-byte nop",
    )


def require_probes(path: str, offsets: Sequence[int]) -> None:
    """See that breakpoints are where probes of all processes were attached.

    The kernel looks at an instruction only when a process maps it, and then leaves out silently
    what it cannot probe (prefixes, ``lock``, some nops).  So this process maps the pages and looks.

    :raises InputError: the kernel does not probe one of the places.
    """
    import mmap

    page = mmap.PAGESIZE
    prot = mmap.PROT_READ | mmap.PROT_EXEC
    with open(path, "rb") as file:
        for start in dict.fromkeys(offset & -page for offset in offsets):
            file.seek(start)
            there = file.read(page)
            try:
                mapped = mmap.mmap(
                    file.fileno(), len(there), flags=mmap.MAP_PRIVATE, prot=prot, offset=start
                )
            except OSError:
                return  # a file system without execution: no process runs this file
            with mapped:
                for offset in offsets:
                    at = offset - start
                    if 0 <= at < len(there) and mapped[at] == there[at] != _BREAKPOINT:
                        raise InputError(
                            f"the kernel does not probe the instruction at {offset:#x} of {path}",
                            why=f"its bytes are {there[at : at + 10].hex(' ')}",
                        )
