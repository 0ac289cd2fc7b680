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
#include <bpfkit/bpfkit.h>

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

#endif
