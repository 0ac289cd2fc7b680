# SPDX-License-Identifier: Apache-2.0
"""The text in generated header trees: stubs, common macros, and what BTF cannot carry."""

from __future__ import annotations

import os
import re

__all__ = [
    "ALL_MACROS",
    "INCLUDE",
    "INLINES",
    "KERNEL",
    "MACROS",
    "PACK",
    "TYPEDEFS",
    "common",
    "extras",
    "macros_only",
    "names",
    "typedefs",
    "unguarded",
]

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"\n]+)[>"]', re.M)


def _release() -> tuple[int, int, int]:
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", os.uname().release)
    numbers = [int(n or 0) for n in match.groups()] if match else [0, 0, 0]
    return numbers[0], numbers[1], min(numbers[2], 255)


def common() -> dict[str, str]:
    """Stubs of both kinds of generated tree."""
    major, minor, patch = _release()
    page = os.sysconf("SC_PAGESIZE").bit_length() - 1
    return {
        "linux/version.h": f"""#pragma once
#define LINUX_VERSION_CODE {(major << 16) + (minor << 8) + patch}
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
""",
        "linux/log2.h": """#pragma once
#define ilog2(n) (63 - __builtin_clzll(n))
#define is_power_of_2(n) ((n) != 0 && (((n) & ((n) - 1)) == 0))
#define roundup_pow_of_two(n) ((n) <= 1 ? 1UL : (1UL << (ilog2((n) - 1) + 1)))
#define rounddown_pow_of_two(n) (1UL << ilog2(n))
""",
        "asm/page.h": f"""#pragma once
#define PAGE_SHIFT {page}
#define PAGE_SIZE (1UL << PAGE_SHIFT)
#define PAGE_MASK (~(PAGE_SIZE - 1))
""",
        "linux/stddef.h": """#pragma once
#ifndef NULL
#define NULL ((void *)0)
#endif
#undef offsetof
#define offsetof(T, M) __builtin_offsetof(T, M)
#define sizeof_field(T, M) sizeof(((T *)0)->M)
#define offsetofend(T, M) (offsetof(T, M) + sizeof_field(T, M))
#ifndef __struct_group
#define __struct_group(TAG, NAME, ATTRS, MEMBERS...) \\
	union { struct { MEMBERS } ATTRS; struct TAG { MEMBERS } ATTRS NAME; } ATTRS
#endif
#ifndef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(T, N) struct { struct { } __empty_ ## N; T N[]; }
#endif
#ifndef __counted_by
#define __counted_by(m)
#endif
#ifndef __counted_by_le
#define __counted_by_le(m)
#define __counted_by_be(m)
#endif
""",
        "stdint.h": "#pragma once\n#include <linux/types.h>\n",
        "stdbool.h": "#pragma once\n#include <linux/types.h>\n",
        "stddef.h": "#pragma once\n#include <linux/types.h>\n",
    }


#: What kernel headers define everywhere.
MACROS = """
#ifndef __user
#define __user
#define __force
#define __rcu
#define __iomem
#define __percpu
#endif
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#ifndef TASK_COMM_LEN
#define TASK_COMM_LEN 16
#endif
#ifndef ARRAY_SIZE
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#endif
#ifndef likely
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#endif
#ifndef barrier
#define barrier() asm volatile("" ::: "memory")
#endif
#ifndef READ_ONCE
#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))
#endif
#ifndef min
#define min(a, b) ((a) < (b) ? (a) : (b))
#define max(a, b) ((a) > (b) ? (a) : (b))
#endif
#ifndef container_of
#define container_of(p, T, M) ((T *)((char *)(p) - __builtin_offsetof(T, M)))
#endif
#ifndef __packed
#define __packed __attribute__((packed))
#endif
#ifndef __aligned
#define __aligned(n) __attribute__((aligned(n)))
#endif
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define __bpfkit_swap16(x) ((__be16)__builtin_bswap16(x))
#define __bpfkit_swap32(x) ((__be32)__builtin_bswap32(x))
#else
#define __bpfkit_swap16(x) ((__be16)(x))
#define __bpfkit_swap32(x) ((__be32)(x))
#endif
#undef htons
#undef ntohs
#undef htonl
#undef ntohl
#define htons(x) __bpfkit_swap16(x)
#define ntohs(x) ((__u16)__bpfkit_swap16(x))
#define htonl(x) __bpfkit_swap32(x)
#define ntohl(x) ((__u32)__bpfkit_swap32(x))
"""

