/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * cgroup_sock: which sockets the processes of a cgroup create, which ports they bind
 * ==================================================================================
 *
 * hook      socket(2) (sock_create) and its end (sock_release), bind(2) once the port is taken
 *           (post_bind4, post_bind6), of IPv4 and IPv6 sockets; other families have no such hook
 * context   struct bpf_sock: family, type, protocol, mark, priority, bound_dev_if; after a bind
 *           src_ip4 or src_ip6 (network byte order) and src_port (host byte order)
 * may       refuse (0: EPERM), and at the creation set mark, priority and bound_dev_if
 *
 *   socket(2) -> families[family], kinds[type, protocol] -> denied: EPERM
 *                                                        -> mark, priority, interface -> created
 *   bind(2)   -> ports[port] -> denied: EPERM, the port is given back
 *                            -> bound
 *   close(2), the last one   -> released
 *
 * A socket belongs to the cgroup of the process that creates it, for good; one that accept(2) returns
 * was not created by socket(2) and is not counted here. A bind to port 0 is judged by the port that
 * the kernel chose.
 *
 * Maps
 *   families  hash     address family -> 1: denied
 *   kinds     hash     struct socket_kind -> 1: denied; type or protocol 0: any
 *   ports     array    port -> 1: denied
 *   sockets   hash     struct socket_row_key -> struct socket_count
 *   denials   ringbuf  struct denial
 *   lost      array    0: events without room in the ring, 1: kinds without room in `sockets`
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <linux/sched.h>

LOAD_CONST(0, mark, 0);
LOAD_CONST(1, set_mark, 0);
LOAD_CONST(2, priority, 0);
LOAD_CONST(3, set_priority, 0);
LOAD_CONST(4, ifindex, 0); /* the interface that sockets are bound to; 0: none */

#define FAMILY_IPV4 2 /* AF_INET */
#define FAMILY_IPV6 10 /* AF_INET6 */

enum why {
	WHY_FAMILY = 1,
	WHY_KIND = 2,
	WHY_PORT = 3,
};

struct socket_kind {
	u32 type; /* SOCK_* */
	u32 protocol; /* IPPROTO_* */
};

struct socket_row_key {
	u32 family;
	u32 type;
	u32 protocol;
};

struct socket_count {
	u64 created;
	u64 released;
	u64 denied;
	u64 bound;
	u64 binds_denied;
};

struct denial {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 pid;
	u32 why; /* enum why */
	u32 family;
	u32 type;
	u32 protocol;
	u32 port; /* of a bind */
	u8 address[16]; /* of a bind; IPv4: the first four bytes */
	char comm[TASK_COMM_LEN];
};

BPF_HASH(families, u32, u8, 64);
BPF_HASH(kinds, struct socket_kind, u8, 256);
BPF_ARRAY(ports, u8, 65536);
BPF_HASH(sockets, struct socket_row_key, struct socket_count, 1024);
BPF_RINGBUF_OUTPUT(denials, 16);
EVENT_TYPE(denials, struct denial);
BPF_ARRAY(lost, u64, 2);

static __always_inline void count_lost(u32 what)
{
	count_one(lost.lookup(&what));
}

static __always_inline struct socket_count *count_of(struct bpf_sock *sk)
{
	struct socket_row_key key = {
		.family = sk->family,
		.type = sk->type,
		.protocol = sk->protocol,
	};
	struct socket_count none = {}, *count;

	count = sockets.lookup_or_try_init(&key, &none);
	if (!count)
		count_lost(1);
	return count;
}

static __always_inline bool kind_denied(u32 type, u32 protocol)
{
	struct socket_kind exact = { .type = type, .protocol = protocol };
	struct socket_kind any_protocol = { .type = type };
	struct socket_kind any_type = { .protocol = protocol };

	return kinds.lookup(&exact) || kinds.lookup(&any_protocol) || kinds.lookup(&any_type);
}

static __always_inline void report(struct bpf_sock *sk, u32 why, u32 port, const void *address,
				   u32 len)
{
	struct denial *d = denials.ringbuf_reserve(sizeof(*d));

	if (!d) {
		count_lost(0);
		return;
	}
	__builtin_memset(d, 0, sizeof(*d));
	d->time_ns = bpf_ktime_get_ns();
	d->pid = bpf_get_current_pid_tgid() >> 32;
	d->why = why;
	d->family = sk->family;
	d->type = sk->type;
	d->protocol = sk->protocol;
	d->port = port;
	if (len == 4)
		__builtin_memcpy(d->address, address, 4);
	else if (len == 16)
		__builtin_memcpy(d->address, address, 16);
	bpf_get_current_comm(d->comm, sizeof(d->comm));
	denials.ringbuf_submit(d, 0);
}

SEC("cgroup/sock_create")
int created(struct bpf_sock *sk)
{
	struct socket_count *count = count_of(sk);
	u32 family = sk->family, why = 0;

	if (families.lookup(&family))
		why = WHY_FAMILY;
	else if (kind_denied(sk->type, sk->protocol))
		why = WHY_KIND;
	if (count)
		__sync_fetch_and_add(why ? &count->denied : &count->created, 1);
	if (why) {
		report(sk, why, 0, 0, 0);
		return 0;
	}
	if (set_mark())
		sk->mark = mark();
	if (set_priority())
		sk->priority = priority();
	if (ifindex())
		sk->bound_dev_if = ifindex();
	return 1;
}

SEC("cgroup/sock_release")
int released(struct bpf_sock *sk)
{
	struct socket_count *count = count_of(sk);

	if (count)
		__sync_fetch_and_add(&count->released, 1);
	return 1;
}

static __always_inline int bound(struct bpf_sock *sk, const void *address, u32 len)
{
	struct socket_count *count = count_of(sk);
	u32 port = sk->src_port;
	u8 *denied = ports.lookup(&port);

	if (count)
		__sync_fetch_and_add(denied && *denied ? &count->binds_denied : &count->bound, 1);
	if (!denied || !*denied)
		return 1;
	report(sk, WHY_PORT, port, address, len);
	return 0;
}

SEC("cgroup/post_bind4")
int bound4(struct bpf_sock *sk)
{
	__be32 address = sk->src_ip4;

	return bound(sk, &address, sizeof(address));
}

SEC("cgroup/post_bind6")
int bound6(struct bpf_sock *sk)
{
	__be32 address[4] = { sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3] };

	return bound(sk, address, sizeof(address));
}
