/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * fexit: the arguments and the result of a kernel function, after each of its calls
 * =================================================================================
 *
 * hook      fexit of the function that the loader names by its BTF id
 * context   an array of u64: the function's arguments, a slot for each 8 bytes, and behind them its
 *           return value
 * may       observe only
 *
 *   return of the function  ->  arguments, result  ->  calls (ring buffer)
 *
 * The program does not know the function: how many slots it has and which of them point to text are
 * LOAD_CONSTs, and bpfkit/fexit.py names and types the slots by the kernel's BTF. The arguments are
 * those that the function was called with, text is as it is at the return.
 *
 * Maps
 *   calls   ringbuf  struct call
 *   counts  array    0: calls, 1: events without room in the ring
 */
#include "traced.h"
#include <linux/sched.h>

LOAD_CONST(3, slots, 0);
LOAD_CONST(4, texts, 0); /* a bit for each slot that points to text */
LOAD_CONST(5, returns, 0); /* 0: the function is void */

#define SLOTS     12
#define TEXT_SIZE 64

struct call {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 pid;
	u32 tid;
	char comm[TASK_COMM_LEN];
	u64 ret;
	u64 args[SLOTS];
	s32 text_len[SLOTS]; /* with the final 0; less than 0: it could not be read */
	u8 text[SLOTS * TEXT_SIZE];
};

BPF_RINGBUF_OUTPUT(calls, 256);
EVENT_TYPE(calls, struct call);
BPF_ARRAY(counts, u64, 2);

static __always_inline void count(u32 what)
{
	count_one(counts.lookup(&what));
}

/* By the helpers (5.17): a pointer to a pointer cannot be read from the context directly. */
static __always_inline void take(void *ctx, struct call *c, u32 i)
{
	u64 value = 0;
	s32 len = 0;

	if (i < slots())
		bpf_get_func_arg(ctx, i, &value);
	c->args[i] = value;
	if (texts() >> i & 1) {
		len = bpf_probe_read_kernel_str(&c->text[i * TEXT_SIZE], TEXT_SIZE, (void *)value);
		if (len < 0)
			len = bpf_probe_read_user_str(&c->text[i * TEXT_SIZE], TEXT_SIZE,
						      (void *)value);
	}
	c->text_len[i] = len;
}

SEC("fexit")
int on_exit(u64 *ctx)
{
	u64 id = bpf_get_current_pid_tgid(), ret = 0;
	struct call *c;
	u32 i;

	if (!is_traced())
		return 0;
	count(0);
	c = calls.ringbuf_reserve(sizeof(*c));
	if (!c) {
		count(1);
		return 0;
	}
	c->time_ns = bpf_ktime_get_ns();
	c->pid = id >> 32;
	c->tid = id;
	bpf_get_current_comm(c->comm, sizeof(c->comm));
#pragma unroll
	for (i = 0; i < SLOTS; i++)
		take(ctx, c, i);
	if (returns())
		bpf_get_func_ret(ctx, &ret);
	c->ret = ret;
	calls.ringbuf_submit(c, 0);
	return 0;
}
