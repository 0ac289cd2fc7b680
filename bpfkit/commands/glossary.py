# SPDX-License-Identifier: Apache-2.0
"""The words for hooks and probes, a paragraph each: ``python3 -m bpfkit info --glossary``."""

from __future__ import annotations

__all__ = ["GLOSSARY"]

#: Word -> (program type, a paragraph).
GLOSSARY: dict[str, tuple[str, str]] = {
    "kprobe": (
        "KPROBE",
        "A breakpoint or a jump at an instruction of the kernel, mostly the first one of a "
        "function; a kretprobe runs when the function returns. Works on nearly every "
        "function, needs no BTF and costs tens of nanoseconds. The program sees registers, so"
        " it depends on the machine and on the function's signature. Where fentry works, it "
        "is faster.",
    ),
    "kprobe.multi": (
        "KPROBE",
        "Many kprobes by one link, attached through the function tracer (fprobe) at once: "
        "thousands of functions in a fraction of a second. Linux 5.18, CONFIG_FPROBE. "
        "kprobe.session (6.10) runs one program at entries and returns.",
    ),
    "fentry": (
        "TRACING",
        "A call of the program from the first instruction of a kernel function, through a "
        "trampoline: no breakpoint, the arguments typed by BTF. fexit runs at the return and "
        "sees arguments and result, fmod_ret may set the result of functions that allow it, "
        "fsession (7.0) runs at both. Linux 5.5; needs BTF and a kernel that may patch its "
        "text.",
    ),
    "fentry.multi": (
        "TRACING",
        "Many functions by one fentry link (7.2): fentry.multi, fexit.multi and "
        "fsession.multi. The program has no typed arguments, as the functions differ; "
        "bpf_get_func_arg reads them.",
    ),
    "tracepoint": (
        "TRACEPOINT",
        "A place that the kernel's authors marked, with a record of named fields, listed in "
        "tracefs under events/. More stable than a function's name; the record is filled in "
        "before the program runs, which costs more than a raw tracepoint.",
    ),
    "raw_tp": (
        "RAW_TRACEPOINT",
        "The same place as a tracepoint, but the program gets the raw arguments (numbers and "
        "pointers) without a record: cheaper, and no tracefs is needed. The arguments are "
        "untyped; raw_tp.w may write into the buffer of tracepoints that offer one.",
    ),
    "tp_btf": (
        "TRACING",
        "A raw tracepoint whose arguments are typed by BTF, so that the program follows "
        "pointers as in C, without probe reads. Linux 5.5. The first choice where a "
        "tracepoint exists.",
    ),
    "uprobe": (
        "KPROBE",
        "A probe in a program or library: an instruction of the file is replaced by a "
        "breakpoint, for all processes or one. A uretprobe runs at the function's return. "
        "Each hit enters the kernel, a microsecond or so; since 6.18 a uprobe on a long nop "
        "can be a cheaper call. uprobe.multi (6.6) attaches to many places by one link.",
    ),
    "usdt": (
        "KPROBE",
        "User statically defined tracing: places in a program that its authors marked by a "
        "nop and a note in the ELF file, which says where the arguments are. Attached as a "
        "uprobe; a semaphore, where there is one, tells the program that somebody listens.",
    ),
    "perf_event": (
        "PERF_EVENT",
        "A program run by the samples of a perf event: a clock, a hardware counter, a "
        "frequency. It sees the interrupted registers and takes stacks: profilers.",
    ),
    "iter": (
        "TRACING",
        "An iterator: the kernel calls the program for each task, socket, map element or "
        "link, and what it prints is read from a descriptor as text or records. A snapshot, "
        "not an event.",
    ),
    "lsm": (
        "LSM",
        "A hook of the Linux security modules: the program may deny opening a file, executing"
        " a program, creating a socket. Called only if the kernel was booted with bpf among "
        "lsm=. lsm_cgroup runs for the sockets of one cgroup.",
    ),
    "XDP": (
        "XDP",
        "eXpress Data Path: the program runs in the driver, before the kernel makes an "
        "sk_buff of the frame. It drops, passes, sends back or redirects at the highest rate "
        "there is. Generic XDP runs later, on an sk_buff, for interfaces whose driver has "
        "none; packet captures do not see what it drops.",
    ),
    "tc": (
        "SCHED_CLS",
        "Traffic control: the program runs at an interface's ingress, behind XDP and packet "
        "captures, or at its egress, before them. It may change every byte. It is attached as"
        " a filter of the clsact qdisc, or by tcx.",
    ),
    "clsact": (
        "SCHED_CLS",
        "A queueing discipline that queues nothing: a place at ingress and egress where tc "
        "filters are attached, by netlink. Filters outlive the process that attached them, "
        "and there is one such qdisc on an interface.",
    ),
    "tcx": (
        "SCHED_CLS",
        "The successor of clsact (Linux 6.6): programs are attached to the interface's "
        "ingress and egress by links, several in a defined order, and are gone with the link."
        " Same programs, same contexts. It runs before clsact's filters.",
    ),
    "netkit": (
        "SCHED_CLS",
        "A pair of interfaces for containers (6.7) that has a BPF program in the place of its"
        " driver: a packet passes to the peer without the host's queues.",
    ),
    "lwt": (
        "LWT_XMIT",
        "Lightweight tunnels: programs on a route. lwt_in runs for packets that arrive for "
        "the route, lwt_out and lwt_xmit for packets that leave by it; lwt_xmit may put "
        "headers in front. lwt_seg6local handles a segment of segment routing.",
    ),
    "netfilter": (
        "NETFILTER",
        "The hooks of nftables and iptables, at a priority among their chains (6.4). The "
        "program accepts or drops.",
    ),
    "socket filter": (
        "SOCKET_FILTER",
        "The oldest hook: on one socket, decides which packets it gets and how much of them. "
        "tcpdump's classic filters run there. The packet itself goes on.",
    ),
    "sockops": (
        "SOCK_OPS",
        "Callbacks of a cgroup's TCP connections: established, round trip measured, "
        "retransmission, state changed. The program sets options and writes TCP header "
        "options.",
    ),
    "sockmap": (
        "SK_SKB",
        "A map of sockets with programs: sk_skb sees what they receive, sk_msg what is sent "
        "on them, and both may hand the data to another socket in the kernel, without a "
        "process that copies it.",
    ),
    "cgroup": (
        "CGROUP_SKB",
        "Hooks for the processes of a control group and those below it: packets (cgroup_skb),"
        " socket creation, bind and connect (which may be redirected), sendmsg, socket "
        "options, devices, sysctls. They follow the group, not an interface.",
    ),
    "sk_lookup": (
        "SK_LOOKUP",
        "Runs when a packet finds no connection and a listening socket is searched: the "
        "program names one, so a service can answer on every port of an address range.",
    ),
    "sk_reuseport": (
        "SK_REUSEPORT",
        "Chooses among the sockets that share an address by SO_REUSEPORT.",
    ),
    "struct_ops": (
        "STRUCT_OPS",
        "A table of kernel functions written in BPF: a TCP congestion control, a queueing "
        "discipline, a scheduler (sched_ext). The kernel calls the members as its own.",
    ),
    "helper": (
        "",
        "A function of the kernel with a number that a program calls: bpf_map_lookup_elem. "
        "The list ended with 211 (Linux 6.2); each program type may call some of them.",
    ),
    "kfunc": (
        "",
        "A function of the kernel that is called by its BTF id instead of a number: how all "
        "newer functions are offered. No promise is made that a later kernel has it.",
    ),
    "BTF": (
        "",
        "BPF Type Format: the types of the kernel, or of a program, in a compact form. It "
        "lets a program follow the running kernel's own structs, and names arguments, maps "
        "and events.",
    ),
    "link": (
        "",
        "An attachment held by a descriptor: when the last one is closed, the program is "
        "detached. Where there is no link (clsact filters, older cgroup attachments), it "
        "stays.",
    ),
    "tail call": (
        "",
        "A jump from one program into another of the same type, by a PROG_ARRAY; it does not "
        "return. 33 in a row at most.",
    ),
}
