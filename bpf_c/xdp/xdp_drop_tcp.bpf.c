/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_drop_tcp: no TCP gets in
 * ============================
 *
 * hook      XDP: the receive path of an interface
 * context   struct xdp_md
 * packets   not changed; TCP is dropped, over IPv4 and IPv6, in VLANs, later fragments too
 *
 *   wire -> this program -+-> XDP_DROP: TCP, by the protocol of the IP header
 *                         +-> XDP_PASS: everything else -> tap (tcpdump) -> tc ingress -> IP
 *
 * On the host's end of a container's veth pair this drops TCP that the container sends. TCP sent to
 * the container passes, because XDP has no transmit side (see tc_drop_tcp).
 *
 * What counts as TCP: see <bpfkit/drop_tcp.h>.
 *
 * Map (struct in <bpfkit/wire.h>)
 *   rows  percpu_array  enum drop_row -> struct traffic
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/drop_tcp.h>
#include <bpfkit/wire.h>

LOAD_CONST(0, l2_len, 14); /* 14: Ethernet; else see link_offset() */

BPF_TABLE("percpu_array", u32, struct traffic, rows, ROWS);

SEC("xdp")
int xdp_drop_tcp(struct xdp_md *ctx)
{
	struct headers h = {};
	struct window w;
	u32 row;

	row = direct_xdp(ctx, &h, &w, l2_len());
	row = drop_tcp(row, &h);
	add_frame(rows.lookup(&row), ctx->data_end - ctx->data);
	return row < ROW_PASSED ? XDP_DROP : XDP_PASS;
}
