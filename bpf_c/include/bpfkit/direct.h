/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The headers of a frame by direct packet access, for XDP and tc: Ethernet, VLAN tags in any number
 * up to MAX_TAGS and any order, IPv4 with options, IPv6 with extension headers, fragments.
 *
 * A window is what the program may look at: data to data_end. Each header costs one bounds check.
 * (cursor.h and parse.h do the same by bpf_skb_load_bytes(), for socket filters.)
 *
 * Two bounds are kept apart, as there: what the frame holds (`end`) and what the IP header says
 * that the packet holds (`limit`). Ethernet pads short frames, and padding is no header.
 *
 * A VLAN tag that the kernel keeps beside the packet (skb->vlan_tci) is not in the data, and the
 * Ethernet header's type then is that of what follows the tag: nothing is to be done about it.
 */
#ifndef BPFKIT_DIRECT_H
#define BPFKIT_DIRECT_H

#include <bpfkit/ip.h>

#ifndef MAX_EXTS /* a program that looks at two packets has to do with less */
#define MAX_TAGS 8
#define MAX_EXTS 32 /* IPv6 extension headers that are looked through */
#endif
#define WINDOW_MAX 0x3fff /* bytes of headers that are looked through */

struct window {
	void *data;
	void *end;
	u64 off; /* next byte to look at, from data */
	u64 limit; /* first byte behind the packet, from data */
};

enum outcome {
	NOT_IP, /* something else, or an IP header that cannot be one */
	FOUND, /* family and proto are known */
	CUT, /* the headers go on behind data_end (or the IP packet's end) */
	TOO_DEEP, /* more tags or extension headers than are looked through */
};

struct headers {
	u64 network; /* where the IP header is, from data */
	u64 payload; /* where the transport header is, from data */
	u64 limit; /* first byte behind the packet, from data */
	u8 family; /* 4 or 6; 0: not IP */
	u8 proto; /* IPPROTO_*; for IPv6 what the extension headers lead to */
	u8 tags; /* VLAN tags in the data */
	bool fragment; /* part of a datagram */
	bool later_fragment; /* and not its first: no transport header */
};

/*
 * The next `len` bytes (a constant), or NULL where they are not all there.
 *
 * Equality with the masked offset instead of "greater than": the verifier then has no reason to
 * keep apart the offsets that different chains of headers lead to, and looks at each step once.
 */
static __always_inline void *window_peek(const struct window *w, u64 len)
{
	u64 off = w->off;
	void *p;

	/* the compiler must not see that the mask changes nothing, nor take the sums apart */
	asm volatile("" : "+r"(off));
	off &= WINDOW_MAX;
	asm volatile("" : "+r"(off));
	p = w->data + off;
	asm volatile("" : "+r"(p));
	if (off != w->off || p + len > w->end || off + len > w->limit)
		return NULL;
	return p;
}

/* The same, and moves behind them. */
static __always_inline void *window_pull(struct window *w, u64 len)
{
	void *p = window_peek(w, len);

	if (p)
		w->off += len;
	return p;
}

/* The packet that starts at the window's offset has `len` bytes; 0: it does not say. */
static __always_inline void window_limit(struct window *w, u64 len)
{
	if (len && w->off + len < w->limit)
		w->limit = w->off + len;
}

/*
 * From here on the verifier knows nothing of the window's bounds. It would walk all that follows
 * once for each different thing that it knows: for none to eight tags, for each way here.
 */
static __always_inline void window_forget(struct window *w)
{
	w->off ^= w->limit;
	asm volatile("" : "+r"(w->off));
	w->off ^= w->limit;
	w->limit ^= w->off;
	asm volatile("" : "+r"(w->limit));
	w->limit ^= w->off;
}

static __always_inline enum outcome direct_ipv4(struct window *w, struct headers *h)
{
	struct iphdr *ip = window_peek(w, sizeof(*ip));
	u16 frag_off;

	if (!ip)
		return CUT;
	if (ip->version != 4 || ip->ihl < 5)
		return NOT_IP;
	h->family = 4;
	h->proto = ip->protocol;
	frag_off = bpf_ntohs(ip->frag_off);
	h->fragment = frag_off & (IPV4_MF | IPV4_OFFSET);
	h->later_fragment = frag_off & IPV4_OFFSET;
	window_limit(w, bpf_ntohs(ip->tot_len));
	w->off += ip->ihl * 4;
	return FOUND;
}

/* 1 if they are equal, else 0, without a branch: what branches the verifier walks twice. */
static __always_inline u64 equal(u64 a, u64 b)
{
	a = ((a ^ b) - 1) >> 63;
	asm volatile("" : "+r"(a)); /* or the compiler makes branches of what it is used for */
	return a;
}

/* Is it one of is_ipv6_ext()'s? A bit for each, again to have few branches. */
static __always_inline bool is_ext_bit(u64 type)
{
	u64 low = 1ULL << IPPROTO_HOPOPTS | 1ULL << IPPROTO_ROUTING | 1ULL << IPPROTO_FRAGMENT |
		  1ULL << IPPROTO_AH | 1ULL << IPPROTO_DSTOPTS;
	u64 high = 1ULL << (IPPROTO_MH - 128) | 1ULL << (IPPROTO_HIP - 128) |
		   1ULL << (IPPROTO_SHIM6 - 128);
	u64 bits = low * equal(type >> 6, 0) | high * equal(type >> 6, 2);

	return bits >> (type & 63) & 1;
}

