/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_decap: a backend's end of xdp_lb's tunnel, where the kernel has no ipip or ip6tnl device
 * ============================================================================================
 *
 * hook      XDP
 * context   struct xdp_md
 * packets   an outer IPv4 or IPv6 header is taken off, where it is IP in IP from a balancer to this
 *           host; everything else is not changed
 *
 *   link | tags | outer IP | inner IP | ...  -->  link | tags | inner IP | ...  --> the kernel
 *
 * Only what `tunnels` names is taken off: a host that opens every tunnel lets everybody send it
 * packets with any source address. Outer headers have neither options nor extension headers, and
 * are not fragmented.
 *
 * Maps
 *   tunnels  hash          balancer and own address -> anything
 *   rows     percpu_array  enum row -> struct traffic, as they came
 */
#define MAX_TAGS 2
#include <bpfkit/bpfkit.h>
#include <bpfkit/headers.h>
#include "link.h"
#include "tuple.h"
#include <bpfkit/wire.h>
#include <uapi/linux/bpf.h>

/* IPv4 as ::ffff:a.b.c.d */
struct tunnel {
	__be32 balancer[4];
	__be32 own[4];
};

enum row {
	PASSED,
	TAKEN_OFF_IPV4,
	TAKEN_OFF_IPV6,
	DROPPED, /* there was nothing behind the outer header */
	ROWS,
};

BPF_HASH(tunnels, struct tunnel, u32, 1024);
BPF_TABLE("percpu_array", u32, struct traffic, rows, ROWS);

/* Length of the outer header; 0: the packet is none of xdp_lb's. */
static __always_inline u32 outer_len(const struct window *w, const struct headers *h)
{
	u32 len = h->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6_header);
	struct tunnel tunnel;
	struct tuple t = {};

	if (h->proto != IPPROTO_IPIP && h->proto != IPPROTO_IPV6)
		return 0;
	if (h->fragment || h->payload != h->network + len || !read_tuple(w, h, &t))
		return 0;
	__builtin_memcpy(tunnel.balancer, t.saddr, sizeof(tunnel.balancer));
	__builtin_memcpy(tunnel.own, t.daddr, sizeof(tunnel.own));
	return tunnels.lookup(&tunnel) ? len : 0;
}

static __always_inline enum row decapsulate(struct xdp_md *ctx)
{
	struct link_header link;
	struct headers h = {};
	struct window w;
	u32 len;

	if (direct_xdp(ctx, &h, &w, ETH_HLEN) != FOUND)
		return PASSED;
	len = outer_len(&w, &h);
	if (!len || !save_link(&w, &link))
		return PASSED;
	if (bpf_xdp_adjust_head(ctx, len))
		return DROPPED;
	if (!put_link(ctx, &link, h.tags, h.proto == IPPROTO_IPIP ? ETH_P_IP : ETH_P_IPV6, 0))
		return DROPPED;
	return h.family == 4 ? TAKEN_OFF_IPV4 : TAKEN_OFF_IPV6;
}

SEC("xdp")
int xdp_decap(struct xdp_md *ctx)
{
	u32 frame_len = ctx->data_end - ctx->data, row;

	row = decapsulate(ctx);
	add_frame(rows.lookup(&row), frame_len);
	return row == DROPPED ? XDP_DROP : XDP_PASS;
}
