/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * truncate: a socket filter that cuts what a TCP socket receives
 * ==============================================================
 *
 * hook      socket filter on a TCP listener; accepted sockets inherit it
 * context   struct __sk_buff; offset 0 is the TCP header, skb->len is TCP header and payload
 * packets   cut: the return value is how many bytes to keep, counted from the TCP header; 0 drops
 *
 *   segment -> TCP -> this filter -+-> short payload: kept whole --------> receive queue, ACK
 *      ^                           +-> long payload: its first bytes only -> receive queue,
 *      |                                                                     ACK of those
 *      +-- the sender: what was not acknowledged, again, after its timeout (200 ms at least)
 *
 * "hello world" is 11 bytes: with more than 10 only 5 are kept, `hello`. ` world`, retransmitted,
 * is 6 bytes and passes. The cut depends on the TCP header's length: a fixed return value would
 * cut into the payload with one set of TCP options and into the header with another.
 *
 * Maps
 *   segments  ringbuf  struct segment for every segment the filter saw
 *   lost      array    0 -> u64, segments the ring buffer had no place for
 */
#include <uapi/linux/tcp.h>
#include <bpfkit/bpfkit.h>

LOAD_CONST(0, longer_than, 10); /* cut segments whose payload is longer, */
LOAD_CONST(1, keep, 5); /* to this many bytes */

struct segment {
	u64 ns SHOWN_AS(time); /* bpf_ktime_get_ns(): CLOCK_MONOTONIC */
	u32 seq; /* host order, like everything here */
	u32 ack_seq;
	u16 sport;
	u16 dport;
	u16 ethertype SHOWN_AS(hex); /* 0x0800: IPv4, 0x86dd: IPv6 */
	u8 flags; /* FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32 */
	u8 doff; /* TCP header length in bytes */
	u32 payload; /* bytes that came */
	u32 kept; /* bytes of them that were kept */
};

BPF_RINGBUF_OUTPUT(segments, 16);
EVENT_TYPE(segments, struct segment);
BPF_TABLE("array", u32, u64, lost, 1);

#define TCP_FLAGS 13 /* offset in the TCP header */

static __always_inline void record(struct __sk_buff *skb, const struct tcphdr *tcp, u8 flags,
				   u32 payload, u32 kept)
{
	struct segment s = {
		.ns = bpf_ktime_get_ns(),
		.seq = bpf_ntohl(tcp->seq),
		.ack_seq = bpf_ntohl(tcp->ack_seq),
		.sport = bpf_ntohs(tcp->source),
		.dport = bpf_ntohs(tcp->dest),
		.ethertype = bpf_ntohs(skb->protocol),
		.flags = flags,
		.doff = tcp->doff * 4,
		.payload = payload,
		.kept = kept,
	};
	u32 zero = 0;
	u64 *n;

	if (segments.ringbuf_output(&s, sizeof(s), 0) == 0)
		return;
	n = lost.lookup(&zero);
	if (n)
		__sync_fetch_and_add(n, 1);
}

SEC("socket")
int truncate(struct __sk_buff *skb)
{
	u32 header, payload, kept;
	struct tcphdr tcp;
	u8 flags;

	if (bpf_skb_load_bytes(skb, 0, &tcp, sizeof(tcp)) ||
	    bpf_skb_load_bytes(skb, TCP_FLAGS, &flags, sizeof(flags)))
		return skb->len;
	header = tcp.doff * 4;
	payload = skb->len > header ? skb->len - header : 0;
	kept = payload > longer_than() ? keep() : payload;
	record(skb, &tcp, flags, payload, kept);
	return header + kept;
}
