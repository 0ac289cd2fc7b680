/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What sk_lookup.bpf.c and sk_lookup_reply.bpf.c share: the rules' counters, and the flows of UDP.
 */
#ifndef BPFKIT_SK_LOOKUP_H
#define BPFKIT_SK_LOOKUP_H

#define RULES 4096 /* numbers of rules; 0 is none */
#define FLOWS 16384

/* What happened to the lookups that a rule matched. lookups = assigned + misses + all errors */
struct count {
	u64 lookups;
	u64 assigned; /* the listener's socket was selected */
	u64 misses; /* no socket: the listener has closed */
	u64 esocktnosupport; /* the socket does not listen, or is a connected UDP one */
	u64 eprototype; /* the socket is of the other protocol */
	u64 eafnosupport; /* an IPv4 socket for an IPv6 packet, or an IPV6_V6ONLY one for IPv4 */
	u64 eexist; /* a socket had been selected already */
	u64 other; /* other errors */
	u64 replies; /* UDP: source ports written into replies */
	u64 reported_ns; /* when the last failure became an event */
};

/* What a reply of the UDP server tells of its request: to whom, and by which of the server's ports. */
struct flow_key {
	__be32 client[4]; /* IPv4: the first word */
	__be16 client_port;
	u16 server_port; /* host order */
	u32 family; /* 4 or 6 */
};

/* And what the client expects: the address and the port that it sent to. */
struct flow {
	__be32 addr[4];
	u16 port; /* host order */
	u16 pad;
	u32 rule;
};

#endif
