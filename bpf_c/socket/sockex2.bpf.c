/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sockex2: packets and bytes per destination address
 * ==================================================
 *
 * hook      socket filter on an AF_PACKET socket (a tap: it sees copies, the traffic goes on)
 * context   struct __sk_buff
 * packets   not changed; 0 is returned, so that nothing is queued to the socket
 *
 *   frame -> direction? -> Ethernet, VLAN tags -+-> IPv4, IPv6 -> destinations[address]
 *                                               |                      | table full
 *                                               |                      +-> totals.unattributed
 *                                               +-> anything else -------> totals.nonip
 *
 * Fragments count by their address like any packet. A frame that is cut off before its IP header
 * ends is non-IP. Every frame is counted once in totals.seen and once in destinations, nonip or
 * unattributed.
 *
 * Maps (struct traffic and totals in <bpfkit/wire.h>)
 *   destinations  percpu_hash   struct destination -> struct traffic; or lru_percpu_hash
 *   totals        percpu_array  0 -> struct totals
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/headers.h>
#include <bpfkit/segment.h>
#include <bpfkit/wire.h>

LOAD_CONST(0, direction, 2); /* DIRECTION_IN | DIRECTION_OUT */
LOAD_CONST(1, l2_len, 14); /* 14: Ethernet; else see link_offset() */

struct destination {
	u8 addr[16] __aligned(4); /* network byte order; IPv4: the first four bytes, rest zero */
	u32 family; /* 4 or 6 */
};

BPF_TABLE("percpu_hash", struct destination, struct traffic, destinations, 16384);
BPF_TABLE("percpu_array", u32, struct totals, totals, 1);

/* The row of this packet's destination; NULL if there is no place for a new one. */
static __always_inline struct traffic *destination_row(const union ip_header *ip, u8 family)
{
	struct destination key = { .family = family };
	struct traffic zero = {};

	if (family == 4)
		__builtin_memcpy(key.addr, &ip->v4.daddr, sizeof(ip->v4.daddr));
	else
		__builtin_memcpy(key.addr, ip->v6.daddr, sizeof(key.addr));
	/*
	 * look up, insert if still absent, look up again: another CPU's first packets are not
	 * overwritten
	 */
	return destinations.lookup_or_try_init(&key, &zero);
}

SEC("socket")
int sockex2(struct __sk_buff *skb)
{
	struct headers h = {};
	u32 header_len = 0, zero = 0;
	struct traffic what, *row;
	union ip_header ip;
	struct totals *sum;
	struct window w;

	sum = totals.lookup(&zero);
	if (!sum || !wanted(skb, direction()))
		return 0;
	load_skb(skb, &h, &ip, &w, l2_len());
	if (h.family) {
		if (is_super_frame(skb))
			header_len = segment_header_len(skb, h.payload, h.proto);
		row = destination_row(&ip, h.family);
		if (!row)
			row = &sum->unattributed;
	} else {
		row = &sum->nonip;
	}
	what = wire_traffic(skb, header_len);
	add_traffic(row, &what);
	add_traffic(&sum->seen, &what);
	return 0;
}
