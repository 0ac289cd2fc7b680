/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sockex3: who talks to whom. Packets and bytes per flow, by tail calls through a PROG_ARRAY
 * =========================================================================================
 *
 * hook      socket filter on an AF_PACKET socket (a tap: it sees copies, the traffic goes on)
 * context   struct __sk_buff
 * packets   not changed; 0 is returned, so that nothing is queued to the socket
 *
 *   frame -> sockex3 -+- TCP or UDP in plain IPv4, IPv6 -------------------> flows, totals
 *                     |
 *         parse_eth --+-> parse_vlan --+-> parse_ipv4 --+-> parse_transport -> flows, totals
 *             ^       +-> parse_mpls --+-> parse_ipv6 --+-> parse_gre --+            ^
 *             |               ^               ^  ^      |               |            |
 *             |               |               |  +- IP in IP            |          count
 *             +-- Ethernet ---+---- MPLS -----+------- IP --------------+   (what ends before)
 *           (GRE, VXLAN, pseudowire)
 *
 * parse_pppoe stands between parse_eth or parse_vlan and parse_ipv4, parse_ipv6 or parse_mpls.
 *
 * Each program reads one layer at the cursor in `scratch` and tail-calls the next one; whatever
 * cannot be read ends in count(). The flow is that of the innermost IP header that could be read:
 *
 *  - A header counts as read when its fixed part is there and says what it should (version, IHL
 *    >= 5). A frame without such an IP header is counted as non-IP.
 *  - Ports are read only where all four bytes belong to the packet, not to Ethernet padding, and
 *    never from a later fragment. Otherwise the flow has none (FLOW_PORTS is clear).
 *  - A tunnel belongs to the flow's outer headers once the IP header in it was read. The one
 *    exception: a PPTP packet (GRE version 1) whose payload is not plain IP is listed under its
 *    own call id.
 *  - An IPv6 extension header that is cut off ends the walk; the flow's protocol is then its
 *    number.
 *  - PPPoE, MPLS labels and the Ethernet header of a pseudowire are looked through and are no part of
 *    the flow; VLAN tags inside are. A tag with id 0 is a priority and no VLAN. What is in ERSPAN, in
 *    SNAP (IEEE 802.2) or in any other encapsulation is not looked at: such a frame is a flow of GRE,
 *    or non-IP.
 *  - The kernel allows 33 tail calls. Frames nested deeper are counted with what was read until
 *    then.
 *
 * Every frame is counted once in totals.seen and once in flows, totals.nonip or totals.unattributed
 * (the flow, or its outer headers, found no place in the table). On an LRU table evicted flows are
 * missing from the sum: seen - nonip - unattributed - (sum over flows).
 *
 * Where several interfaces are watched, a frame that crosses a bridge passes more than one of them,
 * and is counted once: on the port where it comes in, or on the bridge if the host sends it. What
 * leaves on a port shows by its ingress_ifindex which port it came in by.
 *
 *   port A -> [in] bridge -> port B [out]       [in] of A counts, [out] of B has A as its ingress
 *   port A -> [in] bridge [in] -> host          [in] of A counts
 *   host -> [out] bridge -> port B [out]        [out] of the bridge counts
 *
 * Maps (structs in "sockex3_flow.h" and <bpfkit/wire.h>)
 *   flows    percpu_hash   struct flow_key -> struct traffic     may be loaded as lru_percpu_hash
 *   outers   hash          struct outer_key -> u32 id            what flow_key.outer_id stands for
 *   totals   percpu_array  0 -> struct totals
 *   jump     prog_array    enum layer -> program                 user space fills it
 *   scratch  percpu_array  0 -> struct parse_state               one packet at a time per CPU
 *   interfaces  hash       ifindex -> struct watched             only where several are watched
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/headers.h>
#include "sockex3_flow.h"
#include <bpfkit/segment.h>
#include <bpfkit/wire.h>

