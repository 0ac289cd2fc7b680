# SPDX-License-Identifier: Apache-2.0
"""Names and numbers of the kernel's BPF enumerations, in the kernel's order.

Kept as plain tuples (index = number) so that importing costs nothing.  The lists go up to
Linux 7.3; the numbers never change, the enumerations only grow.

Source: ``include/uapi/linux/bpf.h``.
"""

from __future__ import annotations

__all__ = [
    "ATTACH_TYPES",
    "LINK_TYPES",
    "MAP_TYPES",
    "PROG_TYPES",
    "SOCKET_FILTER",
    "attach_type",
    "attach_type_name",
    "link_type_name",
    "map_type",
    "map_type_name",
    "prog_type",
    "prog_type_name",
]

# enum bpf_prog_type without BPF_PROG_TYPE_
PROG_TYPES = (
    "UNSPEC SOCKET_FILTER KPROBE SCHED_CLS SCHED_ACT TRACEPOINT XDP PERF_EVENT CGROUP_SKB "
    "CGROUP_SOCK LWT_IN LWT_OUT LWT_XMIT SOCK_OPS SK_SKB CGROUP_DEVICE SK_MSG RAW_TRACEPOINT "
    "CGROUP_SOCK_ADDR LWT_SEG6LOCAL LIRC_MODE2 SK_REUSEPORT FLOW_DISSECTOR CGROUP_SYSCTL "
    "RAW_TRACEPOINT_WRITABLE CGROUP_SOCKOPT TRACING STRUCT_OPS EXT LSM SK_LOOKUP SYSCALL NETFILTER"
).split()

# enum bpf_map_type without BPF_MAP_TYPE_
MAP_TYPES = (
    "UNSPEC HASH ARRAY PROG_ARRAY PERF_EVENT_ARRAY PERCPU_HASH PERCPU_ARRAY STACK_TRACE "
    "CGROUP_ARRAY LRU_HASH LRU_PERCPU_HASH LPM_TRIE ARRAY_OF_MAPS HASH_OF_MAPS DEVMAP SOCKMAP "
    "CPUMAP XSKMAP SOCKHASH CGROUP_STORAGE REUSEPORT_SOCKARRAY PERCPU_CGROUP_STORAGE QUEUE STACK "
    "SK_STORAGE DEVMAP_HASH STRUCT_OPS RINGBUF INODE_STORAGE TASK_STORAGE BLOOM_FILTER "
    "USER_RINGBUF CGRP_STORAGE ARENA INSN_ARRAY RHASH"
).split()

# enum bpf_attach_type without BPF_
ATTACH_TYPES = (
    "CGROUP_INET_INGRESS CGROUP_INET_EGRESS CGROUP_INET_SOCK_CREATE CGROUP_SOCK_OPS "
    "SK_SKB_STREAM_PARSER SK_SKB_STREAM_VERDICT CGROUP_DEVICE SK_MSG_VERDICT CGROUP_INET4_BIND "
    "CGROUP_INET6_BIND CGROUP_INET4_CONNECT CGROUP_INET6_CONNECT CGROUP_INET4_POST_BIND "
    "CGROUP_INET6_POST_BIND CGROUP_UDP4_SENDMSG CGROUP_UDP6_SENDMSG LIRC_MODE2 FLOW_DISSECTOR "
    "CGROUP_SYSCTL CGROUP_UDP4_RECVMSG CGROUP_UDP6_RECVMSG CGROUP_GETSOCKOPT CGROUP_SETSOCKOPT "
    "TRACE_RAW_TP TRACE_FENTRY TRACE_FEXIT MODIFY_RETURN LSM_MAC TRACE_ITER "
    "CGROUP_INET4_GETPEERNAME CGROUP_INET6_GETPEERNAME CGROUP_INET4_GETSOCKNAME "
    "CGROUP_INET6_GETSOCKNAME XDP_DEVMAP CGROUP_INET_SOCK_RELEASE XDP_CPUMAP SK_LOOKUP XDP "
    "SK_SKB_VERDICT SK_REUSEPORT_SELECT SK_REUSEPORT_SELECT_OR_MIGRATE PERF_EVENT "
    "TRACE_KPROBE_MULTI LSM_CGROUP STRUCT_OPS NETFILTER TCX_INGRESS TCX_EGRESS "
    "TRACE_UPROBE_MULTI CGROUP_UNIX_CONNECT CGROUP_UNIX_SENDMSG CGROUP_UNIX_RECVMSG "
    "CGROUP_UNIX_GETPEERNAME CGROUP_UNIX_GETSOCKNAME NETKIT_PRIMARY NETKIT_PEER "
    "TRACE_KPROBE_SESSION TRACE_UPROBE_SESSION TRACE_FSESSION TRACE_FENTRY_MULTI TRACE_FEXIT_MULTI "
    "TRACE_FSESSION_MULTI"
).split()

# enum bpf_link_type without BPF_LINK_TYPE_
LINK_TYPES = (
    "UNSPEC RAW_TRACEPOINT TRACING CGROUP ITER NETNS XDP PERF_EVENT KPROBE_MULTI STRUCT_OPS "
    "NETFILTER TCX UPROBE_MULTI NETKIT SOCKMAP TRACING_MULTI"
).split()

SOCKET_FILTER = 1
SYSCALL = 31


def _name(names: list[str], prefix: str, number: int) -> str:
    return prefix + names[number] if 0 <= number < len(names) else f"{prefix}{number}"


def prog_type_name(number: int) -> str:
    """``BPF_PROG_TYPE_XDP`` for 6."""
    return _name(PROG_TYPES, "BPF_PROG_TYPE_", number)


def map_type_name(number: int) -> str:
    """``BPF_MAP_TYPE_HASH`` for 1."""
    return _name(MAP_TYPES, "BPF_MAP_TYPE_", number)


def link_type_name(number: int) -> str:
    """``perf_event`` for 7; the number as text for a type that is younger than this list."""
    return LINK_TYPES[number].lower() if 0 <= number < len(LINK_TYPES) else str(number)


def attach_type_name(number: int) -> str:
    """``BPF_XDP`` for 37."""
    return _name(ATTACH_TYPES, "BPF_", number)


def _number(names: list[str], prefix: str, name: str) -> int:
    short = name.upper().removeprefix(prefix)
    try:
        return names.index(short)
    except ValueError:
        raise ValueError(f"no {prefix}{short}") from None


def prog_type(name: str) -> int:
    """6 for ``xdp``, ``XDP`` or ``BPF_PROG_TYPE_XDP``."""
    return _number(PROG_TYPES, "BPF_PROG_TYPE_", name)


def map_type(name: str) -> int:
    """1 for ``hash``, ``HASH`` or ``BPF_MAP_TYPE_HASH``."""
    return _number(MAP_TYPES, "BPF_MAP_TYPE_", name)


def attach_type(name: str) -> int:
    """37 for ``xdp``, ``XDP`` or ``BPF_XDP``."""
    return _number(ATTACH_TYPES, "BPF_", name)
