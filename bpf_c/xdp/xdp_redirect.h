/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the three xdp_redirect programs (patch, switch, router) share: the ports they forward frames
 * between, and the results they count, by ingress port.
 *
 * XDP does not see a VLAN tag that the driver strips from the frame. `ethtool -K DEV rxvlan off`
 * keeps the tag in the frame on a network card; `txvlan off` does it on the other end of a veth.
 *
 * Maps that each of these programs defines
 *   ports    hash         ifindex -> struct port, written by user space
 *   results  percpu_hash  ifindex it came in by, enum result -> struct traffic
 */
#ifndef BPFKIT_REDIRECT_H
#define BPFKIT_REDIRECT_H

#include <bpfkit/headers.h>
#include <bpfkit/wire.h>
#include <uapi/linux/bpf.h>

#define MAX_PORTS   64
#define MAX_RESULTS (32 * MAX_PORTS)

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

static __always_inline u64 mac_number(const u8 *mac)
{
	return (u64)mac[0] << 40 | (u64)mac[1] << 32 | (u64)mac[2] << 24 | (u64)mac[3] << 16 |
	       (u64)mac[4] << 8 | mac[5];
}

#endif
