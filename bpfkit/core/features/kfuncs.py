# SPDX-License-Identifier: Apache-2.0
"""Kernel functions (kfuncs): which of them the running kernel has, by its BTF.

A program calls a kfunc by its BTF id.  In C, ``BPF_KFUNC(type, name, arguments)`` of
``bpfkit/bpfkit.h`` declares it; the assembler has ``call_kfunc``.  Functions of modules are not
reached: that takes the module's BTF beside the program.

Source: Documentation/bpf/kfuncs.rst (kernel 5.13).
"""

from __future__ import annotations

__all__ = ["has_kfunc", "kernel_kfuncs", "kfunc_id"]

_ids: dict[str, int | None] = {}


def kfunc_id(name: str) -> int | None:
    """The id of a kernel function in vmlinux BTF; None: this kernel does not have it.

    Linux 6.18 has functions whose last argument is the verifier's under the name NAME_impl, later
    ones under both names; what a program passes there does not matter.

    That BTF has functions which are no kfuncs, too; the verifier refuses those, and a kfunc in a
    program of a type that may not call it.
    """
    if name not in _ids:
        from bpfkit.core.types.btf import vmlinux

        btf = vmlinux()
        found = None
        if btf is not None:
            found = btf.find(name, "func") or btf.find(f"{name}_impl", "func")
        _ids[name] = found
    return _ids[name]


def kernel_kfuncs() -> dict[str, int]:
    """Name -> id in vmlinux BTF of the functions that it marks as kfuncs (6.10); empty where the
    kernel has no BTF, or one that does not mark them."""
    from bpfkit.core.types.btf import vmlinux

    btf = vmlinux()
    if btf is None:
        return {}
    return {btf.type(number).name: number for number in btf.tagged("bpf_kfunc")}


def has_kfunc(name: str) -> bool:
    """Whether the running kernel has a kernel function of this name."""
    return kfunc_id(name) is not None
