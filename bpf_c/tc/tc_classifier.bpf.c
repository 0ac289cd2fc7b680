/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * tc_classifier: who sends what, both ways; marks, priorities, and a policer
 * ==========================================================================
 *
 * hook      tc, ingress and egress of one interface, by tcx or clsact: one program each
 * context   struct __sk_buff
 * packets   not changed; their mark and priority may be, and a policed packet is dropped
 *
 *   frame -> headers -> class = (direction, protocol, DSCP)
 *                          |
 *            classes[class] = number of a rule, 0 for none
 *                          |
 *            rules[number]: mark, priority, policer --> buckets[policer], a token bucket
 *                          |                                 |
 *                          |                                 +-> too few tokens: TC_ACT_SHOT
 *                          +-> counts[class] ----------------+-> TC_ACT_UNSPEC: the filters behind
 *
 * User space works out the rule of each class once and writes a table with a byte for each of the
 * 2 * 256 * 64 classes.
 *
 * Frames that are not IP, and those with truncated IP headers, have class (direction, NO_PROTO) and
 * no rule: ARP is never policed. A super-frame (GSO) is counted and charged as its segments.
 *
 * Maps
 *   counts   percpu_hash  struct class_key -> struct class_row
 *   classes  array        0 -> struct class_table
 *   rules    array        number -> struct rule
 *   buckets  array        number -> struct bucket, with a spin lock: all CPUs share its tokens
 */
#include <uapi/linux/pkt_cls.h>
#define MAX_TAGS 4
#include <bpfkit/bpfkit.h>
#include <bpfkit/headers.h>
#include <bpfkit/segment.h>
#include <bpfkit/wire.h>

LOAD_CONST(0, l2_len, 14); /* 14: Ethernet; else see link_offset() */

#define INGRESS     0
#define EGRESS      1
#define NO_PROTO    256
#define MAX_RULES   64
#define HEADERS_LEN 1024
#define NSEC        1000000000ULL

struct class_key {
	u8 direction;
	u8 dscp;
	u16 proto; /* IPPROTO_*, or NO_PROTO */
};

struct class_row {
	u64 packets; /* frames on the wire, the policed ones too */
	u64 bytes;
	u64 policed_packets; /* dropped by the policer */
	u64 policed_bytes;
};

/* Which rule: [direction][proto][dscp]; 0 is none. */
struct class_table {
	u8 rule[2 * 256 * 64];
};

#define RULE_MARK     1
#define RULE_PRIORITY 2
#define RULE_POLICE   4

struct rule {
	u32 sets; /* RULE_* */
	u32 mark;
	u32 priority;
	u32 bucket;
};

/*
 * Tokens are billionths of a byte, so that elapsed nanoseconds times the rate needs no division.
 * limit / rate nanoseconds fill it from empty.
 */
struct bucket {
	struct bpf_spin_lock lock;
	u32 unused;
	u64 rate; /* bytes per second */
	u64 limit; /* tokens when full: burst bytes * 10^9 */
	u64 fill_ns; /* from empty to full */
	u64 tokens;
	u64 since_ns; /* tokens are as of then (CLOCK_MONOTONIC) */
};

BPF_TABLE("percpu_hash", struct class_key, struct class_row, counts, 4096);
BPF_ARRAY(classes, struct class_table, 1);
BPF_ARRAY(rules, struct rule, MAX_RULES);
BPF_ARRAY(buckets, struct bucket, MAX_RULES);

/* The six DSCP bits of the IPv4 TOS byte or the IPv6 traffic class. */
static __always_inline u8 dscp_of(const struct window *w, const struct headers *h)
{
	struct window at = *w;
	u8 *first;

	at.off = h->network;
	first = window_peek(&at, 2);
	if (!first)
		return 0;
	if (h->family == 4)
		return first[1] >> 2;
	return (first[0] & 0xf) << 2 | first[1] >> 6;
}

/* Takes `bytes` from the bucket; false if there is too little in it. */
static __always_inline bool take(struct bucket *b, u64 bytes)
{
	u64 now = bpf_ktime_get_ns(), passed, cost = bytes * NSEC;
	bool enough;

	bpf_spin_lock(&b->lock);
	/* another CPU may have read a later time and taken the lock first */
	passed = now > b->since_ns ? now - b->since_ns : 0;
	if (passed >= b->fill_ns)
		b->tokens = b->limit;
	else
		b->tokens += passed * b->rate;
	if (b->tokens > b->limit)
		b->tokens = b->limit;
	b->since_ns += passed;
	enough = b->tokens >= cost;
	if (enough)
		b->tokens -= cost;
	bpf_spin_unlock(&b->lock);
	return enough;
}

/* Applies the class's rule; false: drop the packet. */
static __always_inline bool obey(struct __sk_buff *skb, const struct class_key *key, u64 bytes)
{
	struct class_table *table;
	struct bucket *bucket;
	struct rule *rule;
	u32 number = 0;
	u32 class;

	table = classes.lookup(&number);
	if (!table)
		return true;
	class = key->direction << 14 | (key->proto & 0xff) << 6 | (key->dscp & 0x3f);
	/* keep clang from dropping the mask, which 6.1's verifier needs */
	asm volatile("" : "+r"(class));
	number = table->rule[class & 0x7fff];
	if (!number)
		return true;
	rule = rules.lookup(&number);
	if (!rule)
		return true;
	if (rule->sets & RULE_POLICE) {
		number = rule->bucket;
		bucket = buckets.lookup(&number);
		if (bucket && !take(bucket, bytes))
			return false;
	}
	if (rule->sets & RULE_MARK)
		skb->mark = rule->mark;
	barrier(); /* adjacent stores to the context must not be merged */
	if (rule->sets & RULE_PRIORITY)
		skb->priority = rule->priority;
	return true;
}

static __always_inline int classify(struct __sk_buff *skb, u8 direction)
{
	struct class_key key = { .direction = direction, .proto = NO_PROTO };
	struct class_row *row, zero = {};
	struct headers h = {};
	struct traffic wire;
	struct window w;
	bool pass = true;

	/* pull the headers into the linear part first: walking them twice costs more */
	if (skb->data_end - skb->data < skb->len && skb->data_end - skb->data < HEADERS_LEN)
		bpf_skb_pull_data(skb, skb->len < HEADERS_LEN ? skb->len : HEADERS_LEN);
	if (direct_skb(skb, &h, &w, l2_len()) == FOUND) {
		key.proto = h.proto;
		key.dscp = dscp_of(&w, &h);
	}
	wire = tc_traffic(skb, h.payload, h.proto);
	if (key.proto != NO_PROTO)
		pass = obey(skb, &key, wire.bytes);
	row = counts.lookup_or_try_init(&key, &zero);
	if (row) {
		row->packets += wire.packets;
		row->bytes += wire.bytes;
		if (!pass) {
			row->policed_packets += wire.packets;
			row->policed_bytes += wire.bytes;
		}
	}
	return pass ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

SEC("tc/ingress")
int tc_classifier_in(struct __sk_buff *skb)
{
	return classify(skb, INGRESS);
}

SEC("tc/egress")
int tc_classifier_out(struct __sk_buff *skb)
{
	return classify(skb, EGRESS);
}