LOAD_CONST(0, direction, 2); /* DIRECTION_IN | DIRECTION_OUT */
LOAD_CONST(1, l2_len, 14); /* 14: Ethernet; else see link_offset() */
LOAD_CONST(2, vxlan_port, 0); /* UDP port of VXLAN; 0: do not look into VXLAN */
LOAD_CONST(3, several, 0); /* 1: `interfaces` says what is counted, not direction and l2_len */

#define MAX_STEPS   30 /* leaves room for count() under the kernel's limit of 33 tail calls */
#define MPLS_LABELS 8 /* labels per tail call */

#define MPLS_BOTTOM     0x100
#define GRE_ACK         0x0080 /* version 1 only */
#define GRE_PROTO_PPP   0x880b
#define PPP_IP          0x21
#define PPP_IPV6        0x57
#define PPP_MPLS_UC     0x281
#define PPP_MPLS_MC     0x283
#define VXLAN_VNI_VALID 0x08000000

/* Keys of `jump`. */
enum layer {
	PARSE_ETH,
	PARSE_VLAN,
	PARSE_MPLS,
	PARSE_IPV4,
	PARSE_IPV6,
	PARSE_IPV6_EXT,
	PARSE_GRE,
	PARSE_TRANSPORT,
	PARSE_PPPOE,
	COUNT,
};

/*
 * Where the walk is in the frame. Ethernet pads short frames, so bytes that are there are not always
 * bytes of the packet: `end` is the packet's, bpf_skb_load_bytes() checks the frame's.
 */
struct cursor {
	u32 off; /* next byte to read, from skb->data */
	u32 end; /* first byte behind the packet, from skb->data */
};

/*
 * A packet on its way through the programs. `flow` is complete at any time: it belongs to the
 * innermost IP header read so far. The rest is about headers behind that one.
 */
struct parse_state {
	struct flow_key flow;
	struct cursor cur;
	u32 steps; /* tail calls made */
	u32 layer; /* the next one */
	u32 header_len; /* what every segment of a super-frame repeats */
	u32 outer_id; /* of the headers read so far; the flow's at the next IP header */
	u8 nexthdr; /* where parse_ipv6_ext goes on */
	u8 zero[3];
	u32 outers_made; /* by this CPU: not per packet */
};

BPF_TABLE("percpu_hash", struct flow_key, struct traffic, flows, 16384);
BPF_TABLE("hash", struct outer_key, u32, outers, 8192);
BPF_TABLE("percpu_array", u32, struct totals, totals, 1);
BPF_TABLE("percpu_array", u32, struct parse_state, scratch, 1);
BPF_TABLE("hash", u32, struct watched, interfaces, 1);
BPF_PROG_ARRAY(jump, 16);

/* Copies the next `len` bytes without moving on; false if they are not all there. */
static __always_inline bool cursor_peek(struct __sk_buff *skb, const struct cursor *cur, void *to,
					u32 len)
{
	return cur->off + len <= cur->end && bpf_skb_load_bytes(skb, cur->off, to, len) == 0;
}

/* The same, and moves behind them. */
static __always_inline bool cursor_pull(struct __sk_buff *skb, struct cursor *cur, void *to,
					u32 len)
{
	if (!cursor_peek(skb, cur, to, len))
		return false;
	cur->off += len;
	return true;
}

/* The packet that starts at the cursor is `len` bytes long; 0: its header does not say. */
static __always_inline void cursor_limit(struct cursor *cur, u32 len)
{
	if (len && cur->off + len < cur->end)
		cur->end = cur->off + len;
}

/* ---- counting -------------------------------------------------------------------------------- */

static __always_inline void count_flow(struct flow_key *key, const struct traffic *what,
				       struct totals *sum)
{
	struct traffic zero = {}, *flow;

	/*
	 * Look up, insert if still absent (BPF_NOEXIST), look up again: when another CPU inserts
	 * the same flow meanwhile, both count on. A new element's values are zero on every CPU.
	 */
	flow = flows.lookup_or_try_init(key, &zero);
	if (!flow)
		flow = &sum->unattributed;
	add_traffic(flow, what);
}

