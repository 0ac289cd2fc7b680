# SPDX-License-Identifier: Apache-2.0
"""``SEC("…")``: the names by which a C source says what its programs are.

The names are libbpf's, all of those its documentation lists, so a source written for libbpf
reads the same here.  Each stands for a program type, an expected attach type and load flags.

Source: ``Documentation/bpf/libbpf/program_types.rst``; libbpf's ``section_defs``.
"""

from __future__ import annotations

from bpfkit.core.errors import InputError

__all__ = ["SECTIONS", "Section", "likely", "resolve"]

SLEEPABLE = 1 << 4  # BPF_F_SLEEPABLE
XDP_HAS_FRAGS = 1 << 5  # BPF_F_XDP_HAS_FRAGS

_EXTRA = 1  # the name goes on after a "/": what to attach to
_BTF = 2  # the kernel function or type is named by its BTF id at load time
_OPTIONAL = 4  # the expected attach type may be left out on kernels that do not know it

# name: (enum bpf_prog_type, enum bpf_attach_type, prog_flags, what follows the name)
SECTIONS: dict[str, tuple[int, int, int, int]] = {
    "socket": (1, 0, 0, 0),
    "sk_reuseport": (21, 39, 0, _OPTIONAL),
    "sk_reuseport/migrate": (21, 40, 0, 0),
    # tracing by perf events
    "kprobe": (2, 0, 0, _EXTRA),
    "kretprobe": (2, 0, 0, _EXTRA),
    "uprobe": (2, 0, 0, _EXTRA),
    "uprobe.s": (2, 0, SLEEPABLE, _EXTRA),
    "uretprobe": (2, 0, 0, _EXTRA),
    "uretprobe.s": (2, 0, SLEEPABLE, _EXTRA),
    "kprobe.multi": (2, 42, 0, _EXTRA),
    "kretprobe.multi": (2, 42, 0, _EXTRA),
    "kprobe.session": (2, 56, 0, _EXTRA),
    "uprobe.multi": (2, 48, 0, _EXTRA),
    "uretprobe.multi": (2, 48, 0, _EXTRA),
    "uprobe.session": (2, 57, 0, _EXTRA),
    "uprobe.multi.s": (2, 48, SLEEPABLE, _EXTRA),
    "uretprobe.multi.s": (2, 48, SLEEPABLE, _EXTRA),
    "uprobe.session.s": (2, 57, SLEEPABLE, _EXTRA),
    "ksyscall": (2, 0, 0, _EXTRA),
    "kretsyscall": (2, 0, 0, _EXTRA),
    "usdt": (2, 0, 0, _EXTRA),
    "usdt.s": (2, 0, SLEEPABLE, _EXTRA),
    "tracepoint": (5, 0, 0, _EXTRA),
    "tp": (5, 0, 0, _EXTRA),
    "perf_event": (7, 0, 0, 0),
    # tc
    "tc/ingress": (3, 46, 0, 0),
    "tc/egress": (3, 47, 0, 0),
    "tcx/ingress": (3, 46, 0, 0),
    "tcx/egress": (3, 47, 0, 0),
    "tc": (3, 0, 0, 0),
    "classifier": (3, 0, 0, 0),
    "action": (4, 0, 0, 0),
    "netkit/primary": (3, 54, 0, 0),
    "netkit/peer": (3, 55, 0, 0),
    # raw tracepoints and programs that know the kernel's types
    "raw_tracepoint": (17, 0, 0, _EXTRA),
    "raw_tp": (17, 0, 0, _EXTRA),
    "raw_tracepoint.w": (24, 0, 0, _EXTRA),
    "raw_tp.w": (24, 0, 0, _EXTRA),
    "tp_btf": (26, 23, 0, _EXTRA | _BTF),
    "fentry": (26, 24, 0, _EXTRA | _BTF),
    "fmod_ret": (26, 26, 0, _EXTRA | _BTF),
    "fexit": (26, 25, 0, _EXTRA | _BTF),
    "fentry.s": (26, 24, SLEEPABLE, _EXTRA | _BTF),
    "fmod_ret.s": (26, 26, SLEEPABLE, _EXTRA | _BTF),
    "fexit.s": (26, 25, SLEEPABLE, _EXTRA | _BTF),
    "freplace": (28, 0, 0, _EXTRA | _BTF),
    "lsm": (29, 27, 0, _EXTRA | _BTF),
    "lsm.s": (29, 27, SLEEPABLE, _EXTRA | _BTF),
    "lsm_cgroup": (29, 43, 0, _EXTRA | _BTF),
    "iter": (26, 28, 0, _EXTRA | _BTF),
    "iter.s": (26, 28, SLEEPABLE, _EXTRA | _BTF),
    "syscall": (31, 0, SLEEPABLE, 0),
    # XDP
    "xdp": (6, 37, 0, _OPTIONAL),
    "xdp.frags": (6, 37, XDP_HAS_FRAGS, _OPTIONAL),
    "xdp/devmap": (6, 33, 0, 0),
    "xdp.frags/devmap": (6, 33, XDP_HAS_FRAGS, 0),
    "xdp/cpumap": (6, 35, 0, 0),
    "xdp.frags/cpumap": (6, 35, XDP_HAS_FRAGS, 0),
    # lightweight tunnels
    "lwt_in": (10, 0, 0, 0),
    "lwt_out": (11, 0, 0, 0),
    "lwt_xmit": (12, 0, 0, 0),
    "lwt_seg6local": (19, 0, 0, 0),
    # sockets
    "sockops": (13, 3, 0, _OPTIONAL),
    "sk_skb/stream_parser": (14, 4, 0, _OPTIONAL),
    "sk_skb/stream_verdict": (14, 5, 0, _OPTIONAL),
    "sk_skb/verdict": (14, 38, 0, 0),
    "sk_skb": (14, 0, 0, 0),
    "sk_msg": (16, 7, 0, _OPTIONAL),
    "lirc_mode2": (20, 16, 0, _OPTIONAL),
    "flow_dissector": (22, 17, 0, _OPTIONAL),
    "sk_lookup": (30, 36, 0, 0),
    "netfilter": (32, 45, 0, 0),
    # cgroups
    "cgroup_skb/ingress": (8, 0, 0, _OPTIONAL),
    "cgroup_skb/egress": (8, 1, 0, _OPTIONAL),
    "cgroup/skb": (8, 0, 0, 0),
    "cgroup/sock_create": (9, 2, 0, 0),
    "cgroup/sock_release": (9, 34, 0, 0),
    "cgroup/sock": (9, 2, 0, _OPTIONAL),
    "cgroup/post_bind4": (9, 12, 0, 0),
    "cgroup/post_bind6": (9, 13, 0, 0),
    "cgroup/bind4": (18, 8, 0, 0),
    "cgroup/bind6": (18, 9, 0, 0),
    "cgroup/connect4": (18, 10, 0, 0),
    "cgroup/connect6": (18, 11, 0, 0),
    "cgroup/connect_unix": (18, 49, 0, 0),
    "cgroup/sendmsg4": (18, 14, 0, 0),
    "cgroup/sendmsg6": (18, 15, 0, 0),
    "cgroup/sendmsg_unix": (18, 50, 0, 0),
    "cgroup/recvmsg4": (18, 19, 0, 0),
    "cgroup/recvmsg6": (18, 20, 0, 0),
    "cgroup/recvmsg_unix": (18, 51, 0, 0),
    "cgroup/getpeername4": (18, 29, 0, 0),
    "cgroup/getpeername6": (18, 30, 0, 0),
    "cgroup/getpeername_unix": (18, 52, 0, 0),
    "cgroup/getsockname4": (18, 31, 0, 0),
    "cgroup/getsockname6": (18, 32, 0, 0),
    "cgroup/getsockname_unix": (18, 53, 0, 0),
    "cgroup/sysctl": (23, 18, 0, 0),
    "cgroup/getsockopt": (25, 21, 0, 0),
    "cgroup/setsockopt": (25, 22, 0, 0),
    "cgroup/dev": (15, 6, 0, _OPTIONAL),
    "struct_ops": (27, 0, 0, _EXTRA | _BTF),
    "struct_ops.s": (27, 0, SLEEPABLE, _EXTRA | _BTF),
}


