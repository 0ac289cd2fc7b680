/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_lb: a hairpin load balancer: what comes for a service goes out again, to one of its backends
 * ================================================================================================
 *
 * hook      XDP
 * context   struct xdp_md
 * packets   those for a service get another Ethernet header and, in mode ipip, an IP header in
 *           front; everything else is not changed
 *
 *   client --> VIP:port --> [xdp_lb] ==(IP in IP, or only the MAC address)==> backend
 *      ^                                                                         |
 *      +------------------------- VIP as its source ------------------------------+
 *
 *   frame -> headers -> is (destination, protocol, port) a service's? --no--> XDP_PASS
 *                          | yes
 *            flows[tuple]: its backend, as long as that is there (LRU)
 *                          | none, or gone
 *            tables[0] -> slot[hash % slots]: a backend (Maglev, bpfkit/xdp_lb/maglev.py)
 *                          |
 *            backends[id]: addresses, next hop --> encapsulate, XDP_TX
 *
 * The table is a map in a map: Python fills a new one and puts it in the old one's place, and no
 * packet sees half of it.
 *
 * In mode l2 a backend is whoever has its address's MAC address; of which family that address is
 * does not matter. On veth, XDP_TX in native mode needs an XDP program on the other end, and senders
 * that work out their checksums (ethtool -K IF tx off).
 *
 * Which backend
 *   fragments    have no ports (tuple.h): all from one client to one address, whatever their
 *                protocol's ports, go to one backend, so those of a datagram meet there. It need not
 *                be the one that the flow's whole packets go to.
 *   ICMP errors  about a packet that the VIP sent go where its flow goes (the quoted tuple, turned
 *                round): path MTU discovery of the backends works.
 *   TCP SYNs     to a backend that is being drained are new connections, and go elsewhere.
 *
 * To the kernel go: everything else for the VIP (ping, other ports), frames that are not for this
 * interface's MAC address, wrong lengths, and what has more than MAX_TAGS tags or MAX_EXTS extension
 * headers. Packets for a service without a usable backend are dropped.
 *
 * IP options, extension headers and VLAN tags stay in the packet: a tagged frame is sent back in its
 * VLAN. (Tags that the card takes off are not seen: ethtool -K IF rxvlan off.) The TTL is not
 * touched: balancer and backend are one host.
 *
 * The outer header: DF, TTL 64, the inner DSCP and ECN (RFC 6040), IPv6: a flow label by hash; the
 * source is the balancer's own address. What is too long then is answered with "fragmentation
 * needed" or "packet too big", as from the VIP; dropped where that is not allowed (no DF, a later
 * fragment).
 *
 * Maps
 *   services  hash           struct service_key -> anything
 *   tables    array_of_maps  0 -> array: 0 -> struct lb_table
 *   backends  array          id -> struct backend
 *   device    array          0 -> struct device: the interface, kept current by user space
 *   flows     lru_hash       struct tuple -> struct flow
 *   served    percpu_array   id -> struct served
 *   results   percpu_array   enum result -> struct traffic
 */
#include <uapi/linux/icmp.h>
#define MAX_TAGS 2
#include <bpfkit/bpfkit.h>
#include <bpfkit/headers.h>
#include "link.h"
#include "tuple.h"
#include <bpfkit/wire.h>
#include <uapi/linux/bpf.h>

LOAD_CONST(0, slots, 65537); /* of the table that are used; a prime */
LOAD_CONST(1, encap, 1); /* 1: IP in IP, 0: only the MAC address (layer-2 DSR) */

/* The interface. User space writes it again when the interface changes. */
struct device {
	u64 lladdr; /* MAC address as in memory; 0: any */
	u32 mtu; /* 0: Ethernet's 1500 */
	u32 zero;
};

#define MAX_SERVICES 4096
#define MAX_BACKENDS 1024
#define MAX_SLOTS    65537
#define NO_BACKEND   0xffff
#define IPV4_DF      0x4000
#define OUTER_TTL    64
#define QUOTED4      68 /* the longest IPv4 header and 8 bytes */
#define QUOTED6      128

/* port 0: some service is there (for fragments) */
struct service_key {
	__be32 addr[4]; /* IPv4 as ::ffff:a.b.c.d */
	__be16 port;
	u8 proto;
	u8 zero;
};

