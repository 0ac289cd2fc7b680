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
 * Headers need not be in the packet's linear part: then they are pulled there. A super-frame (GSO)
 * counts as its segments. What counts as TCP: see <bpfkit/drop_tcp.h>.
 *
 * Map (struct in <bpfkit/wire.h>)
 *   rows  percpu_array  enum drop_row -> struct traffic
 */
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/tcp.h>
#include <bpfkit/bpfkit.h>
#include <bpfkit/drop_tcp.h>
#include <bpfkit/wire.h>

LOAD_CONST(0, l2_len, 14); /* 14: Ethernet; 0: interfaces whose frames start with the IP header */

BPF_TABLE("percpu_array", u32, struct traffic, rows, ROWS);

/* Bytes that every segment of a super-frame repeats: all down to the TCP or UDP header. */
static __always_inline u64 repeated(const struct window *w, const struct headers *h)
{
	struct tcphdr *tcp;

	if (h->proto == IPPROTO_UDP)
		return h->payload + 8;
	if (h->proto != IPPROTO_TCP)
		return h->payload;
	tcp = window_peek(w, sizeof(*tcp));
	return h->payload + (tcp ? tcp->doff * 4 : sizeof(*tcp));
}

SEC("tc")
int tc_drop_tcp(struct __sk_buff *skb)
{
	u64 segs = 1, len = skb->len;
	struct headers h = {};
	struct traffic *sum;
	struct window w;
	u32 row;

	row = direct_skb_pulled(skb, &h, &w, l2_len());
	row = drop_tcp(row, &h);
	sum = rows.lookup(&row);
	if (sum) {
		if (skb->gso_segs > 1) {
			segs = skb->gso_segs;
			len += (segs - 1) * repeated(&w, &h);
		}
		if (skb->vlan_present)
			len += segs * VLAN_HLEN;
		sum->packets += segs;
		sum->bytes += len;
	}
	return row < ROW_PASSED ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}
