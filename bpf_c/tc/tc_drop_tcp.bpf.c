/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * tc_drop_tcp: no TCP gets out (or in)
 * ====================================
 *
 * hook      tc, egress or ingress of an interface, by clsact or tcx
 * context   struct __sk_buff
 * packets   not changed; TCP is dropped, over IPv4 and IPv6, in VLANs, later fragments too
 *
 *   IP, bridge -> filters in front -> this program -+-> TC_ACT_SHOT: TCP, freed here
 *                                                   +-> TC_ACT_UNSPEC: everything else
 *                                                        -> filters behind -> tap (tcpdump) -> wire
 *
 * TC_ACT_UNSPEC leaves the decision to the filters behind; TC_ACT_OK would end the chain and
 * silently switch them off.
 *
 * Headers outside the packet's linear part are pulled into it. A super-frame (GSO) counts as its
 * segments. What counts as TCP: see <bpfkit/drop_tcp.h>.
 *
 * Map (struct in <bpfkit/wire.h>)
 *   rows  percpu_array  enum drop_row -> struct traffic
 */
#include <uapi/linux/pkt_cls.h>
#include <bpfkit/bpfkit.h>
#include <bpfkit/drop_tcp.h>
#include <bpfkit/segment.h>
#include <bpfkit/wire.h>

LOAD_CONST(0, l2_len, 14); /* 14: Ethernet; else see link_offset() */

BPF_TABLE("percpu_array", u32, struct traffic, rows, ROWS);

SEC("tc")
int tc_drop_tcp(struct __sk_buff *skb)
{
	struct headers h = {};
	struct traffic what, *sum;
	struct window w;
	u32 row;

	row = direct_skb_pulled(skb, &h, &w, l2_len());
	row = drop_tcp(row, &h);
	sum = rows.lookup(&row);
	if (sum) {
		what = tc_traffic(skb, h.payload, h.proto);
		add_traffic(sum, &what);
	}
	return row < ROW_PASSED ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}
