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
#include <bpfkit/parse.h>
#include <uapi/linux/if_packet.h>

LOAD_CONST(0, sockets, 2); /* in the group */
LOAD_CONST(1, l2_len, 14); /* of the interface: 14 or 0 */

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
static __always_inline u32 hash_end(const u8 *addr, u16 port)
{
	const u32 *word = (const u32 *)addr;

	return mix(mix(mix(mix(mix(word[0]) + word[1]) + word[2]) + word[3]) + port);
}

SEC("socket")
int fanout(struct __sk_buff *skb)
{
	bool l2 = skb->pkt_type == PACKET_OUTGOING && l2_len();
	struct ip_packet p = {};
	__be16 port[2] = {};
	u32 hash;

	if (!parse_frame(skb, &p, l2 ? ETH_HLEN : 0))
		return 0;
	if (!p.fragment && has_ports(p.proto))
		cursor_peek(skb, &p.cur, port, sizeof(port));
	/* a sum: the same whichever end comes first */
	hash = mix(hash_end(p.src, port[0]) + hash_end(p.dst, port[1]));
	return (u64)hash * (u32)sockets() >> 32;
}
