/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * cgroup_skb: packets and bytes of a cgroup's processes, and which addresses and ports they reach
 * ===============================================================================================
 *
 * hook      a packet to or from a socket of the cgroup (CGROUP_SKB); its data starts at the IP header;
 *           socket(2) (CGROUP_SOCK), connect(2) and sendmsg(2) (CGROUP_SOCK_ADDR)
 * context   struct __sk_buff, struct bpf_sock, struct bpf_sock_addr
 * packets   not changed; 0 drops one: a sender of UDP gets EPERM, TCP sends it again
 * may       refuse the system call as well, with an errno of the program's choice
 *
 *   socket(2) ----------> owners[socket] = who: cgroup, name of the process
 *   connect(2), sendmsg(2)    -> a reject rule for the destination? -> ECONNREFUSED, at once
 *   packet -> owners[socket] -> longest prefix that holds the remote address -> rule of the remote
 *                 |             port in it, else of the prefix -> allow: 1 | deny, reject: 0
 *                 +---> traffic[number of its row]
 *
 * A socket belongs to the cgroup and to the process that created it, an accepted one to those of its
 * listener; at connect(2) a socket without an owner gets one. A socket that is older than the program
 * and does not connect has a cgroup and no name.
 *
 * User space resolves rules: each prefix has the port rules of the shorter ones around it, so that a
 * packet costs one lookup in a trie. Later fragments (raw sockets send such) have no ports and get
 * their prefix's own rule; headers that cannot be read are refused where a port would decide.
 *
 * Maps
 *   owners         sk_storage               struct owner; accepted sockets get a copy
 *   slots          hash                     struct who -> number of its row
 *   free_slots     queue                    numbers that no row has; user space fills it
 *   traffic        percpu_array             number -> struct counts; 0: everything without a row
 *   prefixes4, 6   lpm_trie                 prefix -> struct rule
 *   ports          hash                     struct port_rule -> enum action
 *   senders        prog_array               0: sends ICMP port unreachable, 1: ICMPv6 (Linux 7.3)
 *   refused        ringbuf                  struct refusal, at most event_rate() a second
 *   pace           array                    0 -> struct pace
 *   lost           array                    0 -> refusals that are not in the ring buffer
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <linux/sched.h>
#include <uapi/asm-generic/errno.h>
#include <bpfkit/headers.h>
#include <bpfkit/segment.h>
#include <bpfkit/wire.h>

LOAD_CONST(0, have_rules, 0);
LOAD_CONST(1, have_ports, 0); /* 1: a rule names a port */
LOAD_CONST(2, default_action, 1); /* enum action, of addresses without a rule */
LOAD_CONST(3, reject_calls, 0); /* 1: connect(2) and sendmsg(2) fail where a rule rejects */
LOAD_CONST(4, event_rate, 1000); /* events per second */

#define MAX_ROWS     2048
#define NSEC_PER_SEC 1000000000ULL
#define NO_PORT      0x10000
#define PORT_UNKNOWN 0x10001 /* it may have one, and its headers cannot be read */

enum action {
	ACTION_NONE,
	ACTION_ALLOW,
	ACTION_DENY,
	ACTION_REJECT,
};

enum hook {
	HOOK_INGRESS,
	HOOK_EGRESS,
	HOOK_CONNECT,
	HOOK_SENDMSG,
};

struct who {
	u64 cgroup; /* id */
	char comm[TASK_COMM_LEN]; /* empty: not known */
};

struct owner {
	struct who who;
	u32 slot;
	u32 pid;
};

struct counts {
	u64 in_packets; /* frames on the wire: a super-frame is its segments */
	u64 in_bytes; /* from the IP header on */
	u64 out_packets;
	u64 out_bytes;
	u64 denied_packets; /* both directions, not in the above */
	u64 denied_bytes;
};

struct prefix4 {
	u32 len;
	__be32 addr;
};

struct prefix6 {
	u32 len;
	__be32 addr[4];
};

struct rule {
	u32 action; /* enum action */
	u32 group; /* of its port rules; 0: it has none */
};

struct port_rule {
	u32 group;
	u32 port; /* host order */
};

struct refusal {
	u64 time_ns; /* CLOCK_MONOTONIC */
	struct who who;
	__be32 local[4]; /* IPv4: the first; zero where the hook does not know it */
	__be32 remote[4];
	u32 local_port; /* host order; NO_PORT: none or unknown */
	u32 remote_port;
	u32 pid; /* of the socket's owner; 0: not known */
	u32 length; /* of the packet, or of no meaning */
	u8 hook; /* enum hook */
	u8 action; /* enum action */
	u8 family; /* 4 or 6 */
	u8 proto;
	u32 zero;
};

