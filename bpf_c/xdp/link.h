/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Saves an XDP frame's Ethernet header and VLAN tags while a header is added or removed behind them,
 * and writes them back in front with the new ethertype. A program that includes this defines
 * MAX_TAGS as 2 or less first.
 *
 *	save_link()  ─▶  bpf_xdp_adjust_head()  ─▶  put_link()
 */
#ifndef BPFKIT_LINK_H
#define BPFKIT_LINK_H

#include <bpfkit/headers.h>

_Static_assert(MAX_TAGS <= 2, "put_link() writes two VLAN tags at most");

struct link_header {
	struct ethhdr eth;
	struct vlan_tag tags[MAX_TAGS];
};

/* False if the frame is shorter than an Ethernet header and MAX_TAGS tags. */
static __always_inline bool save_link(const struct window *w, struct link_header *to)
{
	if (w->data + sizeof(*to) > w->end)
		return false;
	__builtin_memcpy(to, w->data, sizeof(*to));
	return true;
}

/*
 * Writes the link header at the frame's new start. Returns the byte behind it, from which `size`
 * bytes may be written; NULL if the frame is too short.
 */
static __always_inline void *put_link(struct xdp_md *ctx, const struct link_header *link, u8 tags,
				      u16 ethertype, u64 size)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u64 len = ETH_HLEN + (tags & 3) * VLAN_HLEN;
	__be16 *type;

	if (data + sizeof(*link) > end)
		return NULL;
	__builtin_memcpy(data, &link->eth, ETH_HLEN);
	if (tags > 0)
		__builtin_memcpy(data + ETH_HLEN, &link->tags[0], VLAN_HLEN);
	if (tags > 1)
		__builtin_memcpy(data + ETH_HLEN + VLAN_HLEN, &link->tags[1], VLAN_HLEN);
	type = data + (len - sizeof(*type));
	if ((void *)type + sizeof(*type) + size > end)
		return NULL;
	*type = bpf_htons(ethertype);
	return type + 1;
}

#endif
