/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_redirect_egress: the program on a map's entry
 * =================================================
 *
 * hook      XDP, behind a redirect to an entry of a DEVMAP or DEVMAP_HASH, before the frame is sent
 * context   struct xdp_md; egress_ifindex is the interface it leaves by
 * packets   not changed; those of VLANs that are not the port's are dropped
 *
 *   XDP_REDIRECT -> entry of the map -+-> is the frame's VLAN one of the port's? -> sent
 *                   (copy per port)   +-> else: XDP_DROP
 *
 * Only here every copy of a broadcast is seen, with the interface it goes to: the program that
 * redirected saw one frame. A port without an entry in `members` takes all VLANs.
 *
 * Maps (struct traffic: <bpfkit/wire.h>)
 *   members   hash         ifindex -> bit per VLAN id (that of the outermost tag; bit 0: untagged)
 *   departed  percpu_hash  ifindex, enum departure -> struct traffic
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/headers.h>
#include <bpfkit/wire.h>
#include <uapi/linux/bpf.h>

#define MAX_PORTS 64
#define VLANS     4096

enum departure {
	DEPARTED,
	WRONG_VLAN,
};

struct vlans {
	u64 bits[VLANS / 64];
};

struct departure_key {
	u32 ifindex;
	u32 what; /* enum departure */
};

BPF_HASH(members, u32, struct vlans, MAX_PORTS);
BPF_TABLE("percpu_hash", struct departure_key, struct traffic, departed, 2 * MAX_PORTS);

static __always_inline bool is_member(struct xdp_md *ctx, u32 ifindex)
{
	struct window w = {
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.limit = ctx->data_end - ctx->data,
	};
	struct vlans *vlans = members.lookup(&ifindex);
	struct vlan_tag *tag;
	struct ethhdr *eth;
	u32 id = 0;

	if (!vlans)
		return true;
	eth = window_pull(&w, sizeof(*eth));
	if (!eth)
		return false;
	if (is_vlan(bpf_ntohs(eth->h_proto))) {
		tag = window_peek(&w, sizeof(*tag));
		if (!tag)
			return false;
		id = bpf_ntohs(tag->tci) & VLAN_VID_MASK;
	}
	return vlans->bits[id / 64] >> id % 64 & 1;
}

SEC("xdp/devmap")
int xdp_redirect_egress(struct xdp_md *ctx)
{
	struct traffic one = { .packets = 1, .bytes = ctx->data_end - ctx->data };
	struct departure_key key = { .ifindex = ctx->egress_ifindex };
	struct traffic *sum;

	key.what = is_member(ctx, key.ifindex) ? DEPARTED : WRONG_VLAN;
	sum = departed.lookup(&key);
	if (sum)
		add_traffic(sum, &one);
	else
		departed.update(&key, &one);
	return key.what == DEPARTED ? XDP_PASS : XDP_DROP;
}