struct pace {
	u64 second;
	u64 sent;
};

/* What the rules need of a packet. */
struct remote {
	u8 family;
	u8 proto;
	u32 port; /* host order, NO_PORT, PORT_UNKNOWN */
	u32 local_port;
	__be32 addr[4];
	__be32 local[4];
};

BPF_F_TABLE("sk_storage", int, struct owner, owners, 0, BPF_F_NO_PREALLOC | BPF_F_CLONE);
BPF_HASH(slots, struct who, u32, MAX_ROWS);
BPF_QUEUE(free_slots, u32, MAX_ROWS);
BPF_TABLE("percpu_array", u32, struct counts, traffic, MAX_ROWS);
BPF_LPM_TRIE(prefixes4, struct prefix4, struct rule, 16384);
BPF_LPM_TRIE(prefixes6, struct prefix6, struct rule, 16384);
BPF_HASH(ports, struct port_rule, u32, 65536);
BPF_PROG_ARRAY(senders, 2);
BPF_RINGBUF_OUTPUT(refused, 64);
EVENT_TYPE(refused, struct refusal);
BPF_ARRAY(pace, struct pace, 1);
BPF_ARRAY(lost, u64, 1);

/* The number of the row of `who`, a new one if need be; 0: there is none left. */
static __always_inline u32 slot_of(struct who *who)
{
	u32 slot = 0, *found = slots.lookup(who);

	if (found)
		return *found;
	if (free_slots.pop(&slot))
		return 0;
	if (slots.insert(who, &slot)) {
		/* another CPU was faster */
		free_slots.push(&slot, 0);
		found = slots.lookup(who);
		return found ? *found : 0;
	}
	return slot;
}

/* The owner that the current process is. */
static __always_inline void owner_from_current(struct owner *owner)
{
	owner->who.cgroup = bpf_get_current_cgroup_id();
	bpf_get_current_comm(owner->who.comm, sizeof(owner->who.comm));
	owner->pid = bpf_get_current_pid_tgid() >> 32;
	owner->slot = slot_of(&owner->who);
}

/* The owner of a packet's socket. One without gets its cgroup, and no name. */
static __always_inline struct owner *owner_of(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct owner *owner, made = {};

	if (!sk)
		return NULL;
	owner = owners.sk_storage_get(sk, NULL, 0);
	if (likely(owner))
		return owner;
	made.who.cgroup = bpf_skb_cgroup_id(skb);
	made.slot = slot_of(&made.who);
	return owners.sk_storage_get(sk, &made, BPF_SK_STORAGE_GET_F_CREATE);
}

static __always_inline u32 action_of(const struct remote *to)
{
	struct port_rule key = {};
	struct prefix4 key4;
	struct prefix6 key6;
	struct rule *rule;
	u32 *action;

	if (to->family == 4) {
		key4.len = 32;
		key4.addr = to->addr[0];
		rule = prefixes4.lookup(&key4);
	} else {
		key6.len = 128;
		__builtin_memcpy(key6.addr, to->addr, sizeof(key6.addr));
		rule = prefixes6.lookup(&key6);
	}
	if (!rule)
		return default_action();
	if (!have_ports() || !rule->group)
		return rule->action;
	if (to->port == PORT_UNKNOWN)
		return ACTION_DENY;
	if (to->port == NO_PORT)
		return rule->action;
	key.group = rule->group;
	key.port = to->port;
	action = ports.lookup(&key);
	return action ? *action : rule->action;
}

/* Room for an event in the ring buffer, NULL if this second had its share or the buffer is full. */
static __always_inline struct refusal *event_room(void)
{
	u64 second = bpf_ktime_get_ns() / NSEC_PER_SEC;
	struct refusal *r = NULL;
	struct pace *p;
	u32 zero = 0;
	u64 *n;

	p = pace.lookup(&zero);
	if (!p)
		return NULL;
	/* CPUs that race here send a few more; what is not sent is counted in any case */
	if (p->second != second) {
		p->second = second;
		p->sent = 0;
	}
	if (p->sent < event_rate())
		r = refused.ringbuf_reserve(sizeof(*r));
	if (r) {
		p->sent++;
		return r;
	}
	n = lost.lookup(&zero);
	if (n)
		__sync_fetch_and_add(n, 1);
	return NULL;
}

static __always_inline void report(struct refusal *r, struct owner *owner, const struct remote *to,
				   u32 action, u32 hook, u32 length)
{
	__builtin_memset(r, 0, sizeof(*r));
	r->time_ns = bpf_ktime_get_ns();
	if (owner) {
		r->who = owner->who;
		r->pid = owner->pid;
	}
	__builtin_memcpy(r->local, to->local, sizeof(r->local));
	__builtin_memcpy(r->remote, to->addr, sizeof(r->remote));
	r->local_port = to->local_port;
	r->remote_port = to->port;
	r->length = length;
	r->hook = hook;
	r->action = action;
	r->family = to->family;
	r->proto = to->proto;
	refused.ringbuf_submit(r, 0);
}

