/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Addresses, protocol and ports of a frame that <bpfkit/headers.h> parsed, and
 * a hash of them. For programs that look up an address or tell flows apart.
 */
#ifndef BPFKIT_TUPLE_H
#define BPFKIT_TUPLE_H

#include <bpfkit/headers.h>

#define TUPLE_PORTS 1 /* tuple.flags: sport and dport were there to be read */

/* Ten 32-bit words without padding: a map key as it is. Unused bytes are zero. */
struct tuple {
	__be32 saddr[4]; /* IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2) */
	__be32 daddr[4];
	__be16 sport;
	__be16 dport;
	u8 proto; /* IPPROTO_*; for IPv6 what the extension headers lead to */
	u8 family; /* 4 or 6 */
	u8 flags; /* TUPLE_PORTS */
	u8 zero;
};

static __always_inline void tuple_ipv4(__be32 *address, __be32 word)
{
	address[0] = address[1] = 0;
	address[2] = bpf_htonl(0xffff);
	address[3] = word;
}

/*
 * Fills *t, which must be zero, from what direct_xdp() or direct_skb() FOUND; false for other
 * outcomes. Fragments have no ports here, the first one neither: all of a datagram are alike.
 */
static __always_inline bool read_tuple(const struct window *w, const struct headers *h,
				       struct tuple *t)
{
	struct window at = { .data = w->data, .end = w->end, .off = h->network, .limit = -1ULL };
	struct ipv6_header *ip6;
	struct iphdr *ip4;
	__be16 *ports;

	if (h->family == 4) {
		ip4 = window_peek(&at, sizeof(*ip4));
		if (!ip4)
			return false;
		tuple_ipv4(t->saddr, ip4->saddr);
		tuple_ipv4(t->daddr, ip4->daddr);
	} else {
		ip6 = window_peek(&at, sizeof(*ip6));
		if (!ip6)
			return false;
		__builtin_memcpy(t->saddr, ip6->saddr, sizeof(t->saddr));
		__builtin_memcpy(t->daddr, ip6->daddr, sizeof(t->daddr));
	}
	t->family = h->family;
	t->proto = h->proto;
	if (h->fragment || !has_ports(h->proto))
		return true;
	at.off = h->payload;
	at.limit = h->limit;
	ports = window_peek(&at, 2 * sizeof(*ports));
	if (ports) {
		t->sport = ports[0];
		t->dport = ports[1];
		t->flags = TUPLE_PORTS;
	}
	return true;
}

static __always_inline u32 rol32(u32 word, u32 shift)
{
	return word << shift | word >> (32 - shift);
}

/* The final mixing of three words (Bob Jenkins' lookup3, as in the kernel's jhash_3words()). */
static __always_inline u32 hash_3words(u32 a, u32 b, u32 c, u32 seed)
{
	seed += 0xdeadbeef + (3 << 2);
	a += seed;
	b += seed;
	c += seed;
	c = (c ^ b) - rol32(b, 14);
	a = (a ^ c) - rol32(c, 11);
	b = (b ^ a) - rol32(a, 25);
	c = (c ^ b) - rol32(b, 16);
	a = (a ^ c) - rol32(c, 4);
	b = (b ^ a) - rol32(a, 14);
	return (c ^ b) - rol32(b, 24);
}

/* The same for all packets of a flow in one direction; spread over all 32 bits. */
static __always_inline u32 tuple_hash(const struct tuple *t, u32 seed)
{
	u32 ports = (u32)t->sport << 16 | t->dport;

	seed ^= t->proto;
	if (t->family == 6) {
		seed = hash_3words(t->saddr[0], t->saddr[1], t->saddr[2], seed);
		seed = hash_3words(t->daddr[0], t->daddr[1], t->daddr[2], seed);
	}
	return hash_3words(t->saddr[3], t->daddr[3], ports, seed);
}

#endif
