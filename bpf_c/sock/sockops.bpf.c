/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sockops: the life of each TCP connection of a cgroup, and its options by destination
 * ====================================================================================
 *
 * hook      points in the life of the TCP sockets that the cgroup's processes make (SOCK_OPS)
 * context   struct bpf_sock_ops: op says which point; the socket's addresses, state and counters
 * may       set socket options, and answer TIMEOUT_INIT with the first retransmission timeout
 * packets   not changed; a segment's TCP header is read while the peer's window is small
 *
 *   connect(2) -- TCP_CONNECT --- TIMEOUT_INIT - SYN ->   <- SYN - TIMEOUT_INIT --- TCP_LISTEN -- listen(2)
 *                     |                                   - SYN-ACK, HDR_OPT_LEN ->      |
 *              options, owner      ACTIVE_ESTABLISHED     PASSIVE_ESTABLISHED          owner
 *                                                 |         |
 *                                    RTT, RETRANS, PARSE_HDR_OPT (window 0), STATE
 *                                                 |
 *                                   STATE -> TCP_CLOSE: counters of struct tcp_sock -> event
 *
 * What is known of a connection is stored with its socket. An accepted socket starts with a copy of its
 * listener's (BPF_F_CLONE), and so has the listener's process: these callbacks run in softirq, where
 * the current process is any. The counters are those that TCP_INFO shows; their offsets differ between
 * kernels, so this source is compiled against the running kernel's own types (BTF).
 *
 * Not seen: repeated SYN-ACKs of a listener from before the program (the child's counter has them), and
 * the windows that this end closes: they are the peer's to see.
 *
 * Maps
 *   conns    sk_storage  socket -> struct conn; the iterator `live` reads them all
 *   rules    lpm_trie    remote prefix -> struct rule
 *   syn_ack  lru_hash    struct ends -> time of the first SYN-ACK, where one was repeated
 *   events   ringbuf     struct event
 *   count    percpu_array  OPENED, CLOSED, LOST, LOST_CLOSES -> sockets; events that found no room
 */
#include <linux/tcp.h>
#include <linux/sched.h>
#include <linux/filter.h>
#include <bpfkit/bpfkit.h>
#include <bpfkit/maps.h>
#include "sockops_records.h"

LOAD_CONST(0, report, 0); /* kinds of events wanted: 1 << EVENT_... */
LOAD_CONST(1, traced, 0); /* 1: a line in trace_pipe for each event, too */
LOAD_CONST(2, has_rules, 0); /* 1: options by destination */

#define RING_BYTES  (16 << 20)
#define CA_RECOVERY 3 /* TCP_CA_Recovery */
#define CA_LOSS     4 /* TCP_CA_Loss */
#define TCP_WINDOW  14 /* offset of the window in struct tcphdr */

BPF_F_TABLE("lpm_trie", struct prefix, struct rule, rules, 4096, BPF_F_NO_PREALLOC);
BPF_TABLE("lru_hash", struct ends, u64, syn_ack, 8192);
BPF_TABLE("percpu_array", u32, u64, count, COUNTS);
BPFKIT_MAP(1, BPF_MAP_TYPE_RINGBUF, events, void, void, RING_BYTES, 0, 0);
EVENT_TYPE(events, struct event);
BPFKIT_MAP(0, BPF_MAP_TYPE_SK_STORAGE, conns, int, struct conn, 0, BPF_F_NO_PREALLOC | BPF_F_CLONE,
	   0);

/* Atomic on a CPU's own value, too: a callback in softirq interrupts one in a system call. */
static __always_inline void add_one(u32 which)
{
	count_one(count.lookup(&which));
}

static __always_inline struct conn *conn_of(struct bpf_sock_ops *ctx, u64 flags)
{
	struct bpf_sock *sk = ctx->sk;

	return sk ? bpf_sk_storage_get(BPFKIT_MAP_REF(conns), sk, 0, flags) : 0;
}

/* The current process; only in callbacks that a system call makes. */
static __always_inline void own(struct conn *c)
{
	void *task = (void *)bpf_get_current_task(), *leader = task;

	bpf_probe_read_kernel(&c->pid, sizeof(c->pid), task + offsetof(struct task_struct, tgid));
	bpf_probe_read_kernel(&leader, sizeof(leader),
			      task + offsetof(struct task_struct, group_leader));
	bpf_probe_read_kernel(c->comm, sizeof(c->comm),
			      leader + offsetof(struct task_struct, comm));
}

#include "sockops_options.h"
#include "sockops_trace.h"

/* Flags that other programs set stay set; a kernel that lacks one ignores it. */
static __always_inline void add_flags(struct bpf_sock_ops *ctx, u32 flags)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | flags);
}

