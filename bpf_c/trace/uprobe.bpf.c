/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * uprobe: calls of functions of programs and libraries: how many, how long, with what result
 * ==========================================================================================
 *
 * hook      uprobes at the functions' first instructions, and uretprobes at their returns
 * context   struct pt_regs: the caller's registers
 * may       observe only
 *
 *   entry   ->  running[thread, function, stack pointer] = now         counts[function].calls
 *   return  ->  running[thread, function, stack pointer at the entry]
 *                   ->  counts[function]: returns, errors, time  ->  slots[function, latency]
 *                   ->  calls (ring buffer), if arguments are shown
 *
 * A call is known by the stack pointer at its entry: each level of a recursion has its own. The
 * return has taken the return address off the stack on x86, nothing on arm64. A call that never
 * returns (exit(3), longjmp(3) out of it, a killed thread) leaves an entry in `running` and counts in
 * `calls`, not in `returns`; the next call at the same place of the stack takes the entry over.
 *
 * Programs of uprobes may be preempted by another thread's on the same CPU, so per-CPU counters are
 * added to atomically, and no per-CPU map holds an unfinished record.
 *
 * Maps
 *   running    hash          struct call_key -> time of the entry
 *   arguments  hash          struct call_key -> struct call, the event in the making
 *   blank      array         0 -> struct call of zeros, which is too large for the stack
 *   counts     percpu_array  function -> struct count
 *   slots      percpu_array  function * SLOTS + slot of the latency -> returns
 *   calls      ringbuf       struct call
 *   lost       array         0: events without room in the ring, 1: calls without room in a map
 */
#include "traced.h"
#include <linux/sched.h>

LOAD_CONST(3, function, 0); /* the function's number; else it is the attach cookie */
LOAD_CONST(4, failure, 0); /* enum failure */
LOAD_CONST(5, format, 0); /* 4 bits for each argument: enum argument */
LOAD_CONST(6, entries_only, 0); /* there are no uretprobes */

enum failure { FAIL_NEVER, FAIL_NEGATIVE, FAIL_ZERO, FAIL_NONZERO };
enum argument { ARGUMENT_NONE, ARGUMENT_NUMBER, ARGUMENT_TEXT };

#define ARGUMENTS 6
#define TEXT_SIZE 64
/* 4 slots for each power of 2 of nanoseconds. */
#define SLOTS     256

#ifdef bpf_target_x86
#define RETURN_ADDRESS_SIZE 8
#else
#define RETURN_ADDRESS_SIZE 0
#endif

struct call_key {
	u64 stack_pointer;
	u32 tid;
	u32 function;
};

struct call {
	u64 time_ns; /* CLOCK_MONOTONIC, of the entry */
	u64 took_ns;
	u64 ret;
	u32 pid;
	u32 tid;
	u32 function;
	u32 has_returned;
	char comm[TASK_COMM_LEN];
	u64 args[ARGUMENTS];
	s32 text_len[ARGUMENTS]; /* less than 0: it could not be read */
	u8 text[ARGUMENTS * TEXT_SIZE];
};

struct count {
	u64 calls;
	u64 returns;
	u64 errors;
	u64 time_ns; /* of those that returned */
};

BPF_HASH(running, struct call_key, u64, 65536);
BPF_TABLE("hash", struct call_key, struct call, arguments, 8192);
BPF_ARRAY(blank, struct call, 1);
BPF_PERCPU_ARRAY(counts, struct count, 1);
BPF_PERCPU_ARRAY(slots, u64, SLOTS);
BPF_RINGBUF_OUTPUT(calls, 256);
EVENT_TYPE(calls, struct call);
BPF_ARRAY(lost, u64, 2);

static __always_inline void count_lost(u32 what)
{
	count_one(lost.lookup(&what));
}

/* 4 * log2(ns) and the two bits below the highest one. */
static __always_inline u32 slot_of(u64 ns)
{
	u32 log = 0;
	u64 n = ns;

#define HALVE(bits)            \
	if (n >> (bits)) {     \
		log += (bits); \
		n >>= (bits);  \
	}
	HALVE(32)
	HALVE(16)
	HALVE(8)
	HALVE(4)
	HALVE(2)
	HALVE(1)
#undef HALVE
	return 4 * log + ((log > 1 ? ns >> (log - 2) : ns << (2 - log)) & 3);
}

/* A function that returns int leaves the upper half of the register 0 or undefined. */
static __always_inline bool has_failed(u64 ret)
{
	switch (failure()) {
	case FAIL_NEGATIVE:
		return (s64)ret < 0 || (!(ret >> 32) && (s32)ret < 0);
	case FAIL_ZERO:
		return !ret;
	case FAIL_NONZERO:
		return ret;
	}
	return false;
}

