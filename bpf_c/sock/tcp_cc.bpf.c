/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * tcp_cc: a TCP congestion control, additive increase and multiplicative decrease (AIMD)
 * ======================================================================================
 *
 * hook      the members of struct tcp_congestion_ops (STRUCT_OPS): each is a program, and together
 *           they are an algorithm that sockets choose by name, setsockopt(TCP_CONGESTION)
 * context   an array of u64, the member's arguments; the first is the socket
 * packets   not seen; it may write snd_cwnd, snd_cwnd_cnt, snd_ssthresh and the 104 bytes of
 *           icsk_ca_priv
 *
 *   ACK -> in_ack_event -> open, cwnd was the limit? -> cong_avoid    cwnd < ssthresh: + acked
 *              |                                                      else: + `increase` per round trip
 *              |        -> loss, ECN                 -> ssthresh      cwnd * `keep` / 1024, at least 2
 *              |        -> it was none               -> undo_cwnd     what it was before
 *              +---------> cwnd or ssthresh differs from what was noted last: an event
 *
 * With increase 1 and keep 512 that is Reno (RFC 5681). During fast recovery the kernel itself lowers
 * cwnd, by proportional rate reduction (RFC 6937), and after a timeout it sets cwnd to 1 and what is in
 * flight; both are noted by the next of these programs that is called.
 *
 * Offsets in kernel structs differ between kernels, so this source is compiled against the running
 * kernel's own types (BTF). The pointers come out of the context as numbers: of pointers, BCC would
 * turn each read into a call of bpf_probe_read_kernel().
 *
 * Maps
 *   connections  lru_hash  number of the connection, from 1 -> struct connection
 *   last_number  array     0 -> connections so far
 *   changes      ringbuf   struct change
 *   lost         array     0 -> changes that the ring buffer had no room for
 */
#include <net/tcp.h>
#include <bpfkit/bpfkit.h>

LOAD_CONST(0, increase, 1); /* segments per round trip */
LOAD_CONST(1, keep, 512); /* of 1024 parts of cwnd, those left after a loss */

#define LEAST_CWND 2
#define CWR        2 /* TCP_CA_CWR */
#define LOSS       4 /* TCP_CA_Loss */
#define INET6      10 /* AF_INET6 */

/* In icsk_ca_priv, which the kernel clears before init. */
struct aimd {
	u32 number; /* of the connection */
	u32 cwnd; /* as noted last */
	u32 ssthresh;
};

struct connection {
	u64 opened_ns; /* CLOCK_MONOTONIC */
	u64 closed_ns; /* 0: open */
	__be32 src[4]; /* IPv4: the first word */
	__be32 dst[4];
	u16 family; /* AF_INET, AF_INET6 */
	u16 sport; /* host order */
	__be16 dport;
	u16 state; /* TCP_CA_* */
	u32 cwnd; /* segments */
	u32 ssthresh;
	u32 max_cwnd;
	u32 reductions; /* calls of ssthresh */
	u32 timeouts;
	u32 undone;
	u32 repaired; /* values of ssthresh that were not this program's, see repair() */
	u64 acked; /* segments that made cwnd grow, or could have */
};

struct change {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 number; /* of the connection */
	u32 cwnd;
	u32 ssthresh;
	u32 state;
};

BPF_TABLE("lru_hash", u32, struct connection, connections, 8192);
BPF_ARRAY(last_number, u32, 1);
BPF_RINGBUF_OUTPUT(changes, 256);
EVENT_TYPE(changes, struct change);
BPF_ARRAY(lost, u64, 1);

static __always_inline struct tcp_sock *tcp_of(const u64 *ctx)
{
	return (struct tcp_sock *)ctx[0];
}

static __always_inline struct aimd *aimd_of(struct tcp_sock *tp)
{
	return (struct aimd *)tp->inet_conn.icsk_ca_priv;
}