static __always_inline void remove_flags(struct bpf_sock_ops *ctx, u32 flags)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags & ~flags);
}

#define LIFE_FLAGS (BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RETRANS_CB_FLAG)

static __always_inline void on_listen(struct bpf_sock_ops *ctx)
{
	struct conn *c = conn_of(ctx, BPF_SK_STORAGE_GET_F_CREATE);

	if (!c)
		return;
	c->side = SIDE_LISTENER;
	c->begun_ns = bpf_ktime_get_ns();
	own(c);
	if (!(ctx->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG)) {
		c->header_flag = 1;
		add_flags(ctx, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
	}
}

static __always_inline void on_connect(struct bpf_sock_ops *ctx)
{
	struct conn *c = conn_of(ctx, BPF_SK_STORAGE_GET_F_CREATE);

	if (!c)
		return;
	__builtin_memset(c, 0, sizeof(*c)); /* the socket may have had a connection before */
	c->side = SIDE_ACTIVE;
	c->open = 1;
	c->begun_ns = bpf_ktime_get_ns();
	own(c);
	add_flags(ctx, LIFE_FLAGS);
	set_options(ctx, c);
	add_one(OPENED);
}

static __always_inline struct conn *on_established(struct bpf_sock_ops *ctx, struct tcp_sock *tp,
						   struct news *news)
{
	bool active = ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB;
	struct conn *c = conn_of(ctx, active ? 0 : BPF_SK_STORAGE_GET_F_CREATE);
	u64 now = bpf_ktime_get_ns(), *first;
	struct ends ends = {};

	if (!c)
		return 0;
	news->now_ns = now;
	if (active) {
		c->handshake_us = (now - c->begun_ns) / 1000;
	} else {
		c->side = SIDE_PASSIVE;
		c->open = 1;
		c->begun_ns = now;
		/* The first RTT sample is the SYN-ACK's. */
		c->handshake_us = tp->srtt_us >> 3;
		c->retransmits[CAUSE_SYN_ACK] = tp->total_retrans;
		if (tp->total_retrans) {
			ends_of(ctx, &ends);
			first = syn_ack.lookup(&ends);
			c->handshake_us = first ? (now - *first) / 1000 : 0;
			syn_ack.delete(&ends);
		}
		if (c->header_flag) {
			c->header_flag = 0;
			remove_flags(ctx, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
		}
		set_options(ctx, c);
		add_one(OPENED);
	}
	if (tp->srtt_us) { /* the handshake's sample, which comes before the flag is set */
		c->rtt_min_us = tp->srtt_us >> 3;
		c->rtt_max_us = c->rtt_min_us;
		c->rtt_samples = 1;
	}
	c->established_ns = now;
	set_window(ctx, c);
	add_flags(ctx, LIFE_FLAGS | BPF_SOCK_OPS_RTT_CB_FLAG);
	return c;
}

/*
 * A SYN-ACK is being made for a request socket. Is it a repeated one? Only the first answers a SYN that
 * the kernel has at hand.
 */
static __always_inline bool on_syn_ack(struct bpf_sock_ops *ctx, struct news *news)
{
	void *request = 0, *syn = 0;
	struct ends ends = {};
	u64 first = 0;

	bpf_probe_read_kernel(&syn, sizeof(syn),
			      (void *)ctx + offsetof(struct bpf_sock_ops_kern, syn_skb));
	if (syn)
		return false;
	bpf_probe_read_kernel(&request, sizeof(request),
			      (void *)ctx + offsetof(struct bpf_sock_ops_kern, sk));
	bpf_probe_read_kernel(&first, sizeof(first),
			      request + offsetof(struct tcp_request_sock, snt_synack));
	if (first) { /* us */
		first *= 1000;
		ends_of(ctx, &ends);
		syn_ack.update(&ends, &first);
	}
	news->kind = EVENT_RETRANSMIT;
	news->cause = CAUSE_SYN_ACK;
	news->segments = 1;
	return true;
}

static __always_inline u32 cause_of(struct bpf_sock_ops *ctx, struct tcp_sock *tp)
{
	u32 phase = tp->inet_conn.icsk_ca_state;

	if (ctx->state == BPF_TCP_SYN_SENT)
		return CAUSE_SYN;
	if (ctx->state == BPF_TCP_SYN_RECV || ctx->state == BPF_TCP_NEW_SYN_RECV)
		return CAUSE_SYN_ACK;
	if (phase == CA_LOSS)
		return CAUSE_RTO;
	return phase == CA_RECOVERY ? CAUSE_FAST : CAUSE_PROBE;
}

/* args: sequence number, segments, error of the transmission */
static __always_inline void on_retransmit(struct bpf_sock_ops *ctx, struct conn *c,
					  struct tcp_sock *tp, struct news *news)
{
	u32 cause = cause_of(ctx, tp);

	news->kind = EVENT_RETRANSMIT;
	news->cause = cause;
	news->segments = ctx->args[1];
	news->old_state = ctx->state;
	c->retransmits[cause] += news->segments;
}

static __always_inline bool on_window(struct bpf_sock_ops *ctx, struct conn *c, u32 window,
				      struct news *news)
{
	u64 now;

	if (!window == !!c->zero_since_ns)
		return false;
	now = bpf_ktime_get_ns();
	news->now_ns = now;
	if (window) {
		c->zero_ns += now - c->zero_since_ns;
		c->zero_since_ns = 0;
		news->kind = EVENT_WINDOW_OPEN;
		return true;
	}
	c->zero_since_ns = now;
	c->zero_windows++;
	news->kind = EVENT_ZERO_WINDOW;
	return true;
}

/*
 * A segment that closes or opens the window need not bring an RTT sample: while the window is smaller
 * than a segment, each segment is looked at.
 */
static __always_inline void watch_window(struct bpf_sock_ops *ctx, struct conn *c,
					 struct tcp_sock *tp)
{
	bool small = tp->snd_wnd < tp->mss_cache;

	if (small == c->watched)
		return;
	c->watched = small;
	if (small)
		add_flags(ctx, BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG);
	else
		remove_flags(ctx, BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG);
}

/* args: measured RTT in us, smoothed RTT in us << 3; both 0 in kernels that have no arguments here */
static __always_inline void on_rtt(struct bpf_sock_ops *ctx, struct conn *c, struct tcp_sock *tp)
{
	u32 rtt = ctx->args[1] ? ctx->args[0] : tp->srtt_us >> 3;

	if (!c->rtt_samples || rtt < c->rtt_min_us)
		c->rtt_min_us = rtt;
	if (rtt > c->rtt_max_us)
		c->rtt_max_us = rtt;
	c->rtt_samples++;
}

static __always_inline bool on_segment(struct bpf_sock_ops *ctx, struct conn *c, struct news *news)
{
	void *data = ctx->skb_data, *data_end = ctx->skb_data_end;
	__be16 *window = data + TCP_WINDOW;

	return (void *)(window + 1) <= data_end && on_window(ctx, c, *window, news);
}

/*
 * close(2) with unread data, or without lingering: the kernel sets the state first and sends the RST
 * then. In FIN_WAIT2 the other way to the end is the peer's FIN (SOCK_DONE).
 */
static __always_inline bool is_abort(struct tcp_sock *tp, u32 old_state)
{
	unsigned long flags = tp->inet_conn.icsk_inet.sk.__sk_common.skc_flags;

	if (tp->inet_conn.icsk_inet.sk.sk_err || tp->repair || flags & 1 << SOCK_DEAD)
		return false;
	if (old_state == BPF_TCP_FIN_WAIT2)
		return !(flags & 1 << SOCK_DONE);
	return old_state == BPF_TCP_ESTABLISHED || old_state == BPF_TCP_SYN_RECV ||
	       old_state == BPF_TCP_CLOSE_WAIT || old_state == BPF_TCP_FIN_WAIT1;
}

/* args: old state, new state */
static __always_inline bool on_state(struct bpf_sock_ops *ctx, struct conn *c, struct tcp_sock *tp,
				     struct news *news)
{
	news->kind = EVENT_STATE;
	news->old_state = ctx->args[0];
	news->new_state = ctx->args[1];
	if (news->new_state != BPF_TCP_CLOSE)
		return true;
	if (!c->open)
		return false;
	c->open = 0;
	add_one(CLOSED);
	news->kind = c->established_ns ? EVENT_CLOSE : EVENT_FAILED;
	news->aborted = is_abort(tp, news->old_state);
	return true;
}

static __always_inline void read_counters(struct counters *to, struct tcp_sock *tp)
{
	to->bytes_sent = tp->bytes_sent;
	to->bytes_received = tp->bytes_received;
	to->bytes_acked = tp->bytes_acked;
	to->bytes_retrans = tp->bytes_retrans;
	to->segs_out = tp->segs_out;
	to->segs_in = tp->segs_in;
	to->retransmits = tp->total_retrans;
	to->srtt_us = tp->srtt_us >> 3;
}

/* c and tp are NULL for a request socket, which has neither. */
static __always_inline void send(struct bpf_sock_ops *ctx, const struct conn *c,
				 struct tcp_sock *tp, const struct news *news)
{
	struct event *e;

	if (!(report() & 1 << news->kind))
		return;
	/* Whatever floods the ring, it leaves room for the close events. */
	if (news->kind != EVENT_CLOSE &&
	    bpf_ringbuf_query(BPFKIT_MAP_REF(events), BPF_RB_AVAIL_DATA) > RING_BYTES / 2) {
		add_one(LOST);
		return;
	}
	e = bpf_ringbuf_reserve(BPFKIT_MAP_REF(events), sizeof(*e), 0);
	if (!e) {
		add_one(news->kind == EVENT_CLOSE ? LOST_CLOSES : LOST);
		return;
	}
	e->time_ns = news->now_ns ?: bpf_ktime_get_ns();
	ends_of(ctx, &e->ends);
	e->kind = news->kind;
	e->cause = news->cause;
	e->segments = news->segments;
	e->old_state = news->old_state;
	e->new_state = news->new_state;
	e->aborted = news->aborted;
	e->error = 0;
	e->mptcp = 0;
	if (c && tp) {
		e->conn = *c;
		read_counters(&e->tcp, tp);
		e->tcp.segs_out += news->aborted;
		e->error = tp->inet_conn.icsk_inet.sk.sk_err;
#ifdef HAS_MPTCP
		e->mptcp = tp->is_mptcp;
#endif
	} else {
		__builtin_memset(&e->conn, 0, sizeof(e->conn));
		__builtin_memset(&e->tcp, 0, sizeof(e->tcp));
	}
	if (traced())
		trace(e);
	bpf_ringbuf_submit(e, 0);
}

SEC("sockops")
int sockops(struct bpf_sock_ops *ctx)
{
	struct news news = { .kind = EVENT_ESTABLISHED };
	struct tcp_sock *tp = 0;
	struct conn *c = 0;
	struct bpf_sock *sk;
	struct rule *rule;

	switch (ctx->op) {
	case BPF_SOCK_OPS_TIMEOUT_INIT:
		rule = rule_of(ctx);
		if (rule && rule->options & 1 << OPTION_INITIAL_RTO)
			ctx->reply = rule->initial_rto;
		return 1;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		on_listen(ctx);
		return 1;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		on_connect(ctx);
		return 1;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		if (ctx->is_fullsock || !on_syn_ack(ctx, &news))
			return 1;
		send(ctx, 0, 0, &news);
		return 1;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] != BPF_TCP_CLOSE && !(report() & 1 << EVENT_STATE))
			return 1;
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_RETRANS_CB:
	case BPF_SOCK_OPS_RTT_CB:
	case BPF_SOCK_OPS_PARSE_HDR_OPT_CB:
		break;
	default: /* what the kernel asks about every socket */
		return 1;
	}
	sk = ctx->sk;
	if (!sk)
		return 1;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 1;
	if (ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB ||
	    ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		c = on_established(ctx, tp, &news);
	else
		c = conn_of(ctx, 0);
	if (!c)
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		break;
	case BPF_SOCK_OPS_RETRANS_CB:
		on_retransmit(ctx, c, tp, &news);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		on_rtt(ctx, c, tp);
		watch_window(ctx, c, tp);
		if (!on_window(ctx, c, tp->snd_wnd, &news))
			return 1;
		break;
	case BPF_SOCK_OPS_PARSE_HDR_OPT_CB:
		if (!on_segment(ctx, c, &news))
			return 1;
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (!on_state(ctx, c, tp, &news))
			return 1;
		break;
	}
	send(ctx, c, tp, &news);
	return 1;
}

