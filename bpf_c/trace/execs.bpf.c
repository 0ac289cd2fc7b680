/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * execs: which programs processes execute, with all their arguments
 * =================================================================
 *
 * hook      tp_btf/sched_process_exec for those that succeed; tracepoints sys_enter and sys_exit of
 *           execve(2) and execveat(2) for those that fail
 * context   the tracepoint's arguments, typed by BTF; struct trace_event_raw_sys_enter, …_sys_exit
 * may       observe only
 *
 *   sched_process_exec -> the new memory, arg_start to arg_end ----------+
 *                                                                        +-> pieces (ring buffer)
 *   sys_enter_exec*  -> failing[thread] = { name, argv }                 |
 *   sys_exit_exec*, ret < 0 -> failing[thread] -> argv[0], argv[1], … ---+
 *
 * The arguments of a program that runs are read from its own memory, where the kernel has just written
 * them; the caller's pages, from which they came, may not be in memory at the entry. Those of a failed
 * call are read at its exit, from the caller's.
 *
 * Arguments have up to two megabytes, so one exec is one or several records with the same id: the
 * first has the figures, each has a piece of the text, the last says so. After a piece that found no
 * room none follows: that exec is lost as a whole.
 *
 * Maps
 *   failing  hash          thread id -> struct failing
 *   scratch  percpu_array  0 -> struct piece, in the making
 *   pieces   ringbuf       struct piece
 *   lost     array         0: pieces without room in the ring, 1: calls without room in `failing`
 */
#include "traced.h"
#include <linux/sched.h>
#include <linux/mm_types.h>

#define CHUNK      8192
#define MAX_CHUNKS 264 /* of 8 kB: the 2 MB and more that arguments can have on the stack */
#define MAX_ARGS   512 /* of a failed call */

enum kind {
	PIECE_MEMORY =
		1, /* text is a piece of the memory of the arguments: strings, each with its 0 */
	PIECE_NAME = 2, /* text is the name of the file that was to be executed */
	PIECE_ARGUMENT = 3, /* text is one argument */
};

struct failing {
	u64 name; /* user address */
	u64 argv; /* user address */
};

struct piece {
	u64 time_ns; /* CLOCK_MONOTONIC; with pid the exec's id */
	u32 pid;
	u32 ppid;
	s32 ret; /* 0, or an errno times -1 */
	u32 kind;
	u32 size; /* bytes of text */
	u32 last; /* 1: no piece follows; 2: none follows, and the text is not complete */
	char comm[TASK_COMM_LEN];
	u8 text[];
};

struct buffer {
	struct piece piece;
	u8 text[2 * CHUNK]; /* piece.text is in it */
};

BPF_HASH(failing, u32, struct failing, 4096);
BPF_PERCPU_ARRAY(scratch, struct buffer, 1);
BPF_RINGBUF_OUTPUT(pieces, 1024);
EVENT_TYPE(pieces, struct piece);
BPF_ARRAY(lost, u64, 2);

static __always_inline void count_lost(u32 what)
{
	count_one(lost.lookup(&what));
}

static __always_inline struct buffer *start(s32 ret)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct buffer *b;
	u32 zero = 0;

	b = scratch.lookup(&zero);
	if (!b)
		return 0;
	b->piece.time_ns = bpf_ktime_get_ns();
	b->piece.pid = bpf_get_current_pid_tgid() >> 32;
	b->piece.ppid = task->real_parent->tgid;
	b->piece.ret = ret;
	bpf_get_current_comm(b->piece.comm, sizeof(b->piece.comm));
	return b;
}

/* Returns 0, or what went wrong. */
static __always_inline s64 send(struct buffer *b, u32 size, u32 last)
{
	b->piece.size = size;
	b->piece.last = last;
	size &= 2 * CHUNK - 1; /* shows the verifier a limit */
	return pieces.ringbuf_output(b, sizeof(b->piece) + size, 0);
}

SEC("tp_btf/sched_process_exec")
int executed(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	u64 at, end, left, size;
	s64 failed = 0;
	u32 i, caller = ctx[1]; /* a thread that executes gets its process's id */
	struct buffer *b;

	if (!is_traced())
		return 0;
	failing.delete(&caller);
	b = start(0);
	if (!b)
		return 0;
	at = task->mm->arg_start;
	end = task->mm->arg_end;
	b->piece.kind = PIECE_MEMORY;
	for (i = 0; i < MAX_CHUNKS; i++) {
		left = end > at ? end - at : 0;
		size = left < CHUNK ? left : CHUNK;
		if (bpf_probe_read_user(b->piece.text, size, (void *)at))
			break;
		at += size;
		failed = send(b, size, left <= CHUNK);
		if (failed || left <= CHUNK)
			goto out;
	}
	failed = send(b, 0, 2);
out:
	if (failed)
		count_lost(0);
	return 0;
}

static __always_inline int enter(u64 name, u64 argv)
{
	struct failing f = { .name = name, .argv = argv };
	u32 tid = bpf_get_current_pid_tgid();

	if (is_traced() && failing.update(&tid, &f))
		count_lost(1);
	return 0;
}

static __always_inline int leave(s64 ret)
{
	u32 tid = bpf_get_current_pid_tgid(), i;
	struct failing *f, call;
	struct buffer *b;
	u32 complete = 0;
	s64 failed = 0;
	s32 size;
	u64 arg;

	f = failing.lookup(&tid);
	if (!f)
		return 0;
	call = *f;
	failing.delete(&tid);
	if (ret >= 0)
		return 0;
	b = start(ret);
	if (!b)
		return 0;
	b->piece.kind = PIECE_NAME;
	size = bpf_probe_read_user_str(b->piece.text, CHUNK, (void *)call.name);
	failed = send(b, size > 0 ? size : 0, 0);
	b->piece.kind = PIECE_ARGUMENT;
	for (i = 0; i < MAX_ARGS && !failed; i++) {
		arg = 0;
		if (bpf_probe_read_user(&arg, sizeof(arg), (void *)call.argv + i * sizeof(arg)))
			break;
		if (!arg) {
			complete = 1;
			break;
		}
		size = bpf_probe_read_user_str(b->piece.text, CHUNK, (void *)arg);
		if (size < 0)
			break; /* an empty string is 0 bytes to some kernels, 1 to others */
		failed = send(b, size, 0);
	}
	if (!failed)
		failed = send(b, 0, complete ? 1 : 2);
	if (failed)
		count_lost(0);
	return 0;
}

SEC("tp/syscalls/sys_enter_execve")
int enter_execve(struct trace_event_raw_sys_enter *ctx)
{
	return enter(ctx->args[0], ctx->args[1]);
}

SEC("tp/syscalls/sys_enter_execveat")
int enter_execveat(struct trace_event_raw_sys_enter *ctx)
{
	return enter(ctx->args[1], ctx->args[2]);
}

SEC("tp/syscalls/sys_exit_execve")
int exit_execve(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx->ret);
}

SEC("tp/syscalls/sys_exit_execveat")
int exit_execveat(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx->ret);
}
