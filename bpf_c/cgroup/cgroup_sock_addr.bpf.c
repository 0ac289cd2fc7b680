/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * cgroup_sock_addr: connections, datagrams and binds of a cgroup go to another address
 * ====================================================================================
 *
 * hook      connect(2), sendmsg(2) of an unconnected UDP socket, bind(2): the address that the process
 *           gave; recvmsg(2), getpeername(2), getsockname(2): the address that the kernel answers
 *           (CGROUP_SOCK_ADDR). sockops: a SYN leaves, a connection ends. getsockopt(2) of the proxy.
 * context   struct bpf_sock_addr: user_ip4 or user_ip6, user_port (network byte order), protocol, sk
 * may       rewrite the address; connect, sendmsg and bind also refuse, with any errno
 *
 *   client:  connect(A) -> rule for A? -> B, and A is remembered with the socket (origins)
 *            getpeername() -> B? -> A            recvmsg() -> from B? -> A
 *            SYN to B -> by_tuple[client's address and port, B] = A
 *   proxy:   accept() on B -> getsockopt(SO_ORIGINAL_DST) -> by_tuple -> A
 *
 * A packet needs no translation: the connection is one to B from its first packet on.
 *
 * Addresses are those of IPv6 everywhere, IPv4 as ::ffff:a.b.c.d: an IPv6 socket that connects to such
 * an address finds the rule for the IPv4 address. 0.0.0.0 and :: mean this host, as for the kernel.
 *
 * The longest prefix decides. Among rules for the same prefix the one with the port comes before one
 * for any port, then the one with the protocol before one for both. Only TCP (MPTCP, too) and UDP have
 * rules.
 *
 * Maps
 *   rules     LPM trie    struct destination -> struct rule
 *   origins   sk storage  the socket -> struct origin
 *   sent      LRU hash    socket cookie and B -> A: where the answers to datagrams seem to come from
 *   by_tuple  LRU hash    struct tuple (of the client) -> A; removed when the connection ends
 *   counts    array       rule -> struct count, per CPU
 *   events    ringbuf     struct event
 *   lost      array       enum lost
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/maps.h>
#include <uapi/linux/bpf.h>
#include <uapi/linux/in.h>
#include <linux/sched.h>
#include "cgroup_sock_addr.h"

/* Which kinds of rules there are; the others are not looked up. */
LOAD_CONST(0, with_port_and_protocol, 1);
LOAD_CONST(1, with_port, 1);
LOAD_CONST(2, with_protocol, 1);
LOAD_CONST(3, with_neither, 1);
LOAD_CONST(4, with_events, 1);

#define FAMILY_IPV4    4
#define FAMILY_IPV6    6
#define FAMILY_OF_BIND 0x80 /* in a rule's family: the address of a bind */
#define SOL_IPV4       0
#define SOL_IPV6       41
#define AF_IPV4        2
#define AF_IPV6        10
#define IP_MPTCP       262 /* IPPROTO_MPTCP */
#define ORIGINAL_DST   80 /* SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST */
#define LOOPBACK_NET   0x7f000000
#define PREFIX_BITS    (32 + 128)

struct end {
	__be32 addr[4]; /* IPv4: ::ffff:a.b.c.d */
	__be16 port;
	u16 pad;
};

struct destination {
	u32 length; /* 32 + the prefix's, of IPv4 96 more */
	u8 family; /* FAMILY_* */
	u8 proto; /* IPPROTO_TCP, IPPROTO_UDP; 0: both */
	__be16 port; /* 0: every port */
	__be32 addr[4];
};

struct rule {
	u32 number;
	u32 action; /* enum action */
	u32 error; /* errno of ACTION_DENY */
	__be32 addr[4];
	__be16 port; /* 0: the one that was asked for */
	u16 length; /* of the key */
};

/* What was done with a connect. */
struct origin {
	struct end asked; /* the process's connect */
	struct end given; /* where it went; port 0: not redirected */
	u64 netns; /* cookie of the network namespace */
};

/* What was done with a bind. */
struct bound {
	struct end asked;
	struct end given;
};

struct datagram_peer {
	u64 socket; /* cookie */
	struct end given;
	u32 pad;
};

struct tuple {
	u64 netns; /* cookie where the addresses are loopback ones, else 0 */
	struct end client;
	struct end proxy;
};

struct event {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 what; /* enum what */
	u32 rule;
	u32 error; /* errno; 0: redirected */
	u32 proto;
	u32 pid;
	struct end from;
	struct end to;
	char comm[TASK_COMM_LEN];
};

BPF_LPM_TRIE(rules, struct destination, struct rule, RULES);
BPFKIT_MAP(0, BPF_MAP_TYPE_SK_STORAGE, origins, int, struct origin, 0, BPF_F_NO_PREALLOC, 0);
BPFKIT_VALUE(origins, struct origin);
BPFKIT_MAP(1, BPF_MAP_TYPE_SK_STORAGE, bounds, int, struct bound, 0,
	   BPF_F_NO_PREALLOC | BPF_F_CLONE, 0);
BPFKIT_VALUE(bounds, struct bound);
BPF_TABLE("lru_hash", struct datagram_peer, struct end, sent, 65536);
BPF_TABLE("lru_hash", struct tuple, struct end, by_tuple, 65536);
BPF_RINGBUF_OUTPUT(events, 64);
EVENT_TYPE(events, struct event);
BPF_PERCPU_ARRAY(counts, struct count, RULES);
BPF_ARRAY(lost, u64, LOSTS);

static __always_inline void count_hit(u32 rule, u32 what)
{
	add_hit(counts.lookup(&rule), what);
}

static __always_inline void count_lost(u32 what)
{
	count_one(lost.lookup(&what));
}

static __always_inline bool is_mapped(const struct end *end)
{
	return !end->addr[0] && !end->addr[1] && end->addr[2] == bpf_htonl(0xffff);
}

static __always_inline bool same_address(const struct end *a, const struct end *b)
{
	return a->addr[0] == b->addr[0] && a->addr[1] == b->addr[1] && a->addr[2] == b->addr[2] &&
	       a->addr[3] == b->addr[3];
}

static __always_inline bool same_end(const struct end *a, const struct end *b)
{
	return a->port == b->port && same_address(a, b);
}

static __always_inline bool is_any(const struct end *end)
{
	return !end->addr[3] && (is_mapped(end) || !(end->addr[0] | end->addr[1] | end->addr[2]));
}

static __always_inline bool is_loopback(const struct end *end)
{
	if (is_mapped(end))
		return (end->addr[3] & bpf_htonl(0xff000000)) == bpf_htonl(LOOPBACK_NET);
	return !end->addr[0] && !end->addr[1] && !end->addr[2] && end->addr[3] == bpf_htonl(1);
}

/* The kernel connects to this host where the address is 0.0.0.0 or ::. */
static __always_inline void any_is_loopback(struct end *end)
{
	if (is_any(end))
		end->addr[3] = is_mapped(end) ? bpf_htonl(LOOPBACK_NET | 1) : bpf_htonl(1);
}

static __always_inline void read_end(const struct bpf_sock_addr *ctx, struct end *end, bool v6)
{
	if (v6) {
		end->addr[0] = ctx->user_ip6[0];
		end->addr[1] = ctx->user_ip6[1];
		end->addr[2] = ctx->user_ip6[2];
		end->addr[3] = ctx->user_ip6[3];
	} else {
		end->addr[0] = end->addr[1] = 0;
		end->addr[2] = bpf_htonl(0xffff);
		end->addr[3] = ctx->user_ip4;
	}
	end->port = ctx->user_port;
	end->pad = 0;
}

static __always_inline void write_end(struct bpf_sock_addr *ctx, const struct end *end, bool v6)
{
	if (v6) {
		ctx->user_ip6[0] = end->addr[0];
		ctx->user_ip6[1] = end->addr[1];
		ctx->user_ip6[2] = end->addr[2];
		ctx->user_ip6[3] = end->addr[3];
	} else {
		ctx->user_ip4 = end->addr[3];
	}
	ctx->user_port = end->port;
}

/* IPPROTO_TCP or IPPROTO_UDP; 0: a socket that no rule is for (ping, raw). */
static __always_inline u8 protocol_of(const struct bpf_sock_addr *ctx)
{
	switch (ctx->protocol) {
	case IPPROTO_TCP:
	case IP_MPTCP:
		return IPPROTO_TCP;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		return IPPROTO_UDP;
	}
	return 0;
}

/* Of two rules that match; `a` is the more precise one if their prefixes are equally long. */
static __always_inline struct rule *better(struct rule *a, struct rule *b)
{
	if (!a || !b)
		return a ? a : b;
	return b->length > a->length ? b : a;
}

static __always_inline struct rule *find_rule(const struct end *end, u8 proto, u8 of_bind)
{
	struct destination key = { .length = PREFIX_BITS, .proto = proto, .port = end->port };
	struct rule *rule = 0;

	if (!proto)
		return 0;
	key.family = of_bind | (is_mapped(end) ? FAMILY_IPV4 : FAMILY_IPV6);
	__builtin_memcpy(key.addr, end->addr, sizeof(key.addr));
	if (with_port_and_protocol())
		rule = rules.lookup(&key);
	key.proto = 0;
	if (with_port())
		rule = better(rule, rules.lookup(&key));
	key.proto = proto;
	key.port = 0;
	if (with_protocol())
		rule = better(rule, rules.lookup(&key));
	key.proto = 0;
	if (with_neither())
		rule = better(rule, rules.lookup(&key));
	return rule;
}

static __always_inline void report(struct bpf_sock_addr *ctx, const struct rule *rule, u32 what,
				   const struct end *from, const struct end *to)
{
	struct event *e;

	if (!with_events())
		return;
	e = events.ringbuf_reserve(sizeof(*e));
	if (!e) {
		count_lost(LOST_EVENT);
		return;
	}
	e->time_ns = bpf_ktime_get_ns();
	e->what = what;
	e->rule = rule->number;
	e->error = rule->action == ACTION_DENY ? rule->error : 0;
	e->proto = protocol_of(ctx);
	e->pid = bpf_get_current_pid_tgid() >> 32;
	e->from = *from;
	e->to = *to;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	events.ringbuf_submit(e, 0);
}

static __always_inline struct origin *origin_of(struct bpf_sock_addr *ctx, u64 flags)
{
	return bpf_sk_storage_get(BPFKIT_MAP_REF(origins), ctx->sk, 0, flags);
}

static __always_inline void target_of(const struct rule *rule, const struct end *asked,
				      struct end *given)
{
	__builtin_memcpy(given->addr, rule->addr, sizeof(given->addr));
	given->port = rule->port ? rule->port : asked->port;
	given->pad = 0;
}

static __always_inline int on_connect(struct bpf_sock_addr *ctx, bool v6)
{
	struct end asked, given;
	struct origin *origin;
	struct rule *rule;

	read_end(ctx, &asked, v6);
	any_is_loopback(&asked);
	rule = find_rule(&asked, protocol_of(ctx), 0);
	if (rule)
		count_hit(rule->number, WHAT_CONNECT);
	if (!rule || rule->action == ACTION_PASS) {
		/* A UDP socket may have been connected before. */
		origin = origin_of(ctx, 0);
		if (origin)
			origin->given.port = 0;
		return 1;
	}
	if (rule->action == ACTION_DENY) {
		report(ctx, rule, WHAT_CONNECT, &asked, &asked);
		return refuse(rule->error);
	}
	target_of(rule, &asked, &given);
	origin = origin_of(ctx, BPF_SK_STORAGE_GET_F_CREATE);
	if (!origin) {
		count_lost(LOST_ORIGIN);
		return refuse(ENOMEM);
	}
	origin->asked = asked;
	origin->given = given;
	origin->netns = bpf_get_netns_cookie(ctx);
	write_end(ctx, &given, v6);
	report(ctx, rule, WHAT_CONNECT, &asked, &given);
	return 1;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return on_connect(ctx, false);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return on_connect(ctx, true);
}

/*
 * Every datagram to an address of its own. An event only where the socket's last one to the same
 * target was meant for another address.
 */
static __always_inline int on_sendmsg(struct bpf_sock_addr *ctx, bool v6)
{
	struct datagram_peer peer = {};
	struct end asked, *before;
	struct rule *rule;

	read_end(ctx, &asked, v6);
	any_is_loopback(&asked);
	rule = find_rule(&asked, protocol_of(ctx), 0);
	peer.socket = bpf_get_socket_cookie(ctx);
	if (rule)
		count_hit(rule->number, WHAT_SENDMSG);
	if (!rule || rule->action == ACTION_PASS) {
		/* The process talks to this address itself: its answers keep their address. */
		peer.given = asked;
		if (sent.lookup(&peer))
			sent.delete(&peer);
		return 1;
	}
	if (rule->action == ACTION_DENY) {
		report(ctx, rule, WHAT_SENDMSG, &asked, &asked);
		return refuse(rule->error);
	}
	target_of(rule, &asked, &peer.given);
	before = sent.lookup(&peer);
	if (!before || !same_end(before, &asked)) {
		if (sent.update(&peer, &asked)) {
			count_lost(LOST_ORIGIN);
			return refuse(ENOMEM);
		}
		report(ctx, rule, WHAT_SENDMSG, &asked, &peer.given);
	}
	write_end(ctx, &peer.given, v6);
	return 1;
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return on_sendmsg(ctx, false);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return on_sendmsg(ctx, true);
}

static __always_inline int on_recvmsg(struct bpf_sock_addr *ctx, bool v6)
{
	struct datagram_peer peer = {};
	struct origin *origin;
	struct end *asked;

	read_end(ctx, &peer.given, v6);
	origin = origin_of(ctx, 0);
	if (origin && origin->given.port && same_end(&origin->given, &peer.given)) {
		write_end(ctx, &origin->asked, v6);
		return 1;
	}
	peer.socket = bpf_get_socket_cookie(ctx);
	asked = sent.lookup(&peer);
	if (asked)
		write_end(ctx, asked, v6);
	return 1;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return on_recvmsg(ctx, false);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return on_recvmsg(ctx, true);
}

static __always_inline int on_getpeername(struct bpf_sock_addr *ctx, bool v6)
{
	struct origin *origin = origin_of(ctx, 0);
	struct end peer;

	if (!origin || !origin->given.port)
		return 1;
	read_end(ctx, &peer, v6);
	if (same_end(&origin->given, &peer))
		write_end(ctx, &origin->asked, v6);
	return 1;
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return on_getpeername(ctx, false);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return on_getpeername(ctx, true);
}

static __always_inline struct bound *bound_of(struct bpf_sock_addr *ctx, u64 flags)
{
	return bpf_sk_storage_get(BPFKIT_MAP_REF(bounds), ctx->sk, 0, flags);
}

static __always_inline int on_bind(struct bpf_sock_addr *ctx, bool v6)
{
	struct end asked, given;
	struct bound *bound;
	struct rule *rule;

	read_end(ctx, &asked, v6);
	rule = find_rule(&asked, protocol_of(ctx), FAMILY_OF_BIND);
	if (!rule || rule->action != ACTION_REDIRECT)
		return 1;
	count_hit(rule->number, WHAT_BIND);
	target_of(rule, &asked, &given);
	bound = bound_of(ctx, BPF_SK_STORAGE_GET_F_CREATE);
	if (!bound) {
		count_lost(LOST_ORIGIN);
		return refuse(ENOMEM);
	}
	bound->asked = asked;
	bound->given = given;
	write_end(ctx, &given, v6);
	report(ctx, rule, WHAT_BIND, &asked, &given);
	return 1;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	return on_bind(ctx, false);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	return on_bind(ctx, true);
}

/*
 * The address that the process bound. A connection that was accepted has an address of its own even
 * where the listener has none: of it only the port is the process's.
 */
static __always_inline int on_getsockname(struct bpf_sock_addr *ctx, bool v6)
{
	struct bound *bound = bound_of(ctx, 0);
	struct end local;

	if (!bound || !bound->given.port)
		return 1;
	read_end(ctx, &local, v6);
	if (local.port != bound->given.port)
		return 1;
	if (ctx->sk->dst_port && is_any(&bound->asked))
		ctx->user_port = bound->asked.port;
	else if (same_address(&local, &bound->given))
		write_end(ctx, &bound->asked, v6);
	else if (is_any(&bound->given))
		ctx->user_port = bound->asked.port;
	return 1;
}

SEC("cgroup/getsockname4")
int getsockname4(struct bpf_sock_addr *ctx)
{
	return on_getsockname(ctx, false);
}

SEC("cgroup/getsockname6")
int getsockname6(struct bpf_sock_addr *ctx)
{
	return on_getsockname(ctx, true);
}

/* --- what the proxy asks ------------------------------------------------------------------------ */

static __always_inline void mapped_end(struct end *end, __be32 ip4)
{
	end->addr[0] = end->addr[1] = 0;
	end->addr[2] = bpf_htonl(0xffff);
	end->addr[3] = ip4;
}

static __always_inline void client_tuple(struct tuple *t, struct bpf_sock_ops *ctx)
{
	if (ctx->family == AF_IPV6) {
		t->client.addr[0] = ctx->local_ip6[0];
		t->client.addr[1] = ctx->local_ip6[1];
		t->client.addr[2] = ctx->local_ip6[2];
		t->client.addr[3] = ctx->local_ip6[3];
		t->proxy.addr[0] = ctx->remote_ip6[0];
		t->proxy.addr[1] = ctx->remote_ip6[1];
		t->proxy.addr[2] = ctx->remote_ip6[2];
		t->proxy.addr[3] = ctx->remote_ip6[3];
		asm volatile("" ::"r"(ctx)); /* or clang reads through ctx + a variable offset */
	} else {
		mapped_end(&t->client, ctx->local_ip4);
		mapped_end(&t->proxy, ctx->remote_ip4);
	}
	t->client.port = bpf_htons(ctx->local_port);
	t->proxy.port = bpf_htons(bpf_ntohl(ctx->remote_port));
}

/* The local port is known when the SYN leaves, before the proxy can accept the connection. */
SEC("sockops")
int client_state(struct bpf_sock_ops *ctx)
{
	bool ends = ctx->op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE;
	struct bpf_sock *sk = ctx->sk;
	struct origin *origin;
	struct tuple t = {};

	if (!sk || !(ends || ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB))
		return 1;
	origin = bpf_sk_storage_get(BPFKIT_MAP_REF(origins), sk, 0, 0);
	if (!origin || !origin->given.port)
		return 1;
	client_tuple(&t, ctx);
	if (is_loopback(&t.proxy))
		t.netns = origin->netns;
	if (ends) {
		by_tuple.delete(&t);
		return 1;
	}
	if (by_tuple.update(&t, &origin->asked))
		count_lost(LOST_ORIGIN);
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	return 1;
}

static __always_inline void proxy_tuple(struct tuple *t, struct bpf_sock *sk)
{
	if (sk->family == AF_IPV6) {
		t->client.addr[0] = sk->dst_ip6[0];
		t->client.addr[1] = sk->dst_ip6[1];
		t->client.addr[2] = sk->dst_ip6[2];
		t->client.addr[3] = sk->dst_ip6[3];
		t->proxy.addr[0] = sk->src_ip6[0];
		t->proxy.addr[1] = sk->src_ip6[1];
		t->proxy.addr[2] = sk->src_ip6[2];
		t->proxy.addr[3] = sk->src_ip6[3];
		asm volatile("" ::"r"(sk)); /* or clang reads through sk + a variable offset */
	} else {
		mapped_end(&t->client, sk->dst_ip4);
		mapped_end(&t->proxy, sk->src_ip4);
	}
	t->client.port = sk->dst_port;
	t->proxy.port = bpf_htons(sk->src_port);
}

struct sockaddr_ipv4 {
	u16 family;
	__be16 port;
	__be32 addr;
	u64 zero;
};

struct sockaddr_ipv6 {
	u16 family;
	__be16 port;
	__be32 flowinfo;
	__be32 addr[4];
	u32 scope;
};

/*
 * SO_ORIGINAL_DST of a connection that was redirected, as connection tracking answers it. Every other
 * getsockopt keeps the kernel's answer, also one that is longer than the page the program would see.
 */
SEC("cgroup/getsockopt")
int original_dst(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct sockaddr_ipv4 *v4;
	struct sockaddr_ipv6 *v6;
	struct tuple t = {};
	struct end *asked;

	if (ctx->optname != ORIGINAL_DST || !sk)
		return 1;
	if (ctx->level != SOL_IPV4 && ctx->level != SOL_IPV6)
		return 1;
	proxy_tuple(&t, sk);
	if (is_loopback(&t.proxy))
		t.netns = bpf_get_netns_cookie(ctx);
	asked = by_tuple.lookup(&t);
	if (!asked || is_mapped(asked) != (ctx->level == SOL_IPV4))
		return 1;
	if (ctx->level == SOL_IPV4) {
		v4 = ctx->optval;
		if ((void *)(v4 + 1) > ctx->optval_end)
			return 1;
		v4->family = AF_IPV4;
		v4->port = asked->port;
		v4->addr = asked->addr[3];
		v4->zero = 0;
		ctx->optlen = sizeof(*v4);
	} else {
		v6 = ctx->optval;
		if ((void *)(v6 + 1) > ctx->optval_end)
			return 1;
		v6->family = AF_IPV6;
		v6->port = asked->port;
		v6->flowinfo = 0;
		__builtin_memcpy(v6->addr, asked->addr, sizeof(v6->addr));
		v6->scope = 0;
		ctx->optlen = sizeof(*v6);
	}
	asm volatile("" ::: "memory"); /* two stores to the context, not one */
	ctx->retval = 0;
	return 1;
}
