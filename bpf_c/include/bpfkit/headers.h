/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The one walk through the headers of a frame: Ethernet, up to MAX_TAGS VLAN tags in any order, IPv4
 * with options, IPv6, and up to MAX_EXTS extension headers: in IPv6 all kinds, in IPv4 the
 * authentication header (AH). ESP ends the walk, because it hides what follows.
 *
 *	direct_xdp(), direct_skb()   bytes between data and data_end   XDP, tc, flow dissector
 *	load_skb()                   bpf_skb_load_bytes()              socket filters, LWT
 *
 * Both read the bytes through header_peek() and otherwise run the same code, so they agree on every
 * packet. Two bounds are kept apart: what the frame holds, and what the IP header says that the
 * packet holds (`limit`). Ethernet pads short frames, and padding is no header.
 *
 * A VLAN tag that the kernel keeps beside the packet (skb->vlan_tci) is not in the data; the Ethernet
 * header then names the type of what follows the tag.
 */
#ifndef BPFKIT_HEADERS_H
#define BPFKIT_HEADERS_H

#include <bpfkit/ip.h>

/*
 * Programs with a lower limit define MAX_TAGS before they include this: xdp_lb and xdp_decap (2,
 * because they copy the tags to the stack, see link.h), tc_classifier (4), flow_dissector (2, because
 * it walks two packets). MAX_EXTS is the same everywhere.
 */
#ifndef MAX_TAGS
#define MAX_TAGS 8
#endif
#define MAX_EXTS   32
#define WINDOW_MAX 0x3fff /* highest offset at which a header is read */

struct window {
	void *data; /* direct access: first byte, and first byte that is not there */
	void *end;
	struct __sk_buff *skb; /* access by bpf_skb_load_bytes() */
	bool by_load; /* which of the two; a constant in every program */
	u64 off; /* next byte to read, from the start of the data */
	u64 limit; /* first byte behind the packet, from the start of the data */
};

enum outcome {
	NOT_IP, /* another protocol, or a malformed IP header (version, IHL < 5) */
	FOUND, /* family and proto are known */
	CUT, /* the headers go on behind the end of the data or of the IP packet */
	TOO_DEEP, /* more than MAX_TAGS, MAX_EXTS or WINDOW_MAX allows */
};

struct headers {
	u64 network; /* offset of the IP header */
	u64 payload; /* offset of the transport header */
	u64 limit; /* offset of the first byte behind the packet */
	u8 family; /* 4 or 6; 0: not IP */
	u8 proto; /* IPPROTO_* behind all extension headers; if they are CUT, the one that is */
	u8 tags; /* VLAN tags in the data */
	bool fragment; /* part of a datagram */
	bool later_fragment; /* and not its first: no transport header */
};

/*
 * Direct access to the next `len` bytes (a constant); NULL if they are not all there.
 *
 * The masked offset is compared for equality instead of "greater than": the verifier then learns no
 * range that differs between chains of headers, and verifies each step once.
 */
static __always_inline void *window_peek(const struct window *w, u64 len)
{
	u64 off = w->off;
	void *p;

	/* keep clang from dropping the mask and from splitting the sums */
	asm volatile("" : "+r"(off));
	off &= WINDOW_MAX;
	asm volatile("" : "+r"(off));
	p = w->data + off;
	asm volatile("" : "+r"(p));
	if (off != w->off || p + len > w->end || off + len > w->limit)
		return NULL;
	return p;
}

/* The same, and moves the offset behind them. */
static __always_inline void *window_pull(struct window *w, u64 len)
{
	void *p = window_peek(w, len);

	if (p)
		w->off += len;
	return p;
}

/* The next `len` bytes, by the window's kind of access; bpf_skb_load_bytes() fills `copy`. */
static __always_inline const void *header_peek(const struct window *w, void *copy, u64 len)
{
	if (!w->by_load)
		return window_peek(w, len);
	if (w->off > WINDOW_MAX || w->off + len > w->limit ||
	    bpf_skb_load_bytes(w->skb, w->off, copy, len))
		return NULL;
	return copy;
}

/* Ends the packet `len` bytes behind the offset; 0: the header does not say. */
static __always_inline void window_limit(struct window *w, u64 len)
{
	if (len && w->off + len < w->limit)
		w->limit = w->off + len;
}

