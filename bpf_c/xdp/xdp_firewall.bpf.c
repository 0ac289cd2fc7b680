/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_firewall: deny and allow lists of addresses, prefixes, ports and protocols
 * ==============================================================================
 *
 * hook      XDP: the receive path of an interface
 * context   struct xdp_md
 * packets   not changed; dropped as the rules say
 *
 *   frame -> headers -> source address: the longest prefix that has a rule? -+-> allow: XDP_PASS
 *                       destination port (TCP, UDP, ...): a rule?           -+
 *                       protocol: a rule?                                   -+-> deny: XDP_DROP,
 *                       none of them: XDP_PASS (or drop_rest)                    and an event
 *
 * Address rules are hash entries (length, address); the lengths in use are tried longest first. A
 * trie (BPF_MAP_TYPE_LPM_TRIE) with a million prefixes visits about 25 uncached nodes per lookup and
 * takes several times as long to fill. A pre-filter (two bits per prefix, or a bloom filter) is
 * consulted first, so that a length costs a hash lookup only if it has a matching rule.
 *
 *   state.active: bit 0    -> fronts[ ], v4[ ], v6[ ], blooms[ ]   (prefixes)
 *                 bit 1    -> one of the two tables in `cells`      (ports and protocols)
 *                 bits 2.. -> number of the last edit that is in force
 *
 * Everything exists twice, and one of the two is active. User space builds a new list in the other;
 * one store into `active`, which the program reads once per packet, then puts all of it in force. A
 * prefix that is added, changed or deleted keeps its previous action until its edit is in force, so
 * that an edit takes effect at once as well, and a killed editor leaves the list as it was.
 *
 * A later fragment has no ports, so port rules do not apply to it; they apply to the first fragment,
 * without which the datagram cannot be reassembled. Frames that are not IP pass, and so do frames with
 * truncated IP headers, because no host accepts them. Undecidable frames are dropped: more tags or
 * extension headers than the walk follows, and fragments whose headers continue in the next fragment
 * (RFC 7112).
 *
 * Maps (structs here and in "xdp_firewall.h")
 *   state          array          struct state
 *   fronts         array_of_maps  struct front: prefix lengths in use, bits of each prefix
 *   blooms         array_of_maps  bloom filters of prefixes, where asked for
 *   v4, v6         array_of_maps  hashes prefix -> struct rule
 *   cells          array          two tables: a cell per port and protocol -> action and number of
 *                                 its rule; 0: none
 *   specs          array          number -> the rule (for user space)
 *   hits           percpu_array   number -> struct traffic
 *   totals         percpu_array   enum reason -> struct traffic
 *   ring, perf     dropped packets: struct dropped and the first bytes of the frame
 *   scratch        percpu_array   struct packet: the current one
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <bpfkit/headers.h>
#include "xdp_firewall.h"
#include <bpfkit/wire.h>

LOAD_CONST(0, l2_len, 14); /* 14: Ethernet; else see link_offset() */
LOAD_CONST(1, front_kind, 1); /* FRONT_* */
LOAD_CONST(2, drop_rest, 0); /* 1: IP packets that no rule decides about are dropped */
LOAD_CONST(3, events, 0); /* EVENTS_* */
LOAD_CONST(4, snap, 128); /* bytes of a dropped frame in its event, at most MAX_SNAP */

#define EVENTS_RING 1
#define EVENTS_PERF 2
#define MAX_SNAP    2048
#define MAX_NUMBERS 2048 /* 1023 rules of the active list, as many of the next one */
#define LENGTHS4    33
#define LENGTHS6    129

#define ACTION_ALLOW   1
#define ACTION_DENY    2
#define ACTION_UNKNOWN 3 /* the list cannot be read */

enum reason {
	PASS_NOT_IP,
	PASS_REST,
	PASS_ADDRESS,
	PASS_PORT,
	PASS_PROTO,
	DROP_REST,
	DROP_ADDRESS,
	DROP_PORT,
	DROP_PROTO,
	DROP_UNDECIDED,
	LOST_EVENTS, /* dropped, but there was no room for the event */
	REASONS,
};

struct rule {
	u8 action; /* ACTION_*; 0: deleted */
	u8 before; /* the action before `edit`; 0: the rule did not exist */
	u16 zero;
	u32 edit; /* number of the edit that set `action` */
	u64 packets;
	u64 bytes;
};

