/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * cgroup_sysctl: which kernel parameters the processes of a cgroup read and write
 * ================================================================================
 *
 * hook      read(2) and write(2) of a file below /proc/sys by a process of the cgroup
 * context   struct bpf_sysctl: write (0: a read), file_pos
 * may       refuse (0: EPERM), and replace the value that is written; not the value that is read
 *
 *   read, write -> name -> rules[name], else rules[its directory/], …
 *                             DENY_READ, DENY_WRITE -> EPERM
 *                             SET -> sets[name] replaces what is written
 *                          -> access (ring buffer), counts[name]
 *
 * bpf_sysctl_get_current_value() gives the value before a write, and what a read returns. Names and
 * values that do not fit are cut, and the event says which.
 *
 * Maps
 *   rules     hash     struct sysctl_name -> enum action flags
 *   sets      hash     struct sysctl_name -> struct sysctl_value
 *   counts    hash     struct sysctl_name -> struct access_count
 *   accesses  ringbuf  struct access
 *   scratch   percpu_array  0 -> struct access, in the making
 *   lost      array    0: events without room in the ring, 1: names without room in `counts`
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <linux/sched.h>

LOAD_CONST(0, with_directories, 1); /* there are rules for directories */
LOAD_CONST(1, with_events, 1);

#define NAME_LEN  128
#define VALUE_LEN 256
#define MAX_DEPTH 8 /* directories of a name */

enum action {
	DENY_READ = 1,
	DENY_WRITE = 2,
	SET = 4,
};

enum flag {
	NAME_TRUNCATED = 1,
	OLD_TRUNCATED = 2,
	NEW_TRUNCATED = 4,
	OLD_UNKNOWN = 8, /* the kernel does not give the current value of this parameter */
};

struct sysctl_name {
	char text[NAME_LEN]; /* net/ipv4/ip_forward; of a rule for a directory: net/ipv4/ */
};

struct sysctl_value {
	u32 len;
	char text[VALUE_LEN]; /* filled up with newlines */
};

struct access_count {
	u64 reads;
	u64 writes;
	u64 denied;
	u64 replaced;
};

struct access {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 pid;
	u32 is_write;
	u32 action; /* what was done: DENY_*, SET */
	u32 flags;
	char comm[TASK_COMM_LEN];
	struct sysctl_name name;
	char old_value[VALUE_LEN]; /* before a write; what a read returns */
	char new_value[VALUE_LEN]; /* what the process writes */
};

BPF_HASH(rules, struct sysctl_name, u32, 1024);
BPF_HASH(sets, struct sysctl_name, struct sysctl_value, 256);
BPF_HASH(counts, struct sysctl_name, struct access_count, 4096);
BPF_RINGBUF_OUTPUT(accesses, 64);
EVENT_TYPE(accesses, struct access);
BPF_PERCPU_ARRAY(scratch, struct access, 1);
BPF_PERCPU_ARRAY(keys, struct sysctl_name, 1);
BPF_ARRAY(lost, u64, 2);

static __always_inline void count_lost(u32 what)
{
	count_one(lost.lookup(&what));
}

/* The rule of the name, else of the innermost directory that has one. */
static __always_inline u32 action_of(const struct sysctl_name *name)
{
	struct sysctl_name *key;
	u32 zero = 0, *found, i;

	found = rules.lookup((struct sysctl_name *)name);
	if (found)
		return *found;
	if (!with_directories())
		return 0;
	key = keys.lookup(&zero);
	if (!key)
		return 0;
	*key = *name;
	for (i = NAME_LEN - 1; i > 0; i--) {
		if (key->text[i - 1] == '/') {
			found = rules.lookup(key);
			if (found)
				return *found;
		}
		key->text[i - 1] = '\0';
	}
	return 0;
}

static __always_inline void count(const struct access *a)
{
	struct access_count none = {}, *c;

	c = counts.lookup_or_try_init((struct sysctl_name *)&a->name, &none);
	if (!c) {
		count_lost(1);
		return;
	}
	__sync_fetch_and_add(a->is_write ? &c->writes : &c->reads, 1);
	if (a->action & (DENY_READ | DENY_WRITE))
		__sync_fetch_and_add(&c->denied, 1);
	else if (a->action & SET)
		__sync_fetch_and_add(&c->replaced, 1);
}

/*
 * Returns 0 if the value of the rule is what will be written. write(2) returns the length of the value
 * that was written: newlines behind a shorter one keep the process from writing the rest. A longer one
 * makes write(2) return more than it was asked for.
 */
static __always_inline int replace(struct bpf_sysctl *ctx, struct sysctl_name *name, u32 asked)
{
	struct sysctl_value *value = sets.lookup(name);
	u32 last;

	if (!value)
		return -1;
	last = (value->len > asked ? value->len : asked) - 1;
	if (last >= VALUE_LEN)
		last = VALUE_LEN - 1;
	asm volatile(""
		     : "+r"(last)); /* clang leaves out what it knows and the verifier does not */
	last &= VALUE_LEN - 1;
	return bpf_sysctl_set_new_value(ctx, value->text, last + 1);
}

SEC("cgroup/sysctl")
int cgroup_sysctl(struct bpf_sysctl *ctx)
{
	struct access *a;
	u32 zero = 0, action;
	int len = 0, allow = 1;

	a = scratch.lookup(&zero);
	if (!a)
		return 1;
	__builtin_memset(&a->name, 0, sizeof(a->name));
	a->time_ns = bpf_ktime_get_ns();
	a->pid = bpf_get_current_pid_tgid() >> 32;
	a->is_write = ctx->write;
	a->action = 0;
	a->flags = 0;
	a->old_value[0] = '\0';
	a->new_value[0] = '\0';
	bpf_get_current_comm(a->comm, sizeof(a->comm));
	if (bpf_sysctl_get_name(ctx, a->name.text, sizeof(a->name.text), 0) < 0)
		a->flags |= NAME_TRUNCATED;
	if (with_events()) {
		len = bpf_sysctl_get_current_value(ctx, a->old_value, sizeof(a->old_value));
		if (len == -7) /* E2BIG */
			a->flags |= OLD_TRUNCATED;
		else if (len < 0)
			a->flags |= OLD_UNKNOWN;
	}
	action = action_of(&a->name);
	if (ctx->write) {
		if (with_events() || action & SET)
			len = bpf_sysctl_get_new_value(ctx, a->new_value, sizeof(a->new_value));
		if (len == -7)
			a->flags |= NEW_TRUNCATED;
		if (action & DENY_WRITE) {
			a->action = DENY_WRITE;
			allow = 0;
		} else if (action & SET) {
			a->action = SET;
			if (replace(ctx, &a->name, len > 0 ? len : VALUE_LEN)) {
				a->action = DENY_WRITE; /* never the value that was asked for */
				allow = 0;
			}
		}
	} else if (action & DENY_READ) {
		a->action = DENY_READ;
		allow = 0;
	}
	count(a);
	if (with_events() && accesses.ringbuf_output(a, sizeof(*a), 0))
		count_lost(0);
	return allow;
}
