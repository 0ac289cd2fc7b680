# SPDX-License-Identifier: Apache-2.0
"""BPF_PROG_LOAD, with an explanation if the kernel refuses."""

from __future__ import annotations

import errno
import os

from bpfkit.core.errors import (
    BpfkitError,
    LoadError,
    PrivilegeError,
    UnsupportedError,
    VerifierError,
    errno_text,
    lacking,
)
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import attach_type_name, prog_type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bpfkit.core.compile.artifact import ProgDef
    from bpfkit.core.kernel.sections import Section

__all__ = ["load_program", "needs_root"]

_LOG_SIZES = (1 << 16, 1 << 20, 1 << 24)


def needs_root(what: str) -> PrivilegeError:
    """The error for a user without privileges."""
    return PrivilegeError(
        what,
        why="needs root (CAP_BPF, and CAP_NET_ADMIN or CAP_PERFMON by program type)",
        hint="run it with sudo",
    )


def load_program(
    name: str,
    section: Section,
    insns: bytes,
    license: bytes = b"GPL",
    *,
    kern_version: int = 0,
    btf_fd: int = 0,
    definition: ProgDef | None = None,
    attach_btf_id: int = 0,
    attach_prog_fd: int = 0,
    find_line: Callable[[str, int], tuple[str, int] | None] | None = None,
    missing_kfuncs: Sequence[str] = (),
) -> int:
    """BPF_PROG_LOAD; returns the fd, and explains the error if the kernel refuses.

    :param missing_kfuncs: kernel functions that the program calls and this kernel does not have.

    The first attempt has no log, which makes loading fast; only a refused load is repeated with
    a log.
    """
    import ctypes

    func_info = definition.func_info if definition else b""
    line_info = definition.line_info if definition else b""

    def attempt(eat: int, level: int = 0, log: ctypes.Array[ctypes.c_char] | None = None) -> int:
        return syscall.prog_load(
            section.prog_type,
            insns,
            license,
            name.encode(),
            expected_attach_type=eat,
            prog_flags=section.prog_flags,
            kern_version=kern_version,
            btf_fd=btf_fd,
            func_info=func_info,
            func_info_rec_size=definition.func_info_rec_size if definition else 8,
            line_info=line_info,
            line_info_rec_size=definition.line_info_rec_size if definition else 16,
            attach_btf_id=attach_btf_id,
            attach_prog_fd=attach_prog_fd,
            log_level=level,
            log=log,
        )

    eat = section.expected_attach_type
    try:
        return attempt(eat)
    except OSError as error:
        first = error
    if section.attach_optional and eat and first.errno in (errno.EINVAL, errno.E2BIG):
        try:
            return attempt(0)  # a kernel that does not know this attach type yet
        except OSError:
            pass
    text = ""
    for size in _LOG_SIZES:
        log = ctypes.create_string_buffer(size)
        try:
            return attempt(eat, 1, log)
        except OSError as error:
            text = log.value.decode(errors="replace")
            if error.errno != errno.ENOSPC:
                first = error
                break
            if "\nprocessed " in text:
                break  # cut off, but (from 6.4 on) at its start: the reason is there
    if missing_kfuncs and "invalid func " in text:
        raise UnsupportedError(
            f"cannot load '{name}' ({prog_type_name(section.prog_type)})",
            why=f"this kernel has no function {', '.join(dict.fromkeys(missing_kfuncs))} (kfunc)",
        ) from None
    raise _load_error(name, section, len(insns) // 8, first, text, find_line) from None


def _load_error(
    name: str,
    section: Section,
    insn_count: int,
    error: OSError,
    log: str,
    find_line: Callable[[str, int], tuple[str, int] | None] | None,
) -> BpfkitError:
    number = error.errno or 0
    kind = prog_type_name(section.prog_type)
    what = f"cannot load '{name}' ({kind})"
    lack = lacking(error, what)
    if lack is not None:
        return lack
    if number == errno.EPERM and os.geteuid() != 0:
        return needs_root(what)
    from bpfkit.core.types.btf import kernel_names

    if not kernel_names("bpf_attach_type", section.expected_attach_type):
        # What the verifier then says is about another type.
        return UnsupportedError(
            what,
            why="this kernel does not have the attach type "
            f"{attach_type_name(section.expected_attach_type)} [{errno_text(number)}]",
            hint="`python3 -m bpfkit doctor` shows what works here",
        )
    # A policy refuses before the verifier has looked at an instruction.
    untouched = number == errno.EPERM and log.startswith("processed 0 insns")
    if (untouched or not log.strip()) and number != errno.E2BIG:  # too large to have a log
        if number == errno.EPERM:
            from bpfkit.core.features.privileges import refused_by_policy

            return PrivilegeError(what, why=refused_by_policy(section.prog_type))
        if number == errno.EINVAL:
            return UnsupportedError(
                what,
                why="this kernel does not have the type, or its attach type "
                f"{section.expected_attach_type} [{errno_text(number)}]",
                hint="`python3 -m bpfkit doctor` shows what works here",
            )
        return LoadError(what, why=errno_text(number))
    from bpfkit.core.verifier.explain import explain

    found = explain(
        log, prog_type_name=kind, insn_count=insn_count, find_line=find_line, number=number
    )
    lines = [found.cause]
    if found.c_line:
        lines.append(f"  {found.c_location or 'C'}: {found.c_line}")
    lines += [f"  verifier: {line}" for line in found.log_lines]
    rejected = VerifierError(
        f"the verifier rejects '{name}' ({kind})",
        why="\n".join(lines),
        hint=found.hint,
        log=log,
    )
    rejected.refused = found.function
    return rejected
