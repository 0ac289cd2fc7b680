/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The bytes that every segment of a super-frame repeats: all headers up to the innermost transport
 * header, tunnels included, also for programs that do not show tunnels. Only for super-frames:
 * offloads build them from well-formed packets, so only header lengths are read.
 */
#ifndef BPFKIT_SEGMENT_H
#define BPFKIT_SEGMENT_H

#include <bpfkit/ip.h>
#include <bpfkit/wire.h>

#define SEGMENT_TUNNELS 2 /* tunnel headers that are followed */
#define GRE_CSUM        0x8000
#define GRE_ROUTING     0x4000
#define GRE_KEY         0x2000
#define GRE_SEQ         0x1000
#define GRE_VERSION     0x0007
#define VXLAN_HLEN      8
#define VXLAN_PORT      4789

/* Offset of the IP header inside the tunnel whose header is at `off`; 0: not a tunnel. */
static __always_inline u32 tunnel_payload(struct __sk_buff *skb, u32 off, u8 proto)
{
	__be16 head[2]; /* GRE: flags, ethertype; UDP: ports */
	u16 flags;

	if (proto == IPPROTO_IPIP || proto == IPPROTO_IPV6)
		return off;
	if ((proto != IPPROTO_GRE && proto != IPPROTO_UDP) ||
	    bpf_skb_load_bytes(skb, off, head, sizeof(head)))
		return 0;
	if (proto == IPPROTO_UDP) {
		if (head[1] != bpf_htons(VXLAN_PORT))
			return 0;
		return off + 8 + VXLAN_HLEN + ETH_HLEN;
	}
	flags = bpf_ntohs(head[0]);
	off += 4;
	if (flags & GRE_CSUM)
		off += 4;
	if (flags & GRE_KEY)
		off += 4;
	if (flags & GRE_SEQ)
		off += 4;
	return head[1] == bpf_htons(ETH_P_TEB) ? off + ETH_HLEN : off;
}

/*
 * `value`, of which the verifier knows nothing any more, by way of the context: it knows nothing of
 * skb->len either. Otherwise it re-verifies the rest once per combination of known values.
 */
static __always_inline u32 forget(struct __sk_buff *skb, u32 value)
{
	u32 unknown = skb->len;

	value ^= unknown;
	asm volatile("" : "+r"(value));
	return value ^ unknown;
}

/* Bytes up to and including the innermost transport header; `off` is where the outermost one is. */
static __always_inline u32 segment_header_len(struct __sk_buff *skb, u32 off, u32 proto)
{
	u8 doff = 5 << 4;
	struct iphdr ip;
	u32 i, inner;

	for (i = 0; i < SEGMENT_TUNNELS; i++) {
		off = forget(skb, off);
		proto = forget(skb, proto);
		inner = tunnel_payload(skb, off, proto);
		if (!inner || bpf_skb_load_bytes(skb, inner, &ip, sizeof(ip)))
			break;
		if (ip.version == 4) {
			off = inner + ip.ihl * 4;
			proto = ip.protocol;
		} else if (ip.version == 6) {
			off = inner + sizeof(struct ipv6_header);
			proto = ((struct ipv6_header *)&ip)->nexthdr;
		} else {
			break;
		}
	}
	switch (proto) {
	case IPPROTO_TCP:
		bpf_skb_load_bytes(skb, off + 12, &doff, sizeof(doff));
		return off + (doff >> 4) * 4;
	case IPPROTO_UDP:
		return off + 8;
	case IPPROTO_SCTP:
		return off + 12;
	}
	return off;
}

/*
 * What a tc program's socket buffer is on the wire. `payload`, `proto`: of the outermost transport
 * header. tc programs cannot use cb[] as taps do: other programs keep things there.
 */
static __always_inline struct traffic tc_traffic(struct __sk_buff *skb, u32 payload, u32 proto)
{
	bool super = is_gso(skb);
	u32 header_len = super && payload ? segment_header_len(skb, payload, proto) : 0;

	return segment_traffic(skb, skb->len, super, header_len);
}

#endif