/* Note cwnd and ssthresh if they differ from what was noted last. */
static __always_inline void note(struct tcp_sock *tp, u32 state)
{
	struct aimd *own = aimd_of(tp);
	u32 cwnd = tp->snd_cwnd, ssthresh = tp->snd_ssthresh, number = own->number, zero = 0;
	struct connection *c;
	struct change *event;
	u64 *n;

	if (!number || (cwnd == own->cwnd && ssthresh == own->ssthresh))
		return;
	own->cwnd = cwnd;
	own->ssthresh = ssthresh;
	c = connections.lookup(&number);
	if (c) {
		c->cwnd = cwnd;
		c->ssthresh = ssthresh;
		c->state = state;
		if (cwnd > c->max_cwnd)
			c->max_cwnd = cwnd;
	}
	event = changes.ringbuf_reserve(sizeof(*event));
	if (!event) {
		n = lost.lookup(&zero);
		if (n)
			__sync_fetch_and_add(n, 1);
		return;
	}
	event->time_ns = bpf_ktime_get_ns();
	event->number = number;
	event->cwnd = cwnd;
	event->ssthresh = ssthresh;
	event->state = state;
	changes.ringbuf_submit(event, 0);
}

static __always_inline u32 state_of(struct tcp_sock *tp)
{
	return tp->inet_conn.icsk_ca_state;
}