/*
 * Makes the verifier forget the window's offset and limit. Otherwise the verifier re-verifies the rest
 * once per known offset: for each number of tags, for each path to here.
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

/* 1 if equal, else 0, without a branch: the verifier follows both sides of a branch. */
static __always_inline u64 equal(u64 a, u64 b)
{
	a = ((a ^ b) - 1) >> 63;
	asm volatile("" : "+r"(a)); /* keeps clang from turning its uses into branches */
	return a;
}

/*
 * Whether the walk goes on behind a header of this type: AH, and if `ipv6` is 1 (not 0) the
 * extension headers of IPv6. A bit for each type, to avoid branches.
 */
static __always_inline bool is_ext(u64 type, u64 ipv6)
{
	u64 ah = 1ULL << IPPROTO_AH;
	u64 low = 1ULL << IPPROTO_HOPOPTS | 1ULL << IPPROTO_ROUTING | 1ULL << IPPROTO_FRAGMENT |
		  1ULL << IPPROTO_DSTOPTS;
	u64 high = 1ULL << (IPPROTO_MH - 128) | 1ULL << (IPPROTO_HIP - 128) |
		   1ULL << (IPPROTO_SHIM6 - 128);
	u64 bits = (low * ipv6 | ah) * equal(type >> 6, 0) | high * ipv6 * equal(type >> 6, 2);

	return bits >> (type & 63) & 1;
}

/*
 * From the first header behind the IP header on; `type` is what that header says is there. Sets
 * h->proto, and moves the window behind the last extension header.
 */
