/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sk_lookup: one socket listens for many ports, port ranges and prefixes
 * ======================================================================
 *
 * hook      the lookup of a listening TCP or an unconnected UDP socket for a packet of the network
 *           namespace (SK_LOOKUP). Established connections and connected UDP sockets are found
 *           before and never come here.
 * context   struct bpf_sk_lookup: family, protocol, addresses, ports; no packet
 * may       select a socket (bpf_sk_assign), or let the lookup fail (SK_DROP; not used here)
 * packets   not changed; the connection has the address and the port that the client asked for
 *
 *   packet -> local address and protocol -> places -> a table of ports -> rule -> its target's sockets
 *                    |                                      |                        |
 *                    no place                               no rule                  bpf_sk_assign
 *                    +----------------> SK_PASS <-----------+     none: a miss <-----+--> an error
 *                                  the kernel looks on                |                   (each counted)
 *                                  as without a program  <------------+------------------------+
 *
 * The longest prefix decides, then the narrowest range of ports. User space has worked that out: a
 * place's table holds, for every port, the rule that is in force there.
 *
 * Of an SO_REUSEPORT group one socket is selected here, and the kernel then chooses among the group as
 * without a program. Each kind of packet (protocol, family) has a second socket of the target, for the
 * moment between the close of the first and the entry of another.
 *
 * UDP. The server answers from its own port, and its client does not accept that: a connected socket
 * sees only its peer's packets, and programs such as dig compare ports. No cgroup hook can help it: a
 * sendmsg hook may write destination and source *address*, but not the source *port*; a recvmsg hook
 * comes after the packet found its socket, which for a connected client it never does; cgroup_skb
 * programs cannot write; and this hook refuses connected sockets (ESOCKTNOSUPPORT). So a table of flows
 * remembers what each client asked for, and the reply is rewritten where the hooks allow it: the source
 * address in sendmsg(2), the port at tc egress. See sk_lookup_reply.bpf.c.
 *
 * Maps (numbers of rules, targets and tables are given by user space)
 *   places   lpm_trie        struct place -> number of a table
 *   tables   array_of_maps   tables of ports: port / 64 -> struct ports
 *   rules    array           number -> struct rule
 *   targets  array           number -> struct target
 *   sockets  sockmap         target, protocol, family, spare -> socket; empties itself on close
 *   counts   percpu_array    number of a rule -> struct count
 *   flows    lru_hash        struct flow_key -> struct flow
 *   state    array           enum word -> u64
 *   failed   ringbuf         struct failure: at most one every 100 ms for each rule and CPU
 *   lost     array           0 -> failures that the ring buffer had no room for
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/maps.h>
#include <uapi/asm-generic/errno.h>
#include <uapi/linux/bpf.h>
#include <uapi/linux/in.h>
#include "sk_lookup.h"

#define AF_INET         2
#define PORTS_A_BLOCK   64
#define TARGETS         256
#define SOCKETS_EACH    8 /* of a target: protocol * 4 + family * 2 + spare */
#define REPORT_EVERY_NS 100000000

enum word {
	GENERATION, /* edits that were made */
	EDITING, /* an edit has begun and is not complete */
	UDP_RULES, /* there are rules for UDP */
	SERIAL, /* of the last rule */
	CAUGHT_UP, /* the edit that the running program has seen */
	WORDS,
};

struct place {
	u32 length; /* 32 + the prefix's */
	u8 proto; /* IPPROTO_TCP or IPPROTO_UDP */
	u8 family; /* 4 or 6 */
	u16 pad;
	__be32 addr[4]; /* IPv4: the first word */
};

struct ports {
	u16 rule[PORTS_A_BLOCK]; /* 0: none */
};

struct rule {
	u32 target;
	u8 used;
	u8 protos; /* 1 TCP, 2 UDP, 3 both */
	u8 family; /* 4, 6, or 0: every address */
	u8 length; /* of the prefix */
	u16 first; /* ports, host order */
	u16 last;
	u32 serial; /* counts rules in the order they were added */
	__be32 addr[4];
};

/* Which listening socket. 0 and -1: not said. */
struct target {
	u32 pid;
	s32 fd;
	u32 uid;
	u16 port; /* host order */
	u8 family; /* 4 or 6: its address; 0: not said */
	u8 used;
	__be32 addr[4];
};

