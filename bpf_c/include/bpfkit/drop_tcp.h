/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Is it TCP? What xdp_drop_tcp and tc_drop_tcp have in common.
 *
 * The IP header decides, not the TCP header: a later fragment has none, but its header says TCP
 * all the same. A frame whose IP or extension headers are cut off passes: no host takes it (the
 * start of an IPv6 datagram without its whole header chain is discarded too, RFC 8200 4.5, and
 * that is why later fragments that name an extension header may pass). A frame with more tags or
 * extension headers than can be looked through is dropped: it could be TCP.
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
