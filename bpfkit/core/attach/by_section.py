# SPDX-License-Identifier: Apache-2.0
"""Attach a program to what its ``SEC()`` says.

Source: libbpf's ``bpf_program__attach()`` and the ``attach_*()`` functions of its ``section_defs``.
"""

from __future__ import annotations

import os

from bpfkit.core.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bpfkit.core.attach.link import Link
    from bpfkit.core.program import Program

    Attach = Callable[..., Link]

__all__ = ["attach"]

#: First part of the section's name (without ".s") -> the method of Program, and how the target is
#: called in its message.  The section itself may name these targets.
_NAMED = {
    "kprobe": ("attach_kprobe", '"FUNCTION"'),
    "kretprobe": ("attach_kprobe", '"FUNCTION"'),
    "ksyscall": ("attach_kprobe", '"SYSTEM_CALL"'),
    "kretsyscall": ("attach_kprobe", '"SYSTEM_CALL"'),
    "kprobe.multi": ("attach_kprobe_multi", '"PATTERN"'),
    "kretprobe.multi": ("attach_kprobe_multi", '"PATTERN"'),
    "kprobe.session": ("attach_kprobe_multi", '"PATTERN"'),
    "fentry.multi": ("attach_trace_multi", '"PATTERN"'),
    "fexit.multi": ("attach_trace_multi", '"PATTERN"'),
    "fsession.multi": ("attach_trace_multi", '"PATTERN"'),
    "uprobe": ("attach_uprobe", '"FILE:FUNCTION"'),
    "uretprobe": ("attach_uprobe", '"FILE:FUNCTION"'),
    "uprobe.multi": ("attach_uprobe_multi", '"FILE:PATTERN"'),
    "uretprobe.multi": ("attach_uprobe_multi", '"FILE:PATTERN"'),
    "uprobe.session": ("attach_uprobe_multi", '"FILE:PATTERN"'),
    "usdt": ("attach_usdt", '"FILE", "PROVIDER:NAME"'),
    "tp": ("attach_tracepoint", '"CATEGORY/NAME"'),
    "tracepoint": ("attach_tracepoint", '"CATEGORY/NAME"'),
    "raw_tp": ("attach_raw_tracepoint", '"NAME"'),
    "raw_tp.w": ("attach_raw_tracepoint", '"NAME"'),
    "raw_tracepoint": ("attach_raw_tracepoint", '"NAME"'),
    "raw_tracepoint.w": ("attach_raw_tracepoint", '"NAME"'),
}
#: These are attached to the function or type that they were loaded for.
_LOADED_FOR = ("tp_btf", "fentry", "fexit", "fmod_ret", "fsession", "lsm")
#: These need a target that no section can name: the method, and what the target is.
_GIVEN = {
    "xdp": ("attach_xdp", "an interface"),
    "tc": ("attach_tc", "an interface"),
    "tcx": ("attach_tcx", "an interface"),
    "classifier": ("attach_tc", "an interface"),
    "netkit": ("attach_netkit", "a netkit device"),
    "socket": ("attach_socket", "a socket"),
    "sk_reuseport": ("attach_reuseport", "a socket of the group"),
    "sk_msg": ("attach_sockmap", "a SOCKMAP or SOCKHASH"),
    "sk_skb": ("attach_sockmap", "a SOCKMAP or SOCKHASH"),
    "sk_lookup": ("attach_netns", "a network namespace"),
    "flow_dissector": ("attach_netns", "a network namespace"),
    "perf_event": ("attach_perf_event", "the descriptor of a perf event"),
    "cgroup": ("attach_cgroup", "a cgroup"),
    "cgroup_skb": ("attach_cgroup", "a cgroup"),
    "sockops": ("attach_cgroup", "a cgroup"),
    "lsm_cgroup": ("attach_cgroup", "a cgroup"),
    "lirc_mode2": ("attach_lirc", "a LIRC device"),
}
#: What is not attached by its program alone, and how it comes to run.
_OTHERWISE = {
    "xdp/devmap": "write its fd into the entries of a DEVMAP or DEVMAP_HASH",
    "xdp/cpumap": "write its fd into the entries of a CPUMAP",
    "syscall": "program.run() runs it",
    "struct_ops": 'obj.attach_struct_ops("STRUCT", …) registers it with the other members',
    "freplace": "program.attach_extension(TARGET, FUNCTION_ID)",
    "netfilter": "program.attach_netfilter(PF, HOOK, PRIORITY)",
    "action": "a filter runs it: tc filter add … action bpf object-pinned FILE",
    "lwt_in": "a route runs it: bpfkit.net.attach.route.attach_route(program, …)",
    "lwt_out": "a route runs it: bpfkit.net.attach.route.attach_route(program, …)",
    "lwt_xmit": "a route runs it: bpfkit.net.attach.route.attach_route(program, …)",
    "lwt_seg6local": "a route runs it: bpfkit.net.attach.route.attach_route(program, …)",
}
#: What the kernel puts before the name of a system call's function.
_SYSCALLS = {
    "x86_64": "__x64_sys_",
    "aarch64": "__arm64_sys_",
    "s390x": "__s390x_sys_",
    "riscv64": "__riscv_sys_",
}


