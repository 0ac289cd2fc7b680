/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * flow_dissector: tells the kernel which flow a packet belongs to
 * ===============================================================
 *
 * hook      a network namespace (BPF_LINK_CREATE with its fd), asked whenever the kernel wants to
 *           know a packet's flow: receive hashing, PACKET_FANOUT, bonding, fq, cls_flower
 * context   struct __sk_buff: only data, data_end and flow_keys, the answer
 * packets   not changed, and not dropped: BPF_DROP only means "no flow found"
 *
 * The kernel's own dissector treats an unknown tunnel as one flow per pair of hosts. This program
 * parses a small tunnel header behind IP protocol 253 (RFC 3692's number for experiments):
 *
 *   0               1               2                               4              8
 *   +---------------+---------------+-------------------------------+--------------+
 *   | next: 4 or 41 | reserved      | reserved                      | tunnel id    |
 *   +---------------+---------------+-------------------------------+--------------+
 *
 *   IP, proto 253 -> tunnel header -> inner IPv4 / IPv6 -> flow_keys: the inner ends -> BPF_OK
 *   IP, anything else ------------------------------------> flow_keys: its own ends  -> BPF_OK
 *   no IP, headers that are not all in the linear part ------------> the kernel's own dissector
 *
 * Fragments are a flow by addresses alone, because only the first has ports.
 *
 * Map
 *   seen  percpu_array  enum kind -> packets
 */
#include <uapi/linux/bpf.h>
#include <bpfkit/bpfkit.h>
#define MAX_TAGS 2 /* see <bpfkit/headers.h>; more are left to the kernel */
#include <bpfkit/headers.h>

LOAD_CONST(0, protocol, 253); /* the tunnel's IP protocol */

/* enum bpf_ret_code of a kernel from 6.1 on: the kernel's dissector goes on */
#define DISSECTOR_CONTINUE 129
#define STOP_AT_ENCAP      (1U << 2) /* BPF_FLOW_DISSECTOR_F_STOP_AT_ENCAP */

enum kind { PLAIN, TUNNEL4, TUNNEL6, FRAGMENT, LEFT_TO_KERNEL, KINDS };

BPF_TABLE("percpu_array", u32, u64, seen, KINDS);

struct tunnel_header {
	u8 next; /* IPPROTO_IPIP or IPPROTO_IPV6 */
	u8 reserved[3];
	__be32 id;
};

static __always_inline int answer(u32 kind, int ret)
{
	u64 *n = seen.lookup(&kind);

	if (n)
		(*n)++;
	return ret;
}

/* The addresses of the IP header at `off`. */
static __always_inline bool take_addresses(struct window *w, u64 off, u8 family,
					   struct bpf_flow_keys *keys)
{
	struct window at = { .data = w->data, .end = w->end, .off = off, .limit = w->limit };
	struct ipv6_header *six;
	struct iphdr *four;

	if (family == 4) {
		four = window_peek(&at, sizeof(*four));
		if (!four)
			return false;
		keys->addr_proto = ETH_P_IP;
		keys->n_proto = bpf_htons(ETH_P_IP);
		keys->ipv4_src = four->saddr;
		keys->ipv4_dst = four->daddr;
		return true;
	}
	six = window_peek(&at, sizeof(*six));
	if (!six)
		return false;
	keys->addr_proto = ETH_P_IPV6;
	keys->n_proto = bpf_htons(ETH_P_IPV6);
	keys->flow_label = six->version_class_flow & bpf_htonl(0xfffff);
	__builtin_memcpy(keys->ipv6_src, six->saddr, 16);
	__builtin_memcpy(keys->ipv6_dst, six->daddr, 16);
	return true;
}

SEC("flow_dissector")
int dissect(struct __sk_buff *skb)
{
	struct bpf_flow_keys *keys = skb->flow_keys;
	struct tunnel_header *tunnel;
	struct headers h = {};
	u32 kind = PLAIN;
	struct window w;
	__be16 *ports;
	u64 net;

	w.by_load = false;
	w.data = (void *)(long)skb->data;
	w.end = (void *)(long)skb->data_end;
	w.off = keys->nhoff;
	w.limit = skb->data_end - skb->data;
	net = w.off;
	if (walk_ethertype(&w, &h, NULL, bpf_ntohs(keys->n_proto)) != FOUND)
		return answer(LEFT_TO_KERNEL, DISSECTOR_CONTINUE);
	net += h.tags * VLAN_HLEN;
	if (h.proto == protocol() && !h.fragment && !(keys->flags & STOP_AT_ENCAP)) {
		tunnel = window_pull(&w, sizeof(*tunnel));
		if (!tunnel)
			return answer(LEFT_TO_KERNEL, DISSECTOR_CONTINUE);
		net = w.off;
		kind = tunnel->next == IPPROTO_IPIP ? TUNNEL4 : TUNNEL6;
		if (kind == TUNNEL6 && tunnel->next != IPPROTO_IPV6)
			return answer(LEFT_TO_KERNEL, DISSECTOR_CONTINUE);
		__builtin_memset(&h, 0, sizeof(h));
		if (walk_ip(&w, &h, NULL, kind == TUNNEL4) != FOUND)
			return answer(LEFT_TO_KERNEL, DISSECTOR_CONTINUE);
		h.payload = w.off;
		keys->is_encap = true;
	}
	if (!take_addresses(&w, net, h.family, keys))
		return answer(LEFT_TO_KERNEL, DISSECTOR_CONTINUE);
	keys->nhoff = net;
	keys->thoff = h.payload;
	keys->ip_proto = h.proto;
	if (h.fragment) {
		keys->is_frag = true;
		keys->is_first_frag = !h.later_fragment;
		return answer(FRAGMENT, BPF_OK);
	}
	if (has_ports(h.proto)) {
		ports = window_peek(&w, 4);
		if (ports) {
			keys->sport = ports[0];
			keys->dport = ports[1];
		}
	}
	return answer(kind, BPF_OK);
}