SEC("struct_ops/tcp_congestion_ops.init")
int init(u64 *ctx)
{
	struct tcp_sock *tp = tcp_of(ctx);
	struct sock *sk = (struct sock *)ctx[0];
	struct connection c = {};
	u32 zero = 0, number = 0, i;
	u32 *last = last_number.lookup(&zero);

	if (!last)
		return 0;
	c.opened_ns = bpf_ktime_get_ns();
	c.family = sk->__sk_common.skc_family;
	c.sport = sk->__sk_common.skc_num;
	c.dport = sk->__sk_common.skc_dport;
	if (c.family == INET6) {
		bpf_probe_read_kernel(c.src, sizeof(c.src), &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(c.dst, sizeof(c.dst), &sk->__sk_common.skc_v6_daddr);
	} else {
		c.src[0] = sk->__sk_common.skc_rcv_saddr;
		c.dst[0] = sk->__sk_common.skc_daddr;
	}
	/* Another CPU may have counted on between the addition and the read: then the number is taken. */
#pragma unroll
	for (i = 0; i < 4; i++) {
		lock_xadd(last, 1);
		number = *last;
		if (!connections.insert(&number, &c))
			break;
	}
	aimd_of(tp)->number = number;
	note(tp, state_of(tp));
	return 0;
}

SEC("struct_ops/tcp_congestion_ops.release")
int release(u64 *ctx)
{
	struct tcp_sock *tp = tcp_of(ctx);
	u32 number = aimd_of(tp)->number;
	struct connection *c = connections.lookup(&number);

	note(tp, state_of(tp));
	if (c)
		c->closed_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline u32 reduced(u32 cwnd)
{
	u32 left = (u64)cwnd * keep() >> 10;

	return left > LEAST_CWND ? left : LEAST_CWND;
}

/* The slow start threshold after a loss; the kernel lowers cwnd to it. */
SEC("struct_ops/tcp_congestion_ops.ssthresh")
int ssthresh(u64 *ctx)
{
	struct tcp_sock *tp = tcp_of(ctx);
	u32 number = aimd_of(tp)->number;
	struct connection *c = connections.lookup(&number);

	if (c)
		c->reductions++;
	return reduced(tp->snd_cwnd);
}

/* Did the sender use all of cwnd? If not, an ACK says nothing about a larger one (RFC 7661). */
static __always_inline bool cwnd_limited(struct tcp_sock *tp, u32 cwnd)
{
	if (tp->is_cwnd_limited)
		return true;
	return cwnd < tp->snd_ssthresh && cwnd < 2 * tp->max_packets_out;
}

SEC("struct_ops/tcp_congestion_ops.cong_avoid")
int cong_avoid(u64 *ctx)
{
	struct tcp_sock *tp = tcp_of(ctx);
	u32 acked = ctx[2], cwnd = tp->snd_cwnd, ssthresh = tp->snd_ssthresh;
	u32 number = aimd_of(tp)->number, clamp = tp->snd_cwnd_clamp, count, grown;
	struct connection *c;

	if (!cwnd_limited(tp, cwnd))
		return 0;
	c = connections.lookup(&number);
	if (c)
		c->acked += acked;
	if (cwnd < ssthresh) {
		grown = cwnd + acked < ssthresh ? cwnd + acked : ssthresh;
		acked -= grown - cwnd;
		cwnd = grown;
	}
	if (acked) {
		/* `increase` segments for each cwnd of them acknowledged */
		count = tp->snd_cwnd_cnt + acked * (u32)increase();
		if (cwnd && count >= cwnd) {
			grown = count / cwnd;
			count -= grown * cwnd;
			cwnd += grown;
		}
		tp->snd_cwnd_cnt = count;
	}
	tp->snd_cwnd = cwnd < clamp ? cwnd : clamp;
	note(tp, state_of(tp));
	return 0;
}

/* The loss was none (the packets came late): cwnd as it was before. */
SEC("struct_ops/tcp_congestion_ops.undo_cwnd")
int undo_cwnd(u64 *ctx)
{
	struct tcp_sock *tp = tcp_of(ctx);
	u32 number = aimd_of(tp)->number;
	struct connection *c = connections.lookup(&number);

	if (c)
		c->undone++;
	return tp->snd_cwnd > tp->prior_cwnd ? tp->snd_cwnd : tp->prior_cwnd;
}

/*
 * In CWR, Recovery and Loss, ssthresh is what ssthresh() returned, never more than cwnd was before. Now
 * and then on a busy machine with Linux 6.18 it was far more (0x81101510 each time), and proportional
 * rate reduction let cwnd grow up to it. The kernel then entered Recovery without a run of the program:
 * of 325 connections, 324 had one call of ssthresh() per reduction, and the one with such a value had
 * one less (the kernel counts no recursion miss). What a trampoline returns for a program that did not
 * run is what was in its stack frame. Such a value is replaced, and counted.
 */
static __always_inline void repair(struct tcp_sock *tp, u32 state)
{
	u32 before = tp->prior_cwnd, number = aimd_of(tp)->number;
	struct connection *c;

	if (state < CWR || !before || tp->snd_ssthresh <= before + LEAST_CWND)
		return;
	tp->snd_ssthresh = reduced(before);
	if (tp->snd_cwnd > before)
		tp->snd_cwnd = before;
	c = connections.lookup(&number);
	if (c)
		c->repaired++;
}

/* Each ACK, before anything is done about it: what the kernel itself changed since the last one. */
SEC("struct_ops/tcp_congestion_ops.in_ack_event")
int in_ack_event(u64 *ctx)
{
	struct tcp_sock *tp = tcp_of(ctx);
	u32 state = state_of(tp);

	repair(tp, state);
	note(tp, state);
	return 0;
}

SEC("struct_ops/tcp_congestion_ops.set_state")
int set_state(u64 *ctx)
{
	struct tcp_sock *tp = tcp_of(ctx);
	u32 number = aimd_of(tp)->number, state = (u8)ctx[1];
	struct connection *c = connections.lookup(&number);

	repair(tp, state);
	if (c) {
		c->state = state;
		if (state == LOSS)
			c->timeouts++;
	}
	note(tp, state);
	return 0;
}

/* Among others: the end of a reduction, and a restart after a pause. */
SEC("struct_ops/tcp_congestion_ops.cwnd_event")
int cwnd_event(u64 *ctx)
{
	struct tcp_sock *tp = tcp_of(ctx);

	note(tp, state_of(tp));
	return 0;
}
