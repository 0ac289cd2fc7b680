/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * hooks: which hooks one packet meets, and in which order
 * =======================================================
 *
 * hook      XDP, packet tap, tcx, clsact, netfilter, LWT, cgroup_skb, socket filter, sk_lookup: all
 *           that a packet meets by itself; every one has a probe below.  What is not here: netkit,
 *           which takes the place of veth; nf_tables' ingress and egress, which take no BPF
 *           programs; and what only meets packets that were sent to it (a DEVMAP's or CPUMAP's
 *           program, act_bpf, End.BPF, sk_reuseport, the flow dissector)
 * context   struct xdp_md, __sk_buff, bpf_nf_ctx, bpf_sk_lookup
 * packets   not changed; the one looked for is dropped at the hook that user space chose, and a
 *           VLAN tag is pushed where it asked for one
 *
 *   packet -> probe -> is it the one? -+-> no:  passes
 *                                      +-> yes: struct sighting -> ring buffer of all probes
 *                                               dropped here if `control` says so
 *
 * The one packet: protocol, end of the destination address, and destination port of a UDP datagram
 * or of a TCP SYN, or identifier of an echo request.  Where its data starts (Ethernet, IP or
 * transport header) no probe is told: it is found by looking.
 *
 * The source is loaded once per network namespace with another `place`; the maps are shared.
 *
 * Maps
 *   control    array    0 -> struct control, written by user space
 *   sightings  ringbuf  struct sighting
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_packet.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/pkt_cls.h>
#include <bpfkit/bpfkit.h>

LOAD_CONST(0, place, 0); /* number of the namespace, for struct sighting */
/* Offsets in kernel structs, by the running kernel's BTF: netfilter programs get the kernel's own. */
LOAD_CONST(1, skb_head, 0);
LOAD_CONST(2, skb_network_header, 0);
LOAD_CONST(3, skb_len, 0);
LOAD_CONST(4, state_in, 0);
LOAD_CONST(5, state_out, 0);
LOAD_CONST(6, dev_ifindex, 0);

enum hook {
	XDP_NATIVE,
	XDP_GENERIC,
	TAP_IN,
	TCX_INGRESS,
	TC_INGRESS,
	PREROUTING,
	LWT_IN,
	INPUT,
	SK_LOOKUP,
	CGROUP_INGRESS,
	SOCKET_FILTER,
	FORWARD,
	OUTPUT,
	LWT_OUT,
	POSTROUTING,
	CGROUP_EGRESS,
	LWT_XMIT,
	TCX_EGRESS,
	TC_EGRESS,
	TAP_OUT,
};

struct control {
	u32 proto; /* IPPROTO_* of the packet; 0: look for nothing */
	u32 dst; /* last four bytes of its destination, as they stand in the header */
	u32 port; /* destination port or ICMP identifier, host order */
	u32 drop_hook; /* enum hook + 1; 0: nowhere */
	u32 drop_ifindex; /* 0: any */
	u32 drop_place;
	u32 push; /* place + 1 where a VLAN tag is pushed; 0: nowhere */
	u32 vlan; /* of this id */
};

struct sighting {
	u64 ns SHOWN_AS(time); /* CLOCK_MONOTONIC */
	u32 hook;
	u32 place;
	u32 ifindex; /* 0: the hook has no device */
	u32 len; /* bytes from where the data starts */
	u16 tci; /* of the VLAN tag */
	u8 layer; /* data starts with: 2 Ethernet, 3 IP, 4 transport header; 0: no data */
	u8 tag_in; /* VLAN tag in the data */
	u8 tag_beside; /* VLAN tag kept beside the packet */
	u8 dropped;
	u16 cpu;
};

BPF_TABLE("array", u32, struct control, control, 1);
BPF_RINGBUF_OUTPUT(sightings, 16);
EVENT_TYPE(sightings, struct sighting);

#define HEAD       72 /* Ethernet, tag, IPv6, and TCP up to its flags */
#define HEAD_SHORT 40 /* TCP with a SYN's options, IPv4 and TCP up to its flags */

#define ECHO      8
#define ECHO6     128
#define TCP_FLAGS 13
#define SYN       0x02
#define SYN_ACK   0x12

static __always_inline u16 get16(const u8 *p)
{
	return p[0] << 8 | p[1];
}

static __always_inline u32 same32(const u8 *p)
{
	u32 value;

	__builtin_memcpy(&value, p, sizeof(value));
	return value;
}

