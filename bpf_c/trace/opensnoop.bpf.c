/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * opensnoop: which files processes open, and with what result
 * ===========================================================
 *
 * hook      tracepoints sys_enter and sys_exit of open(2), openat(2), openat2(2), creat(2)
 * context   struct trace_event_raw_sys_enter, struct trace_event_raw_sys_exit
 * may       observe only
 *
 *   sys_enter_open*  ->  opening[thread] = { pointer to the name, flags }
 *        kernel: copies the name, which brings its page in, and opens the file
 *   sys_exit_open*   ->  opening[thread]  ->  the name is read  ->  opens (ring buffer)
 *
 * The name is read at the exit: at the entry its page may not be in memory yet, and a program that
 * must not sleep reads nothing then. A name that another thread overwrote in between is shown as it
 * is at the exit; one whose page is gone by then is counted as unreadable and has no path.
 *
 * Maps
 *   opening  hash     thread id -> struct opening
 *   opens    ringbuf  struct open_event
 *   scratch  percpu_array  0 -> an event in the making
 *   lost     array    0: events without room in the ring, 1: opens without room in `opening`
 */
#include "traced.h"
#include <uapi/linux/openat2.h>
#include <linux/sched.h>

LOAD_CONST(3, only_failed, 0);

#define PATH_MAX 4096

struct opening {
	u64 path; /* user address */
	u64 how; /* user address of struct open_how, else 0 */
	u32 flags;
};

struct open_event {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 pid;
	u32 tid;
	u32 flags; /* O_* */
	s32 ret; /* a descriptor, or an errno times -1 */
	s32 path_len; /* bytes with the final 0; less than 1: the name could not be read */
	char comm[TASK_COMM_LEN];
	char path[];
};

struct buffer {
	struct open_event event;
	char path[2 * PATH_MAX]; /* event.path is in it */
};

BPF_HASH(opening, u32, struct opening, 16384);
BPF_RINGBUF_OUTPUT(opens, 1024);
EVENT_TYPE(opens, struct open_event);
BPF_PERCPU_ARRAY(scratch, struct buffer, 1);
BPF_ARRAY(lost, u64, 2);

static __always_inline void count_lost(u32 what)
{
	count_one(lost.lookup(&what));
}

static __always_inline int enter(u64 path, u32 flags, u64 how)
{
	struct opening o = { .path = path, .how = how, .flags = flags };
	u32 tid = bpf_get_current_pid_tgid();

	if (!is_traced())
		return 0;
	if (opening.update(&tid, &o))
		count_lost(1);
	return 0;
}

static __always_inline int leave(s64 ret)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 tid = id, zero = 0;
	s32 len;
	struct open_event *e;
	struct opening *o;
	struct buffer *b;
	struct opening at;

	o = opening.lookup(&tid);
	if (!o)
		return 0;
	at = *o;
	opening.delete(&tid);
	b = scratch.lookup(&zero);
	if (!b || (only_failed() && ret >= 0))
		return 0;
	e = &b->event;
	e->time_ns = bpf_ktime_get_ns();
	e->pid = id >> 32;
	e->tid = tid;
	e->flags = at.flags;
	if (at.how && bpf_probe_read_user(&e->flags, sizeof(e->flags), (void *)at.how))
		e->flags = 0;
	e->ret = ret;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	len = bpf_probe_read_user_str(e->path, PATH_MAX, (void *)at.path);
	e->path_len = len;
	if (len <= 0) {
		e->path[0] = '\0';
		len = 0;
	}
	/* Only as much of the record as the name fills; the mask shows the verifier a limit. */
	len &= 2 * PATH_MAX - 1;
	if (opens.ringbuf_output(b, sizeof(*e) + len, 0))
		count_lost(0);
	return 0;
}

SEC("tp/syscalls/sys_enter_open")
int enter_open(struct trace_event_raw_sys_enter *ctx)
{
	return enter(ctx->args[0], ctx->args[1], 0);
}

SEC("tp/syscalls/sys_enter_creat")
int enter_creat(struct trace_event_raw_sys_enter *ctx)
{
	return enter(ctx->args[0], 01 | 0100 | 01000, 0); /* O_WRONLY | O_CREAT | O_TRUNC */
}

SEC("tp/syscalls/sys_enter_openat")
int enter_openat(struct trace_event_raw_sys_enter *ctx)
{
	return enter(ctx->args[1], ctx->args[2], 0);
}

SEC("tp/syscalls/sys_enter_openat2")
int enter_openat2(struct trace_event_raw_sys_enter *ctx)
{
	return enter(ctx->args[1], 0, ctx->args[2]);
}

SEC("tp/syscalls/sys_exit_open")
int exit_open(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx->ret);
}

SEC("tp/syscalls/sys_exit_creat")
int exit_creat(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx->ret);
}

SEC("tp/syscalls/sys_exit_openat")
int exit_openat(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx->ret);
}

SEC("tp/syscalls/sys_exit_openat2")
int exit_openat2(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx->ret);
}
