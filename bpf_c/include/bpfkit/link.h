/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The link header of an XDP packet that gets more in front of its IP header, or less: kept aside,
 * and put before the packet's new start with its VLAN tags and another ethertype behind them.
 *
 *	save_link()  ─▶  bpf_xdp_adjust_head()  ─▶  put_link()
 */
#ifndef BPFKIT_LINK_H
#define BPFKIT_LINK_H

#include <bpfkit/direct.h>

struct link_header {
	struct ethhdr eth;
	struct vlan_tag tags[MAX_TAGS];
};

/* False: there are not as many bytes, with no tags either. */
static __always_inline bool save_link(const struct window *w, struct link_header *to)
{
	if (w->data + sizeof(*to) > w->end)
		return false;
	__builtin_memcpy(to, w->data, sizeof(*to));
	return true;
}

/*
 * The link header at the packet's new start; the place behind it, where `size` bytes may be
 * written.
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