/* Written by user space. */
struct state {
	u64 active; /* what is in force, see above */
	u64 most; /* rules there may be */
	u64 front; /* FRONT_* */
	u64 dirty; /* not 0: an editor has begun and not finished */
};

/* A rule for ports or a protocol. */
struct spec {
	u8 action[2]; /* ACTION_* in each of the tables; 0: the rule is not in it */
	u8 proto;
	u8 ports; /* 1: of ports low to high; 0: of the whole protocol */
	u16 low;
	u16 high;
};

struct dropped {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 ifindex;
	u32 length; /* of the frame */
	u16 captured; /* bytes of it that follow */
	u16 payload; /* where the transport header is; 0: unknown */
	u16 number; /* of the rule, for DROP_PORT and DROP_PROTO */
	u8 reason; /* enum reason */
	u8 family; /* 4 or 6 */
	u8 proto;
	u8 prefix; /* length of the rule's prefix, for DROP_ADDRESS */
	u16 zero;
	u32 zeros;
	u8 saddr[16]; /* IPv4: the first four bytes */
};

EVENT_TYPE(dropped, struct dropped); /* the head of what ring and perf carry */

/*
 * What is known of the current packet. In a map instead of on the stack: otherwise the verifier
 * re-verifies the rest once per path through the headers.
 */
struct packet {
	u32 cell; /* of its destination port; 0: it has none */
	u8 outcome; /* enum outcome */
	u8 fragment;
	u16 zero;
	struct dropped head; /* from here on: the event */
	u8 frame[MAX_SNAP];
};

/* Cells: 256 protocols, then 65536 ports of each protocol that has ports. */
#define CELLS (256 + 5 * 65536)

BPF_F_TABLE("array", u32, struct state, state, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct front, front, 1, BPF_F_MMAPABLE);
BPF_TABLE("hash", struct prefix4, struct rule, rules4, 1);
BPF_TABLE("hash", struct prefix6, struct rule, rules6, 1);
BPFKIT_MAP(0, BPF_MAP_TYPE_BLOOM_FILTER, bloom, void, struct prefix6, 1, 0, 0);
BPF_ARRAY_OF_MAPS(fronts, "front", 2);
BPF_ARRAY_OF_MAPS(v4, "rules4", 2);
BPF_ARRAY_OF_MAPS(v6, "rules6", 2);
BPFKIT_MAP(1, BPF_MAP_TYPE_ARRAY_OF_MAPS, blooms, u32, u32, 2, 0, 0);
BPF_F_TABLE("array", u32, u32, cells, 2 * CELLS, BPF_F_MMAPABLE);
BPF_ARRAY(specs, struct spec, MAX_NUMBERS);
BPF_TABLE("percpu_array", u32, struct traffic, hits, MAX_NUMBERS);
BPF_TABLE("percpu_array", u32, struct traffic, totals, REASONS);
BPF_TABLE("percpu_array", u32, struct packet, scratch, 1);
BPF_RINGBUF_OUTPUT(ring, 256);
BPF_PERF_OUTPUT(perf);

/* State of the search for a rule. */
struct search {
	struct front *front;
	void *bloom;
	u32 slot; /* of the active maps */
	u32 edit; /* in force */
	u32 bytes; /* of the frame */
};

/* The action of a rule, which counts the packet; 0: the rule is not in force. */
static __always_inline u32 hit(const struct search *s, struct rule *rule)
{
	u32 action = rule->edit <= s->edit ? rule->action : rule->before;

	if (!action)
		return 0;
	__sync_fetch_and_add(&rule->packets, 1);
	__sync_fetch_and_add(&rule->bytes, s->bytes);
	return action;
}

static __always_inline bool may_be_there(const struct search *s, const struct prefix6 *p,
					 const struct place *at)
{
	if (front_kind() == FRONT_BITS)
		return front_has(s->front, at);
	if (front_kind() == FRONT_BLOOM && s->bloom)
		return !bpf_map_peek_elem(s->bloom, (void *)p);
	return true;
}