static __always_inline int count_frame(struct __sk_buff *skb, struct parse_state *st)
{
	struct flow_key *flow = &st->flow;
	struct traffic what = wire_traffic(skb, st->header_len);
	u32 zero = 0;
	struct totals *sum = totals.lookup(&zero);

	if (!sum)
		return 0;
	add_traffic(&sum->seen, &what);
	if (!flow->family)
		add_traffic(&sum->nonip, &what);
	else if (flow->outer_id == OUTER_FULL)
		add_traffic(&sum->unattributed, &what);
	else
		count_flow(flow, &what, sum);
	return 0;
}

SEC("socket")
int count(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct parse_state *st = scratch.lookup(&zero);

	return st ? count_frame(skb, st) : 0;
}

/* ---- headers around the flow ----------------------------------------------------------------- */

/* Interns one more header around what comes next. */
static __always_inline void add_outer(struct parse_state *st, struct outer_key *outer)
{
	u32 id, *known;

	if (st->outer_id == OUTER_FULL)
		return;
	outer->outer_id = st->outer_id;
	known = outers.lookup(outer);
	if (!known) {
		/* a number no other CPU hands out, without an atomic that returns something */
		id = (++st->outers_made << 13) | (bpf_get_smp_processor_id() & 0x1fff);
		outers.insert(outer, &id);
		known = outers.lookup(outer); /* as in count_flow() */
	}
	st->outer_id = known ? *known : OUTER_FULL;
}

static __always_inline void add_vlan(struct parse_state *st, u16 tci)
{
	struct outer_key outer = { .type = OUTER_VLAN, .has_id = 1, .id = tci & VLAN_VID_MASK };

	if (outer.id) /* a tag with id 0 only has a priority; the frame is in no VLAN */
		add_outer(st, &outer);
}

/* The tunnel goes through the flow read so far. */
static __always_inline void add_tunnel(struct parse_state *st, enum outer_type type, bool has_id,
				       u32 id)
{
	struct outer_key outer = {
		.type = type, .family = st->flow.family, .has_id = has_id, .id = id
	};

	__builtin_memcpy(outer.src, st->flow.src, sizeof(outer.src));
	__builtin_memcpy(outer.dst, st->flow.dst, sizeof(outer.dst));
	add_outer(st, &outer);
}

/* ---- from layer to layer --------------------------------------------------------------------- */

/*
 * Only gets back if user space has not filled `jump`; the frame is not counted then.
 *
 * The index goes through memory so that the verifier does not see a constant. It would have the
 * kernel turn the call into a jump that is patched whenever the array changes: milliseconds more
 * until all is attached and, with a grace period for each call, 0.2 s to take it down again.
 */
static __always_inline int next(struct __sk_buff *skb, struct parse_state *st, enum layer layer)
{
	st->layer = ++st->steps > MAX_STEPS ? COUNT : layer;
	asm volatile("" ::: "memory");
	jump.call(skb, st->layer);
	return 0;
}

/* Behind a header that named an ethertype. */
static __always_inline int next_ethertype(struct __sk_buff *skb, struct parse_state *st,
					  u16 ethertype)
{
	switch (ethertype) {
	case ETH_P_IP:
		return next(skb, st, PARSE_IPV4);
	case ETH_P_IPV6:
		return next(skb, st, PARSE_IPV6);
	case ETH_P_8021Q:
	case ETH_P_8021AD:
	case ETH_P_QINQ:
		return next(skb, st, PARSE_VLAN);
	case ETH_P_MPLS_UC:
	case ETH_P_MPLS_MC:
		return next(skb, st, PARSE_MPLS);
	case ETH_P_PPP_SES:
		return next(skb, st, PARSE_PPPOE);
	}
	return next(skb, st, COUNT);
}

/* Behind an IP header and its extension headers. */
static __always_inline int next_proto(struct __sk_buff *skb, struct parse_state *st, u8 proto)
{
	bool v4 = st->flow.family == 4;

	st->flow.proto = proto;
	switch (proto) {
	case IPPROTO_IPIP:
		add_tunnel(st, v4 ? OUTER_IPIP : OUTER_4IN6, false, 0);
		return next(skb, st, PARSE_IPV4);
	case IPPROTO_IPV6:
		add_tunnel(st, v4 ? OUTER_6IN4 : OUTER_6IN6, false, 0);
		return next(skb, st, PARSE_IPV6);
	case IPPROTO_GRE:
		return next(skb, st, PARSE_GRE);
	}
	return next(skb, st, PARSE_TRANSPORT);
}

