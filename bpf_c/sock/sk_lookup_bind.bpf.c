/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sk_lookup_bind: a server binds its port again
 * =============================================
 *
 * hook      after bind(2) of an IPv4 or IPv6 socket in the cgroup of a server that is steered to
 *           (CGROUP_INET4_POST_BIND, CGROUP_INET6_POST_BIND)
 * context   struct bpf_sock: family, protocol, src_port
 * packets   none; bind(2) always succeeds
 *
 *   bind(2) -> a target's port? -> binds -> user space looks for listeners at once, without waiting
 *                                           for its next turn or for a lookup that misses
 *
 * Not a sockops program, which would run for every connection as well.
 *
 * Maps
 *   ports  hash     port (host order) -> 1
 *   binds  ringbuf  u32: the port
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>

BPF_HASH(ports, u32, u8, 256);
BPF_RINGBUF_OUTPUT(binds, 1);

static __always_inline int bound(const struct bpf_sock *sk)
{
	u32 port = sk->src_port;

	if (ports.lookup(&port))
		binds.ringbuf_output(&port, sizeof(port), 0); /* if full: a look is due anyway */
	return 1;
}

SEC("cgroup/post_bind4")
int bound4(struct bpf_sock *sk)
{
	return bound(sk);
}

SEC("cgroup/post_bind6")
int bound6(struct bpf_sock *sk)
{
	return bound(sk);
}
