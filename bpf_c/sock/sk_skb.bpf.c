/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sk_skb: a TCP proxy whose bytes the kernel forwards
 * ===================================================
 *
 * hook      data that arrives on a TCP socket of a SOCKHASH, before the process can read it (SK_SKB):
 *           stream parser and stream verdict, or the verdict alone
 * context   struct __sk_buff of the received data; its addresses and ports are the socket's
 * packets   not changed; handed to another socket of a map, left to the process, or dropped
 *
 *   client ---> [near socket]   proxy process   [far socket] ---> backend
 *                     |                              ^
 *                     +------ bpf_sk_redirect -------+   the process sees nothing of it
 *
 * A connection is two sockets, with keys 2n (near) and 2n + 1 (far). Each is in two maps: `sockets` has the
 * programs, its sockets are sources; `targets` has none. A socket that leaves `sockets` stays a target, and
 * what arrives for it from then on stays in its receive queue, as that of any socket.
 *
 * Three things that the kernel does shape what the proxy does:
 *
 *  - It lets go of the program of a socket that leaves without the socket's lock. A run that is under way
 *    drops what it takes from the receive queue from then on (sk_psock_verdict_recv() without a program).
 *    So no segment with payload may arrive meanwhile: `freeze` below is the socket's filter for that long.
 *  - recv(2) on a source runs the program on what waits, and then writes back the copied_seq from before
 *    (tcp_bpf_recvmsg_parser()): outside the map, the socket cannot be read any more. So the process does
 *    not read a source; it sets SO_RCVLOWAT, which runs the program too (tcp_data_ready()).
 *  - Data that was passed (SK_PASS) and not read is thrown away when the socket leaves, and behind a stream
 *    parser it makes tcp_bpf_strp_read_sock() move copied_seq too far (patch "Fix tp->copied_seq update in
 *    tcp_bpf_strp_read_sock" of November 2025, bpf@vger). So nothing is passed to a socket in the map.
 *
 * Redirected data waits in the kernel for room in the target's send buffer, without a limit of the
 * kernel's own: a reader that is slow would let a sender fill the memory. So the program looks how much
 * waits, and from `queue_limit` bytes on it asks the process to take the direction over, which then does not
 * read before it can write: the receive window closes, and the sender waits, as in every proxy. It stays so
 * for the rest of the connection: a sender that is faster than its reader has its stream in user space. From
 * HARD_LIMIT on, which only a process that does not run lets happen, the connection is reset.
 *
 * The target's progress is in its struct tcp_sock, whose layout differs between kernels: the loader gives
 * the offsets, from the kernel's BTF.
 *
 * Maps
 *   sockets     sockhash  key of a socket -> the socket; has the programs: its sockets are sources
 *   targets     sockhash  the same, without programs: a socket that leaves `sockets` stays a target
 *   flows       hash      struct flow, as the socket sees itself -> key of the socket
 *   directions  array     key of the receiving socket -> struct direction; the process maps its memory
 *   notices     ringbuf   key of a socket whose data is no longer redirected: the process has to act
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/maps.h>
#include <uapi/linux/bpf.h>

LOAD_CONST(0, queue_limit, 4194304); /* bytes that may wait in the kernel for a target */
/* Offsets in struct tcp_sock; 0: not known, and no queue is seen. */
LOAD_CONST(1, bytes_acked_at, 0);
LOAD_CONST(2, write_seq_at, 0);
LOAD_CONST(3, snd_una_at, 0);

#define AF_INET6    10
#define TCP_RST     0x04
#define CONNECTIONS 4096
#define HARD_LIMIT  (256LL << 20)

struct flow {
	__be32 local[4]; /* IPv4 as ::ffff:a.b.c.d */
	__be32 remote[4];
	u16 remote_port; /* both in host byte order */
	u16 local_port;
};

struct direction {
	u64 written; /* by the process: bytes that it wrote to the target */
	u64 redirected; /* bytes that went to the target without the process */
	u64 asked; /* 1: the process was asked to take over; it writes 0 */
	u64 overfull; /* bytes that were dropped because HARD_LIMIT was reached */
	u64 homeless; /* bytes that were dropped because there was no target */
	u64 unused[3];
};

BPFKIT_MAP(0, BPF_MAP_TYPE_SOCKHASH, sockets, u32, u64, 2 * CONNECTIONS, 0, 0);
BPFKIT_MAP(1, BPF_MAP_TYPE_SOCKHASH, targets, u32, u64, 2 * CONNECTIONS, 0, 0);
BPF_HASH(flows, struct flow, u32, 2 * CONNECTIONS);
BPF_F_TABLE("array", u32, struct direction, directions, 2 * CONNECTIONS, BPF_F_MMAPABLE);
BPF_RINGBUF_OUTPUT(notices, 64);

/* Keeps clang from merging two loads of the context into one of a computed address. */
#define KEEP(value) asm volatile("" : "+r"(value))

static __always_inline u32 *socket_key(struct __sk_buff *skb)
{
	__be32 local4 = skb->local_ip4, remote4 = skb->remote_ip4;
	struct flow flow = {};

	KEEP(local4);
	KEEP(remote4);
	if (skb->family == AF_INET6) {
		flow.local[0] = skb->local_ip6[0];
		flow.local[1] = skb->local_ip6[1];
		flow.local[2] = skb->local_ip6[2];
		flow.local[3] = skb->local_ip6[3];
		flow.remote[0] = skb->remote_ip6[0];
		flow.remote[1] = skb->remote_ip6[1];
		flow.remote[2] = skb->remote_ip6[2];
		flow.remote[3] = skb->remote_ip6[3];
	} else {
		flow.local[2] = flow.remote[2] = bpf_htonl(0xffff);
		flow.local[3] = local4;
		flow.remote[3] = remote4;
	}
	flow.remote_port = bpf_ntohl(skb->remote_port); /* the kernel has it in the upper half */
	flow.local_port = skb->local_port;
	return flows.lookup(&flow);
}

/*
 * Sets *left to the bytes that were redirected to the socket `to` and are not in its send buffer yet;
 * false: there is no such socket. The fields are read without the socket's lock: while an
 * acknowledgement is taken in, the result may be too small by what it acknowledges.
 */
static __always_inline bool queued(u32 *to, const struct direction *dir, s64 *left)
{
	struct bpf_sock *sk;
	u32 waits;
	u64 acked;
	void *tp;

	sk = bpf_map_lookup_elem(BPFKIT_MAP_REF(targets), to);
	if (!sk)
		return false;
	tp = bpf_skc_to_tcp_sock(sk);
	if (tp && write_seq_at()) {
		acked = *(u64 *)(tp + bytes_acked_at());
		waits = *(u32 *)(tp + write_seq_at()) - *(u32 *)(tp + snd_una_at());
		*left = dir->written + dir->redirected - (acked + waits);
	}
	bpf_sk_release(sk);
	return tp;
}

static __always_inline int forward(struct __sk_buff *skb)
{
	u32 *key = socket_key(skb), to;
	struct direction *dir;
	s64 left = 0;

	/* A FIN without data. Redirected, it would break the target: its send of no bytes is EPIPE. */
	if (!skb->len)
		return SK_DROP;
	if (!key)
		return SK_PASS;
	to = *key ^ 1;
	dir = directions.lookup(key);
	if (!dir)
		return SK_PASS;
	if (!queued(&to, dir, &left)) {
		dir->homeless += skb->len;
		notices.ringbuf_output(key, sizeof(*key), 0);
		return SK_DROP;
	}
	if (left > HARD_LIMIT) {
		dir->overfull += skb->len;
		notices.ringbuf_output(key, sizeof(*key), 0);
		return SK_DROP;
	}
	if (left > (s64)queue_limit() && !dir->asked) {
		dir->asked = 1;
		notices.ringbuf_output(key, sizeof(*key), 0);
	}
	dir->redirected += skb->len;
	return bpf_sk_redirect_hash(skb, BPFKIT_MAP_REF(targets), &to, 0);
}

/*
 * A socket that is about to leave `sockets` has this filter for some milliseconds: segments with payload
 * do not reach it, and are sent again. The data begins with the TCP header.
 */
SEC("socket")
int freeze(struct __sk_buff *skb)
{
	u8 head[14]; /* up to the flags */

	if (bpf_skb_load_bytes(skb, 0, head, sizeof(head)))
		return 0;
	if (head[13] & TCP_RST)
		return skb->len;
	return skb->len > (head[12] >> 4) * 4 ? 0 : skb->len;
}

SEC("sk_skb/verdict")
int verdict(struct __sk_buff *skb)
{
	return forward(skb);
}

SEC("sk_skb/stream_parser")
int parser(struct __sk_buff *skb)
{
	return skb->len;
}

SEC("sk_skb/stream_verdict")
int stream_verdict(struct __sk_buff *skb)
{
	return forward(skb);
}
