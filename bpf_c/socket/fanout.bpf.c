/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * fanout: which socket of a PACKET_FANOUT group gets a packet
 * ===========================================================
 *
 * hook      setsockopt(SOL_PACKET, PACKET_FANOUT_DATA, program fd) on a PACKET_FANOUT_EBPF group
 * context   struct __sk_buff
 * packets   not changed; the return value modulo the number of sockets in the group chooses one
 *
 *   packet -> IPv4, IPv6 -> {address, port} of either end -> hash -> index 0 .. sockets - 1
 *
 * Both directions of a flow go to the same socket, and so do all fragments of a datagram: only
 * the first has ports, so fragments go by addresses alone. What is not IP goes to socket 0.
 *
 * Received packets are at their network header here, with skb->protocol saying what that is;
 * packets on their way out still start with the link-layer header.
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/headers.h>
#include <uapi/linux/if_packet.h>

LOAD_CONST(0, sockets, 2); /* in the group */
LOAD_CONST(1, l2_len, 14); /* of the interface, see link_offset() */

/* The final mix of MurmurHash3: every input bit reaches every output bit. */
static __always_inline u32 mix(u32 h)
{
	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	return h ^ h >> 16;
}

/* One end of the flow. */
static __always_inline u32 hash_end(const __be32 *word, __be16 port)
{
	return mix(mix(mix(mix(mix(word[0]) + word[1]) + word[2]) + word[3]) + port);
}

SEC("socket")
int fanout(struct __sk_buff *skb)
{
	bool l2 = skb->pkt_type == PACKET_OUTGOING && l2_len();
	__be32 src[4] = {}, dst[4] = {};
	union ip_header ip;
	__be16 port[2] = {};
	struct headers h = {};
	struct window w;
	u32 hash;

	load_skb(skb, &h, &ip, &w, l2 ? l2_len() : 0);
	if (!h.family)
		return 0;
	if (h.family == 4) {
		src[0] = ip.v4.saddr;
		dst[0] = ip.v4.daddr;
	} else {
		__builtin_memcpy(src, ip.v6.saddr, sizeof(src));
		__builtin_memcpy(dst, ip.v6.daddr, sizeof(dst));
	}
	if (!h.fragment && has_ports(h.proto))
		header_peek(&w, port, sizeof(port));
	/* a sum: the same whichever end comes first */
	hash = mix(hash_end(src, port[0]) + hash_end(dst, port[1]));
	return (u64)hash * (u32)sockets() >> 32;
}
