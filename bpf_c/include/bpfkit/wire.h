/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How many frames and bytes a socket buffer is on the wire.
 *
 * With GSO, TSO and GRO one socket buffer stands for many frames: the payload is cut into pieces of
 * gso_size bytes, each behind its own copy of all headers. A packet tap sees the socket buffer.
 */
#ifndef BPFKIT_WIRE_H
#define BPFKIT_WIRE_H

#include <uapi/linux/if_packet.h>
#include <bpfkit/ip.h>

#define DIRECTION_IN   1
#define DIRECTION_OUT  2
#define CAPTURED_EMPTY 0xffffffff /* captured_len() of a captured packet of 0 bytes */
#define GSO_BY_FRAGS   0xffff /* SCTP: segments have sizes of their own, gso_segs counts them */

/* One row of every counting map. */
struct traffic {
	u64 packets; /* frames on the wire */
	u64 bytes; /* from the Ethernet header on, tags included, checksum (FCS) not */
};

/* Every frame is in `seen`, and in one of the program's rows, nonip or unattributed. */
struct totals {
	struct traffic seen;
	struct traffic nonip;
	struct traffic unattributed; /* no place in the table */
};

/* Taps on loopback see each frame twice, outgoing and incoming: `direction` says which to count. */
static __always_inline bool wanted(struct __sk_buff *skb, u32 direction)
{
	u32 is = skb->pkt_type == PACKET_OUTGOING ? DIRECTION_OUT : DIRECTION_IN;

	return direction & is;
}

/*
 * Original length of a captured frame, which a snap length may have cut. The capture replay sets it;
 * on a live socket the kernel clears cb[], and skb->len is the length.
 */
static __always_inline u32 captured_len(struct __sk_buff *skb)
{
	return skb->cb[4];
}

static __always_inline u32 frame_len(struct __sk_buff *skb)
{
	u32 len = captured_len(skb);

	if (len == CAPTURED_EMPTY)
		return 0;
	return len ? len : skb->len;
}

/* More than one frame? For tc programs, where cb[] is not ours; cheap enough for every packet. */
static __always_inline bool is_gso(struct __sk_buff *skb)
{
	return skb->gso_segs > 1 || skb->gso_size;
}

/* The same for a tap, which also replays captures: there gso_size alone says nothing. */
static __always_inline bool is_super_frame(struct __sk_buff *skb)
{
	return skb->gso_segs > 1 || (skb->gso_size && !captured_len(skb));
}

/*
 * Frames and bytes on the wire of a socket buffer of `len` bytes; `super`: is it a super-frame?
 * `header_len`: bytes from skb->data up to and including the innermost transport header (see
 * segment.h); only used for super-frames.
 */
static __always_inline struct traffic segment_traffic(struct __sk_buff *skb, u32 len, bool super,
						      u32 header_len)
{
	u32 segs = 1;

	if (super) {
		u32 size = skb->gso_size;

		segs = skb->gso_segs;
		/* virtio leaves gso_segs at 0 */
		if (!segs && size != GSO_BY_FRAGS && len > header_len)
			segs = (len - header_len + size - 1) / size;
		if (!segs)
			segs = 1;
		len += (segs - 1) * header_len;
	}
	/* the outermost tag may be kept beside the packet instead of in it */
	if (skb->vlan_present)
		len += segs * VLAN_HLEN;
	return (struct traffic){ .packets = segs, .bytes = len };
}

/* What a tap's socket buffer is on the wire. */
static __always_inline struct traffic wire_traffic(struct __sk_buff *skb, u32 header_len)
{
	return segment_traffic(skb, frame_len(skb), is_super_frame(skb), header_len);
}

static __always_inline void add_traffic(struct traffic *to, const struct traffic *what)
{
	to->packets += what->packets;
	to->bytes += what->bytes;
}

/* Adds one frame of `len` bytes to the row, if there is one. */
static __always_inline void add_frame(struct traffic *row, u64 len)
{
	if (row) {
		row->packets++;
		row->bytes += len;
	}
}

#endif