struct failure {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 rule;
	u32 error; /* errno; 0: no socket */
	u8 proto;
	u8 family;
	u16 dport; /* host order */
	__be16 sport;
	u16 pad;
	__be32 src[4];
	__be32 dst[4];
};

BPF_LPM_TRIE(places, struct place, u32, 4096);
BPF_F_TABLE("array", u32, struct ports, ports, 65536 / PORTS_A_BLOCK, BPF_F_MMAPABLE);
BPF_ARRAY_OF_MAPS(tables, "ports", 256);
BPF_ARRAY(rules, struct rule, RULES);
BPF_ARRAY(targets, struct target, TARGETS);
BPFKIT_MAP(0, BPF_MAP_TYPE_SOCKMAP, sockets, u32, u64, TARGETS *SOCKETS_EACH, 0, 0);
BPF_PERCPU_ARRAY(counts, struct count, RULES);
BPF_TABLE("lru_hash", struct flow_key, struct flow, flows, FLOWS);
BPF_ARRAY(state, u64, WORDS);
BPF_RINGBUF_OUTPUT(failed, 16);
EVENT_TYPE(failed, struct failure);
BPF_ARRAY(lost, u64, 1);

/* Of the two families' fields those of the other one read as zero: no branch is needed. */
static __always_inline void local_address(__be32 to[4], const struct bpf_sk_lookup *ctx)
{
	to[0] = ctx->local_ip4 | ctx->local_ip6[0];
	to[1] = ctx->local_ip6[1];
	to[2] = ctx->local_ip6[2];
	to[3] = ctx->local_ip6[3];
}

static __always_inline void remote_address(__be32 to[4], const struct bpf_sk_lookup *ctx)
{
	to[0] = ctx->remote_ip4 | ctx->remote_ip6[0];
	to[1] = ctx->remote_ip6[1];
	to[2] = ctx->remote_ip6[2];
	to[3] = ctx->remote_ip6[3];
}

static __always_inline bool same_address(const __be32 a[4], const __be32 b[4])
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* The number of the rule for the packet; 0: none. */
static __always_inline u32 find_rule(const struct bpf_sk_lookup *ctx, u8 family)
{
	struct place here = { .length = 32 + 128, .proto = ctx->protocol, .family = family };
	u32 port = ctx->local_port, block = port / PORTS_A_BLOCK, *number;
	struct ports *found;
	void *table;

	local_address(here.addr, ctx);
	if (family == 4)
		here.length = 32 + 32;
	number = places.lookup(&here);
	if (!number)
		return 0;
	table = tables.lookup(number);
	if (!table)
		return 0;
	found = bpf_map_lookup_elem(table, &block);
	return found ? found->rule[port % PORTS_A_BLOCK] : 0;
}

static __always_inline void flow_key(struct flow_key *key, const struct bpf_sk_lookup *ctx,
				     u8 family, u16 server_port)
{
	remote_address(key->client, ctx);
	key->client_port = ctx->remote_port;
	key->server_port = server_port;
	key->family = family;
}

/*
 * Whether the packet is a reply of the target, to a client socket whose own address and port a rule
 * covers: that one is a socket of this namespace, and steering the reply would make the server answer
 * itself, for ever.
 */
static __always_inline bool is_reply(const struct bpf_sk_lookup *ctx, u8 family, u16 server_port)
{
	struct flow_key key;
	struct flow *flow;
	__be32 from[4];

	local_address(key.client, ctx);
	key.client_port = bpf_htons(ctx->local_port);
	key.server_port = server_port;
	key.family = family;
	flow = flows.lookup(&key);
	if (!flow || bpf_htons(flow->port) != (__be16)ctx->remote_port)
		return false;
	remote_address(from, ctx);
	return same_address(from, flow->addr);
}

/* The client asked for this address and port last: replies to it leave from there. */
static __always_inline void remember(const struct bpf_sk_lookup *ctx, u8 family, u16 server_port,
				     u32 rule)
{
	struct flow flow = { .port = ctx->local_port, .rule = rule }, *old;
	struct flow_key key;

	flow_key(&key, ctx, family, server_port);
	local_address(flow.addr, ctx);
	old = flows.lookup(&key);
	if (old && old->port == flow.port && old->rule == rule &&
	    same_address(old->addr, flow.addr))
		return;
	flows.update(&key, &flow);
}

