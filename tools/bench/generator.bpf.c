/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * generator: packets as fast as one CPU makes them, for tools/bench/rates.py
 * ==========================================================================
 *
 * hook      none: run by BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES (5.18)
 * context   struct xdp_md
 * packets   headers written anew, another source port in each
 *
 *   page pool -> generate -> DEVMAP -> cable -> ring of the other end -> its NAPI poll
 *                                               (as if a network card had put the frame there)
 *
 * The kernel puts the frame that it was given into a page once, and then hands the page in again and
 * again, as the last receiver left it: a router has taken one from its TTL. So the headers are
 * copied into it for every packet. The TCP checksum of the template stays right: what is added to
 * the source port is taken from the sequence number.
 *
 * Maps
 *   out     devmap        0 -> the device to send from
 *   sample  array         0 -> struct frame, the headers of the first flow
 *   state   percpu_array  0 -> number of the next packet
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/tcp.h>

LOAD_CONST(0, flows, 256); /* a power of two, at most FLOWS_MAX */

#define FLOWS_MAX 16384

struct frame {
	struct ethhdr eth;
	struct iphdr ip;
	struct tcphdr tcp; /* of UDP there are only the ports */
} __packed;

BPF_DEVMAP(out, 1);
BPF_ARRAY(sample, struct frame, 1);
BPF_PERCPU_ARRAY(state, u64, 1);

static __always_inline void next_flow(struct xdp_md *ctx)
{
	struct frame *frame = (void *)(long)ctx->data;
	struct frame *first;
	__be16 *sequence;
	u32 zero = 0;
	u64 *number;
	u16 flow;

	number = state.lookup(&zero);
	first = sample.lookup(&zero);
	if (!number || !first || (void *)(frame + 1) > (void *)(long)ctx->data_end)
		return;
	flow = (*number)++ & (flows() - 1) & (FLOWS_MAX - 1);
	__builtin_memcpy(frame, first, sizeof(*frame));
	frame->tcp.source = bpf_htons(bpf_ntohs(first->tcp.source) + flow);
	if (first->ip.protocol == IPPROTO_TCP) {
		sequence = (__be16 *)&frame->tcp.seq + 1;
		*sequence = bpf_htons(bpf_ntohs(*sequence) - flow);
	}
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	next_flow(ctx);
	return out.redirect_map(0, XDP_DROP);
}

/* What the generator takes alone: its frames go nowhere. */
SEC("xdp")
int generate_only(struct xdp_md *ctx)
{
	next_flow(ctx);
	return XDP_DROP;
}