static __always_inline u64 argument_of(struct pt_regs *ctx, u32 number)
{
	switch (number) {
	case 0:
		return PT_REGS_PARM1(ctx);
	case 1:
		return PT_REGS_PARM2(ctx);
	case 2:
		return PT_REGS_PARM3(ctx);
	case 3:
		return PT_REGS_PARM4(ctx);
	case 4:
		return PT_REGS_PARM5(ctx);
	default:
		return PT_REGS_PARM6(ctx);
	}
}

static __always_inline void note_arguments(struct pt_regs *ctx, struct call_key *key, u64 now)
{
	u64 id = bpf_get_current_pid_tgid();
	struct call *c;
	u32 zero = 0;
	u32 i;

	c = blank.lookup(&zero);
	if (!c)
		return;
	if (arguments.update(key, c)) {
		count_lost(1);
		return;
	}
	c = arguments.lookup(key);
	if (!c)
		return;
	c->time_ns = now;
	c->pid = id >> 32;
	c->tid = id;
	c->function = key->function;
	bpf_get_current_comm(c->comm, sizeof(c->comm));
#pragma unroll
	for (i = 0; i < ARGUMENTS; i++) {
		u32 kind = format() >> (4 * i) & 15;

		if (kind == ARGUMENT_NONE)
			continue;
		c->args[i] = argument_of(ctx, i);
		if (kind == ARGUMENT_TEXT)
			c->text_len[i] = bpf_probe_read_user_str(&c->text[i * TEXT_SIZE], TEXT_SIZE,
								 (void *)c->args[i]);
	}
	if (entries_only()) {
		if (calls.ringbuf_output(c, sizeof(*c), 0))
			count_lost(0);
		arguments.delete(key);
	}
}

static __always_inline int enter(struct pt_regs *ctx, u32 number)
{
	struct call_key key = {};
	struct count *count;
	u64 now;

	if (!is_traced())
		return 0;
	count = counts.lookup(&number);
	if (!count)
		return 0;
	__sync_fetch_and_add(&count->calls, 1);
	key.stack_pointer = PT_REGS_SP(ctx);
	key.tid = bpf_get_current_pid_tgid();
	key.function = number;
	now = bpf_ktime_get_ns();
	if (format())
		note_arguments(ctx, &key, now);
	if (entries_only())
		return 0;
	if (format())
		now = bpf_ktime_get_ns(); /* reading the arguments is not the call's time */
	if (running.update(&key, &now))
		count_lost(1);
	return 0;
}

static __always_inline int leave(struct pt_regs *ctx, u32 number)
{
	u64 ret = PT_REGS_RC(ctx), now = bpf_ktime_get_ns(), took, *start, *slot;
	struct call_key key = {};
	struct count *count;
	struct call *c;
	u32 index, i;

	key.stack_pointer = PT_REGS_SP(ctx) - RETURN_ADDRESS_SIZE;
	key.tid = bpf_get_current_pid_tgid();
	key.function = number;
	start = running.lookup(&key);
	if (!start)
		return 0;
	took = now - *start;
	running.delete(&key);
	count = counts.lookup(&number);
	if (!count)
		return 0;
	__sync_fetch_and_add(&count->returns, 1);
	__sync_fetch_and_add(&count->time_ns, took);
	if (has_failed(ret))
		__sync_fetch_and_add(&count->errors, 1);
	index = number * SLOTS + slot_of(took);
	slot = slots.lookup(&index);
	if (slot)
		__sync_fetch_and_add(slot, 1);
	if (!format())
		return 0;
	c = arguments.lookup(&key);
	if (!c)
		return 0;
		/* A page that was not in memory at the entry is there once the function has used it. */
#pragma unroll
	for (i = 0; i < ARGUMENTS; i++)
		if ((format() >> (4 * i) & 15) == ARGUMENT_TEXT && c->text_len[i] < 0)
			c->text_len[i] = bpf_probe_read_user_str(&c->text[i * TEXT_SIZE], TEXT_SIZE,
								 (void *)c->args[i]);
	c->took_ns = took;
	c->ret = ret;
	c->has_returned = 1;
	if (calls.ringbuf_output(c, sizeof(*c), 0))
		count_lost(0);
	arguments.delete(&key);
	return 0;
}

SEC("uprobe.multi")
int multi_entry(struct pt_regs *ctx)
{
	return enter(ctx, bpf_get_attach_cookie(ctx));
}

SEC("uretprobe.multi")
int multi_return(struct pt_regs *ctx)
{
	return leave(ctx, bpf_get_attach_cookie(ctx));
}

SEC("uprobe")
int single_entry(struct pt_regs *ctx)
{
	return enter(ctx, function());
}

SEC("uretprobe")
int single_return(struct pt_regs *ctx)
{
	return leave(ctx, function());
}