struct lb_table {
	u16 slot[MAX_SLOTS]; /* id of a backend, or NO_BACKEND */
};

#define STATE_GONE  0 /* its flows are moved */
#define STATE_UP    1
#define STATE_DRAIN 2 /* keeps its flows, gets no new ones */

struct backend {
	__be32 addr[4]; /* where the tunnel ends */
	__be32 source[4]; /* where it begins */
	u8 mac[ETH_ALEN]; /* of the next hop */
	u8 family; /* of addr and source */
	u8 state;
	u32 serial; /* another one when the id is used again */
	u32 zero;
};

struct flow {
	u32 backend;
	u32 serial;
	u32 hash; /* user space looks where the table alone would send it */
};

struct served {
	u64 packets; /* as they came: without the outer header */
	u64 bytes;
	u64 flows; /* that were new, or moved here */
};

enum result {
	SENT, /* to a backend, by flow */
	SENT_FRAGMENT, /* to a backend, by addresses */
	SENT_ICMP, /* to a backend: an error about a flow */
	PASSED, /* for no service */
	PASSED_DEEP, /* too many tags or extension headers */
	PASSED_MALFORMED, /* for a service, with lengths that cannot be */
	TOLD_TOO_BIG,
	DROPPED_TOO_BIG,
	DROPPED_NO_BACKEND,
	DROPPED_NO_ROOM, /* the driver has no room in front of the packet */
	RESULTS,
};

BPF_TABLE("hash", struct service_key, u32, services, MAX_SERVICES);
BPF_ARRAY(device, struct device, 1);
BPF_ARRAY(table, struct lb_table, 1);
BPF_ARRAY_OF_MAPS(tables, "table", 1);
BPF_ARRAY(backends, struct backend, MAX_BACKENDS);
BPF_TABLE("lru_hash", struct tuple, struct flow, flows, 65536);
BPF_TABLE("percpu_array", u32, struct served, served, MAX_BACKENDS);
BPF_TABLE("percpu_array", u32, struct traffic, results, RESULTS);

/* Fields of the IP header that are needed. */
struct ip_says {
	u64 len; /* header and payload */
	u8 tos;
	bool df; /* IPv6: always */
};

static __always_inline bool is_service(const __be32 *addr, __be16 port, u8 proto)
{
	struct service_key key = { .port = port, .proto = proto };

	__builtin_memcpy(key.addr, addr, sizeof(key.addr));
	return services.lookup(&key);
}

/*
 * Turns *t, of an ICMP error, into the tuple of the flow that it is about, as the client sends it;
 * false: it is no error, or not about a packet that its destination has sent.
 */
static __always_inline bool quoted_flow(const struct window *w, const struct headers *h,
					struct tuple *t)
{
	struct window at = { .data = w->data, .end = w->end, .off = h->payload, .limit = h->limit };
	struct ipv6_header *ip6;
	bool later = false;
	struct iphdr *ip4;
	__be32 client[4];
	__be16 *ports;
	u8 *icmp;

	if (h->fragment)
		return false;
	icmp = window_pull(&at, sizeof(struct icmphdr));
	if (!icmp)
		return false;
	if (h->family == 4) {
		if (icmp[0] != ICMP_DEST_UNREACH && icmp[0] != ICMP_TIME_EXCEEDED &&
		    icmp[0] != ICMP_PARAMETERPROB)
			return false;
		ip4 = window_peek(&at, sizeof(*ip4));
		if (!ip4 || ip4->version != 4 || ip4->ihl < 5 || ip4->saddr != t->daddr[3])
			return false;
		tuple_ipv4(client, ip4->daddr);
		t->proto = ip4->protocol;
		later = bpf_ntohs(ip4->frag_off) & IPV4_OFFSET;
		at.off += ip4->ihl * 4;
	} else {
		if (icmp[0] < 1 || icmp[0] > 4) /* RFC 4443: the errors that there are */
			return false;
		ip6 = window_pull(&at, sizeof(*ip6));
		if (!ip6 || !is_ipv6(ip6) || ip6->saddr[0] != t->daddr[0] ||
		    ip6->saddr[1] != t->daddr[1] || ip6->saddr[2] != t->daddr[2] ||
		    ip6->saddr[3] != t->daddr[3])
			return false;
		__builtin_memcpy(client, ip6->daddr, sizeof(client));
		t->proto = ip6->nexthdr;
	}
	__builtin_memcpy(t->saddr, client, sizeof(t->saddr));
	if (!has_ports(t->proto))
		return false;
	if (later)
		return true;
	ports = window_peek(&at, 2 * sizeof(*ports));
	if (!ports)
		return false;
	t->sport = ports[1];
	t->dport = ports[0];
	t->flags = TUPLE_PORTS;
	return true;
}

