/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * functrace: a whole family of kernel functions: how often each is called, and how long it takes
 * ==============================================================================================
 *
 * hook      the newest of these that works: fentry.multi and fexit.multi (a link each, by BTF),
 *           kprobe.session (a link, a program that runs at entries and returns), kprobe.multi and
 *           kretprobe.multi (a link each), a kprobe and a kretprobe for each function
 * context   struct pt_regs: the registers at the entry or the return; of fentry.multi and
 *           fexit.multi an array of u64, the function's arguments. Only the cookie is read.
 * may       observe only
 *
 *   entry   ->  counts[function].calls, running[thread, function]: now is put on its stack
 *   return  ->  the latest time is taken from the stack  ->  counts[function]: returns, time
 *
 * A function may be called within itself, and in an interrupt while it runs: returns come in the
 * reverse order of entries, so a stack for each thread and function is enough. What has more than
 * DEPTH levels is counted, without its time.
 *
 * Maps
 *   running  hash          struct call_key -> struct levels
 *   blank    array         0 -> struct levels of zeros
 *   counts   percpu_array  function -> struct count
 *   lost     array         0: calls without room in `running`
 */
#include "traced.h"

#define DEPTH 8

/* Kernels from 7.0 on declare it with the context as its argument; older ones ignore that. */
BPF_KFUNC(bool, bpf_session_is_return, void *ctx);

struct call_key {
	u32 tid;
	u32 function;
};

struct levels {
	u32 depth;
	u32 pad;
	u64 entered_ns[DEPTH];
};

struct count {
	u64 calls;
	u64 returns;
	u64 time_ns; /* of those that returned */
};

BPF_HASH(running, struct call_key, struct levels, 32768);
BPF_ARRAY(blank, struct levels, 1);
BPF_PERCPU_ARRAY(counts, struct count, 1);
BPF_ARRAY(lost, u64, 1);

static __always_inline int enter(u32 number)
{
	struct call_key key = { .tid = bpf_get_current_pid_tgid(), .function = number };
	struct levels *levels, *none;
	struct count *count;
	u32 zero = 0, depth;
	u64 *missed;

	if (!is_traced())
		return 1;
	count = counts.lookup(&number);
	if (!count)
		return 1;
	__sync_fetch_and_add(&count->calls, 1);
	levels = running.lookup(&key);
	if (!levels) {
		none = blank.lookup(&zero);
		if (!none)
			return 1;
		running.update(&key, none);
		levels = running.lookup(&key);
	}
	if (!levels) {
		missed = lost.lookup(&zero);
		if (missed)
			__sync_fetch_and_add(missed, 1);
		return 1;
	}
	depth = levels->depth++;
	if (depth < DEPTH)
		levels->entered_ns[depth] = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int leave(u32 number)
{
	struct call_key key = { .tid = bpf_get_current_pid_tgid(), .function = number };
	u64 now = bpf_ktime_get_ns(), took;
	struct levels *levels;
	struct count *count;
	u32 depth;

	levels = running.lookup(&key);
	if (!levels || !levels->depth)
		return 0;
	depth = --levels->depth;
	took = depth < DEPTH ? now - levels->entered_ns[depth] : 0;
	if (!depth)
		running.delete(&key);
	count = counts.lookup(&number);
	if (!count || depth >= DEPTH)
		return 0;
	__sync_fetch_and_add(&count->returns, 1);
	__sync_fetch_and_add(&count->time_ns, took);
	return 0;
}

/* What the entry returns decides whether the return runs the program, too: 0 yes, 1 no. */
SEC("kprobe.session")
int session(struct pt_regs *ctx)
{
	u32 number = bpf_get_attach_cookie(ctx);

	return bpf_session_is_return(ctx) ? leave(number) : enter(number);
}

SEC("fentry.multi")
int trampoline_entry(void *ctx)
{
	enter(bpf_get_attach_cookie(ctx));
	return 0;
}

SEC("fexit.multi")
int trampoline_return(void *ctx)
{
	return leave(bpf_get_attach_cookie(ctx));
}

SEC("kprobe.multi")
int multi_entry(struct pt_regs *ctx)
{
	enter(bpf_get_attach_cookie(ctx));
	return 0;
}

SEC("kretprobe.multi")
int multi_return(struct pt_regs *ctx)
{
	return leave(bpf_get_attach_cookie(ctx));
}

/* The cookie of a kprobe's link is the number + 1: 0 is none. */
SEC("kprobe")
int single_entry(struct pt_regs *ctx)
{
	enter(bpf_get_attach_cookie(ctx) - 1);
	return 0;
}

SEC("kretprobe")
int single_return(struct pt_regs *ctx)
{
	return leave(bpf_get_attach_cookie(ctx) - 1);
}
