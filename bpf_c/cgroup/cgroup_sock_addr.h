/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What cgroup_sock_addr.bpf.c and cgroup_sock_addr_unix.bpf.c share: actions, figures, and the end of
 * a system call that is refused.
 */
#ifndef CGROUP_SOCK_ADDR_H
#define CGROUP_SOCK_ADDR_H

#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>

#define RULES 1024

enum action {
	ACTION_PASS = 0, /* an exception to a rule that is less precise */
	ACTION_REDIRECT = 1,
	ACTION_DENY = 2,
};

enum what {
	WHAT_CONNECT = 0,
	WHAT_SENDMSG = 1, /* a datagram of a socket that is not connected */
	WHAT_BIND = 2,
	WHATS = 3,
};

struct count {
	u64 hits[WHATS];
};

enum lost {
	LOST_EVENT = 0, /* the ring had no room */
	LOST_ORIGIN = 1, /* no memory for the original address: the system call failed */
	LOSTS = 2,
};

static __always_inline void add_hit(struct count *count, u32 what)
{
	if (count && what < WHATS)
		__sync_fetch_and_add(&count->hits[what], 1); /* the process may be preempted */
}

/* What the hook returns so that the system call fails with `error`. From 7.2 the verifier wants to see
 * that it is an errno. */
static __always_inline int refuse(u32 error)
{
	bpf_set_retval(-(int)(error & 0xfff));
	return 0;
}

#endif