/* False if the lengths in the header are impossible. */
static __always_inline bool read_ip(const struct window *w, const struct headers *h, u64 frame_len,
				    struct ip_says *says)
{
	struct window at = { .data = w->data, .end = w->end, .off = h->network, .limit = -1ULL };
	struct ipv6_header *ip6;
	struct iphdr *ip4;
	u64 least;

	if (h->family == 4) {
		ip4 = window_peek(&at, sizeof(*ip4));
		if (!ip4)
			return false;
		says->len = bpf_ntohs(ip4->tot_len);
		says->tos = ip4->tos;
		says->df = bpf_ntohs(ip4->frag_off) & IPV4_DF;
		least = ip4->ihl * 4;
	} else {
		ip6 = window_peek(&at, sizeof(*ip6));
		if (!ip6)
			return false;
		says->len = sizeof(*ip6) + bpf_ntohs(ip6->payload_len);
		says->tos = bpf_ntohl(ip6->version_class_flow) >> 20;
		says->df = true;
		least = sizeof(*ip6) + 1; /* 0: a jumbogram, which Ethernet has not */
	}
	return says->len >= least && h->network + says->len <= frame_len;
}

static __always_inline bool opens_connection(const struct window *w, const struct headers *h)
{
	struct window at = { .data = w->data, .end = w->end, .off = h->payload, .limit = h->limit };
	u8 *tcp;

	if (h->proto != IPPROTO_TCP || h->fragment)
		return false;
	tcp = window_peek(&at, 14);
	return tcp && (tcp[13] & 0x12) == 0x02; /* SYN without ACK */
}

/* The backend of a flow, and its id; NULL: there is none. */
static __always_inline struct backend *pick(const struct tuple *t, u32 hash, bool opens, u32 *id)
{
	struct flow *known = flows.lookup((struct tuple *)t), fresh = {};
	struct lb_table *now;
	struct backend *b;
	struct served *sum;
	u32 zero = 0, slot;
	void *inner;

	if (known) {
		*id = known->backend;
		b = backends.lookup(id);
		if (b && b->serial == known->serial &&
		    (b->state == STATE_UP || (b->state == STATE_DRAIN && !opens)))
			return b;
	}
	inner = tables.lookup(&zero);
	if (!inner)
		return NULL;
	now = bpf_map_lookup_elem(inner, &zero);
	if (!now)
		return NULL;
	slot = hash % (u32)slots();
	if (slot >= MAX_SLOTS)
		return NULL;
	*id = now->slot[slot];
	b = backends.lookup(id); /* NO_BACKEND is no index */
	if (!b || b->state == STATE_GONE)
		return NULL;
	fresh.backend = *id;
	fresh.serial = b->serial;
	fresh.hash = hash;
	flows.update((struct tuple *)t, &fresh);
	sum = served.lookup(id);
	if (sum)
		sum->flows++;
	return b;
}

/* The Internet checksum of data whose words add up to `sum`. */
static __always_inline __sum16 fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline void put_ipv4(struct iphdr *ip, u8 tos, u16 len, u8 proto, __be32 saddr,
				     __be32 daddr)
{
	const u16 *words = (const u16 *)ip;
	u64 sum = 0;
	u32 i;

	ip->version = 4;
	ip->ihl = 5;
	ip->tos = tos;
	ip->tot_len = bpf_htons(len);
	ip->id = 0; /* RFC 6864: any, in what is never fragmented */
	ip->frag_off = bpf_htons(IPV4_DF);
	ip->ttl = OUTER_TTL;
	ip->protocol = proto;
	ip->check = 0;
	ip->saddr = saddr;
	ip->daddr = daddr;
#pragma clang loop unroll(full)
	for (i = 0; i < sizeof(*ip) / sizeof(*words); i++)
		sum += words[i];
	ip->check = fold(sum);
}