/* An IP header was read: the flow is in it, and what was read before is around it. */
static __always_inline void enter_ip(struct parse_state *st, u8 family)
{
	st->flow.outer_id = st->outer_id;
	st->flow.family = family;
	st->flow.sport = 0;
	st->flow.dport = 0;
	st->flow.flags = 0;
}

/* ---- link layer ------------------------------------------------------------------------------ */

static __always_inline int read_eth(struct __sk_buff *skb, struct parse_state *st)
{
	struct ethhdr eth;

	if (!cursor_pull(skb, &st->cur, &eth, sizeof(eth)))
		return next(skb, st, COUNT);
	return next_ethertype(skb, st, bpf_ntohs(eth.h_proto));
}

/* Ethernet in a tunnel. */
SEC("socket")
int parse_eth(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct parse_state *st = scratch.lookup(&zero);

	return st ? read_eth(skb, st) : 0;
}

SEC("socket")
int parse_vlan(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct parse_state *st = scratch.lookup(&zero);
	struct vlan_tag tag;

	if (!st)
		return 0;
	if (!cursor_pull(skb, &st->cur, &tag, sizeof(tag)))
		return next(skb, st, COUNT);
	add_vlan(st, bpf_ntohs(tag.tci));
	return next_ethertype(skb, st, bpf_ntohs(tag.ethertype));
}

static __always_inline bool is_known_ethertype(u16 ethertype)
{
	switch (ethertype) {
	case ETH_P_IP:
	case ETH_P_IPV6:
	case ETH_P_ARP:
	case ETH_P_8021Q:
	case ETH_P_8021AD:
	case ETH_P_MPLS_UC:
	case ETH_P_PPP_SES:
	case ETH_P_LLDP:
		return true;
	}
	return false;
}

/*
 * MPLS does not say what it carries. The first four bits are the IP version; but they can as well
 * be those of the MAC address at the start of an Ethernet pseudowire. IP it is if the header's
 * length is the packet's or its checksum is right; if neither, unless an ethertype is where
 * Ethernet has it.
 */
static __always_inline bool mpls_carries_ip(struct __sk_buff *skb, const struct cursor *cur)
{
	union {
		struct iphdr ip;
		__be16 half[10];
	} head;
	u32 frame = frame_len(skb), left, total, sum = 0, i;

	if (!cursor_peek(skb, cur, &head, sizeof(head)))
		return true; /* for the IP program to find out */
	if (head.ip.version == 4) {
		for (i = 0; i < 10; i++)
			sum += head.half[i];
		if (head.ip.ihl == 5 && (sum & 0xffff) + (sum >> 16) == 0xffff)
			return true;
		total = bpf_ntohs(head.ip.tot_len);
	} else {
		total = bpf_ntohs(head.half[2]) + sizeof(struct ipv6_header);
	}
	left = (cur->end == skb->len && frame > skb->len ? frame : cur->end) - cur->off;
	if (total == left)
		return true;
	return !is_known_ethertype(bpf_ntohs(head.half[6]));
}

/*
 * An Ethernet pseudowire (RFC 4448) says no more about itself than IP does: the control word in front
 * of the frame is optional and starts with 0, as many a MAC address does. It is taken for one if an
 * ethertype is where Ethernet has it, with or without the control word. Bytes up to the frame, or -1.
 */
static __always_inline int pseudowire(struct __sk_buff *skb, const struct cursor *cur, u8 nibble)
{
	struct {
		__be32 control_word;
		struct ethhdr eth;
	} with;
	struct ethhdr without;

	if (!cursor_peek(skb, cur, &without, sizeof(without)))
		return -1;
	if (is_known_ethertype(bpf_ntohs(without.h_proto)))
		return 0;
	if (!nibble && cursor_peek(skb, cur, &with, sizeof(with)) &&
	    is_known_ethertype(bpf_ntohs(with.eth.h_proto)))
		return sizeof(with.control_word);
	return -1;
}

