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
 * The reader is not woken by every sample, which would cost more than the samples: it is woken for the
 * first one of a process by its name, which exec(2) changes (a moment later it may have ended, and with
 * it what says where its files are mapped), ten times a second, and when a quarter of the ring is full.
 *
 * Maps
 *   samples   ringbuf       struct sample
 *   scratch   percpu_array  0 -> a sample in the making
 *   named     lru_hash      process id and comm -> 1: the reader has a sample of it
 *   woken     array         0 -> when the reader was woken, and bytes sent since
 *   totals    percpu_array  enum total -> u64
 */
#include "traced.h"
#include <uapi/linux/bpf_perf_event.h>
#include <linux/sched.h>

#define SAMPLES_PAGES 256 /* of the ring */
#define WAKE_NS       100000000

#define DEPTH 127 /* kernel.perf_event_max_stack of a kernel that was not told otherwise */

enum total {
	TAKEN,
	LOST, /* no room in the ring */
	NO_USER_STACK,
	IDLE, /* the CPU had nothing to do */
	TOTALS,
};

struct sample {
	u32 pid;
	s32 kernel_size; /* bytes of kernel addresses; negative: an errno */
	s32 user_size; /* bytes of user addresses behind them */
	u32 pad;
	char comm[TASK_COMM_LEN];
	u64 address[]; /* innermost first */
};

struct buffer {
	struct sample sample;
	u64 address[2 * DEPTH + 4]; /* sample.address is in it */
};

struct process {
	u32 pid;
	char comm[TASK_COMM_LEN];
};

BPF_RINGBUF_OUTPUT(samples, SAMPLES_PAGES);
BPF_PERCPU_ARRAY(scratch, struct buffer, 1);
BPF_TABLE("lru_hash", struct process, u8, named, 4096);
struct woken {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u64 bytes;
};

BPF_ARRAY(woken, struct woken, 1);
BPF_PERCPU_ARRAY(totals, u64, TOTALS);

static __always_inline void count(u32 what)
{
	u64 *n = totals.lookup(&what);

	if (n)
		(*n)++;
}

/* Flags of bpf_ringbuf_output(): is the reader to be woken? */
static __always_inline u64 wakeup_of(struct sample *s, u32 size)
{
	struct process process = { .pid = s->pid };
	u64 now = bpf_ktime_get_ns();
	struct woken *last;
	u32 zero = 0;
	u8 one = 1;

	__builtin_memcpy(process.comm, s->comm, sizeof(process.comm));
	last = woken.lookup(&zero);
	if (!last)
		return BPF_RB_FORCE_WAKEUP;
	__sync_fetch_and_add(&last->bytes, size);
	if (named.lookup(&process) && now - last->time_ns < WAKE_NS &&
	    last->bytes < SAMPLES_PAGES * 4096 / 4)
		return BPF_RB_NO_WAKEUP;
	named.update(&process, &one);
	last->time_ns = now;
	last->bytes = 0;
	return BPF_RB_FORCE_WAKEUP;
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
	s->pid = id >> 32;
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
	size += sizeof(*s);
	if (samples.ringbuf_output(b, size, wakeup_of(s, size)))
		count(LOST);
	else
		count(TAKEN);
	return 0;
}
