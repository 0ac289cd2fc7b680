/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ext: a function of a loaded XDP program is replaced while packets arrive
 * =======================================================================
 *
 * hook      freplace: the function `original` of the XDP program on the interface
 * context   that of the function: struct xdp_md
 * packets   not changed; while the function is replaced, ICMP and ICMPv6 are dropped
 *
 *   frame -> original()                -> counted, XDP_PASS
 *              :
 *              :  while replacement() is attached to it
 *              v
 *            replacement() -> ICMP?    -> counted, XDP_DROP
 *                          -> else     -> counted, XDP_PASS
 *
 * The program on the interface stays what it is: same id, same link, no packet without a program. The
 * verifier checks that both functions have the same arguments. Both are global in BTF: the loader says
 * so, because BCC makes functions static.
 *
 * Map (struct in <bpfkit/wire.h>)
 *   seen  percpu_array  enum row -> struct traffic
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/headers.h>
#include <bpfkit/wire.h>

LOAD_CONST(0, l2_len, 14); /* 14: Ethernet; else see link_offset() */

enum row { ORIGINAL_PASSED, REPLACED_PASSED, REPLACED_DROPPED, ROWS };

BPF_TABLE("percpu_array", u32, struct traffic, seen, ROWS);

SEC("xdp")
int original(struct xdp_md *ctx)
{
	u32 row = ORIGINAL_PASSED;

	add_frame(seen.lookup(&row), ctx->data_end - ctx->data);
	return XDP_PASS;
}

SEC("freplace")
int replacement(struct xdp_md *ctx)
{
	u32 row = REPLACED_PASSED;
	struct headers h = {};
	struct window w;

	if (direct_xdp(ctx, &h, &w, l2_len()) == FOUND &&
	    h.proto == (h.family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		row = REPLACED_DROPPED;
	add_frame(seen.lookup(&row), ctx->data_end - ctx->data);
	return row == REPLACED_DROPPED ? XDP_DROP : XDP_PASS;
}
