/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The first IP header of a frame, for programs that need no tail calls: Ethernet, VLAN tags in
 * the data (any number up to MAX_TAGS, in any order), IPv4 with options, IPv6 with extension
 * headers.
 *
 * A cut-off or malformed IP header (version, IHL < 5) is no IP header; see also sockex3.bpf.c.
 */
#ifndef BPFKIT_PARSE_H
#define BPFKIT_PARSE_H

#include <bpfkit/ip.h>

#define MAX_TAGS 8
#define MAX_EXTS 8

struct ip_packet {
	u8 src[16] __aligned(4); /* network byte order; IPv4: the first four bytes, rest zero */
	u8 dst[16];
	struct cursor cur; /* behind the IP header and its extension headers */
	u8 family; /* 4 or 6 */
	u8 proto; /* IPPROTO_* of the payload */
	bool fragment; /* part of a datagram */
	bool later_fragment; /* and not its first: no transport header */
};

static __always_inline bool parse_ipv4_header(struct __sk_buff *skb, struct ip_packet *p)
{
	struct iphdr ip;
	u16 frag_off;

	if (!cursor_peek(skb, &p->cur, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return false;
	p->family = 4;
	p->proto = ip.protocol;
	__builtin_memcpy(p->src, &ip.saddr, sizeof(ip.saddr));
	__builtin_memcpy(p->dst, &ip.daddr, sizeof(ip.daddr));
	frag_off = bpf_ntohs(ip.frag_off);
	p->fragment = frag_off & (IPV4_MF | IPV4_OFFSET);
	p->later_fragment = frag_off & IPV4_OFFSET;
	cursor_limit(&p->cur, bpf_ntohs(ip.tot_len));
	p->cur.off += ip.ihl * 4;
	return true;
}

static __always_inline bool parse_ipv6_header(struct __sk_buff *skb, struct ip_packet *p)
{
	struct ipv6_header ip;

	if (!cursor_peek(skb, &p->cur, &ip, sizeof(ip)) || !is_ipv6(&ip))
		return false;
	p->family = 6;
	p->proto = ip.nexthdr;
	__builtin_memcpy(p->src, ip.saddr, sizeof(ip.saddr));
	__builtin_memcpy(p->dst, ip.daddr, sizeof(ip.daddr));
	p->cur.off += sizeof(ip);
	cursor_limit(&p->cur, bpf_ntohs(ip.payload_len));
	p->later_fragment = ipv6_skip_ext(skb, &p->cur, &p->proto, &p->fragment, MAX_EXTS) ==
			    IPV6_LATER_FRAGMENT;
	return true;
}

/* From p->cur on, where `ethertype` says what there is. */
static __always_inline bool parse_ethertype(struct __sk_buff *skb, struct ip_packet *p,
					    u16 ethertype)
{
	struct vlan_tag tag;
	u32 i;

	for (i = 0; i < MAX_TAGS && is_vlan(ethertype); i++) {
		if (!cursor_pull(skb, &p->cur, &tag, sizeof(tag)))
			return false;
		ethertype = bpf_ntohs(tag.ethertype);
	}
	if (ethertype == ETH_P_IP)
		return parse_ipv4_header(skb, p);
	if (ethertype == ETH_P_IPV6)
		return parse_ipv6_header(skb, p);
	return false;
}

/* From p->cur on, an Ethernet header. */
static __always_inline bool parse_ethernet(struct __sk_buff *skb, struct ip_packet *p)
{
	struct ethhdr eth;

	if (!cursor_pull(skb, &p->cur, &eth, sizeof(eth)))
		return false;
	return parse_ethertype(skb, p, bpf_ntohs(eth.h_proto));
}

/*
 * The frame at skb->data. `l2_len`: ETH_HLEN, or 0 where frames start with what skb->protocol says.
 * False: not IP. *p must be zero.
 */
static __always_inline bool parse_frame(struct __sk_buff *skb, struct ip_packet *p, u32 l2_len)
{
	p->cur.end = skb->len;
	if (!l2_len)
		return parse_ethertype(skb, p, bpf_ntohs(skb->protocol));
	return parse_ethernet(skb, p);
}

#endif
