/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What tells flows apart. User space reads these structs from the maps: no padding without a name,
 * unused bytes are zero, so that equal flows are equal keys.
 */
#ifndef BPFKIT_FLOW_H
#define BPFKIT_FLOW_H

#include <bpfkit/bpfkit.h>

#define FLOW_PORTS 1 /* flow_key.flags: sport and dport were there to be read */
#define OUTER_FULL 0xffffffff /* instead of an id: no place for one more outer header */

/*
 * Eleven 32-bit words: the kernel hashes keys of whole words with jhash2(), other sizes byte by
 * byte. IPv4 addresses are in the first four bytes, network byte order, the rest zero.
 */
struct flow_key {
	u8 src[16] __aligned(4);
	u8 dst[16];
	__be16 sport;
	__be16 dport;
	u8 family; /* 4 or 6 */
	u8 proto; /* IPPROTO_*; for IPv6 what the extension headers lead to */
	u8 flags; /* FLOW_PORTS */
	u8 interface; /* struct watched.number; 0: only one interface is watched */
	u32 outer_id; /* the innermost header around the flow (value in `outers`); 0: none */
};

enum outer_type {
	OUTER_VLAN,
	OUTER_GRE,
	OUTER_IPIP, /* IPv4 in IPv4 */
	OUTER_6IN4, /* IPv6 in IPv4 */
	OUTER_4IN6, /* IPv4 in IPv6 */
	OUTER_6IN6, /* IPv6 in IPv6 */
	OUTER_VXLAN,
};

/*
 * One header around a flow: a VLAN tag or a tunnel. The map from this to an id interns it
 * together with what is around itself, so a flow's one id stands for the whole chain, however
 * deep. Eleven words, too.
 */
struct outer_key {
	u8 src[16] __aligned(4); /* of the IP header that carries the tunnel, as in flow_key */
	u8 dst[16];
	u32 outer_id; /* the header around this one; 0: this is the outermost */
	u32 id; /* VLAN id, GRE key, PPTP call id or VXLAN VNI; host order */
	u8 type; /* enum outer_type */
	u8 family; /* 4 or 6; 0 for a VLAN tag */
	u8 has_id; /* 1: id is valid (a GRE header may have none) */
	u8 zero;
};

#define WATCHED_PORT 1 /* of a bridge */
#define WATCHED_IN   2 /* a frame that comes in here is counted: here, or on what is below */
#define WATCHED_HOST 4 /* what the host sends through the bridge is counted on the bridge */

/* What is done with the frames of an interface, where several are watched. */
struct watched {
	u32 bridge; /* ifindex of the bridge that it is, or is a port of; else 0 */
	u16 l2_len; /* bytes of link header */
	u8 number; /* for flow_key.interface */
	u8 directions; /* DIRECTION_IN | DIRECTION_OUT: what is counted here */
	u32 flags; /* WATCHED_* */
};

#endif
