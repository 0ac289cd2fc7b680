/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_cpumap_lost: frames lost because a CPU's queue was full or no skb could be allocated
 * =======================================================================================
 *
 * hook      raw tracepoints xdp_cpumap_enqueue (by the CPU that sends) and xdp_cpumap_kthread (on
 *           the CPU that was sent to)
 * context   struct bpf_raw_tracepoint_args
 * packets   not seen
 *
 *   XDP_REDIRECT -> bulk of 8 -> queue: full? -> xdp_cpumap_enqueue ----+-> lost[cpu]
 *                     kthread -> skb: no memory? -> xdp_cpumap_kthread -+
 *
 * Map
 *   lost  array  CPU -> struct losses
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>

LOAD_CONST(0, map_id, 0); /* of the CPUMAP: tracepoints are the machine's */

#define MAX_CPUS 4096

struct losses {
	u64 full; /* the queue had no room */
	u64 no_skb;
};

BPF_ARRAY(lost, struct losses, MAX_CPUS);

/* (map id, processed, drops, CPU) */
SEC("raw_tp/xdp_cpumap_enqueue")
int enqueued(struct bpf_raw_tracepoint_args *ctx)
{
	u32 cpu = ctx->args[3], drops = ctx->args[2];
	struct losses *sum;

	if ((u32)ctx->args[0] != map_id() || !drops)
		return 0;
	sum = lost.lookup(&cpu);
	if (sum)
		__sync_fetch_and_add(&sum->full, drops);
	return 0;
}

/* (map id, processed, drops, ...) */
SEC("raw_tp/xdp_cpumap_kthread")
int taken(struct bpf_raw_tracepoint_args *ctx)
{
	u32 cpu = bpf_get_smp_processor_id(), drops = ctx->args[2];
	struct losses *sum;

	if ((u32)ctx->args[0] != map_id() || !drops)
		return 0;
	sum = lost.lookup(&cpu);
	if (sum)
		__sync_fetch_and_add(&sum->no_skb, drops);
	return 0;
}
