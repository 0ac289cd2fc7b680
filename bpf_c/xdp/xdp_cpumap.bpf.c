/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_cpumap: spreads the flows that an interface receives over CPUs
 * ==================================================================
 *
 * hook      XDP at the interface; XDP again on the CPU that the frame was sent to
 * context   struct xdp_md
 * packets   not changed, none dropped
 *
 *   wire -> CPU that took the interrupt: xdp_cpumap -+- not IP ----------------> kernel, same CPU
 *                                                    +- hash of the flow -> CPUMAP[cpu]
 *   CPUMAP[cpu] -> queue -> kthread on that CPU: on_cpu (counts) -> skb -> kernel, that CPU
 *
 * Sockets, conntrack and the rest of the stack then run on that CPU. RSS does the same in the network
 * card and RPS after the skb was allocated; this program does it before, by its own rule. The hash is
 * the same for both directions of a flow, so that a router or firewall finds its state in one CPU's
 * cache. Fragments are hashed by addresses and protocol, because only the first has ports; ICMP too.
 * Frames that are not IP, or whose headers cannot be read, stay on their CPU.
 *
 * Maps (struct traffic: <bpfkit/wire.h>)
 *   chosen  array         slot -> CPU, written by user space
 *   cpus    cpumap        CPU -> length of its queue, and the program on it (struct bpf_cpumap_val)
 *   queued  percpu_array  0: stayed, 1 + CPU it was sent to -> struct traffic
 *   ran     percpu_array  0 -> struct traffic that each CPU received
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/maps.h>
#include "tuple.h"
#include <bpfkit/wire.h>
#include <uapi/linux/bpf.h>

LOAD_CONST(0, l2_len, 14); /* 14: Ethernet; else see link_offset() */
LOAD_CONST(1, cpu_count, 1); /* slots of `chosen` that are used */

#define MAX_CPUS 4096 /* the maps are made as large as the machine is */
#define STAYED   0 /* in `queued` */

BPF_ARRAY(chosen, u32, MAX_CPUS);
BPFKIT_MAP(0, BPF_MAP_TYPE_CPUMAP, cpus, u32, u64, MAX_CPUS, 0, 0);
BPF_TABLE("percpu_array", u32, struct traffic, queued, MAX_CPUS + 1);
BPF_TABLE("percpu_array", u32, struct traffic, ran, 1);

static __always_inline u32 endpoint_hash(const __be32 *address, __be16 port)
{
	u32 hash = hash_3words(address[0], address[1], address[2], 0);

	return hash_3words(address[3], (__force u32)port, hash, 0);
}

/* Addition is commutative: both directions of a flow have the same hash. */
static __always_inline u32 flow_hash(const struct tuple *t)
{
	u32 a = endpoint_hash(t->saddr, t->sport), b = endpoint_hash(t->daddr, t->dport);

	return hash_3words(a + b, a ^ b, t->proto, 0);
}

SEC("xdp")
int xdp_cpumap(struct xdp_md *ctx)
{
	u32 row = STAYED, slot, *cpu;
	struct headers h = {};
	struct tuple t = {};
	int action = XDP_PASS;
	struct window w;

	if (direct_xdp(ctx, &h, &w, l2_len()) == FOUND && read_tuple(&w, &h, &t)) {
		/* the upper bits of the product: as uniform as a remainder, without a division */
		slot = (u64)flow_hash(&t) * cpu_count() >> 32;
		cpu = chosen.lookup(&slot);
		if (cpu)
			action = bpf_redirect_map(BPFKIT_MAP_REF(cpus), *cpu, XDP_PASS);
		if (cpu && action == XDP_REDIRECT)
			row = 1 + *cpu;
	}
	add_frame(queued.lookup(&row), ctx->data_end - ctx->data);
	return action;
}

SEC("xdp/cpumap")
int on_cpu(struct xdp_md *ctx)
{
	u32 zero = 0;

	add_frame(ran.lookup(&zero), ctx->data_end - ctx->data);
	return XDP_PASS;
}