EVENT_TYPE(live, struct live);

static __always_inline void addr_of(u8 addr[16], struct sock *sk, const void *ipv6,
				    const void *ipv4)
{
	if (sk->__sk_common.skc_family == FAMILY_IPV6) {
		bpf_probe_read_kernel(addr, 16, ipv6);
		return;
	}
	*(__be32 *)(addr + 8) = MAPPED;
	bpf_probe_read_kernel(addr + 12, 4, ipv4);
}

SEC("iter/bpf_sk_storage_map")
int live(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct conn *c = ctx->value;
	struct sock *sk = ctx->sk;
	struct live row = {};
	struct tcp_sock *tp;

	if (!sk || !c)
		return 0;
	if (!c->open)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	row.now_ns = bpf_ktime_get_ns();
	row.state = sk->__sk_common.skc_state;
	row.ends.local_port = sk->__sk_common.skc_num;
	row.ends.remote_port = bpf_ntohs(sk->__sk_common.skc_dport);
	addr_of(row.ends.local_addr, sk, &sk->__sk_common.skc_v6_rcv_saddr,
		&sk->__sk_common.skc_rcv_saddr);
	addr_of(row.ends.remote_addr, sk, &sk->__sk_common.skc_v6_daddr,
		&sk->__sk_common.skc_daddr);
	row.conn = *c;
	read_counters(&row.tcp, tp);
	bpf_seq_write(seq, &row, sizeof(row));
	return 0;
}