/*
 * The address of one end, from the IP header alone, into `addr`; true: the source's. Returns the IP
 * version, or 0 if this is not IP.
 */
static __always_inline u8 read_address(struct __sk_buff *skb, __be32 *addr, u8 *proto, bool source)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6_header *ip6 = data;
	struct iphdr *ip4 = data;

	if ((void *)(ip4 + 1) > end)
		return 0;
	if (ip4->version == 4) {
		addr[0] = source ? ip4->saddr : ip4->daddr;
		*proto = ip4->protocol;
		return 4;
	}
	if (ip4->version == 6 && (void *)(ip6 + 1) <= end) {
		__builtin_memcpy(addr, source ? ip6->saddr : ip6->daddr, sizeof(ip6->saddr));
		*proto = ip6->nexthdr;
		return 6;
	}
	return 0;
}

/* The ports, by the walk through all headers. */
static __always_inline void read_ports(struct __sk_buff *skb, struct remote *to, bool egress)
{
	enum outcome outcome;
	struct headers h = {};
	union ip_header ip;
	struct window w;
	__be16 pair[2]; /* source, destination */

	to->port = PORT_UNKNOWN;
	outcome = load_skb(skb, &h, &ip, &w, 0);
	to->proto = h.proto;
	if (outcome != FOUND)
		return;
	if (h.later_fragment || !has_ports(h.proto)) {
		to->port = NO_PORT;
		return;
	}
	if (h.payload + sizeof(pair) > h.limit ||
	    bpf_skb_load_bytes(skb, h.payload, pair, sizeof(pair)))
		return;
	to->port = bpf_ntohs(pair[egress ? 1 : 0]);
	to->local_port = bpf_ntohs(pair[egress ? 0 : 1]);
}

/*
 * The same for the packets that nearly all are: no options, no extension headers, TCP or UDP in the
 * linear part. False: walk.
 */
static __always_inline bool read_ports_fast(struct __sk_buff *skb, struct remote *to, bool egress)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip4 = data;
	__be16 *pair;

	if (to->proto != IPPROTO_TCP && to->proto != IPPROTO_UDP)
		return false;
	if (to->family == 4) {
		pair = data + sizeof(*ip4);
		if ((void *)(pair + 2) > end || ip4->ihl != 5 ||
		    ip4->frag_off & bpf_htons(IPV4_OFFSET) ||
		    bpf_ntohs(ip4->tot_len) < sizeof(*ip4) + 4)
			return false;
	} else {
		pair = data + sizeof(struct ipv6_header);
		if ((void *)(pair + 2) > end ||
		    bpf_ntohs(((struct ipv6_header *)data)->payload_len) < 4)
			return false;
	}
	to->port = bpf_ntohs(pair[egress ? 1 : 0]);
	to->local_port = bpf_ntohs(pair[egress ? 0 : 1]);
	return true;
}

/* What the socket buffer is on the wire; data start at the IP header. */
static __always_inline struct traffic wire_size(struct __sk_buff *skb)
{
	struct headers h = {};
	union ip_header ip;
	struct window w;

	/* live traffic: a super-frame has a gso_size */
	if (likely(!skb->gso_size))
		return (struct traffic){ .packets = 1, .bytes = skb->len };
	load_skb(skb, &h, &ip, &w, 0);
	return segment_traffic(skb, skb->len, true, segment_header_len(skb, h.payload, h.proto));
}

static __always_inline void count(struct counts *row, const struct traffic *what, u32 action,
				  bool egress)
{
	if (!row)
		return;
	if (action != ACTION_ALLOW) {
		row->denied_packets += what->packets;
		row->denied_bytes += what->bytes;
	} else if (egress) {
		row->out_packets += what->packets;
		row->out_bytes += what->bytes;
	} else {
		row->in_packets += what->packets;
		row->in_bytes += what->bytes;
	}
}

/* The event of a denied packet, and the answer to the application. */
static __always_inline void refuse(struct __sk_buff *skb, struct owner *owner, u32 action,
				   bool egress)
{
	struct remote to = { .port = NO_PORT, .local_port = NO_PORT };
	struct refusal *r = event_room();

	if (r) {
		to.family = read_address(skb, to.local, &to.proto, egress);
		read_address(skb, to.addr, &to.proto, !egress);
		if (to.family && !read_ports_fast(skb, &to, egress))
			read_ports(skb, &to, egress);
		report(r, owner, &to, action, egress ? HOOK_EGRESS : HOOK_INGRESS, skb->len);
	}
	/* goes on behind the call where there is no such program: the kernel cannot send ICMP */
	if (egress && action == ACTION_REJECT)
		senders.call(skb, skb->protocol == bpf_htons(ETH_P_IPV6));
}

