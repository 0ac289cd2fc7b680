/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Ethernet, VLAN, IPv4 and IPv6 headers, as far as flow programs need them.
 *
 * Fields in network byte order have __be types; everything else is host order.
 */
#ifndef BPFKIT_IP_H
#define BPFKIT_IP_H

#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/ip.h>
#include <bpfkit/cursor.h>

/* <uapi/linux/ipv6.h> and <uapi/linux/if_vlan.h> have these only in part or not at all. */
#define VLAN_HLEN     4
#define VLAN_VID_MASK 0x0fff
#define ETH_P_QINQ    0x9100 /* QinQ before 802.1ad */
#define IPV4_MF       0x2000
#define IPV4_OFFSET   0x1fff
#define IPV6_OFFSET   0xfff8
#define IPV6_MF       0x0001
#define IPPROTO_HIP   139
#define IPPROTO_SHIM6 140

struct vlan_tag {
	__be16 tci;
	__be16 ethertype; /* of what follows */
};

struct ipv6_header {
	__be32 version_class_flow;
	__be16 payload_len;
	u8 nexthdr;
	u8 hop_limit;
	__be32 saddr[4];
	__be32 daddr[4];
};

/* The first eight bytes, which every IPv6 extension header has. */
struct ipv6_ext {
	u8 nexthdr;
	u8 hdrlen; /* unit and meaning depend on the header; reserved in a fragment header */
	__be16 frag_off; /* fragment header only: offset | reserved | more */
	__be32 rest;
};

static __always_inline bool is_ipv6(const struct ipv6_header *ip)
{
	return bpf_ntohl(ip->version_class_flow) >> 28 == 6;
}

static __always_inline bool is_vlan(u16 ethertype)
{
	return ethertype == ETH_P_8021Q || ethertype == ETH_P_8021AD || ethertype == ETH_P_QINQ;
}

static __always_inline bool has_ports(u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_DCCP:
	case IPPROTO_SCTP:
	case IPPROTO_UDPLITE:
		return true;
	}
	return false;
}

/*
 * Headers that may stand between an IPv6 header and its payload. ESP is not one: it hides what
 * follows.
 */
static __always_inline bool is_ipv6_ext(u8 nexthdr)
{
	switch (nexthdr) {
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_FRAGMENT:
	case IPPROTO_AH:
	case IPPROTO_DSTOPTS:
	case IPPROTO_MH:
	case IPPROTO_HIP:
	case IPPROTO_SHIM6:
		return true;
	}
	return false;
}

/* Bytes of an extension header; 0 for one that cannot be. */
static __always_inline u32 ipv6_ext_len(u8 type, u8 hdrlen)
{
	switch (type) {
	case IPPROTO_FRAGMENT:
		return 8;
	case IPPROTO_AH: /* RFC 4302: 4-byte units, minus 2; the fixed part is 12 bytes */
		return hdrlen ? (hdrlen + 2) * 4 : 0;
	}
	return (hdrlen + 1) * 8;
}

enum ipv6_walk {
	IPV6_PAYLOAD, /* the payload, of protocol *nexthdr, is at the cursor */
	IPV6_LATER_FRAGMENT, /* without the payload's start; *nexthdr as the fragment header says */
	IPV6_CUT, /* *nexthdr is an extension header that is not all there */
	IPV6_MORE, /* *nexthdr is an extension header, and the steps are used up */
};

/* Walks at most `steps` extension headers; sets *fragment if the packet is part of a datagram. */
static __always_inline enum ipv6_walk ipv6_skip_ext(struct __sk_buff *skb, struct cursor *cur,
						    u8 *nexthdr, bool *fragment, u32 steps)
{
	struct ipv6_ext ext;
	u32 i, len;
	u8 type;

	for (i = 0; i < steps; i++) {
		type = *nexthdr;
		if (!is_ipv6_ext(type))
			return IPV6_PAYLOAD;
		if (!cursor_peek(skb, cur, &ext, sizeof(ext)))
			return IPV6_CUT;
		len = ipv6_ext_len(type, ext.hdrlen);
		if (!len || cur->off + len > cur->end)
			return IPV6_CUT;
		cur->off += len;
		*nexthdr = ext.nexthdr;
		if (type != IPPROTO_FRAGMENT)
			continue;
		/* an atomic fragment (RFC 6946) is a whole datagram */
		if (bpf_ntohs(ext.frag_off) & (IPV6_OFFSET | IPV6_MF))
			*fragment = true;
		if (bpf_ntohs(ext.frag_off) & IPV6_OFFSET)
			return IPV6_LATER_FRAGMENT;
	}
	return is_ipv6_ext(*nexthdr) ? IPV6_MORE : IPV6_PAYLOAD;
}

#endif
