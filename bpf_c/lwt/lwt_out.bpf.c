/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * lwt_out: what this host sends by a route, counted and dropped
 * =============================================================
 *
 * hook      the route's output: packets that a socket of this host sends by this route
 *           (`ip route ... encap bpf out ...`)
 * context   struct __sk_buff, at the IP header
 * packets   cannot be changed here (lwt_xmit can); those of one protocol are dropped
 *
 *    socket -> route lookup -> netfilter output
 *                                   |
 *       the route has a program: lwt_out -+-> BPF_DROP: the sender gets no error
 *                                         +-> BPF_OK -> netfilter postrouting -> tc egress -> wire
 *
 * Map (struct in "lwt.h")
 *   rows  percpu_array  IP protocol -> packets, bytes, dropped
 */
#include "lwt.h"

LOAD_CONST(0, drop, 255); /* IPPROTO_* to drop; 255, a reserved number: none */

BPF_TABLE("percpu_array", u32, struct row, rows, LWT_ROWS);

SEC("lwt_out")
int lwt_out(struct __sk_buff *skb)
{
	u32 proto = protocol_of(skb);
	bool dropped = is_proto(proto, drop());

	count(rows.lookup(&proto), skb, dropped);
	return dropped ? BPF_DROP : BPF_OK;
}