static __always_inline void put_ipv6(struct ipv6_header *ip, u32 tos_and_label, u16 len, u8 proto,
				     const __be32 *saddr, const __be32 *daddr)
{
	ip->version_class_flow = bpf_htonl(6U << 28 | tos_and_label);
	ip->payload_len = bpf_htons(len);
	ip->nexthdr = proto;
	ip->hop_limit = OUTER_TTL;
	__builtin_memcpy(ip->saddr, saddr, sizeof(ip->saddr));
	__builtin_memcpy(ip->daddr, daddr, sizeof(ip->daddr));
}

static __always_inline enum result encapsulate(struct xdp_md *ctx, struct link_header *link,
					       const struct headers *h, const struct ip_says *says,
					       const struct backend *b, u32 hash)
{
	u8 proto = h->family == 4 ? IPPROTO_IPIP : IPPROTO_IPV6;
	struct ipv6_header *ip6;
	struct iphdr *ip4;

	if (b->family == 4) {
		if (bpf_xdp_adjust_head(ctx, -(int)sizeof(*ip4)))
			return DROPPED_NO_ROOM;
		ip4 = put_link(ctx, link, h->tags, ETH_P_IP, sizeof(*ip4));
		if (!ip4)
			return DROPPED_NO_ROOM;
		put_ipv4(ip4, says->tos, says->len + sizeof(*ip4), proto, b->source[3], b->addr[3]);
		return SENT;
	}
	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(*ip6)))
		return DROPPED_NO_ROOM;
	ip6 = put_link(ctx, link, h->tags, ETH_P_IPV6, sizeof(*ip6));
	if (!ip6)
		return DROPPED_NO_ROOM;
	put_ipv6(ip6, (u32)says->tos << 20 | (hash & 0xfffff), says->len, proto, b->source,
		 b->addr);
	return SENT;
}

/* Turns the packet into the ICMP error "too big"; `fits` is the MTU that it reports. */
static __always_inline enum result tell_too_big(struct xdp_md *ctx, struct link_header *link,
						const struct headers *h, const struct tuple *t,
						u32 frame_len, u32 fits)
{
	u32 l2_len = ETH_HLEN + h->tags * VLAN_HLEN;
	u8 mac[ETH_ALEN];
	struct {
		struct ipv6_header ip;
		u8 type;
		u8 code;
		__sum16 check;
		__be32 mtu;
		u8 quoted[QUOTED6];
	} * six;
	struct {
		struct iphdr ip;
		u8 type;
		u8 code;
		__sum16 check;
		__be16 unused;
		__be16 mtu;
		u8 quoted[QUOTED4];
	} * four;

	__builtin_memcpy(mac, link->eth.h_dest, ETH_ALEN);
	__builtin_memcpy(link->eth.h_dest, link->eth.h_source, ETH_ALEN);
	__builtin_memcpy(link->eth.h_source, mac, ETH_ALEN);
	if (h->family == 4) {
		u32 front = sizeof(*four) - QUOTED4;

		if (bpf_xdp_adjust_head(ctx, -(int)front) ||
		    bpf_xdp_adjust_tail(ctx, (int)(l2_len + QUOTED4) - (int)frame_len))
			return DROPPED_NO_ROOM;
		four = put_link(ctx, link, h->tags, ETH_P_IP, sizeof(*four));
		if (!four)
			return DROPPED_NO_ROOM;
		put_ipv4(&four->ip, 0, sizeof(*four), IPPROTO_ICMP, t->daddr[3], t->saddr[3]);
		four->type = ICMP_DEST_UNREACH;
		four->code = ICMP_FRAG_NEEDED;
		four->check = 0;
		four->unused = 0;
		four->mtu = bpf_htons(fits);
		four->check = fold(bpf_csum_diff(NULL, 0, (void *)&four->type, 8 + QUOTED4, 0));
	} else {
		u32 front = sizeof(*six) - QUOTED6;

		if (bpf_xdp_adjust_head(ctx, -(int)front) ||
		    bpf_xdp_adjust_tail(ctx, (int)(l2_len + QUOTED6) - (int)frame_len))
			return DROPPED_NO_ROOM;
		six = put_link(ctx, link, h->tags, ETH_P_IPV6, sizeof(*six));
		if (!six)
			return DROPPED_NO_ROOM;
		put_ipv6(&six->ip, 0, 8 + QUOTED6, IPPROTO_ICMPV6, t->daddr, t->saddr);
		six->type = 2; /* packet too big */
		six->code = 0;
		six->check = 0;
		six->mtu = bpf_htonl(fits);
		/* the addresses and the message, then what else the pseudo-header has */
		six->check = fold((u64)bpf_csum_diff(NULL, 0, (void *)six->ip.saddr,
						     32 + 8 + QUOTED6, bpf_htonl(8 + QUOTED6)) +
				  bpf_htonl(IPPROTO_ICMPV6));
	}
	return TOLD_TOO_BIG;
}

