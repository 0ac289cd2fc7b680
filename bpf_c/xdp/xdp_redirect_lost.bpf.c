/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_redirect_lost: frames that were redirected and never sent, and why
 * ======================================================================
 *
 * hook      raw tracepoints xdp_redirect_err (refused before it is queued: too long, interface down,
 *           driver without ndo_xdp_xmit) and xdp_devmap_xmit (the driver did not take it)
 * context   struct bpf_raw_tracepoint_args
 * packets   not seen
 *
 *   XDP_REDIRECT -> xdp_do_redirect() --error--> xdp_redirect_err --+-> lost[ifindex, errno]
 *                   queue -> driver --------drops--> xdp_devmap_xmit-+
 *
 * A program does not learn what happens to its redirects, and most losses are in no statistic of the
 * interface. Tracepoints are the machine's, not a namespace's: `netns` and the map's id tell
 * whose frame it was. Offsets in the kernel's structs are those of the running one (BTF).
 *
 * Map
 *   lost  hash  interface (the one to leave by; the one it came in by where that is not known), and
 *               errno -> frames
 *
 * Not counted: broadcasts silently skip ports that are down or whose driver cannot send XDP frames.
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>

LOAD_CONST(0, netns, 0); /* inode number of the network namespace */
LOAD_CONST(1, map_id, 0); /* of the device map */
LOAD_CONST(2, keys_are_ports, 0); /* 1: its keys are the entries' ifindexes */
/* Offsets in kernel structs */
LOAD_CONST(3, dev_ifindex, 0); /* net_device.ifindex */
LOAD_CONST(4, dev_net, 0); /* net_device.nd_net.net */
LOAD_CONST(5, net_inum, 0); /* net.ns.inum */

struct loss {
	u32 ifindex;
	u32 is_ingress; /* 1: ifindex is where it came in */
	u32 error; /* errno; 0: the driver had no room */
};

BPF_HASH(lost, struct loss, u64, 1024);

/* The number of a struct net_device; 0 where it is in another namespace. */
static __always_inline u32 number_of(u64 dev)
{
	u32 inode = 0, ifindex = 0;
	u64 net = 0;

	bpf_probe_read_kernel(&net, sizeof(net), (void *)(dev + dev_net()));
	bpf_probe_read_kernel(&inode, sizeof(inode), (void *)(net + net_inum()));
	bpf_probe_read_kernel(&ifindex, sizeof(ifindex), (void *)(dev + dev_ifindex()));
	return inode == netns() ? ifindex : 0;
}

static __always_inline void add(struct loss *key, u64 frames)
{
	u64 zero = 0, *sum;

	if (!key->ifindex || !frames)
		return;
	sum = lost.lookup_or_try_init(key, &zero);
	if (sum)
		__sync_fetch_and_add(sum, frames);
}

/* (dev, program, target, error, map type, map id, index) */
SEC("raw_tp/xdp_redirect_err")
int refused(struct bpf_raw_tracepoint_args *ctx)
{
	struct loss key = {};

	if ((u32)ctx->args[5] != map_id())
		return 0;
	if (keys_are_ports())
		key.ifindex = ctx->args[6];
	if (!key.ifindex) {
		key.ifindex = number_of(ctx->args[0]);
		key.is_ingress = 1;
	}
	key.error = -(int)ctx->args[3];
	add(&key, 1);
	return 0;
}

/* (from, to, sent, drops, error) */
SEC("raw_tp/xdp_devmap_xmit")
int not_taken(struct bpf_raw_tracepoint_args *ctx)
{
	struct loss key = {};

	key.ifindex = number_of(ctx->args[1]);
	key.error = -(int)ctx->args[4];
	add(&key, (u32)ctx->args[3]);
	return 0;
}