SEC("socket")
int parse_mpls(struct __sk_buff *skb)
{
	u32 i, zero = 0;
	struct parse_state *st = scratch.lookup(&zero);
	__be32 label;
	int skip;
	u8 nibble;

	if (!st)
		return 0;
	for (i = 0; i < MPLS_LABELS; i++) {
		if (!cursor_pull(skb, &st->cur, &label, sizeof(label)))
			return next(skb, st, COUNT);
		if (bpf_ntohl(label) & MPLS_BOTTOM)
			break;
	}
	if (i == MPLS_LABELS)
		return next(skb, st, PARSE_MPLS);
	if (!cursor_peek(skb, &st->cur, &nibble, sizeof(nibble)))
		return next(skb, st, COUNT);
	nibble >>= 4;
	if (nibble == 4 && mpls_carries_ip(skb, &st->cur))
		return next(skb, st, PARSE_IPV4);
	if (nibble == 6 && mpls_carries_ip(skb, &st->cur))
		return next(skb, st, PARSE_IPV6);
	skip = pseudowire(skb, &st->cur, nibble);
	if (skip < 0)
		return next(skb, st, COUNT);
	st->cur.off += skip;
	return next(skb, st, PARSE_ETH);
}

/*
 * PPPoE's session stage (RFC 2516): six bytes of header with the payload's length, then PPP, whose
 * protocol number has one byte or two.
 */
SEC("socket")
int parse_pppoe(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct parse_state *st = scratch.lookup(&zero);
	struct {
		u8 version_type;
		u8 code;
		__be16 session;
		__be16 length;
		u8 proto[2];
	} head;
	u32 end;
	u16 proto;

	if (!st)
		return 0;
	if (!cursor_peek(skb, &st->cur, &head, sizeof(head)) || head.version_type != 0x11 ||
	    head.code)
		return next(skb, st, COUNT);
	end = st->cur.off + 6 + bpf_ntohs(head.length);
	if (end < st->cur.end)
		st->cur.end = end;
	proto = head.proto[0];
	st->cur.off += 7;
	if (!(proto & 1)) { /* the last byte of a number is odd, those before it are even */
		proto = proto << 8 | head.proto[1];
		st->cur.off++;
	}
	switch (proto) {
	case PPP_IP:
		return next(skb, st, PARSE_IPV4);
	case PPP_IPV6:
		return next(skb, st, PARSE_IPV6);
	case PPP_MPLS_UC:
	case PPP_MPLS_MC:
		return next(skb, st, PARSE_MPLS);
	}
	return next(skb, st, COUNT);
}

/* ---- IP -------------------------------------------------------------------------------------- */

