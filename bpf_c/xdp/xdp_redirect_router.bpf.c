/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_redirect_router: routes by the kernel's own tables, in front of the kernel
 * ==============================================================================
 *
 * hook      XDP, at each of the ports
 * context   struct xdp_md
 * packets   forwarded ones: both MAC addresses, TTL or hop limit, IPv4 checksum; others not at all
 *
 *   frame -> to this port? -> IPv4, IPv6 that only has to be forwarded? -> TTL left?
 *         -> bpf_fib_lookup(): routes, rules, neighbours, MTU of the ingress port's namespace
 *            -> BPF_FIB_LKUP_RET_SUCCESS, by a port: TTL - 1, MACs -> DEVMAP_HASH -> egress program
 *            -> BPF_FIB_LKUP_RET_BLACKHOLE: dropped
 *            -> anything else: the kernel, which resolves neighbours, fragments, says "time
 *               exceeded", "too big" or "unreachable", and delivers what is for the machine itself
 *
 * Left to the kernel, too: what is wrong or special in an IPv4 or IPv6 header (a wrong checksum,
 * options, hop-by-hop options, addresses that are not forwarded), and VLAN-tagged frames, because
 * they belong to another interface, with other addresses and routes, than the one they come in by.
 * So nothing is forwarded here that the kernel would not forward; netfilter and tc do not see it.
 *
 * The kernel must be a router itself (net.ipv4.ip_forward=1, net.ipv6.conf.all.forwarding=1):
 * bpf_fib_lookup() says FWD_DISABLED otherwise.
 *
 * Maps (`ports` and `results`: "xdp_redirect.h")
 *   out  devmap_hash  ifindex -> the same, and the program that runs there
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/maps.h>
#include "xdp_redirect.h"

#define FORWARD     32 /* behind all results */
#define FAMILY_IPV4 2 /* AF_INET */
#define FAMILY_IPV6 10 /* AF_INET6 */

BPFKIT_MAP(0, BPF_MAP_TYPE_DEVMAP_HASH, out, u32, u64, MAX_PORTS, 0, 0);
BPF_HASH(ports, u32, struct port, MAX_PORTS);
BPF_TABLE("percpu_hash", struct seen, struct traffic, results, MAX_RESULTS);

static __always_inline void count(struct xdp_md *ctx, u32 result)
{
	struct seen key = { .ifindex = ctx->ingress_ifindex, .result = result };
	struct traffic zero = {};

	add_frame(results.lookup_or_try_init(&key, &zero), ctx->data_end - ctx->data);
}

/* 0.0.0.0/8, 127.0.0.0/8, and from 224.0.0.0 on: multicast, reserved, broadcast */
static __always_inline bool is_odd_ipv4(__be32 address)
{
	u32 first = bpf_ntohl(address) >> 24;

	return !first || first == 127 || first >= 224;
}

/* ::/96 (unspecified, loopback, IPv4-compatible), fe80::/10, ff00::/8 */
static __always_inline bool is_odd_ipv6(const __be32 *word)
{
	u32 first = bpf_ntohl(word[0]);

	return !(word[0] | word[1] | word[2]) || first >> 22 == 0xfe80 >> 6 || first >> 24 == 0xff;
}

/* One's complement sum of the 20 bytes: 0xffff where the checksum in them is right. */
static __always_inline u32 header_sum(const struct iphdr *ip)
{
	const u16 *word = (const u16 *)ip;
	u32 sum = 0, i;

#pragma unroll
	for (i = 0; i < sizeof(*ip) / 2; i++)
		sum += word[i];
	sum = (sum >> 16) + (sum & 0xffff);
	return (sum >> 16) + (sum & 0xffff);
}

/* FORWARD, and *p filled in; else the result. */
static __always_inline u32 read_ipv4(struct window *w, struct bpf_fib_lookup *p)
{
	struct iphdr *ip = window_peek(w, sizeof(*ip));
	u32 len;

	if (!ip || ip->version != 4 || ip->ihl != 5)
		return RESULT_ODD;
	len = bpf_ntohs(ip->tot_len);
	if (len < sizeof(*ip) || w->off + len > w->limit || header_sum(ip) != 0xffff ||
	    is_odd_ipv4(ip->saddr) || is_odd_ipv4(ip->daddr))
		return RESULT_ODD;
	if (ip->ttl <= 1)
		return RESULT_EXPIRED;
	p->family = FAMILY_IPV4;
	p->tos = ip->tos;
	p->l4_protocol = ip->protocol;
	p->tot_len = len;
	p->ipv4_src = ip->saddr;
	p->ipv4_dst = ip->daddr;
	return FORWARD;
}