static __always_inline enum outcome direct_ipv6(struct window *w, struct headers *h)
{
	struct ipv6_header *ip = window_pull(w, sizeof(*ip));
	u64 type, is_ah, is_fragment, len, hdrlen;
	struct ipv6_ext *ext;
	u32 i, frag_off;

	if (!ip)
		return CUT;
	if (!is_ipv6(ip))
		return NOT_IP;
	h->family = 6;
	type = ip->nexthdr;
	window_limit(w, bpf_ntohs(ip->payload_len));
	window_forget(w);
#pragma clang loop unroll(disable)
	for (i = 0; i < MAX_EXTS; i++) {
		h->proto = type;
		if (!is_ext_bit(type))
			return FOUND;
		ext = window_peek(w, sizeof(*ext));
		if (!ext)
			return w->off > WINDOW_MAX ? TOO_DEEP : CUT;
		/* ipv6_ext_len() */
		hdrlen = ext->hdrlen;
		is_ah = equal(type, IPPROTO_AH);
		is_fragment = equal(type, IPPROTO_FRAGMENT);
		len = 8 + hdrlen * (8 - 4 * is_ah - 8 * is_fragment);
		if (w->off + len > w->limit || is_ah & equal(hdrlen, 0))
			return CUT;
		w->off += len;
		type = ext->nexthdr;
		/* an atomic fragment (RFC 6946) is a whole datagram */
		frag_off = bpf_ntohs(ext->frag_off) * is_fragment;
		if (frag_off & IPV6_OFFSET) {
			h->proto = type;
			h->fragment = h->later_fragment = true;
			return FOUND;
		}
		h->fragment |= frag_off & IPV6_MF;
	}
	h->proto = type;
	return is_ext_bit(type) ? TOO_DEEP : FOUND;
}

/* From the window's offset on; `ethertype` (host order) says what is there. */
static __always_inline enum outcome direct_ethertype(struct window *w, struct headers *h,
						     u16 ethertype)
{
	enum outcome outcome;
	struct vlan_tag *tag;
	u32 i;

	window_forget(w);
#pragma clang loop unroll(disable)
	for (i = 0; i < MAX_TAGS && is_vlan(ethertype); i++) {
		tag = window_pull(w, sizeof(*tag));
		if (!tag)
			return CUT;
		h->tags++;
		ethertype = bpf_ntohs(tag->ethertype);
	}
	if (is_vlan(ethertype))
		return TOO_DEEP;
	window_forget(w);
	h->network = w->off;
	if (ethertype == ETH_P_IP)
		outcome = direct_ipv4(w, h);
	else if (ethertype == ETH_P_IPV6)
		outcome = direct_ipv6(w, h);
	else
		return NOT_IP;
	h->payload = w->off;
	h->limit = w->limit;
	return outcome;
}

/*
 * The frame in the window. `ethertype`: 0 if the frame starts with an Ethernet header, else what
 * it starts with (host order). *h must be zero.
 */
static __always_inline enum outcome direct_frame(struct window *w, struct headers *h, u16 ethertype)
{
	struct ethhdr *eth;

	if (ethertype)
		return direct_ethertype(w, h, ethertype);
	eth = window_pull(w, sizeof(*eth));
	if (!eth)
		return CUT;
	return direct_ethertype(w, h, bpf_ntohs(eth->h_proto));
}

/* The frame of an XDP program. `l2_len`: 14, or 0 on interfaces without link header. */
static __always_inline enum outcome direct_xdp(struct xdp_md *ctx, struct headers *h,
					       struct window *w, u64 l2_len)
{
	u16 ethertype = 0;
	u8 *first;

	w->data = (void *)(long)ctx->data;
	w->end = (void *)(long)ctx->data_end;
	w->off = 0;
	w->limit = ctx->data_end - ctx->data;
	if (!l2_len) {
		/* nothing but the version tells what there is */
		first = window_peek(w, 1);
		if (!first)
			return CUT;
		ethertype = *first >> 4 == 4 ? ETH_P_IP : *first >> 4 == 6 ? ETH_P_IPV6 : 1;
	}
	return direct_frame(w, h, ethertype);
}

/* The same of a tc program; only the linear part of the packet can be looked at. */
static __always_inline enum outcome direct_skb(struct __sk_buff *skb, struct headers *h,
					       struct window *w, u64 l2_len)
{
	w->data = (void *)(long)skb->data;
	w->end = (void *)(long)skb->data_end;
	w->off = 0;
	w->limit = skb->len;
	return direct_frame(w, h, l2_len ? 0 : bpf_ntohs(skb->protocol));
}

/*
 * The same; where the headers go on behind the linear part, the packet is made linear first.
 * TOO_DEEP where that fails (no memory).
 */
static __always_inline enum outcome direct_skb_pulled(struct __sk_buff *skb, struct headers *h,
						      struct window *w, u64 l2_len)
{
	enum outcome outcome = direct_skb(skb, h, w, l2_len);

	if (outcome != CUT || skb->data_end - skb->data >= skb->len)
		return outcome;
	__builtin_memset(h, 0, sizeof(*h));
	if (bpf_skb_pull_data(skb, skb->len)) {
		w->data = w->end = NULL;
		return TOO_DEEP;
	}
	return direct_skb(skb, h, w, l2_len);
}

#endif