/* Is the frame addressed to this interface? (A promiscuous interface sees others.) */
static __always_inline bool is_for_us(const struct device *own, const struct link_header *link)
{
	const u8 *to = link->eth.h_dest;
	u64 mac = 0;

	__builtin_memcpy(&mac, to, ETH_ALEN);
	return own->lladdr ? mac == own->lladdr : !(to[0] & 1);
}

static __always_inline enum result balance(struct xdp_md *ctx)
{
	u32 frame_len = ctx->data_end - ctx->data, hash, id = 0, outer, mtu, zero = 0;
	enum result kind = SENT, done;
	struct link_header link;
	struct headers h = {};
	const struct device *own;
	struct ip_says says;
	struct tuple t = {};
	struct served *sum;
	enum outcome outcome;
	struct backend *b;
	struct window w;
	bool opens;

	outcome = direct_xdp(ctx, &h, &w, ETH_HLEN);
	if (outcome != FOUND)
		return outcome == TOO_DEEP ? PASSED_DEEP : PASSED;
	if (!read_tuple(&w, &h, &t))
		return PASSED;
	if ((h.family == 4 && h.proto == IPPROTO_ICMP) ||
	    (h.family == 6 && h.proto == IPPROTO_ICMPV6)) {
		if (!quoted_flow(&w, &h, &t))
			return PASSED;
		kind = SENT_ICMP;
	} else if (h.fragment) {
		kind = SENT_FRAGMENT;
	}
	if (t.flags & TUPLE_PORTS && !t.dport)
		return PASSED; /* 0 means any in the map */
	if (!is_service(t.daddr, t.dport, t.proto))
		return PASSED;
	if (!(t.flags & TUPLE_PORTS) && kind == SENT)
		return PASSED_MALFORMED; /* the packet ends before its ports do */
	own = device.lookup(&zero);
	if (!own || !save_link(&w, &link) || !is_for_us(own, &link))
		return PASSED;
	if (!read_ip(&w, &h, frame_len, &says))
		return PASSED_MALFORMED;
	hash = tuple_hash(&t, 0);
	opens = opens_connection(&w, &h);
	b = pick(&t, hash, opens, &id);
	if (!b)
		return DROPPED_NO_BACKEND;
	outer = b->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6_header);
	mtu = own->mtu ? own->mtu : ETH_DATA_LEN;
	if (encap() && says.len + outer > mtu) {
		if (!says.df || h.later_fragment || kind == SENT_ICMP)
			return DROPPED_TOO_BIG;
		return tell_too_big(ctx, &link, &h, &t, frame_len, mtu - outer);
	}
	/* the destination address of the frame is our own */
	__builtin_memcpy(link.eth.h_source, link.eth.h_dest, ETH_ALEN);
	__builtin_memcpy(link.eth.h_dest, b->mac, ETH_ALEN);
	if (encap()) {
		done = encapsulate(ctx, &link, &h, &says, b, hash);
		if (done != SENT)
			return done;
	} else {
		if (w.data + ETH_HLEN > w.end)
			return DROPPED_NO_ROOM;
		__builtin_memcpy(w.data, &link.eth, 2 * ETH_ALEN);
	}
	sum = served.lookup(&id);
	if (sum) {
		sum->packets++;
		sum->bytes += frame_len;
	}
	return kind;
}

SEC("xdp")
int xdp_lb(struct xdp_md *ctx)
{
	u32 frame_len = ctx->data_end - ctx->data, result;

	result = balance(ctx);
	add_frame(results.lookup(&result), frame_len);
	switch (result) {
	case PASSED:
	case PASSED_DEEP:
	case PASSED_MALFORMED:
		return XDP_PASS;
	case SENT:
	case SENT_FRAGMENT:
	case SENT_ICMP:
	case TOLD_TOO_BIG:
		return XDP_TX;
	}
	return XDP_DROP;
}