/* The rule of the longest prefix: its action, and the length in *len; 0: none. */
static __always_inline u32 search4(const struct search *s, __be32 addr, u8 *len)
{
	struct prefix6 padded = {};
	struct prefix4 p = {};
	u32 slot = s->slot, action, i;
	struct rule *rule;
	struct place at;
	void *rules;

	rules = v4.lookup(&slot);
	if (!rules)
		return ACTION_UNKNOWN;
#pragma clang loop unroll(disable)
	for (i = 0; i < LENGTHS4; i++) {
		p.len = s->front->lengths4[i];
		if (p.len > 32)
			break;
		p.addr = addr & bpf_htonl(~(u32)(0xffffffffULL >> p.len));
		if (front_kind() == FRONT_BLOOM)
			padded.addr[0] = *(u64 *)&p;
		place4(&p, &at);
		if (!may_be_there(s, &padded, &at))
			continue;
		rule = bpf_map_lookup_elem(rules, &p);
		action = rule ? hit(s, rule) : 0;
		if (action) {
			*len = p.len;
			return action;
		}
	}
	return 0;
}

/* The first `len` of 128 bits; without a branch, because the verifier follows both sides. */
static __always_inline void mask_prefix6(struct prefix6 *p, const __be64 *addr)
{
	u64 len = p->len, part = ~(~0ULL >> (len & 63)), first, second;

	first = part | -((len >> 6 | len >> 7) & 1);
	second = (part & -(len >> 6 & 1)) | -(len >> 7);
	asm volatile("" : "+r"(first), "+r"(second));
	p->addr[0] = addr[0] & be64(first);
	p->addr[1] = addr[1] & be64(second);
}

static __always_inline u32 search6(const struct search *s, const __be64 *addr, u8 *len)
{
	u32 slot = s->slot, action, i;
	struct prefix6 p = {};
	struct rule *rule;
	struct place at;
	void *rules;

	rules = v6.lookup(&slot);
	if (!rules)
		return ACTION_UNKNOWN;
#pragma clang loop unroll(disable)
	for (i = 0; i < LENGTHS6; i++) {
		p.len = s->front->lengths6[i];
		if (p.len > 128)
			break;
		mask_prefix6(&p, addr);
		place6(&p, &at);
		if (!may_be_there(s, &p, &at))
			continue;
		rule = bpf_map_lookup_elem(rules, &p);
		action = rule ? hit(s, rule) : 0;
		if (action) {
			*len = p.len;
			return action;
		}
	}
	return 0;
}

/* The action of the source address's rule; 0: it has none. */
static __always_inline u32 address(struct packet *p, u64 active, u32 bytes)
{
	struct search s = { .bytes = bytes, .slot = active & 1, .edit = active >> 2 };
	__be64 *saddr = (__be64 *)p->head.saddr;
	u32 zero = 0;
	void *map;

	map = fronts.lookup(&s.slot);
	if (!map)
		return ACTION_UNKNOWN;
	s.front = bpf_map_lookup_elem(map, &zero);
	if (!s.front)
		return ACTION_UNKNOWN;
	if (front_kind() == FRONT_BLOOM)
		s.bloom = bpf_map_lookup_elem(BPFKIT_MAP_REF(blooms), &s.slot);
	if (p->head.family == 4)
		return search4(&s, saddr[0], &p->head.prefix);
	return search6(&s, saddr, &p->head.prefix);
}

/* The rule of a cell: its action, and its number in *number; 0: none. */
static __always_inline u32 cell_rule(u32 cell, u64 active, u32 bytes, u16 *number)
{
	struct traffic *sum;
	u32 *place, rule, key;

	if (active & 2)
		cell += CELLS;
	place = cells.lookup(&cell);
	if (!place || !*place)
		return 0;
	rule = *place;
	key = rule & 0xffff;
	sum = hits.lookup(&key);
	if (sum) {
		sum->packets++;
		sum->bytes += bytes;
	}
	*number = key;
	return rule >> 16;
}

static __always_inline u32 port_cell(u8 proto, u16 port)
{
	u32 which = proto == IPPROTO_TCP  ? 0 :
		    proto == IPPROTO_UDP  ? 1 :
		    proto == IPPROTO_SCTP ? 2 :
		    proto == IPPROTO_DCCP ? 3 :
					    4;

	return 256 + which * 65536 + port;
}

/* Collects what the rules match on from the headers. */
static __always_inline void read_packet(struct window *w, const struct headers *h,
					enum outcome outcome, struct packet *p)
{
	struct window at = { .data = w->data, .end = w->end, .off = h->network, .limit = -1ULL };
	__be64 *saddr = (__be64 *)p->head.saddr;
	struct ipv6_header *ip6;
	struct iphdr *ip4;
	__be16 *ports;

