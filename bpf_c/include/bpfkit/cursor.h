/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A cursor over one packet.
 *
 * Two bounds are kept apart: what the frame holds (bpf_skb_load_bytes() checks it) and what the
 * packet in it says it holds (`end`). Ethernet pads short frames, so bytes that are there are not
 * always bytes of the packet: ports must not be read from padding.
 */
#ifndef BPFKIT_CURSOR_H
#define BPFKIT_CURSOR_H

#include <bpfkit/bpfkit.h>

struct cursor {
	u32 off; /* next byte to read, from skb->data */
	u32 end; /* first byte behind the packet, from skb->data */
};

/* Copies the next `len` bytes without moving on; false if they are not all there. */
static __always_inline bool cursor_peek(struct __sk_buff *skb, const struct cursor *cur, void *to,
					u32 len)
{
	return cur->off + len <= cur->end && bpf_skb_load_bytes(skb, cur->off, to, len) == 0;
}

/* The same, and moves behind them. */
static __always_inline bool cursor_pull(struct __sk_buff *skb, struct cursor *cur, void *to,
					u32 len)
{
	if (!cursor_peek(skb, cur, to, len))
		return false;
	cur->off += len;
	return true;
}

/* The packet that starts at the cursor is `len` bytes long; 0 means that it does not say. */
static __always_inline void cursor_limit(struct cursor *cur, u32 len)
{
	if (len && cur->off + len < cur->end)
		cur->end = cur->off + len;
}

#endif