#: Section names by the struct that a program's argument points to, the commonest first.
_BY_CONTEXT = {
    "xdp_md": "xdp",
    "__sk_buff": "tc socket cgroup_skb/ingress",
    "pt_regs": "kprobe/FUNCTION uprobe/FILE:FUNCTION",
    "bpf_perf_event_data": "perf_event",
    "bpf_raw_tracepoint_args": "raw_tp/NAME",
    "bpf_sock_ops": "sockops",
    "sk_msg_md": "sk_msg",
    "bpf_sock": "cgroup/sock_create",
    "bpf_sock_addr": "cgroup/connect4",
    "bpf_sockopt": "cgroup/setsockopt",
    "bpf_sysctl": "cgroup/sysctl",
    "bpf_cgroup_dev_ctx": "cgroup/dev",
    "bpf_sk_lookup": "sk_lookup",
    "sk_reuseport_md": "sk_reuseport",
    "bpf_nf_ctx": "netfilter",
    "bpf_flow_keys": "flow_dissector",
}
#: A word in the function's name that chooses among them.
_BY_NAME = {
    "tc socket cgroup_skb/ingress": (
        ("cgroup", "cgroup_skb/ingress"),
        ("egress", "tc/egress"),
        ("ingress", "tc/ingress"),
        ("sock", "socket"),
        ("filter", "socket"),
        ("lwt", "lwt_xmit"),
        ("verdict", "sk_skb/stream_verdict"),
        ("parse", "socket"),
    ),
    "kprobe/FUNCTION uprobe/FILE:FUNCTION": (
        ("uretprobe", "uretprobe/FILE:FUNCTION"),
        ("uprobe", "uprobe/FILE:FUNCTION"),
        ("ret", "kretprobe/FUNCTION"),
        ("exit", "kretprobe/FUNCTION"),
    ),
    "cgroup/connect4": (
        ("connect6", "cgroup/connect6"),
        ("bind4", "cgroup/bind4"),
        ("bind6", "cgroup/bind6"),
        ("sendmsg", "cgroup/sendmsg4"),
        ("recvmsg", "cgroup/recvmsg4"),
    ),
}