	p->outcome = outcome;
	p->fragment = h->fragment;
	p->head.proto = h->proto;
	p->head.payload = outcome == FOUND ? h->payload : 0;
	p->cell = 0;
	p->head.family = h->family;
	p->head.number = p->head.prefix = 0;
	saddr[0] = saddr[1] = 0;
	if (h->family == 4) {
		ip4 = window_peek(&at, sizeof(*ip4));
		if (ip4)
			saddr[0] = ip4->saddr;
	} else if (h->family == 6) {
		ip6 = window_peek(&at, sizeof(*ip6));
		if (ip6)
			__builtin_memcpy(saddr, ip6->saddr, sizeof(p->head.saddr));
	}
	if (outcome != FOUND || h->later_fragment || !has_ports(h->proto))
		return;
	ports = window_peek(w, 2 * sizeof(*ports));
	if (ports)
		p->cell = port_cell(h->proto, bpf_ntohs(ports[1]));
}

static __always_inline enum reason decide(struct packet *p, u32 bytes)
{
	struct state *now;
	u32 action, zero = 0;
	u64 active;

	if (!p->head.family)
		return p->outcome == TOO_DEEP ? DROP_UNDECIDED : PASS_NOT_IP;
	now = state.lookup(&zero);
	if (!now) /* never; refers to `specs`, which editors find among this program's maps */
		return specs.lookup(&zero) ? DROP_UNDECIDED : DROP_REST;
	active = *(volatile u64 *)&now->active;
	action = address(p, active, bytes);
	if (action == ACTION_UNKNOWN)
		return DROP_UNDECIDED;
	if (action)
		return action == ACTION_ALLOW ? PASS_ADDRESS : DROP_ADDRESS;
	if (p->outcome == TOO_DEEP || (p->outcome == CUT && p->fragment))
		return DROP_UNDECIDED;
	if (p->outcome != FOUND)
		goto rest;
	if (p->cell) {
		action = cell_rule(p->cell, active, bytes, &p->head.number);
		if (action)
			return action == ACTION_ALLOW ? PASS_PORT : DROP_PORT;
	}
	action = cell_rule(p->head.proto, active, bytes, &p->head.number);
	if (action)
		return action == ACTION_ALLOW ? PASS_PROTO : DROP_PROTO;
rest:
	return drop_rest() ? DROP_REST : PASS_REST;
}

/* Sends an event. For the ring buffer it is assembled here, because its size is not constant. */
static __always_inline void report(struct xdp_md *ctx, struct packet *p, u32 bytes)
{
	u64 len = bytes < snap() ? bytes : snap();
	u32 lost = LOST_EVENTS;
	struct traffic *sum;
	long failed = 0;

	if (snap()) {
		/* len is 1 to MAX_SNAP already, but old verifiers learn nothing from "not 0" */
		asm volatile("" : "+r"(len));
		len = ((len - 1) & (MAX_SNAP - 1)) + 1;
		asm volatile("" : "+r"(len));
	}
	p->head.time_ns = bpf_ktime_get_ns();
	p->head.ifindex = ctx->ingress_ifindex;
	p->head.length = bytes;
	p->head.captured = len;
	if (events() == EVENTS_PERF) {
		failed = perf.perf_submit_skb(ctx, len, &p->head, sizeof(p->head));
	} else {
		if (snap())
			failed = bpf_xdp_load_bytes(ctx, 0, p->frame, len);
		if (!failed)
			failed = ring.ringbuf_output(&p->head, sizeof(p->head) + len, 0);
	}
	if (!failed)
		return;
	sum = totals.lookup(&lost);
	if (sum) {
		sum->packets++;
		sum->bytes += bytes;
	}
}

SEC("xdp")
int xdp_firewall(struct xdp_md *ctx)
{
	u32 bytes = ctx->data_end - ctx->data, zero = 0, reason;
	enum outcome outcome;
	struct headers h = {};
	struct traffic *sum;
	struct packet *p;
	struct window w;

	p = scratch.lookup(&zero);
	if (!p)
		return XDP_DROP;
	outcome = direct_xdp(ctx, &h, &w, l2_len());
	read_packet(&w, &h, outcome, p);
	reason = decide(p, bytes);
	sum = totals.lookup(&reason);
	if (sum) {
		sum->packets++;
		sum->bytes += bytes;
	}
	if (reason < DROP_REST)
		return XDP_PASS;
	p->head.reason = reason;
	if (events())
		report(ctx, p, bytes);
	return XDP_DROP;
}
