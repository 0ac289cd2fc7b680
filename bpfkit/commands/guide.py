# SPDX-License-Identifier: Apache-2.0
"""What each program type and map type is, in words: the text of ``python3 -m bpfkit info``.

For a program type the five questions: what is it for; which section and which context; what may
it change; where are examples; how does the kernel run it.  The section names are not here: they
are :data:`bpfkit.core.kernel.sections.SECTIONS`.  For a map type: what for, what keys and values
are, what user space can do with it.

Source: ``include/uapi/linux/bpf.h``, ``Documentation/bpf``, bpf-helpers(7), and the kernel's
functions that are named (``net/core/filter.c`` says which program types may write packets).
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "CHECKS",
    "MAPS",
    "PROGRAMS",
    "STOCK",
    "MapGuide",
    "ProgramGuide",
    "first_stock",
    "verified_on",
]

#: Stock kernels: Linux version and the distribution's release that has it.
STOCK = (
    ("5.10", "Debian 11"),
    ("6.1", "Debian 12"),
    ("6.12", "Debian 13"),
    ("6.16", "Debian 13 backports"),
    ("6.17", "Debian 13 backports"),
    ("6.18", "Debian 13 backports"),
    ("6.19", "Debian 13 backports"),
    ("7.0", "Debian 13 backports"),
    ("7.1", "Debian 13 backports"),
    ("7.2", "Debian 13 backports"),
    ("7.3", "Debian 13 backports"),
)


def first_stock(since: str) -> str:
    """The first stock kernel that is as new as a version: ``6.1 (Debian 12)``; "" if none is.

    By the version alone: the distribution's configuration may leave the feature out.
    """

    def number(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")))

    for version, release in STOCK:
        if number(version) >= number(since):
            return f"{version} ({release})"
    return ""


def verified_on(what: str, name: str) -> list[str]:
    """The stock kernels on which ``make vm-matrix`` verified a type: ``["5.10", "6.1"]``.

    :param what: ``program type`` or ``map type``.
    :param name: of the type, in lower case.
    """
    global _matrix
    if _matrix is None:
        with open(os.path.join(os.path.dirname(__file__), "matrix.json")) as file:
            _matrix = json.load(file)
    return list(_matrix[what].get(name, ()))


_matrix: dict[str, Any] | None = None

_PROGS = "tools/testing/selftests/bpf/progs/"


class ProgramGuide(NamedTuple):
    """The answers for one program type.

    :ivar since: the first kernel that had it.
    :ivar purpose: what it is for.
    :ivar context: the argument in C, and what is to know about it.
    :ivar changes: what it may change, in packets above all.
    :ivar returns: what the return value means.
    :ivar examples: files of the kernel's tree.
    :ivar runs: where in the kernel's path it is called.
    :ivar functions: the kernel's functions that call it, outermost first, or prepare the call.
    :ivar attach: the call that attaches it.
    :ivar method: the method of :class:`bpfkit.core.program.Program` for that; empty if none.
    """

    since: str
    purpose: str
    context: str
    changes: str
    returns: str
    examples: tuple[str, ...]
    runs: str
    functions: tuple[str, ...]
    attach: str
    method: str


class MapGuide(NamedTuple):
    """The answers for one map type.

    :ivar since: the first kernel that had it.
    :ivar purpose: what it is for.
    :ivar key: what a key is.
    :ivar value: what a value is.
    :ivar entries: what max_entries means, and what is to know about flags.
    :ivar operations: what user space can do with it.
    :ivar handled_by: the class of :mod:`bpfkit.core.maps` for that.
    :ivar example: the program here that shows the type and checks it at its edges.
    """

    since: str
    purpose: str
    key: str
    value: str
    entries: str
    operations: str
    handled_by: str
    example: str = "maps"


def _progs(*names: str) -> tuple[str, ...]:
    return tuple(f"{_PROGS}{name}.c" for name in names)


#: Type -> (program, what its ``--check`` verifies about the type's effect).
CHECKS: dict[str, tuple[str, str]] = {
    "SOCKET_FILTER": ("truncate", "the listener gets 5 bytes, and the others when TCP sends again"),
    "KPROBE": ("functrace", "every call of the demo's child is counted; nothing is changed"),
    "SCHED_CLS": ("tc_drop_tcp", "TCP is dropped at egress, ping is not"),
    "SCHED_ACT": ("tc_action", "the matching packets are dropped, the others arrive"),
    "TRACEPOINT": ("opensnoop", "every open of the demo is there; nothing is changed"),
    "XDP": ("xdp_drop_icmp", "ICMP is dropped, TCP is not"),
    "PERF_EVENT": ("profile", "the busy function is found; nothing is changed"),
    "CGROUP_SKB": ("cgroup_skb", "packets of the group are counted and dropped"),
    "CGROUP_SOCK": ("cgroup_sock", "sockets are denied and their mark is set"),
    "LWT_IN": ("lwt_in", "packets that arrive for the route are dropped"),
    "LWT_OUT": ("lwt_out", "packets that leave by the route are dropped"),
    "LWT_XMIT": ("lwt_xmit", "packets leave with a header in front"),
    "SOCK_OPS": ("sockops", "the socket options that the program sets are in TCP_INFO"),
    "SK_SKB": ("sk_skb", "the backend gets the payload that no process forwarded"),
    "CGROUP_DEVICE": ("cgroup_device", "a device is denied, another is allowed"),
    "SK_MSG": ("sk_msg", "the peer gets the payload, a capture on lo does not"),
    "RAW_TRACEPOINT": ("syscounts", "the demo's system calls are counted; nothing is changed"),
    "CGROUP_SOCK_ADDR": ("cgroup_sock_addr", "connect() reaches another address"),
    "LWT_SEG6LOCAL": ("seg6local", "the segment routing header's tag is rewritten"),
    "LIRC_MODE2": ("lirc", "a remote's pulses become key events"),
    "SK_REUSEPORT": ("sk_reuseport", "the program chooses the socket of the group"),
    "FLOW_DISSECTOR": ("flow_dissector", "a packet fanout group splits by other keys"),
    "CGROUP_SYSCTL": ("cgroup_sysctl", "a write fails, and a written value is replaced"),
    "RAW_TRACEPOINT_WRITABLE": ("raw_tracepoint_writable", "a test run's errno is changed"),
    "CGROUP_SOCKOPT": ("cgroup_sockopt", "getsockopt and setsockopt answer otherwise"),
    "TRACING": ("fmod_ret", "a function of the kernel returns the chosen errno"),
    "STRUCT_OPS": ("tcp_cc", "connections follow the program's congestion window"),
    "EXT": ("ext", "a running XDP program's function is replaced"),
    "LSM": ("lsm", "opening, executing and connecting are denied"),
    "SK_LOOKUP": ("sk_lookup", "a listener answers on ports that nobody listens on"),
    "SYSCALL": ("syscall", "the context comes back changed"),
    "NETFILTER": ("netfilter", "packets are dropped"),
}

PROGRAMS: dict[str, ProgramGuide] = {
    "SOCKET_FILTER": ProgramGuide(
        since="3.19",
        purpose="Decides per packet whether a socket receives it and how much of it: counting, "
        "capturing, choosing a socket of a packet fanout group.",
        context="struct __sk_buff *; offset 0 is the link header on an AF_PACKET SOCK_RAW "
        "socket, the transport header on a TCP or UDP one; read by bpf_skb_load_bytes",
        changes="no packets, only what its socket gets; of the context it may write cb[]",
        returns="how many bytes to keep (0 drops, more than there are keeps all); "
        "in a fanout group: the number of the socket",
        examples=(
            "samples/bpf/sockex1_kern.c",
            "samples/bpf/sockex2_kern.c",
            "samples/bpf/sockex3_kern.c",
        ),
        runs="when a packet is about to be queued to the socket: at the packet tap (behind XDP, "
        "before tc ingress) for AF_PACKET, in the protocol's receive function for the others",
        functions=("packet_rcv", "tpacket_rcv", "sk_filter_trim_cap"),
        attach="setsockopt SO_ATTACH_BPF; PACKET_FANOUT_DATA for a fanout group",
        method="attach_socket",
    ),
    "KPROBE": ProgramGuide(
        since="4.1",
        purpose="Looks at arguments, return values and state wherever a function of the kernel "
        "(kprobe) or of a process (uprobe, USDT) begins, is at an instruction, or returns.",
        context="struct pt_regs *; the registers at that place, arguments by PT_REGS_PARM1…",
        changes="no packets; bpf_override_return makes functions fail that are marked for error "
        "injection, bpf_probe_write_user writes the process's memory",
        returns="0 keeps the event out of the perf buffer of its perf event; a session program "
        "returns 1 at entry to be spared the return",
        examples=_progs("test_attach_probe", "kprobe_multi", "test_usdt"),
        runs="from the breakpoint or ftrace call at the probed place, in the context of whoever "
        "got there; multi probes since 5.18 (kprobe) and 6.6 (uprobe)",
        functions=("kprobe_perf_func", "trace_call_bpf"),
        attach="perf_event_open and PERF_EVENT_IOC_SET_BPF, or BPF_LINK_CREATE (perf event 5.15, "
        "multi)",
        method="attach_perf_event",
    ),
    "SCHED_CLS": ProgramGuide(
        since="4.1",
        purpose="Sees, changes, drops and redirects every packet of an interface, in and out, "
        "with all that the kernel knows of it: filters, NAT, load balancers, tunnels.",
        context="struct __sk_buff *; data begins at the link header",
        changes="packets: yes, bytes, length, VLAN tags and encapsulation; the context's mark, "
        "priority, tc_index, tc_classid, queue_mapping, tstamp, cb[]",
        returns="TC_ACT_OK (0), TC_ACT_SHOT (2) drops, TC_ACT_REDIRECT (7), TC_ACT_UNSPEC (-1) "
        "goes on; with tcx TCX_PASS, TCX_DROP, TCX_REDIRECT, TCX_NEXT, the same numbers",
        examples=_progs("test_tc_link", "test_tc_bpf"),
        runs="ingress: behind XDP and the packet tap, before netfilter and routing; egress: when "
        "the packet is handed to the device, before its qdisc and the packet tap",
        functions=("__netif_receive_skb_core", "__dev_queue_xmit", "tc_run", "cls_bpf_classify"),
        attach="BPF_LINK_CREATE on the ifindex (tcx 6.6, netkit 6.7); before: netlink "
        "RTM_NEWTFILTER, direct action, on a clsact qdisc (4.5)",
        method="attach_tc",
    ),
    "SCHED_ACT": ProgramGuide(
        since="4.1",
        purpose="The action of a tc filter: what happens to packets that another classifier (u32, "
        "flower, …) has matched.",
        context="struct __sk_buff *; data begins at the link header",
        changes="packets: yes, as SCHED_CLS",
        returns="TC_ACT_OK (0), TC_ACT_SHOT (2) drops, TC_ACT_PIPE (3) goes on with the next "
        "action, TC_ACT_REDIRECT (7), TC_ACT_UNSPEC (-1) takes the action's own default",
        examples=_progs("verifier_sockmap_mutate"),
        runs="where tc runs (ingress or egress of an interface, or inside a qdisc), after the "
        "filter it belongs to has matched; needs CONFIG_NET_ACT_BPF",
        functions=("tc_run", "tcf_bpf_act"),
        attach="netlink RTM_NEWTFILTER or RTM_NEWACTION with an action of kind bpf",
        method="",
    ),
    "TRACEPOINT": ProgramGuide(
        since="4.7",
        purpose="Looks at the kernel's static tracepoints, fields as tracefs describes them.",
        context="struct trace_event_raw_NAME *; the record of events/CATEGORY/NAME/format, whose "
        "first 8 bytes cannot be read",
        changes="no packets; the record can only be read",
        returns="0 keeps the event out of the perf buffer of its perf event",
        examples=_progs("test_tracepoint", "stacktrace_map"),
        runs="where the kernel's code passes the tracepoint, in the context of whoever got there",
        functions=("perf_trace_run_bpf_submit", "perf_call_bpf_enter", "trace_call_bpf"),
        attach="perf_event_open with the tracepoint's id from tracefs, then "
        "PERF_EVENT_IOC_SET_BPF or BPF_LINK_CREATE (5.15)",
        method="attach_tracepoint",
    ),
    "XDP": ProgramGuide(
        since="4.8",
        purpose="Judges packets at the earliest point, before the kernel allocates anything for "
        "them: drops floods, forwards, balances, hands packets to AF_XDP sockets.",
        context="struct xdp_md *; data begins at the Ethernet header",
        changes="packets: yes, bytes, and length at both ends (bpf_xdp_adjust_head, _tail, _meta)",
        returns="XDP_DROP (1), XDP_PASS (2), XDP_TX (3) back out of the same interface, "
        "XDP_REDIRECT (4); XDP_ABORTED (0) drops and fires a tracepoint",
        examples=_progs("test_xdp", "xdp_redirect_multi_kern"),
        runs="native: in the driver's receive loop; generic (4.12): first thing when the stack "
        "receives the packet, before the packet tap and tc; receive only",
        functions=("__netif_receive_skb_core", "do_xdp_generic", "bpf_prog_run_generic_xdp"),
        attach="BPF_LINK_CREATE on the ifindex (5.9) or netlink IFLA_XDP; xdp/devmap and "
        "xdp/cpumap as part of a map's value (5.8, 5.9)",
        method="attach_xdp",
    ),
    "PERF_EVENT": ProgramGuide(
        since="4.9",
        purpose="Samples: runs at each overflow of a hardware or software counter, for profiles "
        "by instruction address or stack.",
        context="struct bpf_perf_event_data *; registers, sample period, address",
        changes="no packets; the context can only be read",
        returns="0 keeps the sample out of the event's perf buffer",
        examples=(*_progs("test_perf_link", "perf_event_stackmap"), "samples/bpf/sampleip_kern.c"),
        runs="in the interrupt (often NMI) of the counter's overflow, on the CPU sampled",
        functions=("__perf_event_overflow", "bpf_overflow_handler"),
        attach="perf_event_open, then PERF_EVENT_IOC_SET_BPF or BPF_LINK_CREATE (5.15)",
        method="attach_perf_event",
    ),
    "CGROUP_SKB": ProgramGuide(
        since="4.10",
        purpose="Counts and filters the IP traffic of the sockets of a cgroup: a firewall or "
        "meter per service or container.",
        context="struct __sk_buff *; data begins at the IP header",
        changes="no packet bytes; the context's mark, priority, cb[], tstamp",
        returns="1 lets the packet pass, 0 drops it (a sender sees EPERM); on egress 3 and 2 are "
        "the same with congestion reported",
        examples=_progs("netcnt_prog", "cgroup_skb_sk_lookup_kern"),
        runs="ingress: when the packet has found its socket; egress: on output of an IP packet "
        "that has a socket, behind netfilter and before tc",
        functions=("sk_filter_trim_cap", "ip_finish_output", "__cgroup_bpf_run_filter_skb"),
        attach="BPF_LINK_CREATE (5.7) or BPF_PROG_ATTACH on the cgroup's directory (v2)",
        method="attach_cgroup",
    ),
    "CGROUP_SOCK": ProgramGuide(
        since="4.10",
        purpose="Allows, denies and marks the creation, the bind and the release of IPv4 and IPv6 "
        "sockets in a cgroup.",
        context="struct bpf_sock *",
        changes="no packets; of a socket being created or released bound_dev_if, mark, priority",
        returns="1 allows, 0 denies (EPERM); on release it is ignored",
        examples=_progs("udp_limit"),
        runs="in socket(2), after bind(2) has chosen the port (4.17), and when the socket is "
        "closed (5.9)",
        functions=("inet_create", "__inet_bind", "inet_release", "__cgroup_bpf_run_filter_sk"),
        attach="BPF_LINK_CREATE (5.7) or BPF_PROG_ATTACH on the cgroup's directory (v2)",
        method="attach_cgroup",
    ),
    "LWT_IN": ProgramGuide(
        since="4.10",
        purpose="Judges packets that arrive and are routed by a certain route.",
        context="struct __sk_buff *; data begins at the IP header",
        changes="no packet bytes; it may put headers in front (bpf_lwt_push_encap) and writes the "
        "context's mark, priority, cb[]",
        returns="BPF_OK (0), BPF_DROP (2), BPF_LWT_REROUTE (128) after a new outer header",
        examples=(*_progs("test_lwt_ip_encap"), "samples/bpf/test_lwt_bpf.c"),
        runs="behind the routing decision for a received packet, instead of the route's input "
        "function, which it calls next",
        functions=("lwtunnel_input", "bpf_input", "run_lwt_bpf"),
        attach="netlink RTM_NEWROUTE with encap bpf (LWT_BPF_IN)",
        method="",
    ),
    "LWT_OUT": ProgramGuide(
        since="4.10",
        purpose="Judges packets this machine sends by a certain route.",
        context="struct __sk_buff *; data begins at the IP header",
        changes="no packet bytes; the context's mark, priority, cb[]",
        returns="BPF_OK (0), BPF_DROP (2)",
        examples=("samples/bpf/lwt_len_hist.bpf.c", "samples/bpf/test_lwt_bpf.c"),
        runs="on output, instead of the route's output function, which it calls next; before "
        "netfilter's POSTROUTING",
        functions=("lwtunnel_output", "bpf_output", "run_lwt_bpf"),
        attach="netlink RTM_NEWROUTE with encap bpf (LWT_BPF_OUT)",
        method="",
    ),
    "LWT_XMIT": ProgramGuide(
        since="4.10",
        purpose="Changes, encapsulates and redirects packets that leave by a certain route, "
        "forwarded ones too: tunnels without a tunnel device.",
        context="struct __sk_buff *; data begins at the IP header",
        changes="packets: yes, bytes, length, headers in front (bpf_lwt_push_encap, "
        "bpf_skb_change_head); the context's mark, priority, cb[]",
        returns="BPF_OK (0), BPF_DROP (2), BPF_REDIRECT (7), BPF_LWT_REROUTE (128) after a new "
        "outer header",
        examples=(
            *_progs("test_lwt_redirect", "test_lwt_reroute"),
            "samples/bpf/test_lwt_bpf.c",
        ),
        runs="at the end of IP output, behind netfilter and fragmentation, before the neighbour "
        "(link address) is looked up",
        functions=("lwtunnel_xmit", "bpf_xmit", "run_lwt_bpf"),
        attach="netlink RTM_NEWROUTE with encap bpf (LWT_BPF_XMIT)",
        method="",
    ),
    "SOCK_OPS": ProgramGuide(
        since="4.13",
        purpose="Follows the life of a cgroup's TCP connections and tunes them: timeouts, "
        "congestion control, header options; enters sockets in a sockmap.",
        context="struct bpf_sock_ops *; op says what happened, args[] the details",
        changes="no packets but TCP header options (bpf_store_hdr_opt, 5.10); socket options by "
        "bpf_setsockopt; the answer in reply",
        returns="1; the answer to the kernel's question (a timeout, a window) is ctx->reply",
        examples=_progs("test_tcpbpf_kern", "test_tcp_hdr_options"),
        runs="at points of the TCP state machine: connect, established, RTT, retransmission and "
        "state change (these where bpf_sock_ops_cb_flags_set asks for them)",
        functions=("tcp_call_bpf", "__cgroup_bpf_run_filter_sock_ops"),
        attach="BPF_LINK_CREATE (5.7) or BPF_PROG_ATTACH on the cgroup's directory (v2)",
        method="attach_cgroup",
    ),
    "SK_SKB": ProgramGuide(
        since="4.14",
        purpose="Redirects what a socket receives to another socket inside the kernel: a proxy "
        "without copies to user space.",
        context="struct __sk_buff *; data is the received payload",
        changes="packets: yes, the payload's bytes and length; the context's priority, tc_index",
        returns="verdict: SK_PASS (1, also after bpf_sk_redirect_map or _hash), SK_DROP (0); "
        "parser: the message's length, 0 for more data, negative for an error",
        examples=_progs("sockmap_parse_prog", "sockmap_verdict_prog", "test_sockmap_listen"),
        runs="when data arrives on a socket of the SOCKMAP or SOCKHASH, before it can be read",
        functions=("sk_psock_verdict_data_ready", "sk_psock_verdict_recv", "sk_psock_strp_read"),
        attach="BPF_PROG_ATTACH on the map, or BPF_LINK_CREATE (6.10)",
        method="attach_sockmap",
    ),
    "CGROUP_DEVICE": ProgramGuide(
        since="4.15",
        purpose="The device controller of cgroup v2: which device files a cgroup may open or make.",
        context="struct bpf_cgroup_dev_ctx *; access and type, major, minor",
        changes="nothing, it decides",
        returns="1 allows, 0 denies (EPERM)",
        examples=_progs("dev_cgroup"),
        runs="in open(2) and mknod(2) of a device file",
        functions=("devcgroup_check_permission", "__cgroup_bpf_check_dev_permission"),
        attach="BPF_LINK_CREATE (5.7) or BPF_PROG_ATTACH on the cgroup's directory (v2)",
        method="attach_cgroup",
    ),
    "SK_MSG": ProgramGuide(
        since="4.17",
        purpose="Judges and redirects what a process sends, at sendmsg: local connections that "
        "bypass the TCP/IP stack.",
        context="struct sk_msg_md *; data is the payload being sent",
        changes="packets: there is none yet; the payload: yes, bytes and length "
        "(bpf_msg_push_data, bpf_msg_pop_data)",
        returns="SK_PASS (1, also after bpf_msg_redirect_map or _hash), SK_DROP (0)",
        examples=_progs("test_skmsg_load_helpers", "test_sockmap_listen"),
        runs="in sendmsg(2) on a socket of the SOCKMAP or SOCKHASH, before TCP makes segments",
        functions=("tcp_bpf_sendmsg", "tcp_bpf_send_verdict", "sk_psock_msg_verdict"),
        attach="BPF_PROG_ATTACH on the map, or BPF_LINK_CREATE (6.10)",
        method="attach_sockmap",
    ),
    "RAW_TRACEPOINT": ProgramGuide(
        since="4.17",
        purpose="Looks at tracepoints faster than TRACEPOINT: the arguments as the kernel passes "
        "them, no record is made; needs no tracefs.",
        context="struct bpf_raw_tracepoint_args *; args[] holds the arguments of TP_PROTO",
        changes="no packets; the arguments can only be read",
        returns="is ignored",
        examples=_progs("test_raw_tp_test_run", "test_overhead"),
        runs="where the kernel's code passes the tracepoint, in the context of whoever got there",
        functions=("bpf_trace_run1",),
        attach="BPF_RAW_TRACEPOINT_OPEN with the tracepoint's name",
        method="attach_raw_tracepoint",
    ),
    "CGROUP_SOCK_ADDR": ProgramGuide(
        since="4.17",
        purpose="Rewrites or denies the addresses of connect, bind, sendmsg, recvmsg, getpeername "
        "and getsockname in a cgroup: service addresses without NAT.",
        context="struct bpf_sock_addr *",
        changes="no packets; the address: user_ip4, user_ip6, user_port, msg_src_ip4, msg_src_ip6 "
        "(of a unix socket by bpf_sock_addr_set_sun_path)",
        returns="1 goes on, 0 denies (EPERM; not for recvmsg, getpeername and getsockname); bind: "
        "3 also spares the check for privileged ports",
        examples=_progs("connect4_prog", "bind4_prog"),
        runs="in the system call, before the kernel uses the address (recvmsg and get…name: before "
        "the process sees it); sendmsg 4.18, recvmsg 5.2, get…name 5.8, unix 6.7",
        functions=("inet_bind_sk", "tcp_v4_pre_connect", "__cgroup_bpf_run_filter_sock_addr"),
        attach="BPF_LINK_CREATE (5.7) or BPF_PROG_ATTACH on the cgroup's directory (v2)",
        method="attach_cgroup",
    ),
    "LWT_SEG6LOCAL": ProgramGuide(
        since="4.18",
        purpose="An own action (End.BPF) for IPv6 segment routing: what this node does with "
        "packets for one of its segments.",
        context="struct __sk_buff *; data begins at the outer IPv6 header",
        changes="packets: not directly; the segment routing header's flags, tag and TLVs by "
        "bpf_lwt_seg6_store_bytes and _adjust_srh, standard actions by bpf_lwt_seg6_action",
        returns="BPF_OK (0) routes to the next segment, BPF_DROP (2), BPF_REDIRECT (7) keeps the "
        "route that bpf_lwt_seg6_action has set",
        examples=_progs("test_lwt_seg6local"),
        runs="on input of a packet routed to the segment, after the header was advanced to the "
        "next segment",
        functions=("seg6_local_input", "input_action_end_bpf"),
        attach="netlink RTM_NEWROUTE with encap seg6local, action End.BPF",
        method="",
    ),
    "LIRC_MODE2": ProgramGuide(
        since="4.18",
        purpose="Decodes the pulses of an infrared remote control into key presses.",
        context="unsigned int *; one sample: length in µs and kind (LIRC_MODE2_PULSE, _SPACE, …)",
        changes="no packets; it reports keys by bpf_rc_keydown, bpf_rc_repeat, bpf_rc_pointer_rel",
        returns="is ignored",
        examples=_progs("test_lirc_mode2_kern"),
        runs="for each pulse and space that the receiver reports; needs CONFIG_BPF_LIRC_MODE2",
        functions=("lirc_raw_event", "lirc_bpf_run"),
        attach="BPF_PROG_ATTACH on /dev/lircN",
        method="attach_lirc",
    ),
    "SK_REUSEPORT": ProgramGuide(
        since="4.19",
        purpose="Chooses which socket of an SO_REUSEPORT group gets a connection or datagram: by "
        "content, by CPU, for restarts without loss.",
        context="struct sk_reuseport_md *; data begins at the transport header",
        changes="no packets; it selects by bpf_sk_select_reuseport from a REUSEPORT_SOCKARRAY, "
        "SOCKMAP or SOCKHASH",
        returns="SK_PASS (1; without a selection the kernel chooses by hash), SK_DROP (0)",
        examples=_progs("test_select_reuseport_kern"),
        runs="when the lookup for a SYN or datagram has found the group; also to move requests of "
        "a closed listener (sk_reuseport/migrate, 5.14)",
        functions=("reuseport_select_sock", "bpf_run_sk_reuseport"),
        attach="setsockopt SO_ATTACH_REUSEPORT_EBPF on one socket of the group",
        method="attach_reuseport",
    ),
    "FLOW_DISSECTOR": ProgramGuide(
        since="4.20",
        purpose="Replaces the kernel's parser of packet headers, whose result feeds flow hashes "
        "(RPS, fanout, multipath) and flower.",
        context="struct __sk_buff *; flow_keys points to the struct bpf_flow_keys to fill in",
        changes="no packets; the flow keys",
        returns="BPF_OK (0), BPF_DROP (2): not dissected (the packet stays), "
        "BPF_FLOW_DISSECTOR_CONTINUE (129): the kernel's own parser goes on",
        examples=_progs("bpf_flow"),
        runs="whenever the kernel dissects a packet in that network namespace; one program per "
        "namespace, the initial one's holds for all",
        functions=("__skb_flow_dissect", "bpf_flow_dissect"),
        attach="BPF_LINK_CREATE on a network namespace (5.8) or BPF_PROG_ATTACH in it",
        method="attach_netns",
    ),
    "CGROUP_SYSCTL": ProgramGuide(
        since="5.2",
        purpose="Watches, denies and rewrites what a cgroup reads and writes below /proc/sys.",
        context="struct bpf_sysctl *; write, file_pos; name and values by bpf_sysctl_get_name …",
        changes="no packets; the value being written (bpf_sysctl_set_new_value), file_pos",
        returns="1 allows, 0 denies (EPERM)",
        examples=_progs("test_sysctl_prog"),
        runs="in read(2) and write(2) on a file of /proc/sys, before the kernel does it",
        functions=("proc_sys_call_handler", "__cgroup_bpf_run_filter_sysctl"),
        attach="BPF_LINK_CREATE (5.7) or BPF_PROG_ATTACH on the cgroup's directory (v2)",
        method="attach_cgroup",
    ),
    "RAW_TRACEPOINT_WRITABLE": ProgramGuide(
        since="5.2",
        purpose="A raw tracepoint that may answer: the few tracepoints that the kernel declares "
        "writable (nbd_send_request, bpf_test_finish).",
        context="struct bpf_raw_tracepoint_args *; args[0] points to the writable buffer",
        changes="no packets; the buffer of the tracepoint's first argument",
        returns="is ignored",
        examples=("tools/testing/selftests/bpf/prog_tests/raw_tp_writable_test_run.c",),
        runs="where the kernel's code passes the tracepoint; what was written is used afterwards",
        functions=("bpf_trace_run1",),
        attach="BPF_RAW_TRACEPOINT_OPEN; EINVAL if the program writes beyond the buffer's size",
        method="attach_raw_tracepoint",
    ),
    "CGROUP_SOCKOPT": ProgramGuide(
        since="5.3",
        purpose="Watches, denies, rewrites and answers setsockopt and getsockopt in a cgroup.",
        context="struct bpf_sockopt *; optval up to optval_end, one page at most",
        changes="no packets; setsockopt: level, optname, optval, optlen (-1 spares the kernel's "
        "handler); getsockopt: optval, optlen, retval",
        returns="1 goes on, 0 denies (EPERM)",
        examples=_progs("sockopt_sk"),
        runs="setsockopt: before the kernel's handler; getsockopt: after it",
        functions=(
            "do_sock_setsockopt",
            "__cgroup_bpf_run_filter_setsockopt",
            "__cgroup_bpf_run_filter_getsockopt",
        ),
        attach="BPF_LINK_CREATE (5.7) or BPF_PROG_ATTACH on the cgroup's directory (v2)",
        method="attach_cgroup",
    ),
    "TRACING": ProgramGuide(
        since="5.5",
        purpose="Looks at kernel functions (fentry, fexit), tracepoints (tp_btf) and other BPF "
        "programs with typed arguments at almost no cost; fmod_ret changes return values; iter "
        "lists kernel objects as text.",
        context="unsigned long long *; the arguments in order, typed by BTF, for fexit and "
        "fmod_ret the return value behind them; iter: struct bpf_iter__TARGET *",
        changes="no packets; fmod_ret sets the return value of functions open to error injection "
        "and of security_*; an iterator of a map may write its values",
        returns="fentry, fexit: must be 0; fmod_ret: not 0 skips the function and is its result; "
        "iter: 0, or 1 to see the object again; tp_btf: is ignored",
        examples=_progs("fentry_test", "fexit_test", "modify_return", "bpf_iter_task"),
        runs="from a trampoline patched into the function's first bytes (fmod_ret 5.7), at the "
        "tracepoint (tp_btf), or per object in read(2) on the iterator (5.8)",
        functions=("arch_prepare_bpf_trampoline", "bpf_trace_run1", "bpf_iter_run_prog"),
        attach="BPF_RAW_TRACEPOINT_OPEN, attach_btf_id being given at load; iter: BPF_LINK_CREATE "
        "and BPF_ITER_CREATE",
        method="attach_trace",
    ),
    "STRUCT_OPS": ProgramGuide(
        since="5.6",
        purpose="Implements a table of kernel functions: TCP congestion control (5.6), HID (6.11), "
        "the scheduler (sched_ext, 6.12), a qdisc (6.16).",
        context="unsigned long long *; the arguments of the member function in order, typed by BTF",
        changes="what the kernel opens for that table (tcp_congestion_ops: a few fields of struct "
        "tcp_sock; Qdisc_ops: which packets are queued and dropped)",
        returns="whatever the member function returns",
        examples=(*_progs("bpf_cubic", "bpf_dctcp"), "tools/sched_ext/scx_simple.bpf.c"),
        runs="wherever the kernel calls that member of the table, through a trampoline; programs "
        "of one table are the members of one STRUCT_OPS map's value",
        functions=("bpf_struct_ops_map_update_elem", "arch_prepare_bpf_trampoline"),
        attach="BPF_MAP_UPDATE_ELEM on the map registers the table; BPF_LINK_CREATE with the map "
        "(BPF_F_LINK, 6.4)",
        method="",
    ),
    "EXT": ProgramGuide(
        since="5.6",
        purpose="Replaces a global function of a BPF program that is loaded: plug-ins, several XDP "
        "programs on one interface.",
        context="that of the function it replaces",
        changes="what the program it extends may change",
        returns="what the function it replaces returns",
        examples=_progs("freplace_cls_redirect", "freplace_connect4"),
        runs="instead of the function, by a jump patched into its first bytes",
        functions=("bpf_trampoline_link_prog",),
        attach="BPF_LINK_CREATE or BPF_RAW_TRACEPOINT_OPEN; attach_prog_fd and attach_btf_id are "
        "given at load",
        method="attach_trace",
    ),
    "LSM": ProgramGuide(
        since="5.7",
        purpose="Allows or denies whatever Linux security modules can (files, sockets, exec, "
        "mounts …), for the machine (lsm) or a cgroup (lsm_cgroup, 6.0).",
        context="unsigned long long *; the arguments of the hook in order, typed by BTF, behind "
        "them the verdict of the BPF programs so far",
        changes="no packets; it decides",
        returns="lsm: 0 allows, a negative errno denies; lsm_cgroup: 1 allows, 0 denies (EPERM)",
        examples=_progs("lsm", "lsm_cgroup"),
        runs="in security_HOOK by the function bpf_lsm_HOOK, after the modules listed before bpf; "
        "needs CONFIG_BPF_LSM and bpf in the kernel's lsm= list",
        functions=("bpf_lsm_file_open", "arch_prepare_bpf_trampoline"),
        attach="BPF_RAW_TRACEPOINT_OPEN or BPF_LINK_CREATE; lsm_cgroup: BPF_LINK_CREATE on the "
        "cgroup's directory",
        method="attach_trace",
    ),
    "SK_LOOKUP": ProgramGuide(
        since="5.9",
        purpose="Chooses the socket for a new TCP connection or an unconnected UDP datagram: one "
        "listener for many ports or addresses.",
        context="struct bpf_sk_lookup *; family, protocol, addresses, ports; no packet data",
        changes="no packets; it selects by bpf_sk_assign a socket of a SOCKMAP or SOCKHASH",
        returns="SK_PASS (1; without a selection the normal lookup goes on), SK_DROP (0)",
        examples=_progs("test_sk_lookup"),
        runs="when no established connection matches, before the listeners are searched",
        functions=("__inet_lookup_listener", "__udp4_lib_lookup", "inet_lookup_run_sk_lookup"),
        attach="BPF_LINK_CREATE on a network namespace",
        method="attach_netns",
    ),
    "SYSCALL": ProgramGuide(
        since="5.14",
        purpose="Runs when user space says so and may itself call bpf(2): loaders without "
        "libbpf (light skeletons), set-up, calls of kernel functions.",
        context="void *; ctx_in of the call, up to 65535 bytes, in whatever layout both agree on",
        changes="no packets; the context is copied back; maps and programs by bpf_sys_bpf",
        returns="a number that the caller of BPF_PROG_TEST_RUN gets as retval",
        examples=_progs("syscall"),
        runs="in the caller's bpf(2), sleepable (the program needs BPF_F_SLEEPABLE)",
        functions=("bpf_prog_test_run_syscall",),
        attach="none: BPF_PROG_TEST_RUN runs it once",
        method="run",
    ),
    "NETFILTER": ProgramGuide(
        since="6.4",
        purpose="Judges packets at a netfilter hook, between the rules of nftables and iptables.",
        context="struct bpf_nf_ctx *; state and skb, typed by BTF (not in the UAPI headers)",
        changes="no packet bytes (bpf_dynptr_from_skb reads them)",
        returns="NF_ACCEPT (1), NF_DROP (0)",
        examples=_progs("test_netfilter_link_attach", "verifier_netfilter_ctx"),
        runs="at PREROUTING, INPUT, FORWARD, OUTPUT or POSTROUTING of IPv4 or IPv6, in the order "
        "of priorities; reassembled before on request (6.6)",
        functions=("nf_hook_slow", "nf_hook_run_bpf"),
        attach="BPF_LINK_CREATE with protocol family, hook and priority, in the caller's network "
        "namespace",
        method="attach_netfilter",
    ),
}

_HASH_OPS = "look up, update, delete, walk; in batches (5.6); look up and delete in one (5.14)"
_ANY = "any bytes"
_INDEX = "u32, the index: 0 to max_entries - 1"
_PER_CPU = (
    "any bytes, once per CPU; user space passes one for every possible CPU, each rounded up to "
    "8 bytes"
)
_STORAGE = "must be 0, with BPF_F_NO_PREALLOC and BTF for key and value"
_INNER = (
    "u32: user space writes a map's fd and reads its id; the map must match the template given at "
    "creation (type, key and value size, flags)"
)

MAPS: dict[str, MapGuide] = {
    "HASH": MapGuide(
        since="3.19",
        purpose="Any key to any value: state per flow, address, process.",
        key=_ANY,
        value=_ANY,
        entries="the most there can be (then E2BIG); memory is taken at creation unless "
        "BPF_F_NO_PREALLOC",
        operations=_HASH_OPS,
        handled_by="HashMap",
    ),
    "ARRAY": MapGuide(
        since="3.19",
        purpose="A table by index, the fastest map: counters, settings, global variables.",
        key=_INDEX,
        value="any bytes, zero at first",
        entries="the number of entries; all of them exist always",
        operations="look up, update, walk, in batches (5.6); mmap with BPF_F_MMAPABLE (5.5); "
        "nothing can be deleted",
        handled_by="ArrayMap",
    ),
    "PROG_ARRAY": MapGuide(
        since="4.2",
        purpose="Programs to jump to: bpf_tail_call.",
        key=_INDEX,
        value="u32: user space writes a program's fd and reads its id; all programs of one type",
        entries="the number of slots; emptied when user space no longer holds the map",
        operations="look up, update, delete, walk; programs cannot read it",
        handled_by="ProgArray",
    ),
    "PERF_EVENT_ARRAY": MapGuide(
        since="4.3",
        purpose="Perf buffers to send records to (bpf_perf_event_output), or counters to read "
        "(bpf_perf_event_read_value).",
        key="u32, the index: mostly the CPU's number (BPF_F_CURRENT_CPU)",
        value="u32: the fd of a perf event",
        entries="the number of slots; one leaves when the fd of the map that entered it is closed, "
        "unless BPF_F_PRESERVE_ELEMS (5.10)",
        operations="update, delete, walk; no look-up; the records are read by mmap of the events",
        handled_by="PerfEventArray",
    ),
    "PERCPU_HASH": MapGuide(
        since="4.6",
        purpose="A HASH with a value per CPU: counters that need no atomic operation.",
        key=_ANY,
        value=_PER_CPU,
        entries="the most there can be (then E2BIG)",
        operations=_HASH_OPS,
        handled_by="PerCpuHash",
    ),
    "PERCPU_ARRAY": MapGuide(
        since="4.6",
        purpose="An ARRAY with a value per CPU: counters, and scratch memory beyond the stack.",
        key=_INDEX,
        value=f"{_PER_CPU}; at most 32 KiB",
        entries="the number of entries; all of them exist always",
        operations="look up, update, walk, in batches; nothing can be deleted",
        handled_by="PerCpuArray",
    ),
    "STACK_TRACE": MapGuide(
        since="4.6",
        purpose="Stacks by their id: bpf_get_stackid stores one and returns the key.",
        key="u32, the stack's id",
        value="u64 addresses, innermost first, the rest zero (value_size / 8 is the depth); "
        "struct bpf_stack_build_id with BPF_F_STACK_BUILD_ID",
        entries="the number of buckets; stacks that collide are refused or replace each other",
        operations="look up, delete, walk; no update",
        handled_by="StackTrace",
    ),
    "CGROUP_ARRAY": MapGuide(
        since="4.8",
        purpose="Cgroups to ask about: bpf_skb_under_cgroup, bpf_current_task_under_cgroup.",
        key=_INDEX,
        value="u32: the fd of a cgroup v2 directory",
        entries="the number of slots",
        operations="update, delete, walk; no look-up",
        handled_by="CgroupArray",
    ),
    "LRU_HASH": MapGuide(
        since="4.10",
        purpose="A HASH that never is full: entries not used lately make room.",
        key=_ANY,
        value=_ANY,
        entries="about the most there can be: eviction is approximate and begins a little earlier; "
        "BPF_F_NO_COMMON_LRU gives each CPU its own list",
        operations=_HASH_OPS,
        handled_by="HashMap",
    ),
    "LRU_PERCPU_HASH": MapGuide(
        since="4.10",
        purpose="An LRU_HASH with a value per CPU.",
        key=_ANY,
        value=_PER_CPU,
        entries="about the most there can be: eviction is approximate and begins a little earlier",
        operations=_HASH_OPS,
        handled_by="PerCpuHash",
    ),
    "LPM_TRIE": MapGuide(
        since="4.11",
        purpose="The longest prefix that matches: routes, block lists of networks.",
        key="struct bpf_lpm_trie_key_u8: u32 prefixlen in bits, then 1 to 256 bytes in network "
        "byte order",
        value=_ANY,
        entries="the most prefixes there can be (then ENOSPC); BPF_F_NO_PREALLOC is a must",
        operations="look up (the longest match), update, delete, walk (4.16), in batches",
        handled_by="LpmTrie",
    ),
    "ARRAY_OF_MAPS": MapGuide(
        since="4.12",
        purpose="Maps by index, to be swapped as a whole while programs run.",
        key=_INDEX,
        value=_INNER,
        entries="the number of slots; creation takes the fd of a template (inner_map_fd)",
        operations="look up, update, delete, walk",
        handled_by="ArrayOfMaps",
    ),
    "HASH_OF_MAPS": MapGuide(
        since="4.12",
        purpose="Maps by any key: a map per tenant, interface, service.",
        key=_ANY,
        value=_INNER,
        entries="the most there can be; creation takes the fd of a template (inner_map_fd)",
        operations="look up, update, delete, walk",
        handled_by="MapOfMaps",
    ),
    "DEVMAP": MapGuide(
        since="4.14",
        purpose="Interfaces that XDP sends packets to: bpf_redirect_map, also to all of them "
        "(BPF_F_BROADCAST, 5.14).",
        key=_INDEX,
        value="u32 ifindex, or struct bpf_devmap_val: ifindex and an xdp/devmap program that runs "
        "before sending (5.8; written as fd, read as id)",
        entries="the number of slots",
        operations="look up, update, delete, walk",
        handled_by="DevMap",
    ),
    "SOCKMAP": MapGuide(
        since="4.14",
        purpose="Sockets by index: what sk_skb and sk_msg programs redirect between and sk_lookup "
        "and sk_reuseport programs choose from.",
        key=_INDEX,
        value="u32 or u64: user space writes a socket's fd and reads its cookie (u64 only)",
        entries="the number of slots; a socket leaves when it is closed",
        operations="look up, update, delete, walk",
        handled_by="SockMap",
    ),
    "CPUMAP": MapGuide(
        since="4.15",
        purpose="CPUs that XDP hands packets to, which build the skb and run the stack there.",
        key="u32, the CPU's number",
        value="u32 queue length (1 to 16384), or struct bpf_cpumap_val: that and an xdp/cpumap "
        "program that runs there (5.9; written as fd, read as id)",
        entries="at most the number of CPUs the kernel was built for; a CPU must be a possible one",
        operations="look up, update, delete, walk",
        handled_by="CpuMap",
    ),
    "XSKMAP": MapGuide(
        since="4.18",
        purpose="AF_XDP sockets that XDP hands packets to, mostly one per receive queue.",
        key="u32, the index: the receive queue's number by convention",
        value="u32: the fd of a bound AF_XDP socket",
        entries="the number of slots; a socket leaves when it is closed",
        operations="update, delete, walk; no look-up",
        handled_by="XskMap",
    ),
    "SOCKHASH": MapGuide(
        since="4.18",
        purpose="A SOCKMAP by any key: mostly the connection's addresses and ports.",
        key=_ANY,
        value="u32 or u64: user space writes a socket's fd and reads its cookie (u64 only)",
        entries="the most there can be; a socket leaves when it is closed",
        operations="look up, update, delete, walk",
        handled_by="SockHash",
    ),
    "CGROUP_STORAGE": MapGuide(
        since="4.19",
        purpose="A value per cgroup that a cgroup program is attached to (bpf_get_local_storage); "
        "superseded by CGRP_STORAGE.",
        key="struct bpf_cgroup_storage_key: cgroup id and attach type; or u64 cgroup id, shared by "
        "the attach types (5.9)",
        value="any bytes, zero at first",
        entries="must be 0; the kernel makes an entry with the attachment and removes it",
        operations="look up, update of what exists, walk; no delete",
        handled_by="CgroupStorage",
    ),
    "REUSEPORT_SOCKARRAY": MapGuide(
        since="4.19",
        purpose="The sockets an sk_reuseport program chooses from.",
        key=_INDEX,
        value="u32 or u64: user space writes the fd of a socket with SO_REUSEPORT that is bound "
        "(UDP) or listens (TCP), and reads its cookie (u64 only)",
        entries="the number of slots; a socket can be in one such array only and leaves when "
        "closed",
        operations="look up, update, delete, walk",
        handled_by="ReuseportSockArray",
    ),
    "PERCPU_CGROUP_STORAGE": MapGuide(
        since="4.20",
        purpose="A CGROUP_STORAGE with a value per CPU.",
        key="as CGROUP_STORAGE",
        value=_PER_CPU,
        entries="must be 0; the kernel makes an entry with the attachment and removes it",
        operations="look up, update of what exists, walk; no delete",
        handled_by="PerCpuCgroupStorage",
    ),
    "QUEUE": MapGuide(
        since="4.20",
        purpose="First in, first out, by programs and user space: free ports, work to do.",
        key="none (key_size 0)",
        value=_ANY,
        entries="the most there can be (then E2BIG; BPF_EXIST drops the oldest instead)",
        operations="push (update), peek (look up), pop (look up and delete); no walk",
        handled_by="Queue",
    ),
    "STACK": MapGuide(
        since="4.20",
        purpose="Last in, first out, by programs and user space.",
        key="none (key_size 0)",
        value=_ANY,
        entries="the most there can be (then E2BIG; BPF_EXIST drops the oldest instead)",
        operations="push (update), peek (look up), pop (look up and delete); no walk",
        handled_by="Queue",
    ),
    "SK_STORAGE": MapGuide(
        since="5.2",
        purpose="A value per socket that lives and dies with it (bpf_sk_storage_get).",
        key="int: user space passes a socket's fd",
        value=_ANY,
        entries=_STORAGE,
        operations="look up, update, delete; no walk",
        handled_by="Storage",
    ),
    "DEVMAP_HASH": MapGuide(
        since="5.4",
        purpose="A DEVMAP by any number, mostly the ifindex itself.",
        key="u32, any",
        value="as DEVMAP",
        entries="the most there can be",
        operations="look up, update, delete, walk",
        handled_by="DevMapHash",
    ),
    "STRUCT_OPS": MapGuide(
        since="5.6",
        purpose="A table of kernel functions implemented by STRUCT_OPS programs.",
        key="u32, always 0",
        value="struct bpf_struct_ops_NAME of the kernel's BTF: state, then the table with program "
        "fds in its function members",
        entries="1",
        operations="update registers the table, delete unregisters it; with BPF_F_LINK (6.4) a "
        "link does both; look up shows the state",
        handled_by="StructOps",
    ),
    "RINGBUF": MapGuide(
        since="5.8",
        purpose="One stream of records of any length from all CPUs to user space, in order.",
        key="none (key_size 0)",
        value="none (value_size 0); records are what bpf_ringbuf_output or _reserve makes",
        entries="the size in bytes, a power of two and a multiple of the page size; when full, "
        "records are refused",
        operations="mmap and epoll",
        handled_by="RingBuf",
    ),
    "INODE_STORAGE": MapGuide(
        since="5.10",
        purpose="A value per file (inode) that lives and dies with it (bpf_inode_storage_get); "
        "needs CONFIG_BPF_LSM.",
        key="int: user space passes a file's fd",
        value=_ANY,
        entries=_STORAGE,
        operations="look up, update, delete; no walk",
        handled_by="Storage",
    ),
    "TASK_STORAGE": MapGuide(
        since="5.11",
        purpose="A value per task that lives and dies with it (bpf_task_storage_get).",
        key="int: user space passes a pidfd",
        value=_ANY,
        entries=_STORAGE,
        operations="look up, update, delete; no walk",
        handled_by="Storage",
    ),
    "BLOOM_FILTER": MapGuide(
        since="5.16",
        purpose="Was this value added? No is certain, yes only probable: spares look-ups in a "
        "larger map.",
        key="none (key_size 0)",
        value=_ANY,
        entries="how many are expected (sizes the bitmap); map_extra's low 4 bits: the number of "
        "hash functions, 5 by default",
        operations="push (update) adds, peek (look up, ENOENT: not in it) asks; no delete, no walk",
        handled_by="BloomFilter",
    ),
    "USER_RINGBUF": MapGuide(
        since="6.1",
        purpose="A RINGBUF the other way: user space writes records, programs read them "
        "(bpf_user_ringbuf_drain).",
        key="none (key_size 0)",
        value="none (value_size 0); records of any length",
        entries="the size in bytes, a power of two and a multiple of the page size",
        operations="mmap; epoll tells that there is room again",
        handled_by="UserRingBuf",
    ),
    "CGRP_STORAGE": MapGuide(
        since="6.2",
        purpose="A value per cgroup that lives and dies with it, from every program type that gets "
        "at a cgroup (bpf_cgrp_storage_get).",
        key="int: user space passes the fd of a cgroup directory",
        value=_ANY,
        entries=_STORAGE,
        operations="look up, update, delete; no walk",
        handled_by="Storage",
    ),
    "ARENA": MapGuide(
        since="6.9",
        purpose="Memory shared by programs and user space, with pointers that hold on both sides: "
        "own data structures.",
        key="none (key_size 0)",
        value="none (value_size 0); programs take pages by bpf_arena_alloc_pages",
        entries="the size in pages, 4 GiB at most; BPF_F_MMAPABLE is a must, map_extra may fix the "
        "address in user space",
        operations="mmap",
        handled_by="Arena",
    ),
    "INSN_ARRAY": MapGuide(
        since="6.19",
        purpose="Places in a program: its jump table, for a switch with one indirect jump, and "
        "a way to learn where the verifier and the JIT compiler have put an instruction.",
        key="u32 index",
        value="struct bpf_insn_array_value: orig_off, the instruction's number in the program as "
        "it is loaded; the kernel sets xlated_off and jitted_off",
        entries="the number of places; the map is frozen before its program is loaded, and "
        "belongs to that one program",
        operations="look up, update until it is frozen, walk; no delete",
        handled_by="InsnArray",
    ),
    "RHASH": MapGuide(
        since="7.2",
        purpose="A HASH whose table grows and shrinks with its elements: no memory is set aside "
        "for elements that are not there.",
        key=_ANY,
        value=_ANY,
        entries="the most there can be (then E2BIG), up to 2^31; BPF_F_NO_PREALLOC is a must, "
        "map_extra says how many to make room for at once",
        operations="look up, update, delete, walk, batches",
        handled_by="ResizableHash",
    ),
}
