# SPDX-License-Identifier: Apache-2.0
"""Numbers of map types, also of those that are younger than bpfkit's list."""

from __future__ import annotations

from bpfkit.core.kernel.constants import MAP_TYPES

__all__ = ["LATER_TYPES", "type_number"]

#: Types behind the end of ``MAP_TYPES``, and the Linux that has them.
LATER_TYPES = {"INSN_ARRAY": "6.19", "RHASH": "7.2"}

_found: dict[str, int | None] = {}


def type_number(name: str) -> int | None:
    """The number in ``enum bpf_map_type``; of a later type by the running kernel's BTF.

    None: the kernel does not name the type, or has no BTF.
    """
    upper = name.upper()
    if upper in MAP_TYPES:
        return MAP_TYPES.index(upper)
    if upper not in _found:
        from bpfkit.core.types.btf import vmlinux

        btf = vmlinux()
        enum = btf.find("bpf_map_type", "enum") if btf is not None else None
        known = {} if btf is None or enum is None else dict(btf.enumerators(enum))
        _found[upper] = known.get(f"BPF_MAP_TYPE_{upper}")
    return _found[upper]