def attach(program: Program, target: Any, options: dict[str, Any]) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach`."""
    section = program.section
    what = f"cannot attach '{program.name}'"
    if not section.name:
        raise InputError(
            what, why="it was loaded without SEC()", hint="call the attach_… method that it needs"
        )
    what += f' (SEC("{section.name}"))'
    known = section.name.removeprefix("?").removesuffix(f"/{section.target}")
    known = known.removesuffix(".s").replace("xdp.frags", "xdp")
    head = known if known in _OTHERWISE else known.partition("/")[0]
    if head in _OTHERWISE:
        raise InputError(what, why="it needs more than its section", hint=_OTHERWISE[head])
    if head in _LOADED_FOR:
        return _without_target(what, program.attach_raw_tracepoint, target, options)
    if head == "iter":
        return _without_target(what, program.attach_iter, target, options)
    if head in _NAMED:
        method, form = _NAMED[head]
        place = target or section.target
        if not place:
            raise InputError(what, why="the section names no target", hint=f"{method}({form})")
        return _to_place(program, method, head, str(place), options)
    method, kind = _GIVEN[head]
    if target is None:
        name = kind.rpartition(" ")[2].upper()
        raise InputError(
            what,
            why=f"it needs {kind}",
            hint=f"attach({name}) or {method}({name}) attaches it there",
        )
    attach_to: Attach = getattr(program, method)
    return attach_to(target, **options)


def _without_target(what: str, method: Attach, target: Any, options: dict[str, Any]) -> Link:
    if target is not None:
        raise InputError(what, why="its target was chosen when it was loaded: attach() takes none")
    return method(**options)


def _to_place(
    program: Program, method: str, head: str, place: str, options: dict[str, Any]
) -> Link:
    """Attach to what a text names: a function, a pattern, a function of a file, a tracepoint."""
    attach_to: Attach = getattr(program, method)
    if head.endswith("syscall"):
        return attach_to(_SYSCALLS.get(os.uname().machine, "__se_sys_") + place, **options)
    if method in ("attach_kprobe_multi", "attach_trace_multi"):
        from bpfkit.core.attach.symbols import matching_functions

        return attach_to(matching_functions([place]), **options)
    if not method.startswith(("attach_uprobe", "attach_usdt")):
        return attach_to(place, **options)
    is_usdt = method == "attach_usdt"
    path, colon, where = place.partition(":") if is_usdt else place.rpartition(":")
    if not colon or not path or not where:
        raise InputError(
            f"cannot attach '{program.name}' to {place}",
            why="FILE:PROVIDER:NAME names a USDT probe"
            if is_usdt
            else "FILE:FUNCTION names the place of a uprobe",
        )
    if method in ("attach_uprobe", "attach_usdt"):
        return attach_to(path, where, **options)
    from fnmatch import fnmatchcase

    from bpfkit.core.attach.symbols import Elf
    from bpfkit.core.attach.uprobe import find_file

    file = Elf(find_file(path))
    places = {s.offset for s in file.functions() if fnmatchcase(s.name, where)}
    if not places:
        file.function(where)  # raises, and offers the nearest
    return attach_to(path, sorted(places), **options)
