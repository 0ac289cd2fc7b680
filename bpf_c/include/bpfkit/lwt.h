/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the programs on routes share: counting by protocol. They see a packet from its IP header on.
 */
#ifndef BPFKIT_LWT_H
#define BPFKIT_LWT_H

#include <uapi/linux/bpf.h>
#include <bpfkit/bpfkit.h>
#include <bpfkit/parse.h>

#define NOT_AN_IP_PACKET 256 /* the row of what cannot be parsed */

struct row {
	u64 packets; /* segments of a super-frame */
	u64 bytes; /* from the IP header on, as the program sees them */
	u64 acted; /* dropped, or encapsulated */
};

BPF_TABLE("percpu_array", u32, struct row, rows, NOT_AN_IP_PACKET + 1);

static __always_inline u32 protocol_of(struct __sk_buff *skb)
{
	struct ip_packet p = {};

	return parse_frame(skb, &p, 0) ? p.proto : NOT_AN_IP_PACKET;
}

static __always_inline void count(struct __sk_buff *skb, u32 proto, bool acted)
{
	u64 segs = skb->gso_segs > 1 ? skb->gso_segs : 1;
	struct row *row = rows.lookup(&proto);

	if (!row)
		return;
	row->packets += segs;
	row->bytes += skb->len;
	if (acted)
		row->acted += segs;
}

/* ICMP stands for ICMPv6 as well. */
static __always_inline bool is_proto(u32 proto, u64 wanted)
{
	return proto == wanted || (wanted == IPPROTO_ICMP && proto == IPPROTO_ICMPV6);
}

#endif
