/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sk_msg: sendmsg(2) straight into the receive queue of the other, local end
 * ==========================================================================
 *
 * hook      redirect   every sendmsg(2) of a socket that is in the map (SK_MSG)
 *           enter      TCP events of the sockets of a cgroup (SOCK_OPS)
 *           no_ktls    setsockopt(2) of the sockets of a cgroup (CGROUP_SOCKOPT)
 * context   struct sk_msg_md: data, data_end (what is linear of it), size, sk
 * may       redirect: pass, redirect to a socket, refuse (EACCES); hold bytes back (cork), judge bytes
 *           that are still to come (apply), change them
 * packets   none: a redirected message never becomes one
 *
 *   sendmsg -> redirect -> the other end in socks? -- yes --> its receive queue   no segment, no lo
 *                 |                |
 *                 |                no -> TCP, qdisc, lo, ..., the other end
 *                 +-- begins with the denied text: EACCES
 *
 * Who is in socks?  A socket that is in it while its data comes by TCP does harm: programs that ask
 * how much is there to read (FIONREAD) are told 0 by some kernels, and stall.  So both ends enter or
 * none, and what cannot be known when a socket is established is found out in this order:
 *
 *   SYN at a listener of the cgroup   announced[tuple]          the passive end will be in the cgroup
 *   active end established            announced? enters socks   opened[end]: one end waits
 *   passive end established           opened[its peer]?         enters socks
 *                                     none, or no room: the active end is taken out again
 *
 * The key of an end holds the first sequence numbers of both directions and the network namespace:
 * the two ends of one connection match, and nothing else does.  A connection whose ends see different
 * addresses (NAT), or are in two namespaces, is not touched.
 *
 * The order of bytes.  recvmsg(2) returns redirected bytes before those that came by TCP.  So a
 * direction is redirected from its first byte on, or never; it may change to TCP at any time (the
 * program stops, the other end is gone), and does not change back.  Who sends before the other end
 * is established claims opened[end] by deleting it, which succeeds for one side only: the direction
 * is then plain, and the connection stays out of the map.
 *
 * Maps
 *   scope      array        port -> may connections to it enter?
 *   settings   array        0 -> struct settings
 *   announced  lru_hash     struct tuple of a passive end to come
 *   opened     lru_hash     struct end of an active end -> OPENED_*
 *   socks      sockhash     struct end -> socket
 *   ends       sk_storage   socket -> struct end_state
 *   ports      percpu_hash  port of the listener -> struct port_count
 *   plain      array        PLAIN_* -> connections that were not entered, and why
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <uapi/linux/in.h>
#include <uapi/linux/tcp.h>
#include <linux/errno.h>

LOAD_CONST(0, deny_size, 0); /* bytes of settings.deny; 0: no message is refused */
LOAD_CONST(1, cork_size, 0); /* hold bytes back until there are as many */
LOAD_CONST(2, apply_size, 0); /* judge as many bytes at once */
LOAD_CONST(3, write_seq, 0); /* offset of tcp_sock.write_seq */

#define DENY_MAX    64
#define AF_INET6    10
#define V4_MAPPED   bpf_htonl(0xffff)
#define OTHER_PORTS 0 /* the key of ports for what it has no room for */

/* Addresses are IPv6's; an IPv4 address is ::ffff:a.b.c.d, whichever family the socket has. */
struct tuple {
	u64 netns; /* cookie */
	__be32 local_addr[4];
	__be32 remote_addr[4];
	u32 local_port; /* host byte order, as the next */
	u32 remote_port;
};

struct end {
	struct tuple tuple;
	u32 local_seq; /* of the first byte that this end sends */
	u32 remote_seq;
};

struct end_state {
	struct end self;
	struct end peer;
	u32 port; /* the listener's */
	u32 is_active; /* this end did the connect(2) */
	u32 is_plain; /* nothing that it sends is redirected any more */
	u32 has_sent; /* its first message was judged */
};

struct settings {
	u32 stops; /* new messages go by TCP, new connections do not enter */
	char deny[DENY_MAX];
};

struct port_count {
	u64 connections;
	u64 redirected;
	u64 redirected_bytes;
	u64 passed;
	u64 passed_bytes;
	u64 denied;
	u64 denied_bytes;
};

enum {
	OPENED_WAITS, /* in socks, the passive end is not yet */
	OPENED_OUT, /* not in socks: counted already */
};