SEC("socket")
int parse_ipv4(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct parse_state *st = scratch.lookup(&zero);
	struct iphdr ip;

	if (!st)
		return 0;
	if (!cursor_peek(skb, &st->cur, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return next(skb, st, COUNT);
	enter_ip(st, 4);
	__builtin_memset(st->flow.src, 0, sizeof(st->flow.src) + sizeof(st->flow.dst));
	__builtin_memcpy(st->flow.src, &ip.saddr, sizeof(ip.saddr));
	__builtin_memcpy(st->flow.dst, &ip.daddr, sizeof(ip.daddr));
	cursor_limit(&st->cur, bpf_ntohs(ip.tot_len));
	st->cur.off += ip.ihl * 4;
	st->header_len = st->cur.off;
	if (bpf_ntohs(ip.frag_off) & IPV4_OFFSET) {
		st->flow.proto = ip.protocol;
		return next(skb, st, COUNT);
	}
	if (ip.protocol == IPPROTO_AH) {
		st->nexthdr = ip.protocol;
		return next(skb, st, PARSE_IPV6_EXT);
	}
	return next_proto(skb, st, ip.protocol);
}

/*
 * Behind an IP header and MAX_EXTS or a multiple of its extension headers (of IPv4: AH), by the walk
 * that all programs share.
 */
static __always_inline int walk_ext(struct __sk_buff *skb, struct parse_state *st, u8 nexthdr)
{
	struct window w = { .skb = skb, .by_load = true, .off = st->cur.off, .limit = st->cur.end };
	struct headers h = {};
	enum outcome outcome = walk_exts(&w, &h, nexthdr, st->flow.family == 6);

	st->cur.off = w.off;
	st->header_len = w.off;
	if (outcome == FOUND && !h.later_fragment)
		return next_proto(skb, st, h.proto);
	st->flow.proto = h.proto;
	if (outcome == TOO_DEEP && w.off <= WINDOW_MAX) {
		st->nexthdr = h.proto;
		return next(skb, st, PARSE_IPV6_EXT);
	}
	return next(skb, st, COUNT);
}

SEC("socket")
int parse_ipv6(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct parse_state *st = scratch.lookup(&zero);
	struct ipv6_header ip;

	if (!st)
		return 0;
	if (!cursor_peek(skb, &st->cur, &ip, sizeof(ip)) || !is_ipv6(&ip))
		return next(skb, st, COUNT);
	enter_ip(st, 6);
	__builtin_memcpy(st->flow.src, ip.saddr, sizeof(ip.saddr));
	__builtin_memcpy(st->flow.dst, ip.daddr, sizeof(ip.daddr));
	st->cur.off += sizeof(ip);
	cursor_limit(&st->cur, bpf_ntohs(ip.payload_len));
	return walk_ext(skb, st, ip.nexthdr);
}

SEC("socket")
int parse_ipv6_ext(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct parse_state *st = scratch.lookup(&zero);

	if (!st)
		return 0;
	return walk_ext(skb, st, st->nexthdr);
}

/* ---- tunnels --------------------------------------------------------------------------------- */

/* Version 0, RFC 2784 and 2890. What is not read stays a flow of protocol GRE. */
static __always_inline int parse_gre_v0(struct __sk_buff *skb, struct parse_state *st, u16 flags,
					u16 ethertype)
{
	__be32 key = 0;

	if (flags & GRE_ROUTING)
		return next(skb, st, COUNT);
	if (flags & GRE_CSUM)
		st->cur.off += 4;
	if (flags & GRE_KEY && !cursor_pull(skb, &st->cur, &key, sizeof(key)))
		return next(skb, st, COUNT);
	if (flags & GRE_SEQ)
		st->cur.off += 4;
	st->header_len = st->cur.off;
	add_tunnel(st, OUTER_GRE, flags & GRE_KEY, bpf_ntohl(key));
	if (ethertype == ETH_P_TEB)
		return next(skb, st, PARSE_ETH);
	return next_ethertype(skb, st, ethertype);
}

/*
 * Version 1: PPTP, RFC 2637. The key is payload length and call id; PPP may be compressed or
 * encrypted.
 */
static __always_inline int parse_gre_v1(struct __sk_buff *skb, struct parse_state *st, u16 flags,
					u16 proto)
{
	u8 ppp[2];
	__be32 key;

	if (proto != GRE_PROTO_PPP || !(flags & GRE_KEY) ||
	    !cursor_pull(skb, &st->cur, &key, sizeof(key)))
		return next(skb, st, COUNT);
	add_tunnel(st, OUTER_GRE, true, bpf_ntohl(key) & 0xffff);
	st->flow.outer_id = st->outer_id; /* even if nothing in it can be read: calls stay apart */
	if (!(flags & GRE_SEQ)) /* an acknowledgment: no payload */
		return next(skb, st, COUNT);
	st->cur.off += flags & GRE_ACK ? 8 : 4;
	if (!cursor_peek(skb, &st->cur, ppp, sizeof(ppp)))
		return next(skb, st, COUNT);
	if (ppp[0] == 0xff && ppp[1] == 0x03) { /* address and control may be left out */
		st->cur.off += 2;
		if (!cursor_peek(skb, &st->cur, ppp, sizeof(ppp)))
			return next(skb, st, COUNT);
	}
	if (ppp[0] == 0) { /* and so may the upper byte of the protocol */
		ppp[0] = ppp[1];
		st->cur.off += 1;
	}
	st->cur.off += 1;
	st->header_len = st->cur.off;
	if (ppp[0] == PPP_IP)
		return next(skb, st, PARSE_IPV4);
	if (ppp[0] == PPP_IPV6)
		return next(skb, st, PARSE_IPV6);
	return next(skb, st, COUNT);
}

SEC("socket")
int parse_gre(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct parse_state *st = scratch.lookup(&zero);
	struct {
		__be16 flags;
		__be16 proto;
	} gre;
	u16 flags, proto;

	if (!st)
		return 0;
	if (!cursor_pull(skb, &st->cur, &gre, sizeof(gre)))
		return next(skb, st, COUNT);
	flags = bpf_ntohs(gre.flags);
	proto = bpf_ntohs(gre.proto);
	switch (flags & GRE_VERSION) {
	case 0:
		return parse_gre_v0(skb, st, flags, proto);
	case 1:
		return parse_gre_v1(skb, st, flags, proto);
	}
	return next(skb, st, COUNT);
}

/* Behind the UDP header's cursor: VXLAN, RFC 7348. False if it is not. */
static __always_inline bool enter_vxlan(struct __sk_buff *skb, struct parse_state *st)
{
	struct {
		__be32 udp[2];
		__be32 flags;
		__be32 vni;
	} head;

	if (!cursor_peek(skb, &st->cur, &head, sizeof(head)) ||
	    !(bpf_ntohl(head.flags) & VXLAN_VNI_VALID))
		return false;
	add_tunnel(st, OUTER_VXLAN, true, bpf_ntohl(head.vni) >> 8);
	st->cur.off += sizeof(head);
	return true;
}

/* ---- transport ------------------------------------------------------------------------------- */

SEC("socket")
int parse_transport(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct parse_state *st = scratch.lookup(&zero);
	struct {
		__be16 source;
		__be16 dest;
	} port;
	u16 dport;

	if (!st)
		return 0;
	st->header_len = st->cur.off;
	if (!has_ports(st->flow.proto) || !cursor_peek(skb, &st->cur, &port, sizeof(port)))
		return count_frame(skb, st);
	st->flow.sport = port.source;
	st->flow.dport = port.dest;
	st->flow.flags = FLOW_PORTS;
	if (is_super_frame(skb)) /* also through VXLAN, when that is not shown */
		st->header_len = segment_header_len(skb, st->cur.off, st->flow.proto);
	if (st->flow.proto != IPPROTO_UDP)
		return count_frame(skb, st);
	dport = bpf_ntohs(port.dest);
	if (vxlan_port() && dport == vxlan_port() && enter_vxlan(skb, st))
		return next(skb, st, PARSE_ETH);
	return count_frame(skb, st);
}

/* ---- entry ----------------------------------------------------------------------------------- */

/* TCP or UDP behind an IP header without options or extension headers. */
struct plain_frame {
	u8 align[2]; /* puts the IP header on a 4-byte boundary */
	struct ethhdr eth;
	union {
		struct {
			struct iphdr ip;
			__be16 port[2];
		} v4;
		struct {
			struct ipv6_header ip;
			__be16 port[2];
		} v6;
	};
} __packed __aligned(4);

#define PLAIN_V4 (ETH_HLEN + 20 + 4) /* bytes from the Ethernet header to the ports */
#define PLAIN_V6 (ETH_HLEN + 40 + 4)

static __always_inline bool is_plain(u8 proto)
{
	return proto == IPPROTO_TCP || (proto == IPPROTO_UDP && !vxlan_port());
}

static __always_inline bool plain_ipv4(const struct plain_frame *frame, struct flow_key *key)
{
	const struct iphdr *ip = &frame->v4.ip;

	if (ip->version != 4 || ip->ihl != 5 || !is_plain(ip->protocol) ||
	    ip->frag_off & bpf_htons(IPV4_MF | IPV4_OFFSET) ||
	    bpf_ntohs(ip->tot_len) < sizeof(frame->v4))
		return false;
	__builtin_memcpy(key->src, &ip->saddr, sizeof(ip->saddr));
	__builtin_memcpy(key->dst, &ip->daddr, sizeof(ip->daddr));
	key->sport = frame->v4.port[0];
	key->dport = frame->v4.port[1];
	key->family = 4;
	key->proto = ip->protocol;
	return true;
}

static __always_inline bool plain_ipv6(const struct plain_frame *frame, struct flow_key *key)
{
	const struct ipv6_header *ip = &frame->v6.ip;

	if (!is_ipv6(ip) || !is_plain(ip->nexthdr) ||
	    bpf_ntohs(ip->payload_len) < sizeof(frame->v6.port))
		return false;
	__builtin_memcpy(key->src, ip->saddr, sizeof(ip->saddr));
	__builtin_memcpy(key->dst, ip->daddr, sizeof(ip->daddr));
	key->sport = frame->v6.port[0];
	key->dport = frame->v6.port[1];
	key->family = 6;
	key->proto = ip->nexthdr;
	return true;
}

/*
 * Most frames are plain: one or two loads, no tail call. False leaves the frame to the programs
 * above, which come to the same result.
 */
static __always_inline bool count_plain(struct __sk_buff *skb, u32 l2, u8 number)
{
	struct traffic what = { 1, frame_len(skb) };
	struct flow_key key = { .flags = FLOW_PORTS, .interface = number };
	struct plain_frame frame;
	struct totals *sum;
	u32 zero = 0;

	if (l2 != ETH_HLEN || skb->vlan_present || is_super_frame(skb) ||
	    bpf_skb_load_bytes(skb, 0, &frame.eth, PLAIN_V4))
		return false;
	if (frame.eth.h_proto == bpf_htons(ETH_P_IP)) {
		if (!plain_ipv4(&frame, &key))
			return false;
	} else if (frame.eth.h_proto == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, PLAIN_V4, (void *)&frame.eth + PLAIN_V4,
				       PLAIN_V6 - PLAIN_V4) ||
		    !plain_ipv6(&frame, &key))
			return false;
	} else {
		return false;
	}
	sum = totals.lookup(&zero);
	if (!sum)
		return false;
	add_traffic(&sum->seen, &what);
	count_flow(&key, &what, sum);
	return true;
}