#: The kernel's short names; each is left out where BTF has it.
TYPEDEFS = {
    "u8": "__u8",
    "u16": "__u16",
    "u32": "__u32",
    "u64": "__u64",
    "s8": "__s8",
    "s16": "__s16",
    "s32": "__s32",
    "s64": "__s64",
    "bool": "_Bool",
    "uintptr_t": "unsigned long",
    "size_t": "__kernel_size_t",
    "ssize_t": "__kernel_ssize_t",
    "uint8_t": "__u8",
    "uint16_t": "__u16",
    "uint32_t": "__u32",
    "uint64_t": "__u64",
    "int8_t": "__s8",
    "int16_t": "__s16",
    "int32_t": "__s32",
    "int64_t": "__s64",
    "pid_t": "__kernel_pid_t",
    "__kernel_dev_t": "__u32",
    "dev_t": "__kernel_dev_t",
    "uid_t": "__u32",
    "gid_t": "__u32",
    "loff_t": "__kernel_loff_t",
    "umode_t": "unsigned short",
    "sector_t": "__u64",
}


def typedefs() -> str:
    lines = [f"typedef {kind} {name};" for name, kind in TYPEDEFS.items()]
    return "\n".join(lines) + "\nenum { false = 0, true = 1 };\n"


def macros_only(text: str) -> str:
    """A header's preprocessor lines: its types come from the kernel."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" if "\n" in m.group() else " ", text, flags=re.S)
    out = []
    continued = False
    for line in text.split("\n"):
        if continued or line.lstrip().startswith("#"):
            out.append(line)
            continued = line.rstrip().endswith("\\")
    return "\n".join(out) + "\n"


def unguarded(text: str) -> str:
    """A macros-only header without its include guard and includes."""
    guard = re.search(r"^#ifndef (\w+)\n#define \1\b.*\n", text, re.M)
    if guard:
        text = text[: guard.start()] + text[guard.end() :]
        end = text.rstrip().rfind("#endif")
        text = text[:end] + text[end + len("#endif") :]
    return INCLUDE.sub("", text)


# --- kernel-internal headers: macros that BTF cannot carry ---------------------------------------

_SOCK = """
#define sk_node __sk_common.skc_node
#define sk_family __sk_common.skc_family
#define sk_state __sk_common.skc_state
#define sk_num __sk_common.skc_num
#define sk_dport __sk_common.skc_dport
#define sk_addrpair __sk_common.skc_addrpair
#define sk_portpair __sk_common.skc_portpair
#define sk_daddr __sk_common.skc_daddr
#define sk_rcv_saddr __sk_common.skc_rcv_saddr
#define sk_v6_daddr __sk_common.skc_v6_daddr
#define sk_v6_rcv_saddr __sk_common.skc_v6_rcv_saddr
#define sk_net __sk_common.skc_net
#define sk_net_refcnt __sk_common.skc_net_refcnt
#define sk_prot __sk_common.skc_prot
#define sk_hash __sk_common.skc_hash
#define sk_cookie __sk_common.skc_cookie
#define sk_bound_dev_if __sk_common.skc_bound_dev_if
#define sk_reuse __sk_common.skc_reuse
#define sk_reuseport __sk_common.skc_reuseport
#define sk_ipv6only __sk_common.skc_ipv6only
#define sk_flags __sk_common.skc_flags
#define sk_refcnt __sk_common.skc_refcnt
#define sk_incoming_cpu __sk_common.skc_incoming_cpu
"""
_INET = """
#define inet_daddr sk.__sk_common.skc_daddr
#define inet_rcv_saddr sk.__sk_common.skc_rcv_saddr
#define inet_dport sk.__sk_common.skc_dport
#define inet_num sk.__sk_common.skc_num
#define inet_sk(p) ((struct inet_sock *)(p))
#define ir_num req.__req_common.skc_num
#define ir_rmt_addr req.__req_common.skc_daddr
#define ir_loc_addr req.__req_common.skc_rcv_saddr
#define ir_rmt_port req.__req_common.skc_dport
"""
_FAMILIES = "".join(
    f"#define AF_{name} {number}\n#define PF_{name} {number}\n"
    for name, number in (
        ("UNSPEC", 0),
        ("UNIX", 1),
        ("LOCAL", 1),
        ("INET", 2),
        ("BRIDGE", 7),
        ("INET6", 10),
        ("KEY", 15),
        ("NETLINK", 16),
        ("PACKET", 17),
        ("TIPC", 30),
        ("ALG", 38),
        ("VSOCK", 40),
        ("SMC", 43),
        ("XDP", 44),
        ("MCTP", 45),
    )
)
#: Macros by header.
PACK: dict[str, str] = {
    "net/sock.h": _SOCK,
    "net/inet_sock.h": _INET,
    "linux/tcp.h": "#define tcp_sk(p) ((struct tcp_sock *)(p))\n",
    "linux/udp.h": "#define udp_sk(p) ((struct udp_sock *)(p))\n",
    "net/inet_connection_sock.h": "#define inet_csk(p) ((struct inet_connection_sock *)(p))\n",
    "net/af_unix.h": "#define unix_sk(p) ((struct unix_sock *)(p))\n",
    "net/tcp.h": "#define TCP_SKB_CB(s) ((struct tcp_skb_cb *)&((s)->cb[0]))\n",
    "linux/socket.h": _FAMILIES + "#define SCM_RIGHTS 1\n#define SCM_CREDENTIALS 2\n"
    "#define SOL_IP 0\n#define SOL_TCP 6\n#define SOL_UDP 17\n#define SOL_IPV6 41\n",
    "linux/in6.h": "#define s6_addr in6_u.u6_addr8\n#define s6_addr16 in6_u.u6_addr16\n"
    "#define s6_addr32 in6_u.u6_addr32\n",
    "linux/sched.h": "#define TASK_RUNNING 0\n#define TASK_INTERRUPTIBLE 1\n"
    "#define TASK_UNINTERRUPTIBLE 2\n#define PF_KTHREAD 0x00200000\n#define TASK_COMM_LEN 16\n",
    "linux/err.h": "#define MAX_ERRNO 4095\n"
    "#define IS_ERR(p) ((unsigned long)(p) >= (unsigned long)-MAX_ERRNO)\n"
    "#define IS_ERR_OR_NULL(p) (!(p) || IS_ERR(p))\n#define PTR_ERR(p) ((long)(p))\n",
    "linux/blkdev.h": "#define DISK_NAME_LEN 32\n#define REQ_OP_BITS 8\n"
    "#define REQ_OP_MASK ((1 << REQ_OP_BITS) - 1)\n",
    "linux/dcache.h": "#define DNAME_INLINE_LEN (sizeof(((struct dentry *)0)->d_shortname))\n"
    "#define d_iname d_shortname.string\n",
    "linux/fs.h": "#define FMODE_CREATED 0x100000\n",
    "linux/time.h": "#define NSEC_PER_SEC 1000000000L\n#define NSEC_PER_MSEC 1000000L\n"
    "#define NSEC_PER_USEC 1000L\n#define USEC_PER_SEC 1000000L\n#define MSEC_PER_SEC 1000L\n",
    "linux/if_vlan.h": "#define VLAN_HLEN 4\n#define VLAN_VID_MASK 0x0fff\n"
    "#define VLAN_PRIO_SHIFT 13\n",
    "net/ip.h": "#define IP_CE 0x8000\n#define IP_DF 0x4000\n#define IP_MF 0x2000\n"
    "#define IP_OFFSET 0x1FFF\n",
}
ALL_MACROS = "\n".join(PACK.values())

# --- what nearly every kernel header brings along ------------------------------------------------
#
# In a kernel tree these come in by way of other headers, so sources use them without naming where
# they are from.  Here each is defined for the sources that use it and do not define it themselves.

#: Numbers that only the kernel returns to itself.
_INTERNAL_ERRNO = {
    "ERESTARTSYS": 512,
    "ERESTARTNOINTR": 513,
    "ERESTARTNOHAND": 514,
    "ENOIOCTLCMD": 515,
    "ERESTART_RESTARTBLOCK": 516,
    "EPROBE_DEFER": 517,
    "EOPENSTALE": 518,
    "ENOPARAM": 519,
    "EBADHANDLE": 521,
    "ENOTSYNC": 522,
    "EBADCOOKIE": 523,
    "ENOTSUPP": 524,
    "ETOOSMALL": 525,
    "ESERVERFAULT": 526,
    "EBADTYPE": 527,
    "EJUKEBOX": 528,
    "EIOCBQUEUED": 529,
}


def _page_offset() -> str:
    """Where the kernel's map of all memory begins, at the least (KASLR moves it up)."""
    machine = os.uname().machine
    if machine == "x86_64":
        try:
            with open("/proc/cpuinfo") as file:
                five_levels = " la57" in file.read(65536)
        except OSError:
            five_levels = False
        return "0xff11000000000000UL" if five_levels else "0xffff888000000000UL"
    return {
        "aarch64": "0xffff000000000000UL",
        "ppc64le": "0xc000000000000000UL",
        "s390x": "0UL",
    }.get(machine, "0xffff800000000000UL")


