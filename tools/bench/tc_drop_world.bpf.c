/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * tc_drop_world: what xdp_drop_world does, one hook later, for tools/bench/rates.py
 * =================================================================================
 *
 * hook      tc ingress
 * context   struct __sk_buff
 * packets   not changed; all of them are dropped
 *
 *   driver -> socket buffer -> tap -> this program -> counted, freed
 *
 * Map (struct in <bpfkit/wire.h>)
 *   dropped  percpu_array  0 -> struct traffic
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/wire.h>
#include <uapi/linux/pkt_cls.h>

BPF_TABLE("percpu_array", u32, struct traffic, dropped, 1);

SEC("tc")
int tc_drop_world(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct traffic *sum = dropped.lookup(&zero);

	if (sum) {
		sum->packets++;
		sum->bytes += skb->len;
	}
	return TC_ACT_SHOT;
}