/* The interface, if the frame is counted here and not on another one that it passes. */
static __always_inline struct watched *counted_here(struct __sk_buff *skb)
{
	u32 index = skb->ifindex;
	struct watched *on = interfaces.lookup(&index), *by;

	if (!on || !wanted(skb, on->directions))
		return NULL;
	if (!(on->flags & WATCHED_PORT) || skb->pkt_type != PACKET_OUTGOING)
		return on;
	index = skb->ingress_ifindex; /* 0: the host made the frame */
	by = interfaces.lookup(&index);
	if (by && by->flags & WATCHED_PORT && by->bridge == on->bridge)
		return by->flags & WATCHED_IN ? NULL : on;
	return on->flags & WATCHED_HOST ? NULL : on;
}

SEC("socket")
int sockex3(struct __sk_buff *skb)
{
	struct parse_state *st;
	struct watched *on;
	u32 zero = 0, l2 = l2_len();
	u8 number = 0;

	if (several()) {
		on = counted_here(skb);
		if (!on)
			return 0;
		l2 = on->l2_len;
		number = on->number;
	} else if (!wanted(skb, direction())) {
		return 0;
	}
	if (count_plain(skb, l2, number))
		return 0;
	st = scratch.lookup(&zero);
	if (!st)
		return 0;
	__builtin_memset(st, 0, offsetof(struct parse_state, outers_made));
	st->flow.interface = number;
	st->cur.end = skb->len;
	if (skb->vlan_present)
		add_vlan(st, skb->vlan_tci);
	if (l2 == ETH_HLEN)
		return read_eth(skb, st);
	st->cur.off = l2;
	return next_ethertype(skb, st, bpf_ntohs(skb->protocol));
}
