/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_afxdp: the frames of some addresses go to a program in user space, past the kernel
 * =======================================================================================
 *
 * hook      XDP
 * context   struct xdp_md
 * packets   not changed
 *
 *   wire -> xdp_afxdp -+- for one of the addresses --> XSKMAP -> AF_XDP socket -> Python, which
 *                      |                                         answers ARP, ND and ping
 *                      +- else ----------------------> XDP_PASS -> the kernel
 *
 * For an address are: ARP requests that ask for it, neighbour solicitations whose target it is
 * (they come to a multicast address, so the destination does not tell), and IP packets to it. VLAN
 * tags are looked through.
 *
 * Maps (struct traffic: <bpfkit/wire.h>)
 *   addresses  hash           address, IPv4 as ::ffff:a.b.c.d -> anything
 *   sockets    xskmap         queue -> socket
 *   taken      percpu_array   enum kind -> struct traffic
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/headers.h>
#include <bpfkit/wire.h>
#include <uapi/linux/bpf.h>

#define MAX_ADDRESSES 1024
#define MAX_QUEUES    64
#define ND_SOLICIT    135
#define ARP_REQUEST   1

enum kind {
	KIND_ARP,
	KIND_ND,
	KIND_IPV4,
	KIND_IPV6,
	KIND_PASSED, /* to the kernel */
	KINDS,
};

struct address {
	__be32 word[4];
};

/* RFC 826, for IPv4 on Ethernet */
struct arp_ipv4 {
	__be16 hardware;
	__be16 protocol;
	u8 hardware_len;
	u8 protocol_len;
	__be16 operation;
	u8 sender_mac[ETH_ALEN];
	u8 sender[4];
	u8 target_mac[ETH_ALEN];
	u8 target[4];
};

/* RFC 4861, 4.3 */
struct nd_solicit {
	u8 type;
	u8 code;
	__be16 checksum;
	__be32 reserved;
	__be32 target[4];
};

BPF_HASH(addresses, struct address, u8, MAX_ADDRESSES);
BPF_XSKMAP(sockets, MAX_QUEUES);
BPF_TABLE("percpu_array", u32, struct traffic, taken, KINDS);

static __always_inline bool is_one_of_them(const __be32 *word)
{
	struct address address;

	__builtin_memcpy(&address, word, sizeof(address));
	return addresses.lookup(&address);
}

static __always_inline bool is_one_of_them4(__be32 word)
{
	struct address address = { .word = { 0, 0, bpf_htonl(0xffff), word } };

	return addresses.lookup(&address);
}

static __always_inline enum kind classify_arp(struct window *w)
{
	struct arp_ipv4 *arp = window_peek(w, sizeof(*arp));
	__be32 target;

	if (!arp || arp->protocol != bpf_htons(ETH_P_IP) || arp->protocol_len != 4 ||
	    arp->hardware_len != ETH_ALEN || arp->operation != bpf_htons(ARP_REQUEST))
		return KIND_PASSED;
	__builtin_memcpy(&target, arp->target, sizeof(target));
	return is_one_of_them4(target) ? KIND_ARP : KIND_PASSED;
}

static __always_inline enum kind classify_ipv6(struct window *w)
{
	struct ipv6_header *ip = window_pull(w, sizeof(*ip));
	struct nd_solicit *nd;

	if (!ip || !is_ipv6(ip))
		return KIND_PASSED;
	/* no extension header may stand before it where SEND (RFC 3971) is not used: none does */
	if (ip->nexthdr == IPPROTO_ICMPV6) {
		nd = window_peek(w, sizeof(*nd));
		if (nd && nd->type == ND_SOLICIT)
			return is_one_of_them(nd->target) ? KIND_ND : KIND_PASSED;
	}
	return is_one_of_them(ip->daddr) ? KIND_IPV6 : KIND_PASSED;
}

static __always_inline enum kind classify(struct xdp_md *ctx)
{
	struct window w = {
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.limit = ctx->data_end - ctx->data,
	};
	struct ethhdr *eth = window_pull(&w, sizeof(*eth));
	struct vlan_tag *tag;
	struct iphdr *ip;
	u16 ethertype;
	u32 i;

	if (!eth)
		return KIND_PASSED;
	ethertype = bpf_ntohs(eth->h_proto);
#pragma clang loop unroll(disable)
	for (i = 0; i < MAX_TAGS && is_vlan(ethertype); i++) {
		tag = window_pull(&w, sizeof(*tag));
		if (!tag)
			return KIND_PASSED;
		ethertype = bpf_ntohs(tag->ethertype);
	}
	switch (ethertype) {
	case ETH_P_ARP:
		return classify_arp(&w);
	case ETH_P_IP:
		ip = window_peek(&w, sizeof(*ip));
		if (!ip || ip->version != 4)
			return KIND_PASSED;
		return is_one_of_them4(ip->daddr) ? KIND_IPV4 : KIND_PASSED;
	case ETH_P_IPV6:
		return classify_ipv6(&w);
	}
	return KIND_PASSED;
}

SEC("xdp")
int xdp_afxdp(struct xdp_md *ctx)
{
	u32 kind = classify(ctx), queue = ctx->rx_queue_index;

	add_frame(taken.lookup(&kind), ctx->data_end - ctx->data);
	if (kind == KIND_PASSED)
		return XDP_PASS;
	/* nobody at this queue: the kernel may have it */
	return sockets.redirect_map(queue, XDP_PASS);
}