def names() -> dict[str, str]:
    """{name: what it stands for} of such macros without arguments."""
    import errno

    return {
        **{name: str(number) for number, name in errno.errorcode.items()},
        "EOPNOTSUPP": str(errno.EOPNOTSUPP),
        "EWOULDBLOCK": str(errno.EWOULDBLOCK),
        **{name: str(number) for name, number in _INTERNAL_ERRNO.items()},
        "READ": "0",
        "WRITE": "1",
        "PAGE_OFFSET": _page_offset(),
        "s6_addr": "in6_u.u6_addr8",
        "s6_addr16": "in6_u.u6_addr16",
        "s6_addr32": "in6_u.u6_addr32",
        "SG_CHAIN": "1UL",
        "SG_END": "2UL",
        "MINORBITS": "20",
        "MINORMASK": "((1U << 20) - 1)",
    }


_GET = "static __always_inline __attribute__((unused)) "


def _inline(result: str, name: str, argument: str, value: str) -> str:
    return f"{_GET}{result} {name}({argument})\n{{\n\treturn {value};\n}}\n"


#: Inline functions of kernel headers, by name.  As in the kernel they read through the pointer that
#: they are given: hand them a copy made by bpf_probe_read_kernel(), or a pointer BPF may follow.
INLINES: dict[str, str] = {
    name: _inline(result, name, argument, value)
    for result, name, argument, value in (
        ("int", "sg_is_chain", "struct scatterlist *sg", "sg->page_link & 1"),
        ("int", "sg_is_last", "struct scatterlist *sg", "!!(sg->page_link & 2)"),
        (
            "struct scatterlist *",
            "sg_chain_ptr",
            "struct scatterlist *sg",
            "(struct scatterlist *)(sg->page_link & ~3UL)",
        ),
        ("struct page *", "sg_page", "struct scatterlist *sg", "(void *)(sg->page_link & ~3UL)"),
        ("int", "atomic_read", "const atomic_t *v", "v->counter"),
        ("s64", "atomic64_read", "const atomic64_t *v", "v->counter"),
        ("unsigned int", "refcount_read", "const refcount_t *r", "r->refs.counter"),
        ("unsigned int", "kref_read", "const struct kref *k", "k->refcount.refs.counter"),
        ("struct inode *", "file_inode", "const struct file *f", "f->f_inode"),
        ("struct inode *", "d_inode", "const struct dentry *d", "d->d_inode"),
        ("struct net *", "sock_net", "const struct sock *sk", "sk->__sk_common.skc_net.net"),
        ("struct net *", "dev_net", "const struct net_device *dev", "dev->nd_net.net"),
        ("unsigned int", "skb_headlen", "const struct sk_buff *s", "s->len - s->data_len"),
        ("bool", "skb_is_nonlinear", "const struct sk_buff *s", "s->data_len"),
        ("bool", "skb_is_gso", "const struct sk_buff *s", "skb_shinfo(s)->gso_size"),
        (
            "struct skb_shared_info *",
            "skb_shinfo",
            "const struct sk_buff *s",
            "(struct skb_shared_info *)(s->head + s->end)",
        ),
        (
            "unsigned char *",
            "skb_transport_header",
            "const struct sk_buff *s",
            "s->head + s->transport_header",
        ),
        (
            "unsigned char *",
            "skb_network_header",
            "const struct sk_buff *s",
            "s->head + s->network_header",
        ),
        ("unsigned char *", "skb_mac_header", "const struct sk_buff *s", "s->head + s->mac_header"),
        (
            "struct iphdr *",
            "ip_hdr",
            "const struct sk_buff *s",
            "(struct iphdr *)(s->head + s->network_header)",
        ),
        (
            "struct ipv6hdr *",
            "ipv6_hdr",
            "const struct sk_buff *s",
            "(struct ipv6hdr *)(s->head + s->network_header)",
        ),
        (
            "struct tcphdr *",
            "tcp_hdr",
            "const struct sk_buff *s",
            "(struct tcphdr *)(s->head + s->transport_header)",
        ),
        (
            "struct udphdr *",
            "udp_hdr",
            "const struct sk_buff *s",
            "(struct udphdr *)(s->head + s->transport_header)",
        ),
        ("sector_t", "blk_rq_pos", "const struct request *rq", "rq->__sector"),
        ("unsigned int", "blk_rq_bytes", "const struct request *rq", "rq->__data_len"),
        ("unsigned int", "blk_rq_sectors", "const struct request *rq", "rq->__data_len >> 9"),
        ("pid_t", "task_pid_nr", "struct task_struct *t", "t->pid"),
        ("pid_t", "task_tgid_nr", "struct task_struct *t", "t->tgid"),
        ("unsigned int", "MAJOR", "dev_t dev", "dev >> 20"),
        ("unsigned int", "MINOR", "dev_t dev", "dev & 0xfffff"),
        ("dev_t", "MKDEV", "unsigned int major, unsigned int minor", "major << 20 | minor"),
        (
            "u32",
            "new_encode_dev",
            "dev_t dev",
            "(dev & 0xff) | (dev >> 20) << 8 | (dev & 0xfff00) << 12",
        ),
        ("void *", "ERR_PTR", "long error", "(void *)error"),
        ("s64", "ktime_to_ns", "ktime_t t", "t"),
    )
}


