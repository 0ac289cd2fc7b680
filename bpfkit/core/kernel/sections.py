# SPDX-License-Identifier: Apache-2.0
"""``SEC("…")``: the names by which a C source says what its programs are.

The names are libbpf's, all of those its documentation lists, so a source written for libbpf
reads the same here.  Each stands for a program type, an expected attach type and load flags.

Source: ``Documentation/bpf/libbpf/program_types.rst``; libbpf's ``section_defs``.
"""

from __future__ import annotations

from bpfkit.core.errors import InputError
from bpfkit.core.kernel.constants import ATTACH_TYPES, PROG_TYPES

__all__ = ["SECTIONS", "Section", "likely", "resolve"]

SLEEPABLE = 1 << 4  # BPF_F_SLEEPABLE
XDP_HAS_FRAGS = 1 << 5  # BPF_F_XDP_HAS_FRAGS

_EXTRA = 1  # the name goes on after a "/": what to attach to
_BTF = 2  # the kernel function or type is named by its BTF id at load time
_OPTIONAL = 4  # the expected attach type may be left out on kernels that do not know it

# name: (program type, expected attach type, prog_flags, what follows the name)
_SECTIONS: dict[str, tuple[str, str, int, int]] = {
    "socket": ("SOCKET_FILTER", "", 0, 0),
    "sk_reuseport": ("SK_REUSEPORT", "SK_REUSEPORT_SELECT", 0, _OPTIONAL),
    "sk_reuseport/migrate": ("SK_REUSEPORT", "SK_REUSEPORT_SELECT_OR_MIGRATE", 0, 0),
    # tracing by perf events
    "kprobe": ("KPROBE", "", 0, _EXTRA),
    "kretprobe": ("KPROBE", "", 0, _EXTRA),
    "uprobe": ("KPROBE", "", 0, _EXTRA),
    "uprobe.s": ("KPROBE", "", SLEEPABLE, _EXTRA),
    "uretprobe": ("KPROBE", "", 0, _EXTRA),
    "uretprobe.s": ("KPROBE", "", SLEEPABLE, _EXTRA),
    "kprobe.multi": ("KPROBE", "TRACE_KPROBE_MULTI", 0, _EXTRA),
    "kretprobe.multi": ("KPROBE", "TRACE_KPROBE_MULTI", 0, _EXTRA),
    "kprobe.session": ("KPROBE", "TRACE_KPROBE_SESSION", 0, _EXTRA),
    "uprobe.multi": ("KPROBE", "TRACE_UPROBE_MULTI", 0, _EXTRA),
    "uretprobe.multi": ("KPROBE", "TRACE_UPROBE_MULTI", 0, _EXTRA),
    "uprobe.session": ("KPROBE", "TRACE_UPROBE_SESSION", 0, _EXTRA),
    "uprobe.multi.s": ("KPROBE", "TRACE_UPROBE_MULTI", SLEEPABLE, _EXTRA),
    "uretprobe.multi.s": ("KPROBE", "TRACE_UPROBE_MULTI", SLEEPABLE, _EXTRA),
    "uprobe.session.s": ("KPROBE", "TRACE_UPROBE_SESSION", SLEEPABLE, _EXTRA),
    "ksyscall": ("KPROBE", "", 0, _EXTRA),
    "kretsyscall": ("KPROBE", "", 0, _EXTRA),
    "usdt": ("KPROBE", "", 0, _EXTRA),
    "usdt.s": ("KPROBE", "", SLEEPABLE, _EXTRA),
    "tracepoint": ("TRACEPOINT", "", 0, _EXTRA),
    "tp": ("TRACEPOINT", "", 0, _EXTRA),
    "perf_event": ("PERF_EVENT", "", 0, 0),
    # tc
    "tc/ingress": ("SCHED_CLS", "TCX_INGRESS", 0, 0),
    "tc/egress": ("SCHED_CLS", "TCX_EGRESS", 0, 0),
    "tcx/ingress": ("SCHED_CLS", "TCX_INGRESS", 0, 0),
    "tcx/egress": ("SCHED_CLS", "TCX_EGRESS", 0, 0),
    "tc": ("SCHED_CLS", "", 0, 0),
    "classifier": ("SCHED_CLS", "", 0, 0),
    "action": ("SCHED_ACT", "", 0, 0),
    "netkit/primary": ("SCHED_CLS", "NETKIT_PRIMARY", 0, 0),
    "netkit/peer": ("SCHED_CLS", "NETKIT_PEER", 0, 0),
    # raw tracepoints and programs that know the kernel's types
    "raw_tracepoint": ("RAW_TRACEPOINT", "", 0, _EXTRA),
    "raw_tp": ("RAW_TRACEPOINT", "", 0, _EXTRA),
    "raw_tracepoint.w": ("RAW_TRACEPOINT_WRITABLE", "", 0, _EXTRA),
    "raw_tp.w": ("RAW_TRACEPOINT_WRITABLE", "", 0, _EXTRA),
    "tp_btf": ("TRACING", "TRACE_RAW_TP", 0, _EXTRA | _BTF),
    "fentry": ("TRACING", "TRACE_FENTRY", 0, _EXTRA | _BTF),
    "fmod_ret": ("TRACING", "MODIFY_RETURN", 0, _EXTRA | _BTF),
    "fexit": ("TRACING", "TRACE_FEXIT", 0, _EXTRA | _BTF),
    "fentry.s": ("TRACING", "TRACE_FENTRY", SLEEPABLE, _EXTRA | _BTF),
    "fmod_ret.s": ("TRACING", "MODIFY_RETURN", SLEEPABLE, _EXTRA | _BTF),
    "fexit.s": ("TRACING", "TRACE_FEXIT", SLEEPABLE, _EXTRA | _BTF),
    "fsession": ("TRACING", "TRACE_FSESSION", 0, _EXTRA | _BTF),
    "fsession.s": ("TRACING", "TRACE_FSESSION", SLEEPABLE, _EXTRA | _BTF),
    # many functions by one link
    "fentry.multi": ("TRACING", "TRACE_FENTRY_MULTI", 0, _EXTRA),
    "fexit.multi": ("TRACING", "TRACE_FEXIT_MULTI", 0, _EXTRA),
    "fsession.multi": ("TRACING", "TRACE_FSESSION_MULTI", 0, _EXTRA),
    "fentry.multi.s": ("TRACING", "TRACE_FENTRY_MULTI", SLEEPABLE, _EXTRA),
    "fexit.multi.s": ("TRACING", "TRACE_FEXIT_MULTI", SLEEPABLE, _EXTRA),
    "fsession.multi.s": ("TRACING", "TRACE_FSESSION_MULTI", SLEEPABLE, _EXTRA),
    "freplace": ("EXT", "", 0, _EXTRA | _BTF),
    "lsm": ("LSM", "LSM_MAC", 0, _EXTRA | _BTF),
    "lsm.s": ("LSM", "LSM_MAC", SLEEPABLE, _EXTRA | _BTF),
    "lsm_cgroup": ("LSM", "LSM_CGROUP", 0, _EXTRA | _BTF),
    "iter": ("TRACING", "TRACE_ITER", 0, _EXTRA | _BTF),
    "iter.s": ("TRACING", "TRACE_ITER", SLEEPABLE, _EXTRA | _BTF),
    "syscall": ("SYSCALL", "", SLEEPABLE, 0),
    # XDP
    "xdp": ("XDP", "XDP", 0, _OPTIONAL),
    "xdp.frags": ("XDP", "XDP", XDP_HAS_FRAGS, _OPTIONAL),
    "xdp/devmap": ("XDP", "XDP_DEVMAP", 0, 0),
    "xdp.frags/devmap": ("XDP", "XDP_DEVMAP", XDP_HAS_FRAGS, 0),
    "xdp/cpumap": ("XDP", "XDP_CPUMAP", 0, 0),
    "xdp.frags/cpumap": ("XDP", "XDP_CPUMAP", XDP_HAS_FRAGS, 0),
    # lightweight tunnels
    "lwt_in": ("LWT_IN", "", 0, 0),
    "lwt_out": ("LWT_OUT", "", 0, 0),
    "lwt_xmit": ("LWT_XMIT", "", 0, 0),
    "lwt_seg6local": ("LWT_SEG6LOCAL", "", 0, 0),
    # sockets
    "sockops": ("SOCK_OPS", "CGROUP_SOCK_OPS", 0, _OPTIONAL),
    "sk_skb/stream_parser": ("SK_SKB", "SK_SKB_STREAM_PARSER", 0, _OPTIONAL),
    "sk_skb/stream_verdict": ("SK_SKB", "SK_SKB_STREAM_VERDICT", 0, _OPTIONAL),
    "sk_skb/verdict": ("SK_SKB", "SK_SKB_VERDICT", 0, 0),
    "sk_skb": ("SK_SKB", "", 0, 0),
    "sk_msg": ("SK_MSG", "SK_MSG_VERDICT", 0, _OPTIONAL),
    "lirc_mode2": ("LIRC_MODE2", "LIRC_MODE2", 0, _OPTIONAL),
    "flow_dissector": ("FLOW_DISSECTOR", "FLOW_DISSECTOR", 0, _OPTIONAL),
    "sk_lookup": ("SK_LOOKUP", "SK_LOOKUP", 0, 0),
    "netfilter": ("NETFILTER", "NETFILTER", 0, 0),
    # cgroups
    "cgroup_skb/ingress": ("CGROUP_SKB", "CGROUP_INET_INGRESS", 0, _OPTIONAL),
    "cgroup_skb/egress": ("CGROUP_SKB", "CGROUP_INET_EGRESS", 0, _OPTIONAL),
    "cgroup/skb": ("CGROUP_SKB", "", 0, 0),
    "cgroup/sock_create": ("CGROUP_SOCK", "CGROUP_INET_SOCK_CREATE", 0, 0),
    "cgroup/sock_release": ("CGROUP_SOCK", "CGROUP_INET_SOCK_RELEASE", 0, 0),
    "cgroup/sock": ("CGROUP_SOCK", "CGROUP_INET_SOCK_CREATE", 0, _OPTIONAL),
    "cgroup/post_bind4": ("CGROUP_SOCK", "CGROUP_INET4_POST_BIND", 0, 0),
    "cgroup/post_bind6": ("CGROUP_SOCK", "CGROUP_INET6_POST_BIND", 0, 0),
    "cgroup/bind4": ("CGROUP_SOCK_ADDR", "CGROUP_INET4_BIND", 0, 0),
    "cgroup/bind6": ("CGROUP_SOCK_ADDR", "CGROUP_INET6_BIND", 0, 0),
    "cgroup/connect4": ("CGROUP_SOCK_ADDR", "CGROUP_INET4_CONNECT", 0, 0),
    "cgroup/connect6": ("CGROUP_SOCK_ADDR", "CGROUP_INET6_CONNECT", 0, 0),
    "cgroup/connect_unix": ("CGROUP_SOCK_ADDR", "CGROUP_UNIX_CONNECT", 0, 0),
    "cgroup/sendmsg4": ("CGROUP_SOCK_ADDR", "CGROUP_UDP4_SENDMSG", 0, 0),
    "cgroup/sendmsg6": ("CGROUP_SOCK_ADDR", "CGROUP_UDP6_SENDMSG", 0, 0),
    "cgroup/sendmsg_unix": ("CGROUP_SOCK_ADDR", "CGROUP_UNIX_SENDMSG", 0, 0),
    "cgroup/recvmsg4": ("CGROUP_SOCK_ADDR", "CGROUP_UDP4_RECVMSG", 0, 0),
    "cgroup/recvmsg6": ("CGROUP_SOCK_ADDR", "CGROUP_UDP6_RECVMSG", 0, 0),
    "cgroup/recvmsg_unix": ("CGROUP_SOCK_ADDR", "CGROUP_UNIX_RECVMSG", 0, 0),
    "cgroup/getpeername4": ("CGROUP_SOCK_ADDR", "CGROUP_INET4_GETPEERNAME", 0, 0),
    "cgroup/getpeername6": ("CGROUP_SOCK_ADDR", "CGROUP_INET6_GETPEERNAME", 0, 0),
    "cgroup/getpeername_unix": ("CGROUP_SOCK_ADDR", "CGROUP_UNIX_GETPEERNAME", 0, 0),
    "cgroup/getsockname4": ("CGROUP_SOCK_ADDR", "CGROUP_INET4_GETSOCKNAME", 0, 0),
    "cgroup/getsockname6": ("CGROUP_SOCK_ADDR", "CGROUP_INET6_GETSOCKNAME", 0, 0),
    "cgroup/getsockname_unix": ("CGROUP_SOCK_ADDR", "CGROUP_UNIX_GETSOCKNAME", 0, 0),
    "cgroup/sysctl": ("CGROUP_SYSCTL", "CGROUP_SYSCTL", 0, 0),
    "cgroup/getsockopt": ("CGROUP_SOCKOPT", "CGROUP_GETSOCKOPT", 0, 0),
    "cgroup/setsockopt": ("CGROUP_SOCKOPT", "CGROUP_SETSOCKOPT", 0, 0),
    "cgroup/dev": ("CGROUP_DEVICE", "CGROUP_DEVICE", 0, _OPTIONAL),
    "struct_ops": ("STRUCT_OPS", "", 0, _EXTRA | _BTF),
    "struct_ops.s": ("STRUCT_OPS", "", SLEEPABLE, _EXTRA | _BTF),
}

_PROG = {name: number for number, name in enumerate(PROG_TYPES)}
_ATTACH = {"": 0, **{name: number for number, name in enumerate(ATTACH_TYPES)}}

#: name: (enum bpf_prog_type, enum bpf_attach_type, prog_flags, what follows the name)
SECTIONS: dict[str, tuple[int, int, int, int]] = {
    name: (_PROG[kind], _ATTACH[attach], flags, follows)
    for name, (kind, attach, flags, follows) in _SECTIONS.items()
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
        hint=f"nearest: {', '.join(near)}" if near else "see `python3 -m bpfkit doctor`",
    )