enum {
	PLAIN_ELSEWHERE, /* the other end is not in the cgroup and this namespace */
	PLAIN_EARLY, /* data was sent before the other end was established */
	PLAIN_FULL, /* socks has no room */
	PLAIN_REFUSED, /* the kernel does not let the socket in: MPTCP, kTLS, another sockmap */
	PLAIN_KTLS, /* setsockopt(TCP_ULP) of a socket in the map, refused */
	PLAIN_REASONS,
};

BPF_ARRAY(scope, u8, 65536);
BPF_ARRAY(settings, struct settings, 1);
BPF_TABLE("lru_hash", struct tuple, u8, announced, 65536);
BPF_TABLE("lru_hash", struct end, u32, opened, 65536);
BPF_SOCKHASH(socks, struct end, 65536);
BPF_SK_STORAGE(ends, struct end_state);
BPF_TABLE("percpu_hash", u32, struct port_count, ports, 1024);
BPF_ARRAY(plain, u64, PLAIN_REASONS);

static __always_inline void count_plain(u32 reason)
{
	count_one(plain.lookup(&reason));
}

static __always_inline bool in_scope(u32 port)
{
	u8 *in = scope.lookup(&port);

	return in && *in;
}

static __always_inline bool stops(void)
{
	u32 zero = 0;
	struct settings *s = settings.lookup(&zero);

	return s && s->stops;
}

static __always_inline struct port_count *port_count(u32 port)
{
	struct port_count *n = ports.lookup(&port);
	u32 other = OTHER_PORTS;

	return n ? n : ports.lookup(&other);
}

/* ------------------------------------------------------------------ who is in the map */

static __always_inline void set_ports(struct tuple *t, const struct bpf_sock_ops *ctx)
{
	t->local_port = ctx->local_port;
	t->remote_port = bpf_ntohl(ctx->remote_port);
}

/* Each field in a load of its own: the verifier takes no pointer into the context. */
#define FIELD(x)                     \
	({                           \
		u32 __x = (x);       \
		asm("" : "+r"(__x)); \
		__x;                 \
	})

static __always_inline void set_ipv4(struct tuple *t, const struct bpf_sock_ops *ctx)
{
	__be32 local = FIELD(ctx->local_ip4), remote = FIELD(ctx->remote_ip4);

	t->local_addr[0] = t->remote_addr[0] = 0;
	t->local_addr[1] = t->remote_addr[1] = 0;
	t->local_addr[2] = t->remote_addr[2] = V4_MAPPED;
	t->local_addr[3] = local;
	t->remote_addr[3] = remote;
}

static __always_inline void set_ipv6(struct tuple *t, const struct bpf_sock_ops *ctx)
{
	t->local_addr[0] = FIELD(ctx->local_ip6[0]);
	t->local_addr[1] = FIELD(ctx->local_ip6[1]);
	t->local_addr[2] = FIELD(ctx->local_ip6[2]);
	t->local_addr[3] = FIELD(ctx->local_ip6[3]);
	t->remote_addr[0] = FIELD(ctx->remote_ip6[0]);
	t->remote_addr[1] = FIELD(ctx->remote_ip6[1]);
	t->remote_addr[2] = FIELD(ctx->remote_ip6[2]);
	t->remote_addr[3] = FIELD(ctx->remote_ip6[3]);
}

static __always_inline void swap_tuple(struct tuple *to, const struct tuple *from)
{
	to->netns = from->netns;
	to->local_addr[0] = from->remote_addr[0];
	to->local_addr[1] = from->remote_addr[1];
	to->local_addr[2] = from->remote_addr[2];
	to->local_addr[3] = from->remote_addr[3];
	to->remote_addr[0] = from->local_addr[0];
	to->remote_addr[1] = from->local_addr[1];
	to->remote_addr[2] = from->local_addr[2];
	to->remote_addr[3] = from->local_addr[3];
	to->local_port = from->remote_port;
	to->remote_port = from->local_port;
}

/*
 * A SYN has come to a listener of the cgroup.  A listener of IPv6 takes IPv4, too, and its request
 * does not say which of the two this one is: both are announced.  The tuple that is wrong is nobody's.
 */
static __always_inline void announce(struct bpf_sock_ops *ctx)
{
	struct tuple t = {};
	u8 one = 1;

	set_ports(&t, ctx);
	if (!in_scope(t.local_port))
		return;
	t.netns = bpf_get_netns_cookie(ctx);
	set_ipv4(&t, ctx);
	announced.update(&t, &one);
	if (ctx->family == AF_INET6) {
		set_ipv6(&t, ctx);
		announced.update(&t, &one);
	}
}

