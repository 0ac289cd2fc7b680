/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The classic sockex3 design, as a baseline for ns/packet
 * ======================================================
 *
 * Written from the design of the well-known sample, not from its text: one flow hash shared by all
 * CPUs, keyed by 4-byte addresses (IPv6 folded by XOR) and counted with atomic adds; one LD_ABS
 * load per header field; a tail call per layer; scratch state per CPU in an array.
 *
 * The sample's defects are kept where they are part of the design or of its cost (a lookup
 * followed by a plain insert, folded addresses, frames counted whatever their direction). Nobody
 * should count traffic with it: bpf_c/socket/sockex3.bpf.c is the program to use.
 *
 * hook     socket filter on an AF_PACKET socket; context struct __sk_buff; packets are not changed
 *
 *   frame -> classic_eth -+-> classic_vlan -+-> classic_ip   -+-> TCP, UDP, ICMP: flows
 *                         +-> classic_mpls -+-> classic_ipv6 -+-> GRE, IPIP, IPv6: next round
 */
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <bpfkit/bpfkit.h>

#define IP_MF     0x2000
#define IP_OFFSET 0x1fff
#define VLAN_HLEN 4
#define MPLS_HLEN 4

enum { CLASSIC_IP, CLASSIC_IPV6, CLASSIC_VLAN, CLASSIC_MPLS };

struct classic_key {
	u32 src; /* host order, as load_word() returns it */
	u32 dst;
	u32 ports;
	u32 proto;
};

struct classic_count {
	u64 packets;
	u64 bytes;
};

struct classic_state {
	struct classic_key flow;
};

BPF_TABLE("hash", struct classic_key, struct classic_count, flows, 1024);
BPF_TABLE("array", u32, struct classic_state, state, 32);
BPF_PROG_ARRAY(jump, 8);

static inline struct classic_state *this_cpu_state(void)
{
	u32 cpu = bpf_get_smp_processor_id();

	return state.lookup(&cpu);
}

static inline void count(struct __sk_buff *skb, struct classic_state *st)
{
	struct classic_key key = st->flow;
	struct classic_count *c = flows.lookup(&key);

	if (c) {
		__sync_fetch_and_add(&c->packets, 1);
		__sync_fetch_and_add(&c->bytes, skb->len);
	} else {
		struct classic_count first = { 1, skb->len };

		flows.update(&key, &first);
	}
}

static inline void parse_ethertype(struct __sk_buff *skb, u16 proto)
{
	switch (proto) {
	case ETH_P_8021Q:
	case ETH_P_8021AD:
		jump.call(skb, CLASSIC_VLAN);
		break;
	case ETH_P_MPLS_UC:
	case ETH_P_MPLS_MC:
		jump.call(skb, CLASSIC_MPLS);
		break;
	case ETH_P_IP:
		jump.call(skb, CLASSIC_IP);
		break;
	case ETH_P_IPV6:
		jump.call(skb, CLASSIC_IPV6);
		break;
	}
}

static inline void parse_transport(struct __sk_buff *skb, struct classic_state *st, u32 proto)
{
	u32 nhoff = skb->cb[0];

	switch (proto) {
	case IPPROTO_GRE: {
		u16 flags = load_half(skb, nhoff);
		u16 inner = load_half(skb, nhoff + 2);

		nhoff += 4;
		if (flags & 0x8000)
			nhoff += 4;
		if (flags & 0x2000)
			nhoff += 4;
		if (flags & 0x1000)
			nhoff += 4;
		skb->cb[0] = nhoff;
		parse_ethertype(skb, inner);
		break;
	}
	case IPPROTO_IPIP:
		jump.call(skb, CLASSIC_IP);
		break;
	case IPPROTO_IPV6:
		jump.call(skb, CLASSIC_IPV6);
		break;
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		st->flow.ports = load_word(skb, nhoff);
		/* fall through */
	case IPPROTO_ICMP:
		st->flow.proto = proto;
		count(skb, st);
		break;
	}
}

SEC("socket")
int classic_ip(struct __sk_buff *skb)
{
	struct classic_state *st = this_cpu_state();
	u32 nhoff = skb->cb[0];
	u32 verlen, proto;

	if (!st)
		return 0;
	if (load_half(skb, nhoff + offsetof(struct iphdr, frag_off)) & (IP_MF | IP_OFFSET))
		return 0;
	proto = load_byte(skb, nhoff + offsetof(struct iphdr, protocol));
	if (proto != IPPROTO_GRE) {
		st->flow.src = load_word(skb, nhoff + offsetof(struct iphdr, saddr));
		st->flow.dst = load_word(skb, nhoff + offsetof(struct iphdr, daddr));
	}
	verlen = load_byte(skb, nhoff);
	skb->cb[0] = nhoff + ((verlen & 0xf) << 2);
	parse_transport(skb, st, proto);
	return 0;
}

static inline u32 fold_ipv6(struct __sk_buff *skb, u32 off)
{
	return load_word(skb, off) ^ load_word(skb, off + 4) ^ load_word(skb, off + 8) ^
	       load_word(skb, off + 12);
}

SEC("socket")
int classic_ipv6(struct __sk_buff *skb)
{
	struct classic_state *st = this_cpu_state();
	u32 nhoff = skb->cb[0];
	u32 proto;

	if (!st)
		return 0;
	proto = load_byte(skb, nhoff + offsetof(struct ipv6hdr, nexthdr));
	st->flow.src = fold_ipv6(skb, nhoff + offsetof(struct ipv6hdr, saddr));
	st->flow.dst = fold_ipv6(skb, nhoff + offsetof(struct ipv6hdr, daddr));
	skb->cb[0] = nhoff + sizeof(struct ipv6hdr);
	parse_transport(skb, st, proto);
	return 0;
}

SEC("socket")
int classic_vlan(struct __sk_buff *skb)
{
	u32 nhoff = skb->cb[0];
	u16 proto = load_half(skb, nhoff + 2);

	skb->cb[0] = nhoff + VLAN_HLEN;
	parse_ethertype(skb, proto);
	return 0;
}

SEC("socket")
int classic_mpls(struct __sk_buff *skb)
{
	u32 nhoff = skb->cb[0];
	u32 label = load_word(skb, nhoff);

	nhoff += MPLS_HLEN;
	skb->cb[0] = nhoff;
	if (!(label & 0x100))
		jump.call(skb, CLASSIC_MPLS);
	else if ((load_byte(skb, nhoff) & 0xf0) == 0x40)
		jump.call(skb, CLASSIC_IP);
	else
		jump.call(skb, CLASSIC_IPV6);
	return 0;
}

SEC("socket")
int classic_eth(struct __sk_buff *skb)
{
	u16 proto = load_half(skb, offsetof(struct ethhdr, h_proto));

	skb->cb[0] = ETH_HLEN;
	parse_ethertype(skb, proto);
	return 0;
}
