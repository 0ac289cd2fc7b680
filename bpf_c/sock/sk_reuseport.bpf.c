/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sk_reuseport: which worker gets a connection or a datagram
 * ==========================================================
 *
 * hook      the choice among the sockets that share an address and a port (SO_REUSEPORT): for a TCP
 *           SYN, for a UDP datagram without a connected socket, and (migrate, 5.14) for a connection
 *           whose listener was closed before it was accepted
 * context   struct sk_reuseport_md: data (from the TCP or UDP header on), len, ip_protocol, hash, sk,
 *           migrating_sk (the closed listener, else NULL)
 * may       select a socket (bpf_sk_select_reuseport), or refuse (SK_DROP)
 * packets   not changed
 *
 *   SYN, datagram, orphaned connection
 *       -> content: the byte at `content_at` of a datagram is a worker's number -> slots_of[number]
 *       -> hash, or no such worker: buckets[hash] -> the slots of two workers, the second for the
 *          moment in which the first has closed
 *       -> workers[slot] -> bpf_sk_select_reuseport, an error is counted; at last SK_PASS: the
 *          kernel's own choice
 *
 * User space fills the buckets: for each one every worker draws a number from the bucket and its own
 * identity, and the two highest win. A worker that comes or goes moves only its own share.
 *
 * A worker is known by its identity, never by its place: the kernel moves the last socket of a group
 * into the place of one that closes, and a program that counts places then sends to the wrong worker.
 * A SYN has no content, so TCP goes by the hash.
 *
 * Maps (user space gives every socket a slot)
 *   workers   reuseport_sockarray  slot -> listening socket; empties itself on close
 *   buckets   array                hash modulo BUCKETS -> struct bucket
 *   slots_of  hash                 a worker's number -> slot
 *   counts    percpu_array         slot -> struct count; NONE: what went to no worker of ours
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/maps.h>
#include <uapi/linux/bpf.h>
#include <uapi/linux/in.h>

LOAD_CONST(0, by_content, 0);
LOAD_CONST(1, content_at, 0); /* offset in the UDP payload */

#define SLOTS          64
#define NONE           SLOTS
#define BUCKETS        1021 /* a prime */
#define UDP_HEADER_LEN 8

struct bucket {
	u32 slot[2]; /* NONE: no worker takes connections */
};

struct count {
	u64 selected;
	u64 migrated; /* connections whose listener was closed */
	u64 errors; /* of bpf_sk_select_reuseport(): not in the group, or closed */
};

BPFKIT_MAP(0, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY, workers, u32, u64, SLOTS, 0, 0);
BPF_ARRAY(buckets, struct bucket, BUCKETS);
BPF_HASH(slots_of, u32, u32, SLOTS);
BPF_TABLE("percpu_array", u32, struct count, counts, SLOTS + 1);

static __always_inline bool select_worker(struct sk_reuseport_md *ctx, u32 slot, bool migrates)
{
	struct count *c;

	c = counts.lookup(&slot);
	if (bpf_sk_select_reuseport(ctx, BPFKIT_MAP_REF(workers), &slot, 0)) {
		if (c)
			c->errors++;
		return false;
	}
	if (c && migrates)
		c->migrated++;
	else if (c)
		c->selected++;
	return true;
}

static __always_inline int choose(struct sk_reuseport_md *ctx, bool migrates)
{
	u32 none = NONE, key = ctx->hash % BUCKETS, number, *found, slot;
	struct bucket *bucket;
	struct count *c;
	u8 byte;

	if (by_content() && ctx->ip_protocol == IPPROTO_UDP &&
	    !bpf_skb_load_bytes(ctx, UDP_HEADER_LEN + content_at(), &byte, 1)) {
		number = byte;
		found = slots_of.lookup(&number);
		slot = found ? *found : NONE;
		if (slot < SLOTS && select_worker(ctx, slot, migrates))
			return SK_PASS;
	}
	bucket = buckets.lookup(&key);
	if (bucket) {
		slot = bucket->slot[0];
		if (slot < SLOTS && select_worker(ctx, slot, migrates))
			return SK_PASS;
		slot = bucket->slot[1];
		if (slot < SLOTS && select_worker(ctx, slot, migrates))
			return SK_PASS;
	}
	c = counts.lookup(&none);
	if (c && migrates)
		c->migrated++;
	else if (c)
		c->selected++;
	return SK_PASS; /* the kernel's own choice; of a connection that migrates, its end */
}

SEC("sk_reuseport/migrate")
int migrating(struct sk_reuseport_md *ctx)
{
	return choose(ctx, ctx->migrating_sk);
}

SEC("sk_reuseport")
int selecting(struct sk_reuseport_md *ctx)
{
	return choose(ctx, false);
}
