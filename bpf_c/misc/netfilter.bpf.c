/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * netfilter: a program at netfilter's hooks, beside nftables and iptables rules
 * =============================================================================
 *
 * hook      NF_INET_PRE_ROUTING, LOCAL_IN, FORWARD, LOCAL_OUT, POST_ROUTING of IPv4 or IPv6, in one
 *           network namespace, with a priority: lower ones come first, as in nft's `priority`
 * context   struct bpf_nf_ctx: the hook's state and the packet, both the kernel's own structs
 * packets   not changed; NF_ACCEPT or NF_DROP
 *
 *   prerouting -+-> route -> forward -+-> postrouting -> wire
 *               +-> input -> socket   |
 *                     socket -> output+
 *
 *   at each hook, by priority:   nft chain (-10) -> this program (0) -> nft chain (10)
 *
 * The packet starts at its IP header. Offsets in kernel structs differ between kernels, so this
 * source is compiled against the running kernel's own types (BTF).
 *
 * Map
 *   rows  percpu_array  hook (IPv6: + HOOKS) -> packets, bytes, dropped
 */
#include <linux/skbuff.h>
#include <linux/netfilter.h>
#include <bpfkit/bpfkit.h>

LOAD_CONST(0, drop, 255); /* IPPROTO_* to drop (1: ICMPv6 too); 255: none */
LOAD_CONST(1, drop_at, 255); /* and the hook where */

#define HOOKS          5
#define PF_IPV6        10 /* NFPROTO_IPV6 */
#define ICMP           1
#define ICMPV6         58
#define VERDICT_DROP   0 /* NF_DROP */
#define VERDICT_ACCEPT 1 /* NF_ACCEPT */
#define EXT_HEADERS    32
#define FRAGMENT       44
#define AH             51

struct row {
	u64 packets;
	u64 bytes; /* from the IP header on */
	u64 dropped;
};

BPF_TABLE("percpu_array", u32, struct row, rows, 2 * HOOKS);

/* Hop-by-hop, routing, fragment, AH, destination options, mobility, HIP, shim6; in IPv4 only AH. */
static __always_inline bool is_extension(u8 type, bool ipv6)
{
	if (!ipv6)
		return type == AH;
	return type == 0 || type == 43 || type == FRAGMENT || type == AH || type == 60 ||
	       type == 135 || type == 139 || type == 140;
}

/*
 * The transport protocol of the packet at `at`, of which `len` bytes are there, by the rules of
 * <bpfkit/headers.h>. That walk cannot be used: here the packet is read by bpf_probe_read_kernel().
 */
static __always_inline u8 transport_proto(unsigned char *at, u32 len, bool ipv6)
{
	u8 first = 0, ext[4], type = 59;
	__be16 fragment = 0;
	u32 i, off = 40;

	if (ipv6) {
		bpf_probe_read_kernel(&type, sizeof(type), at + 6);
	} else {
		bpf_probe_read_kernel(&first, sizeof(first), at);
		bpf_probe_read_kernel(&type, sizeof(type), at + 9);
		bpf_probe_read_kernel(&fragment, sizeof(fragment), at + 6);
		off = (first & 15) * 4;
		if (fragment & bpf_htons(0x1fff))
			return type;
	}
	for (i = 0; i < EXT_HEADERS; i++) {
		if (!is_extension(type, ipv6) || off + 8 > len)
			break;
		bpf_probe_read_kernel(ext, sizeof(ext), at + off);
		if (type == AH && !ext[1])
			break;
		off += type == FRAGMENT ? 8 : type == AH ? (ext[1] + 2) * 4 : (ext[1] + 1) * 8;
		if (off > len)
			break;
		/* a later fragment: what follows is the middle of something */
		if (type == FRAGMENT && (ext[2] || ext[3] & 0xf8))
			return ext[0];
		type = ext[0];
	}
	return type;
}

SEC("netfilter")
int filter(struct bpf_nf_ctx *ctx)
{
	const struct nf_hook_state *state = ctx->state;
	struct sk_buff *skb = ctx->skb;
	u32 hook = state->hook, pf = state->pf, key;
	unsigned char *at = skb->head + skb->network_header;
	bool dropped;
	u8 proto;
	struct row *row;

	proto = transport_proto(at, skb->len - skb->data_len, pf == PF_IPV6);
	dropped = hook == drop_at() && (proto == drop() || (drop() == ICMP && proto == ICMPV6));
	key = pf == PF_IPV6 ? hook + HOOKS : hook;
	row = rows.lookup(&key);
	if (row) {
		row->packets++;
		row->bytes += skb->len;
		row->dropped += dropped;
	}
	return dropped ? VERDICT_DROP : VERDICT_ACCEPT;
}
