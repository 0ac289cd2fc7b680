/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * tc_action: a program as the action behind somebody else's match
 * ===============================================================
 *
 * hook      a tc filter's action (`tc filter add ... u32 match ... action bpf ...`)
 * context   struct __sk_buff, from the Ethernet header on
 * packets   not changed here; every `one_in`-th packet that the filter matched is dropped
 *
 *   packet -> u32 or flower: does it match? -+-> no: on to the next filter
 *                                            +-> yes: this program -+-> TC_ACT_SHOT
 *                                                                   +-> TC_ACT_OK
 *
 * Matching is the filter's business: the program sees only what was matched, and counts it.
 *
 * Map
 *   sums  array  enum sum -> packets
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
#include <bpfkit/bpfkit.h>

LOAD_CONST(0, one_in, 2); /* 1: all, 2: every second ...; 0: none */

enum sum { MATCHED, DROPPED, SUMS };

BPF_ARRAY(sums, u64, SUMS);

SEC("action")
int tc_action(struct __sk_buff *skb)
{
	u32 matched = MATCHED, dropped = DROPPED;
	u64 *n = sums.lookup(&matched), *m = sums.lookup(&dropped);
	u64 number;

	if (!n || !m)
		return TC_ACT_OK;
	/* not fetch_and_add: its result needs a newer instruction set than BCC's clang uses */
	number = *n + 1;
	*n = number;
	if (!one_in() || number % one_in())
		return TC_ACT_OK;
	*m += 1;
	return TC_ACT_SHOT;
}