static __always_inline enum outcome walk_exts(struct window *w, struct headers *h, u64 type,
					      u64 ipv6)
{
	u64 is_ah, is_fragment, len, hdrlen;
	const struct ipv6_ext *ext;
	struct ipv6_ext copy;
	u32 i, frag_off;

#pragma clang loop unroll(disable)
	for (i = 0; i < MAX_EXTS; i++) {
		h->proto = type;
		if (!is_ext(type, ipv6))
			return FOUND;
		ext = header_peek(w, &copy, sizeof(copy));
		if (!ext)
			return w->off > WINDOW_MAX ? TOO_DEEP : CUT;
		hdrlen = ext->hdrlen;
		is_ah = equal(type, IPPROTO_AH);
		is_fragment = equal(type, IPPROTO_FRAGMENT);
		/* 8-byte units behind the first 8 bytes; AH (RFC 4302): 4-byte units */
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
	return is_ext(type, ipv6) ? TOO_DEEP : FOUND;
}

/* What a copy of an IP header needs. */
union ip_header {
	struct iphdr v4;
	struct ipv6_header v6;
};

/*
 * An IP header at the window's offset, and its extension headers. `copy` is where the header is
 * copied to in a window by load (of IPv4 the 20 bytes without options).
 */
static __always_inline enum outcome walk_ip(struct window *w, struct headers *h,
					    union ip_header *copy, bool is_v4)
{
	const struct ipv6_header *ip6;
	const struct iphdr *ip4;
	u64 type, ipv6;
	u16 frag_off;

	if (is_v4) {
		ip4 = header_peek(w, &copy->v4, sizeof(*ip4));
		if (!ip4)
			return CUT;
		if (ip4->version != 4 || ip4->ihl < 5)
			return NOT_IP;
		h->family = 4;
		h->proto = type = ip4->protocol;
		frag_off = bpf_ntohs(ip4->frag_off);
		h->fragment = frag_off & (IPV4_MF | IPV4_OFFSET);
		h->later_fragment = frag_off & IPV4_OFFSET;
		window_limit(w, bpf_ntohs(ip4->tot_len));
		w->off += ip4->ihl * 4;
		if (type != IPPROTO_AH || h->later_fragment)
			return FOUND;
		ipv6 = 0;
	} else {
		ip6 = header_peek(w, &copy->v6, sizeof(*ip6));
		if (!ip6)
			return CUT;
		if (!is_ipv6(ip6))
			return NOT_IP;
		type = ip6->nexthdr;
		w->off += sizeof(*ip6);
		window_limit(w, bpf_ntohs(ip6->payload_len));
		ipv6 = 1;
	}
	/* as window_forget(): both families share the rest */
	window_forget(w);
	ipv6 ^= w->limit;
	asm volatile("" : "+r"(ipv6));
	ipv6 = (ipv6 ^ w->limit) & 1;
	h->family = 4 + 2 * ipv6;
	return walk_exts(w, h, type, ipv6);
}

/* From the window's offset on, where `ethertype` (host order) says what there is. */
static __always_inline enum outcome walk_ethertype(struct window *w, struct headers *h,
						   union ip_header *copy, u16 ethertype)
{
	struct vlan_tag tag_copy;
	const struct vlan_tag *tag;
	enum outcome outcome;
	u32 i;

	window_forget(w);
#pragma clang loop unroll(disable)
	for (i = 0; i < MAX_TAGS && is_vlan(ethertype); i++) {
		tag = header_peek(w, &tag_copy, sizeof(*tag));
		if (!tag)
			return CUT;
		w->off += sizeof(*tag);
		h->tags++;
		ethertype = bpf_ntohs(tag->ethertype);
	}
	if (is_vlan(ethertype))
		return TOO_DEEP;
	window_forget(w);
	h->network = w->off;
	if (ethertype != ETH_P_IP && ethertype != ETH_P_IPV6)
		return NOT_IP;
	/* one call for both: each would be a copy of the whole walk */
	outcome = walk_ip(w, h, copy, ethertype == ETH_P_IP);
	h->payload = w->off;
	h->limit = w->limit;
	return outcome;
}

/*
 * The frame in the window. `ethertype`: 0 if the frame starts with an Ethernet header, else what
 * it starts with (host order). *h must be zero.
 */
static __always_inline enum outcome walk_frame(struct window *w, struct headers *h,
					       union ip_header *copy, u16 ethertype)
{
	const struct ethhdr *eth;
	struct ethhdr eth_copy;

	if (ethertype)
		return walk_ethertype(w, h, copy, ethertype);
	eth = header_peek(w, &eth_copy, sizeof(*eth));
	if (!eth)
		return CUT;
	w->off += sizeof(*eth);
	return walk_ethertype(w, h, copy, bpf_ntohs(eth->h_proto));
}

/*
 * Where to start. `l2_len`: ETH_HLEN for a frame with an Ethernet header, which names what follows;
 * else the bytes of a link header to skip (0: none; a GRE tunnel without a fixed remote has the outer
 * packet's), and skb->protocol or the IP version says what follows.
 */
static __always_inline u64 link_offset(u64 l2_len)
{
	return l2_len == ETH_HLEN ? 0 : l2_len;
}

/*
 * The frame at skb->data, by bpf_skb_load_bytes(): it need not be linear. `l2_len`: ETH_HLEN, or 0
 * where frames start with what skb->protocol says. *h must be zero; the IP header is in *ip if
 * h->family is not 0.
 */
static __always_inline enum outcome load_skb(struct __sk_buff *skb, struct headers *h,
					     union ip_header *ip, struct window *w, u64 l2_len)
{
	w->by_load = true;
	w->skb = skb;
	w->off = link_offset(l2_len);
	w->limit = skb->len;
	return walk_frame(w, h, ip, l2_len == ETH_HLEN ? 0 : bpf_ntohs(skb->protocol));
}

/* The frame of an XDP program. `l2_len`: 14, or 0 on interfaces without link header. */
static __always_inline enum outcome direct_xdp(struct xdp_md *ctx, struct headers *h,
					       struct window *w, u64 l2_len)
{
	u16 ethertype = 0;
	u8 *first;

	w->by_load = false;
	w->data = (void *)(long)ctx->data;
	w->end = (void *)(long)ctx->data_end;
	w->off = link_offset(l2_len);
	w->limit = ctx->data_end - ctx->data;
	if (l2_len != ETH_HLEN) {
		/* only the version says which protocol this is */
		first = window_peek(w, 1);
		if (!first)
			return CUT;
		ethertype = *first >> 4 == 4 ? ETH_P_IP : *first >> 4 == 6 ? ETH_P_IPV6 : 1;
	}
	return walk_frame(w, h, NULL, ethertype);
}

/* The same for a tc program, in the linear part of the packet only. */
static __always_inline enum outcome direct_skb(struct __sk_buff *skb, struct headers *h,
					       struct window *w, u64 l2_len)
{
	w->by_load = false;
	w->data = (void *)(long)skb->data;
	w->end = (void *)(long)skb->data_end;
	w->off = link_offset(l2_len);
	w->limit = skb->len;
	return walk_frame(w, h, NULL, l2_len == ETH_HLEN ? 0 : bpf_ntohs(skb->protocol));
}

/*
 * The same; if the headers go on behind the linear part, the packet is made linear first. TOO_DEEP
 * if that fails (no memory).
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
