/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sockex1: packets and bytes per IP protocol
 * ==========================================
 *
 * hook      socket filter on an AF_PACKET socket (a tap: it sees copies, the traffic goes on)
 * context   struct __sk_buff
 * packets   not changed; 0 is returned, so that nothing is queued to the socket
 *
 *   frame -> direction? -> Ethernet, VLAN tags -+-> IPv4 protocol ----------+-> protocols[protocol]
 *                                               +-> IPv6 -> extension ------+
 *                                               |           headers
 *                                               +-> anything else ------------> nonip[0]
 *
 * The protocol is the one behind all extension headers (of IPv4: authentication headers); for later
 * fragments, the one the fragment header names. A frame that is cut off before its IP header ends is
 * non-IP. Every frame is counted once.
 *
 * Maps (struct in <bpfkit/wire.h>)
 *   protocols  percpu_array  IPPROTO_* -> struct traffic
 *   nonip      percpu_array  0 -> struct traffic
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/headers.h>
#include <bpfkit/segment.h>
#include <bpfkit/wire.h>

LOAD_CONST(0, direction, 2); /* DIRECTION_IN | DIRECTION_OUT */
LOAD_CONST(1, l2_len, 14); /* 14: Ethernet; else see link_offset() */

BPF_TABLE("percpu_array", u32, struct traffic, protocols, 256);
BPF_TABLE("percpu_array", u32, struct traffic, nonip, 1);

SEC("socket")
int sockex1(struct __sk_buff *skb)
{
	struct headers h = {};
	struct traffic what, *row;
	u32 header_len = 0, key = 0;
	union ip_header ip;
	struct window w;

	if (!wanted(skb, direction()))
		return 0;
	load_skb(skb, &h, &ip, &w, l2_len());
	if (h.family) {
		key = h.proto;
		row = protocols.lookup(&key);
		if (is_super_frame(skb))
			header_len = segment_header_len(skb, h.payload, h.proto);
	} else {
		row = nonip.lookup(&key);
	}
	if (row) {
		what = wire_traffic(skb, header_len);
		add_traffic(row, &what);
	}
	return 0;
}