static __always_inline u32 judge(struct __sk_buff *skb, bool egress)
{
	struct owner *owner = owner_of(skb);
	u32 slot = owner ? owner->slot : 0;
	u32 action = ACTION_ALLOW;
	struct traffic what;
	struct remote to;

	if (have_rules()) {
		to.port = to.local_port = NO_PORT;
		to.proto = 0;
		to.family = read_address(skb, to.addr, &to.proto, !egress);
		if (have_ports() && to.family && !read_ports_fast(skb, &to, egress))
			read_ports(skb, &to, egress);
		/* not IP, or cut off in its IP header: no rule can be looked up */
		action = to.family ? action_of(&to) : ACTION_DENY;
	}
	what = wire_size(skb);
	count(traffic.lookup(&slot), &what, action, egress);
	if (likely(action == ACTION_ALLOW))
		return action;
	refuse(skb, owner, action, egress);
	return action;
}

SEC("cgroup_skb/ingress")
int skb_ingress(struct __sk_buff *skb)
{
	return judge(skb, false) == ACTION_ALLOW;
}

SEC("cgroup_skb/egress")
int skb_egress(struct __sk_buff *skb)
{
	return judge(skb, true) == ACTION_ALLOW;
}

SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *sk)
{
	struct owner owner = {};

	owner_from_current(&owner);
	owners.sk_storage_get(sk, &owner, BPF_SK_STORAGE_GET_F_CREATE);
	return 1;
}

/* connect(2) and sendmsg(2) to ctx's destination, which is already in *to. */
static __always_inline int judge_call(struct bpf_sock_addr *ctx, struct remote *to, u32 hook)
{
	struct bpf_sock *sk = ctx->sk;
	struct owner made = {}, *owner = NULL;
	struct refusal *r;

	if (sk)
		owner = owners.sk_storage_get(sk, NULL, 0);
	if (sk && (!owner || !owner->pid)) {
		owner_from_current(&made);
		owner = owners.sk_storage_get(sk, &made, BPF_SK_STORAGE_GET_F_CREATE);
		if (owner)
			*owner = made;
	}
	if (!reject_calls() || action_of(to) != ACTION_REJECT)
		return 1;
	r = event_room();
	if (r)
		report(r, owner, to, ACTION_REJECT, hook, 0);
	bpf_set_retval(-ECONNREFUSED);
	return 0;
}

static __always_inline int judge_call4(struct bpf_sock_addr *ctx, u32 hook)
{
	struct remote to = { .family = 4, .local_port = NO_PORT };

	to.addr[0] = ctx->user_ip4;
	to.port = bpf_ntohs(ctx->user_port);
	to.proto = ctx->protocol;
	return judge_call(ctx, &to, hook);
}

static __always_inline int judge_call6(struct bpf_sock_addr *ctx, u32 hook)
{
	struct remote to = { .family = 6, .local_port = NO_PORT };

	to.addr[0] = ctx->user_ip6[0];
	to.addr[1] = ctx->user_ip6[1];
	to.addr[2] = ctx->user_ip6[2];
	to.addr[3] = ctx->user_ip6[3];
	/* ::ffff:192.0.2.1: the packets will be IPv4 (RFC 4291, 2.5.5.2) */
	if (!to.addr[0] && !to.addr[1] && to.addr[2] == bpf_htonl(0xffff)) {
		to.family = 4;
		to.addr[0] = to.addr[3];
		to.addr[2] = to.addr[3] = 0;
	}
	to.port = bpf_ntohs(ctx->user_port);
	to.proto = ctx->protocol;
	return judge_call(ctx, &to, hook);
}

SEC("cgroup/connect4")
int call_connect4(struct bpf_sock_addr *ctx)
{
	return judge_call4(ctx, HOOK_CONNECT);
}

SEC("cgroup/connect6")
int call_connect6(struct bpf_sock_addr *ctx)
{
	return judge_call6(ctx, HOOK_CONNECT);
}

SEC("cgroup/sendmsg4")
int call_sendmsg4(struct bpf_sock_addr *ctx)
{
	return judge_call4(ctx, HOOK_SENDMSG);
}

SEC("cgroup/sendmsg6")
int call_sendmsg6(struct bpf_sock_addr *ctx)
{
	return judge_call6(ctx, HOOK_SENDMSG);
}