def likely(context: str, function: str = "") -> str:
    """The section names that fit a program, the likeliest first, in words for a hint.

    :param context: the struct that the program's argument points to ("xdp_md").
    :param function: the program's name, which often says more.
    """
    if context.startswith("tracepoint__"):
        return f'SEC("tp/{context[12:].replace("__", "/", 1)}")'
    if context.startswith("trace_event_raw_"):
        return f'SEC("tp/GROUP/{context[16:]}")'
    if context.startswith("bpf_iter__"):
        return f'SEC("iter/{context[10:]}")'
    names = _BY_CONTEXT.get(context, "")
    if not names:
        return ""
    for word, section in _BY_NAME.get(names, ()):
        if word in function.lower():
            names = f"{section} {names}"
            break
    return " or ".join(f'SEC("{name}")' for name in list(dict.fromkeys(names.split()))[:2])


class Section:
    """What one ``SEC("…")`` means.

    ``name`` is the whole text, ``target`` what follows the known name (``sched/sched_switch``
    of ``tp/sched/sched_switch``), ``attach_btf`` whether the target must be found in BTF.
    """

    __slots__ = (
        "attach_btf",
        "attach_optional",
        "expected_attach_type",
        "name",
        "prog_flags",
        "prog_type",
        "target",
    )

    def __init__(
        self,
        name: str,
        prog_type: int,
        expected_attach_type: int = 0,
        prog_flags: int = 0,
        target: str = "",
        attach_btf: bool = False,
        attach_optional: bool = False,
    ) -> None:
        self.name = name
        self.prog_type = prog_type
        self.expected_attach_type = expected_attach_type
        self.prog_flags = prog_flags
        self.target = target
        self.attach_btf = attach_btf
        self.attach_optional = attach_optional


def resolve(name: str) -> Section:
    """The meaning of a section name.

    A leading ``?`` (libbpf: do not load by default) is accepted and ignored.

    :raises InputError: for a name libbpf does not know; lists the nearest ones.
    """
    text = name.removeprefix("?")
    known, target = text, ""
    while True:
        entry = SECTIONS.get(known)
        if entry is not None and (not target or entry[3] & _EXTRA):
            break
        cut = known.rfind("/")
        if cut < 0:
            raise _unknown(name)
        known, target = known[:cut], text[cut + 1 :]
    kind, attach, flags, what = entry
    return Section(name, kind, attach, flags, target, bool(what & _BTF), bool(what & _OPTIONAL))


def _unknown(name: str) -> InputError:
    import difflib

    head = name.split("/", 1)[0]
    near = [known for known in SECTIONS if known.startswith(name + "/")]
    near += difflib.get_close_matches(name, SECTIONS, n=3, cutoff=0.5)
    if not near:
        near = [known for known in SECTIONS if known.split("/", 1)[0] == head]
    near = list(dict.fromkeys(near))[:3]
    return InputError(
        f'unknown section name SEC("{name}")',
        why="libbpf has no program type by this name",
        hint=f"nearest: {', '.join(near)}" if near else "see `python -m bpfkit doctor`",
    )
