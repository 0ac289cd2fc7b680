/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * tc_action: a program as the action of another filter
 * ====================================================
 *
 * hook      a tc filter's action (`tc filter add ... u32|flower ... action bpf ...`)
 * context   struct __sk_buff, from the Ethernet header on
 * packets   not changed here; every `one_in`-th packet that the filter matched is dropped
 *
 *   packet -> u32 or flower: does it match? -+-> no: on to the next filter
 *                                            +-> yes: this program -+-> TC_ACT_SHOT
 *                                                                   +-> TC_ACT_OK
 *
 * The filter does the matching: the program sees and counts only matched packets, with or without a
 * VLAN tag.
 *
 * Map
 *   sums  array  0 -> struct sums, with a spin lock: "every second packet" counts all CPUs
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
#include <bpfkit/bpfkit.h>

LOAD_CONST(0, one_in, 2); /* 1: all, 2: every second ...; 0: none */

struct sums {
	struct bpf_spin_lock lock;
	u32 unused;
	u64 matched; /* packets that the filter gave to the program */
	u64 dropped;
};

BPF_ARRAY(sums, struct sums, 1);

SEC("action")
int tc_action(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct sums *s = sums.lookup(&zero);
	u64 every = one_in();
	bool drop;

	if (!s)
		return TC_ACT_OK;
	bpf_spin_lock(&s->lock);
	s->matched++;
	drop = every && s->matched % every == 0;
	s->dropped += drop;
	bpf_spin_unlock(&s->lock);
	return drop ? TC_ACT_SHOT : TC_ACT_OK;
}