static __always_inline u32 read_ipv6(struct window *w, struct bpf_fib_lookup *p)
{
	struct ipv6_header *ip = window_peek(w, sizeof(*ip));
	u32 len;

	if (!ip || !is_ipv6(ip) || ip->nexthdr == IPPROTO_HOPOPTS)
		return RESULT_ODD;
	len = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (w->off + len > w->limit || len > 0xffff || is_odd_ipv6(ip->saddr) ||
	    is_odd_ipv6(ip->daddr))
		return RESULT_ODD;
	if (ip->hop_limit <= 1)
		return RESULT_EXPIRED;
	p->family = FAMILY_IPV6;
	p->flowinfo = ip->version_class_flow & bpf_htonl(0x0fffffff);
	p->l4_protocol = ip->nexthdr;
	p->tot_len = len;
	__builtin_memcpy(p->ipv6_src, ip->saddr, sizeof(p->ipv6_src));
	__builtin_memcpy(p->ipv6_dst, ip->daddr, sizeof(p->ipv6_dst));
	return FORWARD;
}

static __always_inline u32 read_packet(struct window *w, struct ethhdr *eth,
				       const struct port *port, struct bpf_fib_lookup *p)
{
	u16 ethertype = bpf_ntohs(eth->h_proto);

	if (is_vlan(ethertype))
		return RESULT_TAGGED;
	if (ethertype != ETH_P_IP && ethertype != ETH_P_IPV6)
		return RESULT_NOT_IP;
	if (!port->any_mac && mac_number(eth->h_dest) != mac_number(port->mac.byte))
		return RESULT_NOT_OURS;
	return ethertype == ETH_P_IP ? read_ipv4(w, p) : read_ipv6(w, p);
}

/* One hop further (RFC 1624: a TTL that is 1 less makes the checksum's first byte 1 more). */
static __always_inline void hop(struct window *w, struct ethhdr *eth,
				const struct bpf_fib_lookup *p)
{
	struct ipv6_header *ip6;
	struct iphdr *ip;
	u32 sum;

	if (p->family == FAMILY_IPV4) {
		ip = window_peek(w, sizeof(*ip));
		if (!ip)
			return;
		sum = ip->check + bpf_htons(0x0100);
		ip->check = sum + (sum >= 0xffff);
		ip->ttl--;
	} else {
		ip6 = window_peek(w, sizeof(*ip6));
		if (!ip6)
			return;
		ip6->hop_limit--;
	}
	__builtin_memcpy(eth->h_dest, p->dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, p->smac, ETH_ALEN);
}

SEC("xdp")
int xdp_redirect_router(struct xdp_md *ctx)
{
	struct window w = {
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.limit = ctx->data_end - ctx->data,
	};
	struct ethhdr *eth = window_pull(&w, sizeof(*eth));
	u32 ifindex = ctx->ingress_ifindex, result;
	struct bpf_fib_lookup p = {};
	struct port *port;
	u8 family;

	port = ports.lookup(&ifindex);
	if (!eth || !port)
		return XDP_PASS;
	p.ifindex = ifindex;
	result = read_packet(&w, eth, port, &p);
	if (result != FORWARD) {
		count(ctx, result);
		return XDP_PASS;
	}
	family = p.family;
	result = bpf_fib_lookup(ctx, &p, sizeof(p), 0);
	p.family = family; /* the next hop's may be another (RFC 5549) */
	if (result == BPF_FIB_LKUP_RET_SUCCESS &&
	    bpf_redirect_map(BPFKIT_MAP_REF(out), p.ifindex, XDP_PASS) != XDP_REDIRECT)
		result = RESULT_NO_PORT;
	count(ctx, result);
	if (result == BPF_FIB_LKUP_RET_BLACKHOLE)
		return XDP_DROP;
	if (result != BPF_FIB_LKUP_RET_SUCCESS)
		return XDP_PASS;
	hop(&w, eth, &p);
	return XDP_REDIRECT;
}