/* The client asked for the server's own port: replies leave as they are. */
static __always_inline void forget(const struct bpf_sk_lookup *ctx, u8 family)
{
	u32 word = UDP_RULES;
	struct flow_key key;
	u64 *udp;

	if (ctx->protocol != IPPROTO_UDP)
		return;
	udp = state.lookup(&word);
	if (!udp || !*udp)
		return;
	flow_key(&key, ctx, family, ctx->local_port);
	if (flows.lookup(&key))
		flows.delete(&key);
}

static __always_inline void report(const struct bpf_sk_lookup *ctx, struct count *count, u8 family,
				   u32 rule, u32 error)
{
	u64 now = bpf_ktime_get_ns(), *n;
	struct failure *f;
	u32 zero = 0;

	if (now - count->reported_ns < REPORT_EVERY_NS)
		return;
	count->reported_ns = now;
	f = failed.ringbuf_reserve(sizeof(*f));
	if (!f) {
		n = lost.lookup(&zero);
		if (n)
			__sync_fetch_and_add(n, 1);
		return;
	}
	f->time_ns = now;
	f->rule = rule;
	f->error = error;
	f->proto = ctx->protocol;
	f->family = family;
	f->dport = ctx->local_port;
	f->sport = ctx->remote_port;
	f->pad = 0;
	remote_address(f->src, ctx);
	local_address(f->dst, ctx);
	failed.ringbuf_submit(f, 0);
}

#define NO_SOCKET 1 /* beside negative errnos */

static __always_inline long assign(struct bpf_sk_lookup *ctx, u32 slot)
{
	struct bpf_sock *sk = bpf_map_lookup_elem(BPFKIT_MAP_REF(sockets), &slot);
	long error;

	if (!sk)
		return NO_SOCKET;
	error = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return error;
}

/* Selects a socket of the target, the spare one where the first is gone or does not fit. */
static __always_inline long assign_any(struct bpf_sk_lookup *ctx, u32 target, u8 family)
{
	u32 slot = target * SOCKETS_EACH + (ctx->protocol == IPPROTO_UDP ? 4 : 0) +
		   (family == 6 ? 2 : 0);
	long error, second;

	error = assign(ctx, slot);
	if (!error)
		return 0;
	second = assign(ctx, slot + 1);
	return second == NO_SOCKET ? error : second;
}

static __always_inline void add_error(struct count *count, long error)
{
	switch (-error) {
	case ESOCKTNOSUPPORT:
		count->esocktnosupport++;
		break;
	case EPROTOTYPE:
		count->eprototype++;
		break;
	case EAFNOSUPPORT:
		count->eafnosupport++;
		break;
	case EEXIST:
		count->eexist++;
		break;
	default:
		count->other++;
	}
}

SEC("sk_lookup")
int sk_lookup(struct bpf_sk_lookup *ctx)
{
	u8 family = ctx->family == AF_INET ? 4 : 6;
	struct target *target = NULL;
	struct count *count;
	struct rule *rule;
	u32 number, to;
	long error;

	number = find_rule(ctx, family);
	rule = number ? rules.lookup(&number) : NULL;
	count = rule ? counts.lookup(&number) : NULL;
	if (count) {
		to = rule->target; /* read once: an editor may change it */
		target = targets.lookup(&to);
	}
	if (!target) {
		forget(ctx, family);
		return SK_PASS;
	}
	if (ctx->protocol == IPPROTO_UDP && is_reply(ctx, family, target->port))
		return SK_PASS;
	count->lookups++;
	error = assign_any(ctx, to, family);
	if (!error) {
		count->assigned++;
		if (ctx->protocol == IPPROTO_UDP)
			remember(ctx, family, target->port, number);
		return SK_PASS;
	}
	if (error == NO_SOCKET)
		count->misses++;
	else
		add_error(count, error);
	report(ctx, count, family, number, error == NO_SOCKET ? 0 : -error);
	return SK_PASS;
}
