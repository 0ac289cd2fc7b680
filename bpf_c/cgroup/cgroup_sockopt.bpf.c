/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * cgroup_sockopt: which socket options the processes of a cgroup set and ask for
 * ==============================================================================
 *
 * hook      setsockopt(2) before the kernel handles it, getsockopt(2) after it did
 * context   struct bpf_sockopt: sk, level, optname, optlen, optval to optval_end, retval (get only)
 * may       refuse (0: EPERM); set: change level, optname and the value; get: change the value and
 *           retval (to 0)
 *
 *   setsockopt -> rules[level, option] -> DENY_SET: EPERM
 *                                      -> FORCE: the rule's value instead of the process's
 *   getsockopt -> kernel -> rules[level, option] -> DENY_GET: EPERM
 *                                                -> FAKE: the rule's value instead of the kernel's
 *                         -> use (ring buffer), counts[level, option]
 *
 * The program sees one page of the value. An option whose value is larger (packet filters, iptables'
 * tables) is left as it is: the program must not change it, and says so by optlen 0, which makes the
 * kernel take the process's own buffer. It is counted and may be denied.
 *
 * Maps
 *   rules   hash     struct option -> u32 flags
 *   values  hash     struct option -> struct value
 *   counts  percpu_hash  struct option -> struct option_count
 *   uses    ringbuf  struct use
 *   lost    array    0: events without room in the ring, 1: options without room in `counts`
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <linux/sched.h>

LOAD_CONST(0, page_size, 4096);
LOAD_CONST(1, with_events, 1);

#define VALUE_LEN 64

enum rule {
	DENY_GET = 1,
	DENY_SET = 2,
	FORCE = 4, /* what is set */
	FAKE = 8, /* what a get returns */
};

enum flag {
	VALUE_TRUNCATED = 1, /* the event has the first bytes only */
	LARGE = 2, /* more than a page: left as it is */
	TOO_SHORT = 4, /* the process's buffer has no room for the rule's value */
};

struct option {
	s32 level;
	s32 name;
};

struct value {
	u32 len;
	u8 data[VALUE_LEN];
};

struct option_count {
	u64 sets;
	u64 gets;
	u64 denied;
	u64 changed;
};

struct use {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 pid;
	u32 is_set;
	struct option option;
	s32 optlen;
	s32 retval; /* of a get: what the kernel answered */
	u32 action; /* enum rule: what was done */
	u32 flags; /* enum flag */
	u32 len; /* bytes of value */
	char comm[TASK_COMM_LEN];
	u8 value[VALUE_LEN]; /* before it was changed */
};

BPF_HASH(rules, struct option, u32, 256);
BPF_HASH(values, struct option, struct value, 256);
BPF_TABLE("percpu_hash", struct option, struct option_count, counts, 4096);
BPF_RINGBUF_OUTPUT(uses, 64);
EVENT_TYPE(uses, struct use);
BPF_PERCPU_ARRAY(scratch, struct use, 1);
BPF_ARRAY(lost, u64, 2);

static __always_inline void count_lost(u32 what)
{
	count_one(lost.lookup(&what));
}

/* What the process set, or what the kernel answered, as far as the event has room. */
static __always_inline void copy_value(struct use *u, struct bpf_sockopt *ctx)
{
	u8 *from = ctx->optval, *end = ctx->optval_end;
	u32 i;

	for (i = 0; i < VALUE_LEN; i++) {
		if (i >= u->optlen || from + i + 1 > end)
			break;
		u->value[i] = from[i];
	}
	u->len = i;
	if (i < u->optlen)
		u->flags |= VALUE_TRUNCATED;
}

/*
 * Puts the rule's value into the buffer. Where there is no room for all of it, a set gets nothing
 * (false), a get as much as there is room for, as the kernel does.
 */
