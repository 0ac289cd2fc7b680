/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_redirect_switch: an Ethernet switch that learns where stations are; or a hub
 * ================================================================================
 *
 * hook      XDP, at each of the ports
 * context   struct xdp_md
 * packets   not changed; VLAN tags are kept, and each VLAN has stations of its own
 *
 *   frame -> learn: (source, VLAN) is at this port
 *         -> destination known? -> DEVMAP_HASH[its port] ----------------------+-> egress program
 *         -> unknown, broadcast, multicast: DEVMAP_HASH, BPF_F_BROADCAST and   |   of each port
 *            BPF_F_EXCLUDE_INGRESS, a copy to all other ports ------------------+
 *         -> to the port's own address, or link-local (spanning tree, LLDP): the kernel
 *
 * The machine itself gets what is addressed to the port it comes in by, and no broadcasts: a frame
 * is redirected or passed, not both. What was learned is forgotten when the table is full (the least
 * recently used first) or the station is heard at another port.
 *
 * Maps (`ports` and `results`: "xdp_redirect.h")
 *   out       devmap_hash  ifindex -> the same, and the program that runs there
 *   stations  lru_hash     struct station -> ifindex
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/maps.h>
#include "xdp_redirect.h"

LOAD_CONST(0, learns, 1); /* 1: a switch; 0: a hub, everything goes to all others */

#define MAX_STATIONS 65536

struct station {
	struct mac mac;
	u16 vlan; /* id of the outermost tag; 0: none */
};

BPFKIT_MAP(0, BPF_MAP_TYPE_DEVMAP_HASH, out, u32, u64, MAX_PORTS, 0, 0);
BPF_TABLE("lru_hash", struct station, u32, stations, MAX_STATIONS);
BPF_HASH(ports, u32, struct port, MAX_PORTS);
BPF_TABLE("percpu_hash", struct seen, struct traffic, results, MAX_RESULTS);

static __always_inline void count(struct xdp_md *ctx, u32 result)
{
	struct seen key = { .ifindex = ctx->ingress_ifindex, .result = result };
	struct traffic zero = {};

	add_frame(results.lookup_or_try_init(&key, &zero), ctx->data_end - ctx->data);
}

/* 01:80:c2:00:00:00 to 0f: between neighbours only (IEEE 802.1D, 7.12.6) */
static __always_inline bool is_link_local(const u8 *mac)
{
	return mac_number(mac) >> 4 == 0x0180c200000ULL;
}

static __always_inline void learn(const struct ethhdr *eth, u16 vlan, u32 ifindex)
{
	struct station who = { .vlan = vlan };
	u32 *where;

	__builtin_memcpy(&who.mac, eth->h_source, ETH_ALEN);
	where = stations.lookup(&who);
	if (!where || *where != ifindex)
		stations.update(&who, &ifindex);
}

/* The port to leave by, 0: all others. */
static __always_inline u32 find(const struct ethhdr *eth, u16 vlan)
{
	struct station who = { .vlan = vlan };
	u32 *where;

	if (eth->h_dest[0] & 1)
		return 0;
	__builtin_memcpy(&who.mac, eth->h_dest, ETH_ALEN);
	where = stations.lookup(&who);
	return where ? *where : 0;
}

static __always_inline u16 vlan_of(struct window *w, u16 ethertype)
{
	struct vlan_tag *tag = is_vlan(ethertype) ? window_peek(w, sizeof(*tag)) : NULL;

	return tag ? bpf_ntohs(tag->tci) & VLAN_VID_MASK : 0;
}

static __always_inline int flood(struct xdp_md *ctx)
{
	count(ctx, RESULT_FLOODED);
	return bpf_redirect_map(BPFKIT_MAP_REF(out), 0, BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS);
}

SEC("xdp")
int xdp_redirect_switch(struct xdp_md *ctx)
{
	struct window w = {
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.limit = ctx->data_end - ctx->data,
	};
	struct ethhdr *eth = window_pull(&w, sizeof(*eth));
	u32 ifindex = ctx->ingress_ifindex, to;
	struct port *port;
	u16 vlan;

	if (!learns())
		return flood(ctx);
	port = ports.lookup(&ifindex);
	if (!eth || !port || is_link_local(eth->h_dest) ||
	    mac_number(eth->h_dest) == mac_number(port->mac.byte)) {
		count(ctx, RESULT_OWN);
		return XDP_PASS;
	}
	if (eth->h_source[0] & 1 || !mac_number(eth->h_source)) {
		count(ctx, RESULT_BAD_SOURCE);
		return XDP_DROP;
	}
	vlan = vlan_of(&w, bpf_ntohs(eth->h_proto));
	learn(eth, vlan, ifindex);
	to = find(eth, vlan);
	if (to == ifindex) {
		count(ctx, RESULT_SAME_PORT);
		return XDP_DROP;
	}
	/* a port that was removed is not in the map any more: as if nothing was known */
	if (!to || bpf_redirect_map(BPFKIT_MAP_REF(out), to, XDP_PASS) != XDP_REDIRECT)
		return flood(ctx);
	count(ctx, RESULT_REDIRECTED);
	return XDP_REDIRECT;
}
