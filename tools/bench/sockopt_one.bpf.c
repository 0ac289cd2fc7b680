/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The least that a program on the sockopt hooks costs: it allows every call. What is left is the
 * kernel's own work for the hook, a buffer and the copies of the value.
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>

SEC("cgroup/setsockopt")
int allow_set(struct bpf_sockopt *ctx)
{
	return 1;
}

SEC("cgroup/getsockopt")
int allow_get(struct bpf_sockopt *ctx)
{
	return 1;
}
