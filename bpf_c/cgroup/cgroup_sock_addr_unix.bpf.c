/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * cgroup_sock_addr_unix: the same for UNIX sockets
 * ================================================
 *
 * hook      connect(2) and sendmsg(2) of UNIX sockets: the path that the process gave; both, because a
 *           datagram socket sends without connect. recvmsg(2): the path that the kernel answers
 *           (CGROUP_SOCK_ADDR, kernel 6.7)
 * context   struct bpf_sock_addr has no path: it is read from the kernel's own context, struct
 *           bpf_sock_addr_kern, and written by bpf_sock_addr_set_sun_path() (kfunc)
 * may       rewrite the path; connect and sendmsg also refuse, with any errno
 *
 *   connect(A), sendmsg(to A) -> rules[A] -> B, and both are remembered with the socket
 *   recvmsg()                 -> from B? -> A
 *
 * getpeername() says B: the kernel runs that hook for the socket at the other end, in the cgroup of
 * the server, where nothing tells which clients were redirected.
 *
 * A rule is for the path as the process writes it. Abstract names start with a zero byte.
 *
 * Maps
 *   rules   hash        struct path -> struct unix_rule
 *   used    sk storage  the socket -> struct used: the last redirection
 *   counts, lost        shared with cgroup_sock_addr
 *   unix_events  ringbuf  struct unix_event
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/maps.h>
#include <uapi/linux/bpf.h>
#include <linux/sched.h>
#include "cgroup_sock_addr.h"

/* Offsets in struct bpf_sock_addr_kern, from BTF. */
LOAD_CONST(0, uaddr_offset, 8);
LOAD_CONST(1, uaddrlen_offset, 32);
LOAD_CONST(2, with_events, 1);

#define PATH_LEN    108 /* UNIX_PATH_MAX */
#define PATH_OFFSET 2 /* of sun_path in struct sockaddr_un */

struct path {
	char text[PATH_LEN]; /* padded with zeros */
};

struct path_buffer {
	struct path path;
	char terminator[4]; /* bpf_probe_read_kernel_str() writes one zero byte */
};

struct unix_rule {
	u32 number;
	u32 action; /* enum action */
	u32 error; /* errno of ACTION_DENY */
	u32 to_len; /* bytes of `to` */
	struct path from;
	u32 from_len;
	struct path to;
};

struct used {
	struct path asked;
	u32 asked_len;
	struct path given;
};

struct unix_event {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 what; /* enum what */
	u32 rule;
	u32 error; /* errno; 0: redirected */
	u32 pid;
	char comm[TASK_COMM_LEN];
};

BPF_HASH(rules, struct path, struct unix_rule, RULES);
BPFKIT_MAP(0, BPF_MAP_TYPE_SK_STORAGE, used, int, struct used, 0, BPF_F_NO_PREALLOC, 0);
BPFKIT_VALUE(used, struct used);
BPF_RINGBUF_OUTPUT(unix_events, 16);
EVENT_TYPE(unix_events, struct unix_event);
BPF_PERCPU_ARRAY(counts, struct count, RULES);
BPF_ARRAY(lost, u64, LOSTS);

BPF_KFUNC(void *, bpf_cast_to_kern_ctx, void *ctx);
BPF_KFUNC(int, bpf_sock_addr_set_sun_path, void *kern, const void *path, u64 len);

static __always_inline void count_hit(u32 rule, u32 what)
{
	add_hit(counts.lookup(&rule), what);
}

static __always_inline void count_lost(u32 what)
{
	count_one(lost.lookup(&what));
}

/*
 * The path in the context; false: there is none (an unnamed socket). What stands behind the zero byte
 * of a path does not count, in an abstract name every byte does.
 */