def extras(words: set[str], code: str) -> tuple[list[str], list[str]]:
    """(macros, inline functions) that a text uses without defining them.

    :param words: the words of the text; those of what is added are added.
    :param code: the text, comments and strings blanked out.
    """
    own = set(re.findall(r"^[ \t]*#[ \t]*define[ \t]+(\w+)", code, re.M))
    for body in re.findall(r"\benum\b[^{};()]*\{([^{}]*)\}", code):
        own.update(re.findall(r"(?:^|,)\s*(\w+)", body))
    own.update(re.findall(r"\b(\w+)\s*\([^;{}]*\)\s*\{", code))
    functions: list[str] = []
    todo = [name for name in INLINES if name in words and name not in own]
    while todo:
        name = todo.pop()
        if name in functions:
            functions.remove(name)  # before those that call it
        functions.insert(0, name)
        inside = set(re.findall(r"\w+", INLINES[name]))
        words.update(inside)
        todo += [other for other in INLINES if other in inside and other not in (name, *own)]
    macros = [name for name in names() if name in words and name not in own]
    return macros, functions


#: Kernel-internal headers that people name: what each brings besides types, which are all there.
KERNEL: dict[str, tuple[str, ...]] = dict.fromkeys(
    """
    linux/kernel.h linux/bug.h linux/atomic.h linux/bitops.h linux/bits.h linux/list.h
    linux/slab.h linux/rcupdate.h linux/spinlock.h linux/mutex.h linux/rwsem.h linux/kref.h
    linux/refcount.h linux/workqueue.h linux/interrupt.h linux/irq.h linux/irqdesc.h
    linux/hardirq.h linux/preempt.h linux/smp.h linux/percpu.h linux/cpumask.h linux/nodemask.h
    linux/mm.h linux/compaction.h linux/mm_types.h linux/mmzone.h linux/memcontrol.h
    linux/vmstat.h linux/swap.h linux/gfp.h linux/page-flags.h linux/highmem.h linux/pagemap.h
    linux/oom.h linux/pid.h linux/pid_namespace.h linux/nsproxy.h linux/ns_common.h
    linux/user_namespace.h linux/utsname.h linux/cred.h linux/security.h linux/lsm_hooks.h
    linux/cgroup.h linux/cgroup-defs.h linux/sched/signal.h linux/sched/task.h linux/sched/mm.h
    linux/sched/cputime.h linux/signal.h linux/wait.h linux/completion.h linux/ktime.h
    linux/hrtimer.h linux/timer.h linux/jiffies.h linux/string.h linux/ctype.h linux/uaccess.h
    linux/path.h linux/namei.h linux/mount.h linux/file.h linux/fdtable.h linux/uio.h
    linux/bio.h linux/blk_types.h linux/blk-mq.h linux/genhd.h linux/backing-dev.h
    linux/buffer_head.h linux/writeback.h linux/nfs_fs.h linux/kobject.h linux/device.h
    linux/module.h linux/init.h linux/export.h linux/errno.h linux/printk.h linux/tracepoint.h
    linux/trace_events.h linux/kprobes.h linux/ftrace.h linux/perf_event.h linux/bpf_verifier.h
    linux/btf.h linux/btf_ids.h linux/filter.h linux/skbuff.h linux/skmsg.h linux/netdevice.h
    linux/etherdevice.h linux/if_vlan.h linux/rtnetlink.h linux/inetdevice.h linux/ipv6.h
    linux/tcp.h linux/udp.h linux/icmp.h linux/icmpv6.h linux/igmp.h linux/net.h
    linux/netfilter.h linux/netfilter_ipv4.h linux/in.h linux/sockptr.h linux/phy.h
    linux/ethtool.h linux/tty.h linux/ptrace.h linux/sysctl.h linux/random.h linux/crypto.h
    linux/dma-mapping.h linux/pci.h linux/virtio.h linux/kthread.h linux/delay.h linux/idr.h
    linux/xarray.h linux/radix-tree.h linux/rbtree.h linux/rhashtable.h linux/hashtable.h
    linux/hash.h linux/jhash.h linux/sort.h linux/compiler_types.h linux/limits.h linux/minmax.h
    linux/math64.h linux/kdev_t.h linux/posix-timers.h linux/eventpoll.h linux/pipe_fs_i.h
    linux/shmem_fs.h linux/stat.h linux/statfs.h linux/types.h linux/user.h linux/vmalloc.h
    linux/zstd.h net/net_namespace.h net/ipv6.h net/udp.h net/icmp.h net/dst.h net/route.h
    net/ip_fib.h net/neighbour.h net/arp.h net/flow.h net/flow_dissector.h net/request_sock.h
    net/inet_connection_sock.h net/inet_hashtables.h net/inet_timewait_sock.h net/inet_common.h
    net/netns/generic.h net/sch_generic.h net/pkt_sched.h net/pkt_cls.h net/act_api.h
    net/cls_cgroup.h net/xdp.h net/xdp_sock.h net/af_unix.h net/scm.h net/checksum.h
    net/dsfield.h net/ip_tunnels.h net/gre.h net/vxlan.h net/geneve.h net/lwtunnel.h net/seg6.h
    net/mpls.h net/netlink.h net/genetlink.h net/page_pool.h net/busy_poll.h net/tls.h
    net/strparser.h net/netfilter/nf_conntrack.h net/netfilter/nf_tables.h net/bonding.h
    net/mptcp.h net/ip6_route.h net/ip6_fib.h net/addrconf.h net/protocol.h net/esp.h net/xfrm.h
    asm/ptrace.h asm/processor.h asm/current.h asm/syscall.h asm/unistd.h asm/pgtable.h
    trace/events/sched.h
    """.split(),
    (),
)
KERNEL.update(
    {
        "net/sock.h": ("linux/socket.h", "linux/compiler.h"),
        "net/inet_sock.h": ("net/sock.h",),
        "net/tcp.h": ("net/inet_connection_sock.h", "linux/tcp.h"),
        "net/ip.h": ("net/inet_sock.h", "linux/ip.h"),
        "net/ipv6.h": ("net/inet_sock.h", "linux/ipv6.h"),
        "net/inet_connection_sock.h": ("net/inet_sock.h",),
        "net/request_sock.h": ("net/sock.h",),
        "net/udp.h": ("net/inet_sock.h",),
        "net/af_unix.h": ("net/sock.h",),
        "linux/ipv6.h": ("linux/in6.h",),
        "linux/sched.h": ("linux/err.h", "linux/time.h", "linux/compiler.h"),
        "linux/scatterlist.h": (),
        "linux/socket.h": (),
        "linux/err.h": (),
        "linux/time.h": (),
        "linux/compiler.h": (),
        "linux/dcache.h": (),
        "linux/fs.h": ("linux/dcache.h", "linux/err.h", "linux/stat.h"),
        "linux/blkdev.h": ("linux/fs.h",),
        "linux/genhd.h": ("linux/blkdev.h",),
        "linux/blk-mq.h": ("linux/blkdev.h",),
        "linux/ktime.h": ("linux/time.h",),
        "linux/skbuff.h": ("linux/in6.h", "linux/err.h"),
        "linux/net.h": ("linux/socket.h",),
        "linux/slab.h": ("linux/err.h",),
    }
)
