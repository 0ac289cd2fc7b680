/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whether a frame is TCP, for xdp_drop_tcp and tc_drop_tcp.
 *
 * The protocol field of the IP header (or of the last extension header) decides, not the TCP header:
 * later fragments have no TCP header. A frame with truncated IP or extension headers passes, because
 * no host accepts it. Later fragments that name an extension header pass too: hosts discard a first
 * fragment without the whole header chain (RFC 8200, 4.5). A frame with more tags or extension headers
 * than the walk follows is dropped, because it could be TCP.
 */
#ifndef BPFKIT_DROP_TCP_H
#define BPFKIT_DROP_TCP_H

#include <bpfkit/headers.h>

enum drop_row {
	ROW_TCP4,
	ROW_TCP6,
	ROW_FRAGMENT4, /* later fragments of TCP over IPv4 */
	ROW_FRAGMENT6,
	ROW_TOO_DEEP,
	ROW_PASSED, /* the rows before this one are drops */
	ROWS,
};

static __always_inline enum drop_row drop_tcp(enum outcome outcome, const struct headers *h)
{
	if (outcome == TOO_DEEP)
		return ROW_TOO_DEEP;
	if (outcome != FOUND || h->proto != IPPROTO_TCP)
		return ROW_PASSED;
	if (h->family == 4)
		return h->later_fragment ? ROW_FRAGMENT4 : ROW_TCP4;
	return h->later_fragment ? ROW_FRAGMENT6 : ROW_TCP6;
}

#endif
