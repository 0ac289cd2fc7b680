/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * syscounts: which system calls processes make, how many fail, how long they take
 * ===============================================================================
 *
 * hook      raw tracepoints sys_enter and sys_exit: every system call of the machine
 * context   struct bpf_raw_tracepoint_args: sys_enter (struct pt_regs *, long number),
 *           sys_exit (struct pt_regs *, long result); no copy into a record, unlike a tracepoint;
 *           sched_process_exit, for threads that end
 * may       observe only
 *
 *   sys_enter  ->  started[thread] = { number, now }
 *   sys_exit   ->  started[thread]  ->  calls[number, process] += 1, errors, time
 *   a thread ends  ->  started[thread] is deleted: exit(2) has no sys_exit
 *
 * exit(2), exit_group(2) and calls under way at the end have no exit; they are counted at the entry, so
 * `entered` of a row may be higher than `returned`. A call that began before the program was attached
 * is not counted.
 *
 * Maps
 *   started  hash         thread id -> struct started
 *   calls    percpu_hash  struct call_key -> struct call_count
 *   lost     array        0: calls without room in `started`, 1: without room in `calls`
 */
#include "traced.h"
#include <uapi/linux/bpf.h>
#include <linux/sched.h>

LOAD_CONST(3, by_process, 0); /* rows for each process name, else for all together */

#define MAX_ERRNO 4095

struct call_key {
	u32 number;
	char comm[TASK_COMM_LEN]; /* at the entry: execve(2) changes it */
};

struct started {
	u64 time_ns;
	struct call_key key;
};

struct call_count {
	u64 entered;
	u64 returned;
	u64 errors;
	u64 time_ns; /* of those that returned */
};

BPF_HASH(started, u32, struct started, 32768);
BPF_TABLE("percpu_hash", struct call_key, struct call_count, calls, 16384);
BPF_ARRAY(lost, u64, 2);

static __always_inline void count_lost(u32 what)
{
	count_one(lost.lookup(&what));
}

static __always_inline struct call_count *count_of(struct call_key *key)
{
	struct call_count none = {}, *count;

	count = calls.lookup_or_try_init(key, &none);
	if (!count)
		count_lost(1);
	return count;
}

SEC("raw_tp/sys_enter")
int entered(struct bpf_raw_tracepoint_args *ctx)
{
	struct started s = { .key.number = ctx->args[1] };
	u32 tid = bpf_get_current_pid_tgid();
	struct call_count *count;

	if (!is_traced())
		return 0;
	if (by_process())
		bpf_get_current_comm(s.key.comm, sizeof(s.key.comm));
	count = count_of(&s.key);
	if (count)
		count->entered++;
	s.time_ns = bpf_ktime_get_ns();
	if (started.update(&tid, &s))
		count_lost(0);
	return 0;
}

SEC("raw_tp/sys_exit")
int returned(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tid = bpf_get_current_pid_tgid();
	u64 now = bpf_ktime_get_ns();
	struct call_count *count;
	struct started *found, s;
	s64 ret = ctx->args[1];

	found = started.lookup(&tid);
	if (!found)
		return 0;
	s = *found;
	started.delete(&tid);
	count = count_of(&s.key);
	if (count) {
		count->returned++;
		count->time_ns += now - s.time_ns;
		if (ret < 0 && ret >= -MAX_ERRNO)
			count->errors++;
	}
	return 0;
}

SEC("raw_tp/sched_process_exit")
int ended(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tid = bpf_get_current_pid_tgid();

	started.delete(&tid);
	return 0;
}
