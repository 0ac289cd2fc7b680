/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * lwt_in: what comes in for a route, counted and dropped
 * ======================================================
 *
 * hook      the route's input: packets from outside that this route takes, forwarded or local
 *           (`ip route ... encap bpf in ...`)
 * context   struct __sk_buff, at the IP header
 * packets   cannot be changed here (lwt_xmit can); those of one protocol are dropped
 *
 *    wire -> tap -> tc ingress -> netfilter prerouting -> route lookup
 *                                                           |
 *                               the route has a program: lwt_in -+-> BPF_DROP
 *                                                                +-> BPF_OK -> forwarded or local
 *
 * Map (struct in "lwt.h")
 *   rows  percpu_array  IP protocol -> packets, bytes, dropped
 */
#include "lwt.h"

LOAD_CONST(0, drop, 255); /* IPPROTO_* to drop; 255, a reserved number: none */

BPF_TABLE("percpu_array", u32, struct row, rows, LWT_ROWS);

SEC("lwt_in")
int lwt_in(struct __sk_buff *skb)
{
	u32 proto = protocol_of(skb);
	bool dropped = is_proto(proto, drop());

	count(rows.lookup(&proto), skb, dropped);
	return dropped ? BPF_DROP : BPF_OK;
}