static __always_inline bool put_value(struct bpf_sockopt *ctx, struct option *option, bool cut)
{
	struct value *value = values.lookup(option);
	u8 *to = ctx->optval, *end = ctx->optval_end;
	u32 i;

	if (!value || value->len > VALUE_LEN)
		return false;
	for (i = 0; i < VALUE_LEN; i++) {
		if (i >= value->len)
			break;
		if (to + i + 1 > end) {
			if (!cut)
				return false;
			break;
		}
		to[i] = value->data[i];
	}
	ctx->optlen = i;
	return true;
}

static __always_inline void count(struct option *option, u32 is_set, u32 action)
{
	struct option_count none = {}, *c;

	c = counts.lookup_or_try_init(option, &none);
	if (!c) {
		count_lost(1);
		return;
	}
	if (is_set)
		c->sets++;
	else
		c->gets++;
	if (action & (DENY_GET | DENY_SET))
		c->denied++;
	else if (action)
		c->changed++;
}

/* Whether nobody wants to know more of a call than that it was made; counts it then. */
static __always_inline bool only_counted(struct bpf_sockopt *ctx, u32 is_set)
{
	struct option option = { .level = ctx->level, .name = ctx->optname };

	if (with_events() || ctx->optlen > (s32)page_size() || rules.lookup(&option))
		return false;
	count(&option, is_set, 0);
	return true;
}

static __always_inline void finish(struct use *u)
{
	count(&u->option, u->is_set, u->action);
	if (with_events() && uses.ringbuf_output(u, sizeof(*u), 0))
		count_lost(0);
}

static __always_inline struct use *begin(struct bpf_sockopt *ctx, u32 is_set)
{
	struct use *u;
	u32 zero = 0;

	u = scratch.lookup(&zero);
	if (!u)
		return 0;
	u->time_ns = bpf_ktime_get_ns();
	u->pid = bpf_get_current_pid_tgid() >> 32;
	u->is_set = is_set;
	u->option.level = ctx->level;
	u->option.name = ctx->optname;
	u->optlen = ctx->optlen;
	u->retval = 0;
	u->action = 0;
	u->flags = ctx->optlen > (s32)page_size() ? LARGE : 0;
	u->len = 0;
	if (with_events()) {
		bpf_get_current_comm(u->comm, sizeof(u->comm));
		copy_value(u, ctx);
	}
	return u;
}

SEC("cgroup/setsockopt")
int setsockopt(struct bpf_sockopt *ctx)
{
	struct use *u;
	u32 *rule;

	if (only_counted(ctx, 1))
		return 1;
	u = begin(ctx, 1);
	if (!u)
		return 1;
	rule = rules.lookup(&u->option);
	if (rule && *rule & DENY_SET) {
		u->action = DENY_SET;
	} else if (u->flags & LARGE) {
		ctx->optlen = 0;
	} else if (rule && *rule & FORCE) {
		if (put_value(ctx, &u->option, false)) {
			u->action = FORCE;
		} else {
			u->flags |= TOO_SHORT;
			u->action = DENY_SET; /* never the value that was asked for */
		}
	}
	finish(u);
	return !(u->action & DENY_SET);
}

SEC("cgroup/getsockopt")
int getsockopt(struct bpf_sockopt *ctx)
{
	struct use *u;
	u32 *rule;

	if (only_counted(ctx, 0))
		return 1;
	u = begin(ctx, 0);
	if (!u)
		return 1;
	u->retval = ctx->retval;
	rule = rules.lookup(&u->option);
	if (rule && *rule & DENY_GET) {
		u->action = DENY_GET;
	} else if (u->flags & LARGE) {
		ctx->optlen = 0;
	} else if (rule && *rule & FAKE) {
		if (put_value(ctx, &u->option, true)) {
			u->action = FAKE;
			asm volatile(
				"" ::
					: "memory"); /* or clang joins two stores to the context */
			ctx->retval = 0;
		}
	}
	finish(u);
	return !(u->action & DENY_GET);
}