static __always_inline bool read_path(struct bpf_sock_addr *ctx, struct path_buffer *to)
{
	void *kern = ctx;
	u64 uaddr = 0, size;
	u32 len = 0;
	u8 first = 0;

	bpf_probe_read_kernel(&uaddr, sizeof(uaddr), kern + uaddr_offset());
	bpf_probe_read_kernel(&len, sizeof(len), kern + uaddrlen_offset());
	if (len <= PATH_OFFSET)
		return false;
	size = len - PATH_OFFSET;
	asm volatile("" : "+r"(size)); /* two comparisons, which the verifier understands */
	if (size > PATH_LEN)
		return false;
	uaddr += PATH_OFFSET;
	bpf_probe_read_kernel(&first, sizeof(first), (void *)uaddr);
	if (first)
		return bpf_probe_read_kernel_str(to, size + 1, (void *)uaddr) > 0;
	return !bpf_probe_read_kernel(to, size, (void *)uaddr);
}

static __always_inline bool write_path(struct bpf_sock_addr *ctx, const struct path *path, u64 len)
{
	void *kern = bpf_cast_to_kern_ctx(ctx);

	if (!len)
		return false;
	asm volatile("" : "+r"(len)); /* as above */
	if (len > PATH_LEN)
		return false;
	return !bpf_sock_addr_set_sun_path(kern, path, len);
}

static __always_inline bool same_path(const struct path *a, const struct path *b)
{
	const u32 *x = (const u32 *)a, *y = (const u32 *)b;
	u32 i;

#pragma clang loop unroll(full)
	for (i = 0; i < PATH_LEN / 4; i++)
		if (x[i] != y[i])
			return false;
	return true;
}

static __always_inline void report(const struct unix_rule *rule, u32 what)
{
	struct unix_event *e;

	if (!with_events())
		return;
	e = unix_events.ringbuf_reserve(sizeof(*e));
	if (!e) {
		count_lost(LOST_EVENT);
		return;
	}
	e->time_ns = bpf_ktime_get_ns();
	e->what = what;
	e->rule = rule->number;
	e->error = rule->action == ACTION_DENY ? rule->error : 0;
	e->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	unix_events.ringbuf_submit(e, 0);
}

static __always_inline int on_send(struct bpf_sock_addr *ctx, u32 what)
{
	struct path_buffer buffer = {};
	struct unix_rule *rule;
	struct used *used_by;

	if (!read_path(ctx, &buffer))
		return 1;
	rule = rules.lookup(&buffer.path);
	if (!rule)
		return 1;
	count_hit(rule->number, what);
	if (rule->action == ACTION_PASS)
		return 1;
	report(rule, what);
	if (rule->action == ACTION_DENY)
		return refuse(rule->error);
	used_by = bpf_sk_storage_get(BPFKIT_MAP_REF(used), ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!used_by) {
		count_lost(LOST_ORIGIN);
		return refuse(ENOMEM);
	}
	used_by->asked = rule->from;
	used_by->asked_len = rule->from_len;
	used_by->given = rule->to;
	buffer.path = rule->to;
	return write_path(ctx, &buffer.path, rule->to_len) ? 1 : refuse(EINVAL);
}

SEC("cgroup/connect_unix")
int connect_unix(struct bpf_sock_addr *ctx)
{
	return on_send(ctx, WHAT_CONNECT);
}

SEC("cgroup/sendmsg_unix")
int sendmsg_unix(struct bpf_sock_addr *ctx)
{
	return on_send(ctx, WHAT_SENDMSG);
}

SEC("cgroup/recvmsg_unix")
int recvmsg_unix(struct bpf_sock_addr *ctx)
{
	struct path_buffer buffer = {};
	struct used *used_by;

	used_by = bpf_sk_storage_get(BPFKIT_MAP_REF(used), ctx->sk, 0, 0);
	if (!used_by || !read_path(ctx, &buffer) || !same_path(&buffer.path, &used_by->given))
		return 1;
	buffer.path = used_by->asked;
	write_path(ctx, &buffer.path, used_by->asked_len);
	return 1;
}
