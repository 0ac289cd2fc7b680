# SPDX-License-Identifier: Apache-2.0
"""What a program's argument looks like on the running kernel, by its BTF."""

from __future__ import annotations

from bpfkit.core.errors import BpfkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.core.types.btf import Btf

__all__ = ["context_rows", "struct_row"]

#: Sections whose target is a kernel function; its prefix in the kernel.
_FUNCTIONS = {
    "kprobe": "",
    "kretprobe": "",
    "fentry": "",
    "fexit": "",
    "fmod_ret": "",
    "fsession": "",
    "lsm": "bpf_lsm_",
    "lsm_cgroup": "bpf_lsm_",
}
#: Sections whose target is a tracepoint's name.
_TRACEPOINTS = ("tp_btf", "raw_tp", "raw_tracepoint")


def context_rows(context: str, section: str = "", target: str = "") -> list[dict[str, Any]]:
    """The struct that a context points to, or the function whose arguments it holds.

    :param context: the guide's words, which begin with the C type.
    :param section: the section's known part (``tp_btf``), where the user named one.
    :param target: what follows it (``sched_switch``).
    """
    import re

    from bpfkit.core.types.btf import BtfError, vmlinux

    btf = vmlinux()
    if btf is None:
        return [{"unknown": "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"}]
    section = section.removesuffix(".s").removesuffix(".w")
    found: list[dict[str, Any]] = []
    try:
        if target and section in _FUNCTIONS:
            found.append(_function_row(_FUNCTIONS[section] + target.partition("+")[0]))
        elif target and section in _TRACEPOINTS:
            found.append(_tracepoint_row(btf, target))
        named = re.match(r"struct (\w+) \*", context)
        name = named[1] if named else ""
        if section == "iter" and target:
            name = f"bpf_iter__{target}"
        elif name.endswith("_NAME"):
            name = f"trace_event_raw_{target.rpartition('/')[2]}" if target else ""
        if name and section not in _TRACEPOINTS:
            found.append(struct_row(btf, name))
    except (BtfError, BpfkitError) as error:
        hint = getattr(error, "hint", "")
        found.append({"unknown": str(error).partition("\n")[0] + (f"; {hint}" if hint else "")})
    return found


def _function_row(name: str) -> dict[str, Any]:
    from bpfkit.core.attach.function import Function

    function = Function(name)
    return {"function": name, "prototype": str(function)}


def _tracepoint_row(btf: Btf, name: str) -> dict[str, Any]:
    """The arguments of a tracepoint, behind the private one that no program sees."""
    typedef = btf.find(f"btf_trace_{name}", "typedef")
    if typedef is None:
        from bpfkit.core.errors import InputError

        raise InputError(f"the kernel has no tracepoint {name} in its BTF")
    # The function that calls the programs has the arguments' names, the type has not.
    named = btf.find(f"__traceiter_{name}", "func")
    proto = named or btf.resolve(btf.resolve(typedef).ref).id
    words = []
    for number, (parameter, type_id) in enumerate(btf.params(proto)[1:]):
        kind = btf.name_of(type_id)
        gap = "" if kind.endswith("*") else " "
        words.append(f"{kind}{gap}{parameter or f'args[{number}]'}")
    return {"function": name, "prototype": f"{name}({', '.join(words) or 'void'})"}


def struct_row(btf: Btf, name: str) -> dict[str, Any]:
    """A struct: its size and fields; offsets and sizes in bytes, of bit-fields ``bits`` too.

    Members of unnamed structs and unions are shown as the struct's own.
    """
    number = btf.find(name, "struct")
    if number is None:
        return {"struct": name, "unknown": f"this kernel's BTF has no struct {name}"}
    return {"struct": name, "size": btf.sizeof(number), "fields": _fields(btf, number, 0)}


def _fields(btf: Btf, type_id: int, base: int, depth: int = 0) -> list[dict[str, Any]]:
    from bpfkit.core.types.btf import STRUCT, UNION

    fields: list[dict[str, Any]] = []
    for member in btf.members(type_id):
        bit = base + member.bit_offset
        found = btf.resolve(member.type_id)
        if not member.name and found.kind in (STRUCT, UNION) and depth < 16:
            fields += _fields(btf, found.id, bit, depth + 1)
            continue
        field: dict[str, Any] = {
            "offset": bit // 8,
            "size": btf.sizeof(member.type_id),
            "type": btf.name_of(member.type_id),
            "name": member.name,
        }
        if member.bit_size:
            field |= {"bit": bit % 8, "bits": member.bit_size}
        fields.append(field)
    return fields
