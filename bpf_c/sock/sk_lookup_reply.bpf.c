/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sk_lookup_reply: UDP replies leave from the address and port that the client sent to
 * ====================================================================================
 *
 * hook      sendmsg(2) of unconnected UDP sockets in the server's cgroup (CGROUP_SOCK_ADDR), and tc
 *           egress of every interface of the server's network namespace (SCHED_CLS)
 * context   struct bpf_sock_addr; struct __sk_buff
 * may       write the source address (msg_src_ip4, msg_src_ip6), before the packet is made
 * packets   replies of steered UDP servers get another source port and checksum
 *
 *   client :40000 -> 192.0.2.7:5202          sk_lookup -> flows: {client:40000, 5201} = 192.0.2.7:5202
 *                                                |
 *                                            server's socket 0.0.0.0:5201
 *                                                |  sendto(client:40000)
 *   sendmsg4, sendmsg6                       source 0.0.0.0   -> 192.0.2.7   (of all its fragments)
 *                                                |  route, checksum, fragments
 *   tc egress                                source port 5201 -> 5202        (of the first fragment)
 *                                                |
 *   client :40000 <- 192.0.2.7:5202          accepted, also by a connected socket
 *
 * The address is chosen before the packet exists, because the later fragments of a datagram have no
 * ports to tell their flow by. A server that chose its source address itself (IP_PKTINFO) keeps it. The
 * port has to wait for tc, because no earlier hook can write it.
 *
 * A client socket that sends to two steered ports of one server gets all replies from the one that it
 * sent to last: sendto(client) does not tell which request it answers. conntrack, if loaded, sees the
 * replies before they are rewritten.
 *
 * Maps (those of sk_lookup.bpf.c)
 *   flows   lru_hash      struct flow_key -> struct flow
 *   counts  percpu_array  number of a rule -> struct count: replies
 */
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/udp.h>
#include <bpfkit/bpfkit.h>
#include <bpfkit/headers.h>
#include "sk_lookup.h"

LOAD_CONST(0, l2_len, 14); /* 14: Ethernet; else see link_offset() */
LOAD_CONST(1, netns_cookie, 0); /* the namespace of the flows; 0: not known (before Linux 5.14) */

BPF_TABLE("lru_hash", struct flow_key, struct flow, flows, FLOWS);
BPF_PERCPU_ARRAY(counts, struct count, RULES);

SEC("cgroup/sendmsg4")
int reply_address4(struct bpf_sock_addr *ctx)
{
	struct flow_key key = { .family = 4 };
	struct bpf_sock *sk = ctx->sk;
	struct flow *flow;
	__be32 source;

	if (netns_cookie() && bpf_get_netns_cookie(ctx) != netns_cookie())
		return 1;
	key.client[0] = ctx->user_ip4;
	key.client_port = ctx->user_port;
	key.server_port = sk->src_port;
	flow = flows.lookup(&key);
	source = ctx->msg_src_ip4;
	if (flow && (!source || source == sk->src_ip4))
		ctx->msg_src_ip4 = flow->addr[0];
	return 1;
}

SEC("cgroup/sendmsg6")
int reply_address6(struct bpf_sock_addr *ctx)
{
	struct flow_key key = { .family = 6 };
	__be32 s0, s1, s2, s3;
	struct bpf_sock *sk = ctx->sk;
	struct flow *flow;

	if (netns_cookie() && bpf_get_netns_cookie(ctx) != netns_cookie())
		return 1;
	key.client[0] = ctx->user_ip6[0];
	key.client[1] = ctx->user_ip6[1];
	key.client[2] = ctx->user_ip6[2];
	key.client[3] = ctx->user_ip6[3];
	key.client_port = ctx->user_port;
	key.server_port = sk->src_port;
	flow = flows.lookup(&key);
	if (!flow)
		return 1;
	s0 = ctx->msg_src_ip6[0];
	s1 = ctx->msg_src_ip6[1];
	s2 = ctx->msg_src_ip6[2];
	s3 = ctx->msg_src_ip6[3];
	if ((s0 | s1 | s2 | s3) && (s0 != sk->src_ip6[0] || s1 != sk->src_ip6[1] ||
				    s2 != sk->src_ip6[2] || s3 != sk->src_ip6[3]))
		return 1;
	ctx->msg_src_ip6[0] = flow->addr[0];
	ctx->msg_src_ip6[1] = flow->addr[1];
	ctx->msg_src_ip6[2] = flow->addr[2];
	ctx->msg_src_ip6[3] = flow->addr[3];
	return 1;
}

/* Whether the packet's source address is the one that the client sent to. */
static __always_inline bool from_address(const union ip_header *ip, u8 family,
					 const struct flow *flow)
{
	if (family == 4)
		return ip->v4.saddr == flow->addr[0];
	return ip->v6.saddr[0] == flow->addr[0] && ip->v6.saddr[1] == flow->addr[1] &&
	       ip->v6.saddr[2] == flow->addr[2] && ip->v6.saddr[3] == flow->addr[3];
}

SEC("tc/egress")
int reply_port(struct __sk_buff *skb)
{
	struct flow_key key = {};
	union ip_header ip = {};
	struct headers h = {};
	struct window w = {};
	struct count *count;
	struct udphdr udp;
	struct flow *flow;
	__be16 port;
	u32 at;

	if (load_skb(skb, &h, &ip, &w, l2_len()) != FOUND || h.proto != IPPROTO_UDP ||
	    h.later_fragment)
		return TC_ACT_UNSPEC;
	at = h.payload;
	if (at > WINDOW_MAX || bpf_skb_load_bytes(skb, at, &udp, sizeof(udp)))
		return TC_ACT_UNSPEC;
	key.family = h.family;
	if (h.family == 4) {
		key.client[0] = ip.v4.daddr;
	} else {
		key.client[0] = ip.v6.daddr[0];
		key.client[1] = ip.v6.daddr[1];
		key.client[2] = ip.v6.daddr[2];
		key.client[3] = ip.v6.daddr[3];
	}
	key.client_port = udp.dest;
	key.server_port = bpf_ntohs(udp.source);
	flow = flows.lookup(&key);
	if (!flow || flow->port == key.server_port || !from_address(&ip, h.family, flow))
		return TC_ACT_UNSPEC;
	port = bpf_htons(flow->port);
	count = counts.lookup(&flow->rule);
	if (bpf_l4_csum_replace(skb, at + offsetof(struct udphdr, check), udp.source, port,
				sizeof(port) | BPF_F_MARK_MANGLED_0) ||
	    bpf_skb_store_bytes(skb, at + offsetof(struct udphdr, source), &port, sizeof(port), 0))
		return TC_ACT_UNSPEC;
	if (count)
		count->replies++;
	return TC_ACT_UNSPEC;
}