static __always_inline bool is_transport(const u8 *p, const struct control *c)
{
	if (c->proto == IPPROTO_ICMP || c->proto == IPPROTO_ICMPV6)
		return (p[0] == ECHO || p[0] == ECHO6) && get16(p + 4) == c->port;
	if (c->proto == IPPROTO_TCP && (p[TCP_FLAGS] & SYN_ACK) != SYN)
		return false;
	return get16(p + 2) == c->port;
}

static __always_inline bool is_ip(const u8 *p, const struct control *c)
{
	if (p[0] == 0x45)
		return p[9] == c->proto && same32(p + 16) == c->dst && is_transport(p + 20, c);
	if (p[0] >> 4 == 6)
		return p[6] == c->proto && same32(p + 36) == c->dst && is_transport(p + 40, c);
	return false;
}

/* What the data starts with, if it is the packet: s->layer; false if it is another one. */
static __always_inline bool is_packet(const u8 *p, const struct control *c, struct sighting *s)
{
	u16 type = get16(p + 12);

	if ((type == ETH_P_IP || type == ETH_P_IPV6) && is_ip(p + 14, c)) {
		s->layer = 2;
	} else if (type == ETH_P_8021Q && is_ip(p + 18, c)) {
		s->layer = 2;
		s->tag_in = 1;
		if (!s->tag_beside)
			s->tci = get16(p + 14);
	} else if (is_ip(p, c)) {
		s->layer = 3;
	} else {
		/* keeps clang from joining the branches by arithmetic on p */
		asm volatile("" : "+r"(p));
		if (s->hook != SOCKET_FILTER || !is_transport(p, c))
			return false;
		s->layer = 4;
	}
	return true;
}

static __always_inline struct control *look_for(void)
{
	u32 zero = 0;
	struct control *c = control.lookup(&zero);

	return c && c->proto ? c : NULL;
}

/* Tell user space; true if the packet shall be dropped here. */
static __always_inline bool tell(struct sighting *s, const struct control *c)
{
	s->ns = bpf_ktime_get_ns();
	s->place = place();
	s->cpu = bpf_get_smp_processor_id();
	s->dropped = c->drop_hook == s->hook + 1 && c->drop_place == s->place &&
		     (!c->drop_ifindex || c->drop_ifindex == s->ifindex);
	sightings.ringbuf_output(s, sizeof(*s), 0);
	return s->dropped;
}

/*
 * The kinds of context: fetch the head of what is there, fill in the sighting; true: drop it.
 */

static __always_inline bool skb_head_is(struct __sk_buff *skb, const struct control *c,
					struct sighting *s)
{
	u8 head[HEAD] __aligned(8) = {};

	if (bpf_skb_load_bytes(skb, 0, head, HEAD) && bpf_skb_load_bytes(skb, 0, head, HEAD_SHORT))
		return false;
	return is_packet(head, c, s);
}

static __always_inline bool probe(struct __sk_buff *skb, u32 hook)
{
	struct control *c = look_for();
	struct sighting s = { .hook = hook, .ifindex = skb->ifindex, .len = skb->len };

	s.tag_beside = !!skb->vlan_present;
	if (s.tag_beside)
		s.tci = skb->vlan_tci;
	return c && skb_head_is(skb, c, &s) && tell(&s, c);
}

static __always_inline bool probe_xdp(struct xdp_md *ctx, u32 hook)
{
	u8 head[HEAD] __aligned(8) = {};
	struct control *c = look_for();
	struct sighting s = { .hook = hook, .ifindex = ctx->ingress_ifindex };

	s.len = bpf_xdp_get_buff_len(ctx);
	return c && !bpf_xdp_load_bytes(ctx, 0, head, HEAD) && is_packet(head, c, &s) &&
	       tell(&s, c);
}

/* struct bpf_nf_ctx: two kernel pointers */
struct nf_ctx {
	u64 state;
	u64 skb;
};

static __always_inline u64 kernel_value(u64 from, u64 offset, u32 size)
{
	u64 value = 0; /* little-endian machines: a shorter value fills its low bytes */

	bpf_probe_read_kernel(&value, size, (void *)(from + offset));
	return value;
}

static __always_inline bool probe_nf(struct nf_ctx *ctx, u32 hook)
{
	bool out = hook == OUTPUT || hook == POSTROUTING;
	u8 head[HEAD] __aligned(8) = {};
	struct control *c = look_for();
	struct sighting s = { .hook = hook };
	u64 state = ctx->state, skb = ctx->skb, data;

	if (!c)
		return false;
	data = kernel_value(skb, skb_head(), 8) + kernel_value(skb, skb_network_header(), 2);
	/* The buffer is longer than any packet here: what is behind it does not matter. */
	if (bpf_probe_read_kernel(head, sizeof(head), (void *)data) || !is_packet(head, c, &s))
		return false;
	s.len = kernel_value(skb, skb_len(), 4);
	data = kernel_value(state, out ? state_out() : state_in(), 8);
	s.ifindex = kernel_value(data, dev_ifindex(), 4);
	return tell(&s, c);
}

