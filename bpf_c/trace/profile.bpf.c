/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * profile: where processes spend their time, by samples of whole stacks
 * =====================================================================
 *
 * hook      a perf event of every CPU: the CPU clock, or a hardware counter, at a frequency
 * context   struct bpf_perf_event_data: registers, sample period, address
 * may       observe only
 *
 *   perf event -> traced process? -> kernel stack, user stack -> samples (ring buffer)
 *
 * Every sample carries its own stacks, so that none is lost to another with the same hash, as happens
 * in a STACK_TRACE map. A user stack is found by frame pointers: code without them ends it early.
 *
 * Maps
 *   samples  ringbuf       struct sample
 *   scratch  percpu_array  0 -> a sample in the making
 *   totals   percpu_array  enum total -> u64
 */
#include "traced.h"
#include <uapi/linux/bpf_perf_event.h>
#include <linux/sched.h>

#define DEPTH 127 /* kernel.perf_event_max_stack of a kernel that was not told otherwise */

enum total {
	TAKEN,
	LOST, /* no room in the ring */
	NO_USER_STACK,
	IDLE, /* the CPU had nothing to do */
	TOTALS,
};

struct sample {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 pid;
	u32 tid;
	s32 kernel_size; /* bytes of kernel addresses; negative: an errno */
	s32 user_size; /* bytes of user addresses behind them */
	char comm[TASK_COMM_LEN];
	u64 address[]; /* innermost first */
};

struct buffer {
	struct sample sample;
	u64 address[2 * DEPTH + 4]; /* sample.address is in it */
};

BPF_RINGBUF_OUTPUT(samples, 256);
EVENT_TYPE(samples, struct sample);
BPF_PERCPU_ARRAY(scratch, struct buffer, 1);
BPF_PERCPU_ARRAY(totals, u64, TOTALS);

static __always_inline void count(u32 what)
{
	u64 *n = totals.lookup(&what);

	if (n)
		(*n)++;
}

SEC("perf_event")
int profile(struct bpf_perf_event_data *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	struct sample *s;
	struct buffer *b;
	u32 zero = 0, size;
	s64 len;

	if (!(id >> 32)) {
		count(IDLE);
		return 0;
	}
	if (!is_traced())
		return 0;
	b = scratch.lookup(&zero);
	if (!b)
		return 0;
	s = &b->sample;
	s->time_ns = bpf_ktime_get_ns();
	s->pid = id >> 32;
	s->tid = id;
	bpf_get_current_comm(s->comm, sizeof(s->comm));
	len = bpf_get_stack(ctx, s->address, DEPTH * sizeof(u64), 0);
	s->kernel_size = len;
	size = len > 0 ? len : 0;
	asm volatile(""
		     : "+r"(size)); /* clang leaves out what it knows and the verifier does not */
	size &= 1023;
	len = bpf_get_stack(ctx, (void *)s->address + size, DEPTH * sizeof(u64), BPF_F_USER_STACK);
	s->user_size = len;
	if (len > 0)
		size += len;
	else
		count(NO_USER_STACK);
	asm volatile("" : "+r"(size));
	size &= 2047;
	if (samples.ringbuf_output(b, sizeof(*s) + size, 0))
		count(LOST);
	else
		count(TAKEN);
	return 0;
}
