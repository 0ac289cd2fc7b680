/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the lightweight-tunnel programs share: the protocol of a packet that starts at its IP header,
 * and the row that counts it. Each program defines the map `rows` itself.
 */
#ifndef BPFKIT_LWT_H
#define BPFKIT_LWT_H

#include <uapi/linux/bpf.h>
#include <bpfkit/bpfkit.h>
#include <bpfkit/headers.h>

#define NOT_AN_IP_PACKET 256 /* key of the row for packets without a readable IP header */
#define LWT_ROWS         (NOT_AN_IP_PACKET + 1)

struct row {
	u64 packets; /* segments of a super-frame */
	u64 bytes; /* from the IP header on, as the program sees them */
	u64 acted; /* dropped, or encapsulated */
};

static __always_inline u32 protocol_of(struct __sk_buff *skb)
{
	struct headers h = {};
	union ip_header ip;
	struct window w;

	load_skb(skb, &h, &ip, &w, 0);
	return h.family ? h.proto : NOT_AN_IP_PACKET;
}

/* Adds the packet to its protocol's row. */
static __always_inline void count(struct row *row, struct __sk_buff *skb, bool acted)
{
	u64 segs = skb->gso_segs > 1 ? skb->gso_segs : 1;

	if (!row)
		return;
	row->packets += segs;
	row->bytes += skb->len;
	if (acted)
		row->acted += segs;
}

/* True if `proto` is the protocol asked for; IPPROTO_ICMP includes ICMPv6. */
static __always_inline bool is_proto(u32 proto, u64 wanted)
{
	return proto == wanted || (wanted == IPPROTO_ICMP && proto == IPPROTO_ICMPV6);
}

#endif
