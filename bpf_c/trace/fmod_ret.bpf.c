/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * fmod_ret: a kernel function returns what the program says, and its body is left out
 * ===================================================================================
 *
 * hook      fmod_ret of the function that the loader names by its BTF id: security_*() and functions
 *           on the kernel's error injection list
 * context   an array of u64: the function's arguments, a slot for each 8 bytes, and behind them what
 *           an fmod_ret program before this one returned
 * may       return another value than 0: it becomes the function's, whose body does not run
 *
 *   call  ->  is the process traced, is the argument the one of --when?
 *               no   ->  0: the function runs
 *               yes  ->  result(), calls (ring buffer)
 *
 * Maps
 *   calls   ringbuf  struct call
 *   counts  array    0: calls that were changed, 1: events without room in the ring, 2: calls let through
 */
#include "traced.h"
#include <linux/sched.h>

#define SLOTS   12
#define NO_SLOT 0xff

LOAD_CONST(3, slots, 0);
LOAD_CONST(4, result, 0); /* a negative errno */
LOAD_CONST(5, when_slot, 255); /* only if this slot has, of the bits of when_mask, when_value */
LOAD_CONST(6, when_mask, 0);
LOAD_CONST(7, when_value, 0);

struct call {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 pid;
	s32 ret;
	char comm[TASK_COMM_LEN];
	u64 args[SLOTS];
};

BPF_RINGBUF_OUTPUT(calls, 64);
EVENT_TYPE(calls, struct call);
BPF_ARRAY(counts, u64, 3);

static __always_inline void count(u32 what)
{
	count_one(counts.lookup(&what));
}

SEC("fmod_ret")
int on_call(u64 *ctx)
{
	u64 value = 0;
	struct call *c;
	u32 i;

	if (!is_traced())
		return 0;
	/* By the helper (5.17): a pointer to a pointer cannot be read from the context directly. */
	if (when_slot() != NO_SLOT) {
		bpf_get_func_arg(ctx, when_slot(), &value);
		if ((value & when_mask()) != when_value()) {
			count(2);
			return 0;
		}
	}
	count(0);
	c = calls.ringbuf_reserve(sizeof(*c));
	if (!c) {
		count(1);
		return result();
	}
	c->time_ns = bpf_ktime_get_ns();
	c->pid = bpf_get_current_pid_tgid() >> 32;
	c->ret = result();
	bpf_get_current_comm(c->comm, sizeof(c->comm));
#pragma unroll
	for (i = 0; i < SLOTS; i++) {
		value = 0;
		if (i < slots())
			bpf_get_func_arg(ctx, i, &value);
		c->args[i] = value;
	}
	calls.ringbuf_submit(c, 0);
	return result();
}
