# SPDX-License-Identifier: Apache-2.0
"""Many kernel functions by one link and BTF: ``fentry.multi``, ``fexit.multi`` and
``fsession.multi`` (kernel 7.2).

The program is loaded without a target.  It cannot read the arguments from its context, which
differ from function to function; ``bpf_get_func_arg()`` reads them.  Source: struct
link_create.tracing_multi of union bpf_attr.
"""

from __future__ import annotations

import ctypes
import errno
from struct import pack

from bpfkit.core.attach.link import Link, create_link
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError
from bpfkit.core.kernel.constants import attach_type
from bpfkit.core.types.btf import kernel_names, vmlinux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bpfkit.core.program import Program

__all__ = ["attach", "has_trace_multi"]


def has_trace_multi() -> bool:
    """Whether the kernel's BTF names the attach types (it may still refuse them)."""
    return vmlinux() is not None and kernel_names(
        "bpf_attach_type", attach_type("TRACE_FENTRY_MULTI")
    )


def attach(program: Program, functions: Sequence[str], cookies: Sequence[int] = ()) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_trace_multi`."""
    target = functions[0] if len(functions) == 1 else f"{len(functions)} functions"
    what = f"cannot attach '{program.name}' to {target}"
    btf = vmlinux()
    if btf is None:
        raise UnsupportedError(what, why="the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")
    found = [btf.find(name, "func") for name in functions]
    missing = [name for name, number in zip(functions, found, strict=True) if number is None]
    if missing:
        from bpfkit.core.attach.symbols import kernel_functions, nearest

        known = dict.fromkeys(kernel_functions())
        for name in missing:
            if name not in known:
                raise InputError(
                    what, why=f"the kernel has no function {name}", hint=nearest(name, known)
                )
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UnsupportedError(what, why=f"not in the kernel's BTF: {missing[0]}{more}")
    # A cookie belongs to the id at its place; the kernel sorts both.
    ids = (ctypes.c_uint32 * len(found))(*(number or 0 for number in found))
    values = (ctypes.c_uint64 * len(cookies))(*cookies)
    extra = pack(
        "<QQII",
        ctypes.addressof(ids),
        ctypes.addressof(values) if cookies else 0,
        len(found),
        0,
    )
    number = program.section.expected_attach_type
    try:
        return create_link(program, "tracing.multi", target, 0, number, 0, extra)
    except BpfkitError as error:
        if getattr(error, "errno", None) == errno.EBUSY:
            raise BpfkitError(
                error.what,
                why="the kernel refuses one of the functions: it is hooked otherwise, or cannot be",
            ) from None
        raise