static __always_inline void fill_state(struct end_state *s, struct bpf_sock_ops *ctx)
{
	s->self.tuple.netns = bpf_get_netns_cookie(ctx);
	set_ports(&s->self.tuple, ctx);
	/* An IPv6 socket with an IPv4 peer has both forms of the addresses. */
	if (ctx->family == AF_INET6 && !(ctx->remote_ip6[0] == 0 && ctx->remote_ip6[1] == 0 &&
					 ctx->remote_ip6[2] == V4_MAPPED))
		set_ipv6(&s->self.tuple, ctx);
	else
		set_ipv4(&s->self.tuple, ctx);
	s->self.local_seq = ctx->snd_nxt;
	s->self.remote_seq = ctx->rcv_nxt;
	swap_tuple(&s->peer.tuple, &s->self.tuple);
	s->peer.local_seq = s->self.remote_seq;
	s->peer.remote_seq = s->self.local_seq;
}

/* Put the socket into the map; 0, or the reason why that was not possible. */
static __always_inline int put_in(struct bpf_sock_ops *ctx, struct end_state *s)
{
	struct bpf_sock *sk = ctx->sk;
	struct end_state *state;
	long err;

	if (!sk)
		return PLAIN_REFUSED;
	/* The state first: a socket that is in the map may send. */
	state = ends.sk_storage_get(sk, s, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state)
		return PLAIN_FULL;
	*state = *s; /* a socket may connect a second time */
	err = socks.sock_hash_update(ctx, &s->self, BPF_NOEXIST);
	if (!err)
		return 0;
	ends.sk_storage_delete(sk);
	return err == -E2BIG || err == -ENOMEM ? PLAIN_FULL : PLAIN_REFUSED;
}

/* The active end leaves again, before anything can have been redirected to it; 0 if it was there. */
static __always_inline int take_out(struct end *active)
{
	if (cork_size())
		return -EBUSY; /* what is held back would be lost */
	return socks.delete(active);
}

static __always_inline void enter_active(struct bpf_sock_ops *ctx)
{
	struct end_state s = { .is_active = 1 };
	u32 waits = OPENED_WAITS;
	int reason;

	if (!in_scope(bpf_ntohl(ctx->remote_port)) || stops())
		return;
	fill_state(&s, ctx);
	s.port = s.self.tuple.remote_port;
	if (announced.delete(&s.peer.tuple)) {
		count_plain(PLAIN_ELSEWHERE);
		return;
	}
	if (ctx->snd_una != ctx->snd_nxt) { /* data was in the SYN */
		count_plain(PLAIN_EARLY);
		return;
	}
	opened.update(&s.self, &waits);
	reason = put_in(ctx, &s);
	if (reason) {
		waits = OPENED_OUT;
		opened.update(&s.self, &waits);
		count_plain(reason);
	}
}

static __always_inline void enter_passive(struct bpf_sock_ops *ctx)
{
	struct end_state s = {};
	struct port_count none = {}, *n;
	struct bpf_sock *sk = ctx->sk;
	u32 *state;
	int reason;

	if (!in_scope(ctx->local_port) || stops())
		return;
	fill_state(&s, ctx);
	s.port = s.self.tuple.local_port;
	state = opened.lookup(&s.peer);
	if (!state) {
		/* A server established by the SYN itself (TCP Fast Open) is before its client. */
		announced.delete(&s.self.tuple);
		count_plain(take_out(&s.peer) ? PLAIN_ELSEWHERE : PLAIN_EARLY);
		return;
	}
	if (*state == OPENED_OUT) {
		opened.delete(&s.peer);
		return;
	}
	reason = put_in(ctx, &s);
	if (opened.delete(&s.peer)) {
		/* The active end has just sent by TCP; or its entry was the oldest of too many. */
		if (!reason) {
			socks.delete(&s.self);
			if (sk)
				ends.sk_storage_delete(sk);
		}
		reason = PLAIN_EARLY;
	}
	if (reason) {
		take_out(&s.peer);
		count_plain(reason);
		return;
	}
	n = ports.lookup_or_try_init(&s.port, &none);
	if (!n)
		n = port_count(OTHER_PORTS);
	if (n)
		n->connections++;
}

