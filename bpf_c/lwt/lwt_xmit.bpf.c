/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * lwt_xmit: a tunnel without a tunnel device
 * ==========================================
 *
 * hook      the route's transmission: what is sent or forwarded by this route, after netfilter
 *           (`ip route ... encap bpf xmit ...`)
 * context   struct __sk_buff, at the IP header
 * packets   may be changed: an outer IP header is put in front (bpf_lwt_push_encap())
 *
 *   postrouting -> the route has a program: lwt_xmit
 *                     |
 *      [ IP | payload ] -> [ outer IP, proto 4 or 41 | IP | payload ] -> BPF_LWT_REROUTE
 *                                                                          |
 *                             a new route, to the tunnel's other end -> tc egress -> wire
 *
 * IPv4 and IPv6 in IPv4 or in IPv6, by the family of the tunnel's ends. The outer header's TTL is
 * 64, its DSCP 0; it may not be fragmented.
 *
 * Maps
 *   ends  array         0 -> struct ends: the outer addresses
 *   rows  percpu_array  inner IP protocol -> packets, bytes, encapsulated ("lwt.h")
 */
#include "lwt.h"

#define TTL     64
#define IPV4_DF 0x4000

struct ends {
	u8 src[16]; /* IPv4: the first four bytes */
	u8 dst[16];
	u32 family; /* 4 or 6 */
};

BPF_ARRAY(ends, struct ends, 1);
BPF_TABLE("percpu_array", u32, struct row, rows, LWT_ROWS);

static __always_inline int push_ipv4(struct __sk_buff *skb, const struct ends *e, u8 proto)
{
	struct iphdr outer = {
		.version = 4,
		.ihl = sizeof(outer) / 4,
		.tot_len = bpf_htons(skb->len + sizeof(outer)),
		.frag_off = bpf_htons(IPV4_DF),
		.ttl = TTL,
		.protocol = proto,
	};
	s64 sum;

	__builtin_memcpy(&outer.saddr, e->src, sizeof(outer.saddr));
	__builtin_memcpy(&outer.daddr, e->dst, sizeof(outer.daddr));
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&outer, sizeof(outer), 0);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	outer.check = ~sum;
	return bpf_lwt_push_encap(skb, BPF_LWT_ENCAP_IP, &outer, sizeof(outer));
}

static __always_inline int push_ipv6(struct __sk_buff *skb, const struct ends *e, u8 proto)
{
	struct ipv6_header outer = {
		.version_class_flow = bpf_htonl(6 << 28),
		.payload_len = bpf_htons(skb->len),
		.nexthdr = proto,
		.hop_limit = TTL,
	};

	__builtin_memcpy(outer.saddr, e->src, sizeof(outer.saddr));
	__builtin_memcpy(outer.daddr, e->dst, sizeof(outer.daddr));
	return bpf_lwt_push_encap(skb, BPF_LWT_ENCAP_IP, &outer, sizeof(outer));
}

SEC("lwt_xmit")
int lwt_xmit(struct __sk_buff *skb)
{
	u8 proto = skb->protocol == bpf_htons(ETH_P_IP) ? IPPROTO_IPIP : IPPROTO_IPV6;
	u32 zero = 0, inner = protocol_of(skb);
	struct ends *e = ends.lookup(&zero);
	struct ends copy;
	int error;

	if (!e)
		return BPF_DROP;
	copy = *e;
	/* count first: the encapsulation changes skb->len */
	count(rows.lookup(&inner), skb, true);
	if (copy.family == 4)
		error = push_ipv4(skb, &copy, proto);
	else
		error = push_ipv6(skb, &copy, proto);
	return error ? BPF_DROP : BPF_LWT_REROUTE;
}