/* No packet, only what is looked up. */
static __always_inline bool probe_lookup(struct bpf_sk_lookup *ctx, u32 hook)
{
	struct control *c = look_for();
	struct sighting s = { .hook = hook, .ifindex = ctx->ingress_ifindex };

	if (!c || ctx->protocol != c->proto || ctx->local_port != c->port)
		return false;
	/* that of the other family is 0 */
	if (ctx->local_ip4 != c->dst && ctx->local_ip6[3] != c->dst)
		return false;
	return tell(&s, c);
}

/*
 * The probes.  Each returns its hook's words for "dropped" and "goes on".
 */

SEC("xdp")
int xdp_native(struct xdp_md *ctx)
{
	return probe_xdp(ctx, XDP_NATIVE) ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int xdp_generic(struct xdp_md *ctx)
{
	return probe_xdp(ctx, XDP_GENERIC) ? XDP_DROP : XDP_PASS;
}

/* On an AF_PACKET socket.  It gets a copy, so it can drop nothing. */
SEC("socket")
int tap(struct __sk_buff *skb)
{
	probe(skb, skb->pkt_type == PACKET_OUTGOING ? TAP_OUT : TAP_IN);
	return 0;
}

/* TC_ACT_UNSPEC: the next program, the next filter; without one the packet passes. */
SEC("tcx/ingress")
int tcx_ingress(struct __sk_buff *skb)
{
	return probe(skb, TCX_INGRESS) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SEC("tc")
int tc_ingress(struct __sk_buff *skb)
{
	return probe(skb, TC_INGRESS) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SEC("tcx/egress")
int tcx_egress(struct __sk_buff *skb)
{
	return probe(skb, TCX_EGRESS) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SEC("tc")
int tc_egress(struct __sk_buff *skb)
{
	return probe(skb, TC_EGRESS) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

/* No probe: the filter behind tc_egress that tags the packet. */
SEC("tc")
int push_tag(struct __sk_buff *skb)
{
	struct control *c = look_for();
	struct sighting s = {};

	if (c && c->push == place() + 1 && skb_head_is(skb, c, &s))
		bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), c->vlan);
	return TC_ACT_UNSPEC;
}

SEC("lwt_in")
int lwt_in(struct __sk_buff *skb)
{
	return probe(skb, LWT_IN) ? BPF_DROP : BPF_OK;
}

SEC("lwt_out")
int lwt_out(struct __sk_buff *skb)
{
	return probe(skb, LWT_OUT) ? BPF_DROP : BPF_OK;
}

SEC("lwt_xmit")
int lwt_xmit(struct __sk_buff *skb)
{
	return probe(skb, LWT_XMIT) ? BPF_DROP : BPF_OK;
}

SEC("cgroup_skb/ingress")
int cgroup_ingress(struct __sk_buff *skb)
{
	return !probe(skb, CGROUP_INGRESS);
}

SEC("cgroup_skb/egress")
int cgroup_egress(struct __sk_buff *skb)
{
	return !probe(skb, CGROUP_EGRESS);
}

/* On the socket that the packet is for.  Returns how much of it is kept. */
SEC("socket")
int socket_filter(struct __sk_buff *skb)
{
	return probe(skb, SOCKET_FILTER) ? 0 : skb->len;
}

SEC("sk_lookup")
int sk_lookup(struct bpf_sk_lookup *ctx)
{
	return probe_lookup(ctx, SK_LOOKUP) ? SK_DROP : SK_PASS;
}

/* 1: NF_ACCEPT, 0: NF_DROP */
SEC("netfilter")
int prerouting(struct nf_ctx *ctx)
{
	return !probe_nf(ctx, PREROUTING);
}

SEC("netfilter")
int input(struct nf_ctx *ctx)
{
	return !probe_nf(ctx, INPUT);
}

SEC("netfilter")
int forward(struct nf_ctx *ctx)
{
	return !probe_nf(ctx, FORWARD);
}

SEC("netfilter")
int output(struct nf_ctx *ctx)
{
	return !probe_nf(ctx, OUTPUT);
}

SEC("netfilter")
int postrouting(struct nf_ctx *ctx)
{
	return !probe_nf(ctx, POSTROUTING);
}
