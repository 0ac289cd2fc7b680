/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_firewall_fill: puts prefixes into the pre-filter of xdp_firewall
 * ===================================================================
 *
 * hook      none: user space runs it by BPF_PROG_TEST_RUN, and the "packet" is an array of prefixes
 * context   struct xdp_md
 * packets   none; returns how many prefixes it has put in
 *
 *   prefix | prefix | ... -> hash -> two bits of struct front, or the bloom filter
 *
 * This keeps the hash in one place, in C; a million prefixes take about 30 ms. Bits are set
 * atomically, because the firewall may read them at the same time.
 *
 * Maps: the firewall's own, given by the loader (struct in "xdp_firewall.h")
 *   front  array         the pre-filter: two bits per rule
 *   bloom  bloom_filter  the same as a kernel bloom filter (a prefix4 is padded with zeros)
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include "xdp_firewall.h"

LOAD_CONST(0, family, 4); /* 4: struct prefix4; 6: struct prefix6 */
LOAD_CONST(1, kind, 1); /* FRONT_BITS or FRONT_BLOOM */

#define MOST 128 /* prefixes per run: the verifier verifies each iteration of the loop */

BPF_F_TABLE("array", u32, struct front, front, 1, BPF_F_MMAPABLE);
typedef u64 padded_prefix[3]; /* BTF would hold only a forward declaration of a struct */
BPFKIT_MAP(0, BPF_MAP_TYPE_BLOOM_FILTER, bloom, void, padded_prefix, 1, 0, 0);

static __always_inline void put(struct front *to, struct prefix6 *p, const struct place *at)
{
	if (kind() == FRONT_BLOOM)
		bpf_map_push_elem(BPFKIT_MAP_REF(bloom), p, 0);
	else
		front_add(to, at);
}

SEC("xdp")
int xdp_firewall_fill(struct xdp_md *ctx)
{
	void *at = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct prefix4 *four;
	struct place place;
	struct prefix6 six;
	struct front *to;
	u32 i, zero = 0;

	to = front.lookup(&zero);
	if (!to)
		return 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < MOST; i++) {
		__builtin_memset(&six, 0, sizeof(six));
		if (family() == 4) {
			four = at;
			if ((void *)(four + 1) > end)
				break;
			six.addr[0] = *(u64 *)four;
			place4(four, &place);
			put(to, &six, &place);
			at = four + 1;
		} else {
			if (at + sizeof(six) > end)
				break;
			__builtin_memcpy(&six, at, sizeof(six));
			place6(&six, &place);
			put(to, &six, &place);
			at += sizeof(six);
		}
	}
	return i;
}
