/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sockops_where: where a message waits inside the host on its way out
 * ===================================================================
 *
 * hook      TX timestamping callbacks of the TCP sockets of a cgroup (SOCK_OPS, Linux 6.15)
 * context   struct bpf_sock_ops; args[0]: the packet's time stamp, ns
 * may       ask for the callbacks of a message (bpf_sock_ops_enable_tx_tstamp)
 * packets   not changed; marked for their callbacks
 *
 *   send(2) -- TSTAMP_SENDMSG ------+
 *                                   | socket: until TCP sends it (window, Nagle, pacing, not sent yet)
 *   TCP, IP -- TSTAMP_SCHED --------+
 *                                   | qdisc: until the driver has it
 *   driver -- TSTAMP_SND_SW --------+
 *                                   | network: until the peer's kernel acknowledges it
 *   ACK ------ TSTAMP_ACK ----------+
 *
 * The application is not changed and sees nothing. A message is known by the sequence number of its last
 * byte (tskey). Histograms are log-linear: 8 steps for each power of two, so a step is at most 12.5 %
 * wide.
 *
 * Maps
 *   sent    lru_hash  struct message -> struct times
 *   steps   hash      struct step -> messages
 *   missed  array     0 -> messages that could not be followed: no memory, or no room in `steps`
 */
#include <linux/tcp.h>
#include <linux/filter.h>
#include <linux/skbuff.h>
#include <bpfkit/bpfkit.h>
#include <bpfkit/maps.h>
#include "sockops.h"

#define SOL_SOCKET                1
#define SK_BPF_CB_FLAGS           1009
#define SK_BPF_CB_TX_TIMESTAMPING 1

/* uapi/linux/bpf.h of Linux 6.15; the headers here may be older. */
#define TSTAMP_SCHED_CB   16
#define TSTAMP_SND_SW_CB  17
#define TSTAMP_ACK_CB     19
#define TSTAMP_SENDMSG_CB 20

BPF_KFUNC(void *, bpf_cast_to_kern_ctx, void *ctx);
BPF_KFUNC(int, bpf_sock_ops_enable_tx_tstamp, struct bpf_sock_ops_kern *ctx, u64 flags);

enum stage {
	SOCKET,
	QDISC,
	NETWORK,
	WHOLE,
};

struct message {
	u64 cookie;
	u64 last; /* sequence number of the last byte */
};

struct times { /* CLOCK_MONOTONIC, ns; 0: not yet */
	u64 send_ns;
	u64 sched_ns;
	u64 driver_ns;
};

struct step {
	u8 peer[16] __aligned(4); /* network byte order */
	u32 stage;
	u32 bucket; /* lowest duration: see floor_of() in where.py */
};

BPF_TABLE("lru_hash", struct message, struct times, sent, 65536);
BPF_HASH(steps, struct step, u64, 65536);
BPF_ARRAY(missed, u64, 1);

static __always_inline void miss(void)
{
	u32 zero = 0;

	count_one(missed.lookup(&zero));
}

/* The place of the highest bit that is set. */
static __always_inline u32 log2_of(u64 value)
{
	u32 place = 0;

	if (value >> 32) {
		value >>= 32;
		place += 32;
	}
	if (value >> 16) {
		value >>= 16;
		place += 16;
	}
	if (value >> 8) {
		value >>= 8;
		place += 8;
	}
	if (value >> 4) {
		value >>= 4;
		place += 4;
	}
	if (value >> 2) {
		value >>= 2;
		place += 2;
	}
	return place + (value >> 1);
}

/* Below 8 ns the value itself; above, 8 buckets for each power of two. */
static __always_inline u32 bucket_of(u64 ns)
{
	u32 power;

	if (ns < 8)
		return ns;
	power = log2_of(ns);
	return (power - 2) * 8 + (ns >> (power - 3)) - 8;
}

static __always_inline void record(const u8 peer[16], u32 stage, u64 begun, u64 ended)
{
	struct step step = { .stage = stage };
	u64 zero = 0, *n;

	if (!begun || ended < begun)
		return;
	__builtin_memcpy(step.peer, peer, sizeof(step.peer));
	step.bucket = bucket_of(ended - begun);
	n = steps.lookup_or_try_init(&step, &zero);
	if (n)
		__sync_fetch_and_add(n, 1);
	else
		miss();
}

/* The packet's tskey, in what the context structure keeps for the kernel itself. */
static __always_inline u32 last_byte(struct bpf_sock_ops *ctx)
{
	unsigned char *head = 0;
	struct sk_buff *skb = 0;
	sk_buff_data_t end = 0;
	u32 key = 0;

	bpf_probe_read_kernel(&skb, sizeof(skb),
			      (void *)ctx + offsetof(struct bpf_sock_ops_kern, skb));
	bpf_probe_read_kernel(&head, sizeof(head), (void *)skb + offsetof(struct sk_buff, head));
	bpf_probe_read_kernel(&end, sizeof(end), (void *)skb + offsetof(struct sk_buff, end));
	bpf_probe_read_kernel(&key, sizeof(key),
			      head + end + offsetof(struct skb_shared_info, tskey));
	return key;
}

static __always_inline void on_ack(struct bpf_sock_ops *ctx, struct message *message,
				   struct times *times, u64 now)
{
	u8 peer[16] __aligned(4) = {};

	remote_addr_of(ctx, peer);
	record(peer, SOCKET, times->send_ns, times->sched_ns);
	record(peer, QDISC, times->sched_ns, times->driver_ns);
	record(peer, NETWORK, times->driver_ns, now);
	record(peer, WHOLE, times->send_ns, now);
	sent.delete(message);
}

SEC("sockops")
int sockops_where(struct bpf_sock_ops *ctx)
{
	u32 op = ctx->op, flags = SK_BPF_CB_TX_TIMESTAMPING;
	struct message message = {};
	struct times *times, fresh = {};
	u64 now;

	if (op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB || op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		if (bpf_setsockopt(ctx, SOL_SOCKET, SK_BPF_CB_FLAGS, &flags, sizeof(flags)))
			miss();
		return 1;
	}
	if (op < TSTAMP_SCHED_CB || op > TSTAMP_SENDMSG_CB)
		return 1;
	now = bpf_ktime_get_ns();
	if (op == TSTAMP_SENDMSG_CB)
		bpf_sock_ops_enable_tx_tstamp(bpf_cast_to_kern_ctx(ctx), 0);
	message.cookie = bpf_get_socket_cookie(ctx);
	message.last = last_byte(ctx);
	if (op == TSTAMP_SENDMSG_CB) {
		fresh.send_ns = now;
		sent.update(&message, &fresh);
		return 1;
	}
	times = sent.lookup(&message);
	if (!times)
		return 1;
	/* A retransmission comes by again: what counts is the first time. */
	if (op == TSTAMP_SCHED_CB && !times->sched_ns)
		times->sched_ns = now;
	else if (op == TSTAMP_SND_SW_CB && !times->driver_ns)
		times->driver_ns = now;
	else if (op == TSTAMP_ACK_CB)
		on_ack(ctx, &message, times, now);
	return 1;
}
