/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_drop_icmp: no ICMP and no ICMPv6 gets in
 * ============================================
 *
 * hook      XDP: the receive path of an interface (on lo: generic XDP, behind the making of the skb)
 * context   struct xdp_md
 * packets   not changed; ICMP over IPv4 and ICMPv6 over IPv6 are dropped, their later fragments too
 *
 *   frame -> VLAN tags -> IPv4 -----------------------+-> ICMP? -> counted by type, XDP_DROP
 *                      -> IPv6 -> extension headers --+-> else  -> counted, XDP_PASS
 *
 * Without ICMPv6 there is no neighbour discovery, so IPv6 on Ethernet soon fails; keep_nd lets the
 * neighbour discovery messages pass (lo needs none).
 *
 * A frame with truncated IP headers passes, because no host accepts it; one with more tags or
 * extension headers than the walk follows is dropped, because it could be ICMP.
 *
 * Map (struct in <bpfkit/wire.h>)
 *   types  percpu_array  type, 256 + type for ICMPv6, or one of `enum row` -> struct traffic
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/headers.h>
#include <bpfkit/log.h>
#include <bpfkit/wire.h>

LOAD_CONST(0, l2_len, 14); /* 14: Ethernet; else see link_offset() */
LOAD_CONST(1, keep_nd, 0); /* 1: neighbour discovery passes */
LOAD_CONST(2, log, 0); /* 1: a line about each packet that is dropped */

enum row {
	ROW_V6 = 256,
	ROW_NO_TYPE4 = 512, /* later fragments, or cut off before the type */
	ROW_NO_TYPE6,
	ROW_TOO_DEEP,
	ROW_PASSED,
	ROWS,
};

#define ND_FIRST 133 /* router solicitation */
#define ND_LAST  137 /* redirect */

BPF_TABLE("percpu_array", u32, struct traffic, types, ROWS);

static __always_inline u32 classify(struct window *w, enum outcome outcome, struct headers *h)
{
	u8 icmp = h->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
	u8 *type = NULL;

	if (outcome == TOO_DEEP)
		return ROW_TOO_DEEP;
	if (outcome != FOUND || h->proto != icmp)
		return ROW_PASSED;
	if (!h->later_fragment)
		type = window_peek(w, 1);
	if (!type)
		return h->family == 4 ? ROW_NO_TYPE4 : ROW_NO_TYPE6;
	if (h->family == 4)
		return *type;
	if (keep_nd() && *type >= ND_FIRST && *type <= ND_LAST)
		return ROW_PASSED;
	return ROW_V6 + *type;
}

/* The kernel without BPFKIT_LOG() refuses this only if log() is 1. */
static __always_inline void log_drop(struct xdp_md *ctx, const struct headers *h, u32 row)
{
	u32 size = ctx->data_end - ctx->data;
	u8 from[16] = {};

	if (h->family == 4) {
		bpf_xdp_load_bytes(ctx, h->network + 12, from, 4);
		BPFKIT_LOG("dropped: ICMP type %u from %pI4, %u bytes\n", row, (u64)from, size);
	} else if (h->family == 6) {
		bpf_xdp_load_bytes(ctx, h->network + 8, from, 16);
		BPFKIT_LOG("dropped: ICMPv6 type %u from %pI6c, %u bytes\n", row - ROW_V6,
			   (u64)from, size);
	}
}

SEC("xdp")
int xdp_drop_icmp(struct xdp_md *ctx)
{
	struct headers h = {};
	struct window w;
	u32 row;

	row = direct_xdp(ctx, &h, &w, l2_len());
	row = classify(&w, row, &h);
	add_frame(types.lookup(&row), ctx->data_end - ctx->data);
	if (row == ROW_PASSED)
		return XDP_PASS;
	if (log() && row < ROW_NO_TYPE4)
		log_drop(ctx, &h, row);
	return XDP_DROP;
}
