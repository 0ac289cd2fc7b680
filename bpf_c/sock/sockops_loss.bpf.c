/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sockops_loss: loses TCP segments, so that sockops has retransmissions to show
 * =============================================================================
 *
 * hook      ingress of an interface (tc): what is dropped here was sent and never arrives
 * context   struct __sk_buff, a frame from its Ethernet header on
 * packets   not changed; dropped (TC_ACT_SHOT) or passed on (TC_ACT_OK)
 *
 *   wire -> TCP? -> SYN | SYN-ACK | data -> the kind's plan: pass `pass`, then drop `drop` of them
 *                                    \----> data: every `every`-th is dropped, too
 *
 * Maps
 *   plans    array  SYN, SYN_ACK, DATA -> struct plan, counted down
 *   dropped  array  SYN, SYN_ACK, DATA -> segments dropped
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/pkt_cls.h>

LOAD_CONST(0, every, 0); /* drop every n-th segment with data; 0: none */

#define PROTO_TCP 6
#define SYN_FLAG  2
#define ACK_FLAG  16

enum kind {
	SYN,
	SYN_ACK,
	DATA,
	KINDS,
};

struct plan {
	u32 pass;
	u32 drop;
};

BPF_ARRAY(plans, struct plan, KINDS);
BPF_ARRAY(dropped, u64, KINDS);
BPF_ARRAY(seen, u64, 1);

static __always_inline bool is_lost(u32 kind)
{
	struct plan *plan = plans.lookup(&kind);
	u32 zero = 0;
	u64 *n;

	if (!plan)
		return false;
	if (plan->pass) {
		__sync_fetch_and_add(&plan->pass, -1);
	} else if (plan->drop) {
		__sync_fetch_and_add(&plan->drop, -1);
		return true;
	}
	if (!every() || kind != DATA)
		return false;
	n = seen.lookup(&zero);
	if (!n)
		return false;
	__sync_fetch_and_add(n, 1);
	return *n % every() == 0;
}

SEC("tc/ingress")
int sockops_loss(struct __sk_buff *skb)
{
	u32 at = ETH_HLEN, kind = DATA, header;
	u8 first = 0, proto = 0, flags = 0, offset = 0;
	u64 *n;

	bpf_skb_load_bytes(skb, at, &first, sizeof(first));
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		bpf_skb_load_bytes(skb, at + 9, &proto, sizeof(proto));
		at += (first & 15) * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		bpf_skb_load_bytes(skb, at + 6, &proto, sizeof(proto));
		at += 40;
	}
	if (proto != PROTO_TCP || bpf_skb_load_bytes(skb, at + 13, &flags, sizeof(flags)) ||
	    bpf_skb_load_bytes(skb, at + 12, &offset, sizeof(offset)))
		return TC_ACT_OK;
	header = (offset >> 4) * 4;
	if (flags & SYN_FLAG)
		kind = flags & ACK_FLAG ? SYN_ACK : SYN;
	else if (skb->len <= at + header)
		return TC_ACT_OK;
	if (!is_lost(kind))
		return TC_ACT_OK;
	n = dropped.lookup(&kind);
	if (n)
		__sync_fetch_and_add(n, 1);
	return TC_ACT_SHOT;
}