SEC("sockops")
int enter(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_RWND_INIT: /* asked for a connection request before the SYN-ACK is sent */
		if (!ctx->is_fullsock)
			announce(ctx);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		enter_active(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		enter_passive(ctx);
		break;
	}
	return 1; /* ctx->reply stays as it is: other programs may answer */
}

/*
 * kTLS on a socket in the map would hand clear text to the other end, which expects TLS records, or
 * take records for clear text.  Later kernels refuse it themselves, with the same errno.
 */
SEC("cgroup/setsockopt")
int no_ktls(struct bpf_sockopt *ctx)
{
	if (ctx->level != IPPROTO_TCP || ctx->optname != TCP_ULP)
		return 1;
	if (!ctx->sk || !ends.sk_storage_get(ctx->sk, 0, 0))
		return 1;
	count_plain(PLAIN_KTLS);
	bpf_set_retval(-EINVAL);
	return 0;
}

/* ------------------------------------------------------------------ the messages */

/* Does the message begin with the denied text? */
static __always_inline bool is_denied(struct sk_msg_md *msg)
{
	u32 size = deny_size(), zero = 0, i;
	struct settings *s;
	char *data, *end;

	if (!size || size > DENY_MAX || msg->size < size)
		return false;
	if (bpf_msg_pull_data(msg, 0, size, 0))
		return false;
	s = settings.lookup(&zero);
	if (!s)
		return false;
	data = msg->data;
	end = msg->data_end;
#pragma unroll
	for (i = 0; i < DENY_MAX; i++) {
		if (i >= size)
			return true;
		if (data + i + 1 > end || data[i] != s->deny[i])
			return false;
	}
	return true;
}

/* Redirect to the other end; false: it is not in the map. */
static __always_inline bool redirect_to_peer(struct sk_msg_md *msg, struct end_state *s)
{
	if (socks.msg_redirect_hash(msg, &s->peer, BPF_F_INGRESS) == SK_PASS)
		return true;
	/*
	 * The passive end may be about to enter.  Whoever deletes the entry decides: if that is the
	 * passive end, it is in the map by now.
	 */
	if (s->is_active && opened.delete(&s->self))
		return socks.msg_redirect_hash(msg, &s->peer, BPF_F_INGRESS) == SK_PASS;
	return false;
}

/* The helper is not in every BCC's list (kernel 5.9). */
static void *(*skc_to_tcp_sock)(void *sk) = (void *)BPF_FUNC_skc_to_tcp_sock;

/*
 * Has TCP bytes of this socket from before it entered the map?  A sendmsg(2) that began before the
 * handshake, or in it (TCP Fast Open), goes to its end without this program.
 */
static __always_inline bool has_tcp_bytes(const struct sk_msg_md *msg, const struct end_state *s)
{
	void *tp = skc_to_tcp_sock(msg->sk);

	return !tp || *(u32 *)(tp + write_seq()) != s->self.local_seq;
}

/* After shutdown(SHUT_WR) or a reset the kernel redirects all the same; TCP has the errno for it. */
static __always_inline bool may_send(const struct sk_msg_md *msg)
{
	u32 state = msg->sk->state;

	return state == BPF_TCP_ESTABLISHED || state == BPF_TCP_CLOSE_WAIT;
}

SEC("sk_msg")
int redirect(struct sk_msg_md *msg)
{
	u64 size = msg->size, covered = apply_size();
	struct end_state *s;
	struct port_count *n;

	if (!msg->sk)
		return SK_PASS;
	s = ends.sk_storage_get(msg->sk, 0, 0);
	if (!s)
		return SK_PASS;
	n = port_count(s->port);
	if (is_denied(msg)) {
		if (n) {
			n->denied++;
			n->denied_bytes += size;
		}
		return SK_DROP;
	}
	if (cork_size() > size && !stops()) {
		bpf_msg_cork_bytes(msg, cork_size());
		return SK_PASS; /* asked again when the bytes are there */
	}
	if (!s->has_sent) {
		s->has_sent = 1;
		if (has_tcp_bytes(msg, s)) {
			s->is_plain = 1;
			count_plain(PLAIN_EARLY);
		}
	}
	if (covered)
		bpf_msg_apply_bytes(msg, covered);
	else
		covered = size;
	if (!s->is_plain && !stops() && may_send(msg) && redirect_to_peer(msg, s)) {
		if (n) {
			n->redirected++;
			n->redirected_bytes += covered;
		}
		return SK_PASS;
	}
	s->is_plain = 1;
	if (n) {
		n->passed++;
		n->passed_bytes += covered;
	}
	return SK_PASS;
}
