/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the programs share that forward frames between the interfaces they are on, their ports: what
 * became of each frame, counted by the port that it came in by.
 *
 * A VLAN tag that is not in the frame is not seen: on a card `ethtool -K DEV rxvlan off`, on the
 * other end of a veth `txvlan off`.
 *
 * Maps
 *   ports    hash         ifindex -> struct port, written by user space
 *   results  percpu_hash  ifindex it came in by, enum result -> struct traffic
 */
#ifndef BPFKIT_REDIRECT_H
#define BPFKIT_REDIRECT_H

#include <bpfkit/direct.h>
#include <bpfkit/wire.h>
#include <uapi/linux/bpf.h>

#define MAX_PORTS 64

/* 0 to 15 are BPF_FIB_LKUP_RET_*, what the kernel's routing table said. */
enum result {
	RESULT_REDIRECTED = 16, /* out by one port */
	RESULT_FLOODED, /* out by all other ports */
	RESULT_SAME_PORT, /* its destination is where it came from: dropped */
	RESULT_BAD_SOURCE, /* a source address that no station has: dropped */
	RESULT_NO_PORT, /* nowhere to send it: left to the kernel */
	RESULT_OWN, /* for the machine itself: left to the kernel */
	RESULT_NOT_OURS, /* not addressed to the router: left to the kernel */
	RESULT_TAGGED, /* VLAN-tagged, which has a routing table of its own: left to the kernel */
	RESULT_NOT_IP, /* ARP and the like: left to the kernel */
	RESULT_ODD, /* an IP header that needs more than forwarding: left to the kernel */
	RESULT_EXPIRED, /* its TTL is used up: left to the kernel, which tells the sender */
};

struct mac {
	u8 byte[ETH_ALEN];
};

struct port {
	u32 slot; /* its number in a DEVMAP */
	struct mac mac; /* its own */
	u16 any_mac; /* 1: takes frames to other addresses too (captures) */
};

struct seen {
	u32 ifindex;
	u32 result; /* enum result */
};

BPF_HASH(ports, u32, struct port, MAX_PORTS);
BPF_TABLE("percpu_hash", struct seen, struct traffic, results, 32 * MAX_PORTS);

static __always_inline u64 mac_number(const u8 *mac)
{
	return (u64)mac[0] << 40 | (u64)mac[1] << 32 | (u64)mac[2] << 24 | (u64)mac[3] << 16 |
	       (u64)mac[4] << 8 | mac[5];
}

static __always_inline void count(struct xdp_md *ctx, u32 result)
{
	struct seen key = { .ifindex = ctx->ingress_ifindex, .result = result };
	struct traffic one = { .packets = 1, .bytes = ctx->data_end - ctx->data };
	struct traffic *sum = results.lookup(&key);

	if (sum)
		add_traffic(sum, &one);
	else
		results.update(&key, &one);
}

#endif
