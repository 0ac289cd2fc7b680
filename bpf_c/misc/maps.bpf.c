/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * maps: every map type, used from a program
 * =========================================
 *
 * hook      tc by BPF_PROG_TEST_RUN for elements and buffers; XDP, sk_msg, sk_reuseport, cgroup
 *           connect, raw tracepoint and struct_ops for the types that only mean something there
 * context   struct __sk_buff, xdp_md, sk_msg_md, sk_reuseport_md, bpf_sock_addr, arguments as u64
 * packets   not changed; `redirect` sends them to where the map says, `message` to another socket
 *
 *   user space -> requests[0] -> program -> helper on `subject` -> requests[0] -> user space
 *
 * `subject` is the map that is shown. User space creates it, of whatever type, and puts it in the
 * place of the one declared here; the verifier then checks the helper calls against its type. So a
 * program below is loaded once for each type that its helper serves, and only with those:
 *
 *   lookup, update, erase   hash, array, per-CPU, LRU, lpm_trie, ...
 *   push, pop, peek         queue, stack; push and peek: bloom_filter
 *   flood_ring, flood_perf  ringbuf; perf_event_array
 *   jump                    prog_array
 *   inner                   array_of_maps, hash_of_maps
 *   redirect                devmap, devmap_hash, cpumap, xskmap
 *   message_map, _hash      sockmap; sockhash
 *   choose                  reuseport_sockarray
 *   under_cgroup, stack_id  cgroup_array; stack_trace
 *   of_socket, of_task      sk_storage; task_storage
 *   of_cgroup               cgroup_storage, percpu_cgroup_storage
 *   ssthresh, ...           struct_ops
 *
 * Maps
 *   subject   any    the map that is shown; values of 8 bytes, keys of at most 32
 *   requests  array  0 -> struct request
 */
#include <uapi/linux/bpf.h>
#include <bpfkit/bpfkit.h>
#include <bpfkit/maps.h>

#define BURST 64 /* records for each run of flood_ring and flood_perf */

struct request {
	u8 key[32]; /* in front: as many bytes as the map's keys have */
	u64 value; /* for the helper, or from it */
	u64 flags; /* for the helper */
	s64 result; /* what the helper returned; lookup: 0, or -1 where there is no element */
	u64 number; /* of the next record */
	u64 sent; /* records */
	u64 refused; /* records that the buffer had no room for */
};

struct record {
	u64 number;
	u64 filler;
};

BPFKIT_MAP(0, BPF_MAP_TYPE_HASH, subject, u32, u64, 1, 0, 0);
BPF_ARRAY(requests, struct request, 1);

/* BCC has these two as methods of its own maps only. */
static long (*tail_call)(void *ctx, void *map, u32 index) = (void *)BPF_FUNC_tail_call;
static long (*get_stackid)(void *ctx, void *map, u64 flags) = (void *)BPF_FUNC_get_stackid;

static __always_inline struct request *request(void)
{
	u32 zero = 0;

	return requests.lookup(&zero);
}

SEC("tc")
int lookup(struct __sk_buff *skb)
{
	struct request *r = request();
	u64 *value;

	if (!r)
		return -1;
	value = bpf_map_lookup_elem(BPFKIT_MAP_REF(subject), r->key);
	r->result = value ? 0 : -1;
	if (value)
		r->value = *value;
	return 0;
}

/* Adds to the element in place: what a counter does. */
SEC("tc")
int increment(struct __sk_buff *skb)
{
	struct request *r = request();
	u64 *value;

	if (!r)
		return -1;
	value = bpf_map_lookup_elem(BPFKIT_MAP_REF(subject), r->key);
	r->result = value ? 0 : -1;
	if (value)
		__sync_fetch_and_add(value, r->value);
	return 0;
}

SEC("tc")
int update(struct __sk_buff *skb)
{
	struct request *r = request();

	if (!r)
		return -1;
	r->result = bpf_map_update_elem(BPFKIT_MAP_REF(subject), r->key, &r->value, r->flags);
	return 0;
}

SEC("tc")
int erase(struct __sk_buff *skb)
{
	struct request *r = request();

	if (!r)
		return -1;
	r->result = bpf_map_delete_elem(BPFKIT_MAP_REF(subject), r->key);
	return 0;
}

SEC("tc")
int push(struct __sk_buff *skb)
{
	struct request *r = request();

	if (!r)
		return -1;
	r->result = bpf_map_push_elem(BPFKIT_MAP_REF(subject), &r->value, r->flags);
	return 0;
}

SEC("tc")
int pop(struct __sk_buff *skb)
{
	struct request *r = request();

	if (!r)
		return -1;
	r->result = bpf_map_pop_elem(BPFKIT_MAP_REF(subject), &r->value);
	return 0;
}

SEC("tc")
int peek(struct __sk_buff *skb)
{
	struct request *r = request();

	if (!r)
		return -1;
	r->result = bpf_map_peek_elem(BPFKIT_MAP_REF(subject), &r->value);
	return 0;
}

SEC("tc")
int flood_ring(struct __sk_buff *skb)
{
	struct request *r = request();
	struct record record = {};
	int i;

	if (!r)
		return -1;
	for (i = 0; i < BURST; i++) {
		record.number = r->number++;
		if (bpf_ringbuf_output(BPFKIT_MAP_REF(subject), &record, sizeof(record), r->flags))
			r->refused++;
		else
			r->sent++;
	}
	return 0;
}

SEC("tc")
int flood_perf(struct __sk_buff *skb)
{
	struct request *r = request();
	struct record record = {};
	int i;

	if (!r)
		return -1;
	for (i = 0; i < BURST; i++) {
		record.number = r->number++;
		if (bpf_perf_event_output(skb, BPFKIT_MAP_REF(subject), BPF_F_CURRENT_CPU, &record,
					  sizeof(record)))
			r->refused++;
		else
			r->sent++;
	}
	return 0;
}

/* A successful tail call does not come back; a missing program is no error: the caller goes on. */
SEC("tc")
int jump(struct __sk_buff *skb)
{
	tail_call(skb, BPFKIT_MAP_REF(subject), skb->mark);
	return 1;
}

SEC("tc")
int target(struct __sk_buff *skb)
{
	return 42;
}

SEC("tc")
int inner(struct __sk_buff *skb)
{
	struct request *r = request();
	u32 zero = 0;
	u64 *value;
	void *map;

	if (!r)
		return -1;
	map = bpf_map_lookup_elem(BPFKIT_MAP_REF(subject), r->key);
	r->result = map ? 0 : -1;
	if (!map)
		return 0;
	value = bpf_map_lookup_elem(map, &zero);
	if (value)
		r->value = *value;
	return 0;
}

/* Without an element the flags' low bits are the verdict. */
SEC("xdp")
int redirect(struct xdp_md *ctx)
{
	struct request *r = request();

	if (!r)
		return XDP_ABORTED;
	return bpf_redirect_map(BPFKIT_MAP_REF(subject), r->value, XDP_PASS);
}

SEC("sk_msg")
int message_map(struct sk_msg_md *msg)
{
	return bpf_msg_redirect_map(msg, BPFKIT_MAP_REF(subject), 1, BPF_F_INGRESS);
}

SEC("sk_msg")
int message_hash(struct sk_msg_md *msg)
{
	u32 key = 7001;

	return bpf_msg_redirect_hash(msg, BPFKIT_MAP_REF(subject), &key, BPF_F_INGRESS);
}

SEC("sk_reuseport")
int choose(struct sk_reuseport_md *ctx)
{
	struct request *r = request();
	u32 slot;

	if (!r)
		return SK_DROP;
	slot = r->value;
	r->result = bpf_sk_select_reuseport(ctx, BPFKIT_MAP_REF(subject), &slot, 0);
	return r->result ? SK_DROP : SK_PASS;
}

SEC("raw_tp")
int under_cgroup(void *ctx)
{
	struct request *r = request();

	if (!r)
		return 0;
	r->result = bpf_current_task_under_cgroup(BPFKIT_MAP_REF(subject), r->value);
	return 0;
}

SEC("raw_tp")
int stack_id(void *ctx)
{
	struct request *r = request();

	if (!r)
		return 0;
	r->result = get_stackid(ctx, BPFKIT_MAP_REF(subject), r->flags);
	return 0;
}

SEC("cgroup/connect4")
int of_socket(struct bpf_sock_addr *ctx)
{
	u64 *value = ctx->sk ? bpf_sk_storage_get(BPFKIT_MAP_REF(subject), ctx->sk, 0,
						  BPF_SK_STORAGE_GET_F_CREATE) :
			       0;

	if (value)
		*value += 1;
	return 1;
}

SEC("cgroup/connect4")
int of_cgroup(struct bpf_sock_addr *ctx)
{
	u64 *value = bpf_get_local_storage(BPFKIT_MAP_REF(subject), 0);

	__sync_fetch_and_add(value, 1);
	return 1;
}

SEC("raw_tp")
int of_task(void *ctx)
{
	struct request *r = request();
	u64 *value;

	if (!r)
		return 0;
	value = bpf_task_storage_get(BPFKIT_MAP_REF(subject), bpf_get_current_task_btf(), 0,
				     r->flags);
	r->result = value ? 0 : -1;
	if (value)
		r->value = ++*value;
	return 0;
}

/* A congestion control that keeps the window where it is: the least that the kernel registers. */
SEC("struct_ops/tcp_congestion_ops.ssthresh")
int ssthresh(u64 *ctx)
{
	return 2;
}

SEC("struct_ops/tcp_congestion_ops.cong_avoid")
int cong_avoid(u64 *ctx)
{
	u32 zero = 0;
	struct request *r = requests.lookup(&zero);

	if (r)
		__sync_fetch_and_add(&r->sent, 1);
	return 0;
}

SEC("struct_ops/tcp_congestion_ops.undo_cwnd")
int undo_cwnd(u64 *ctx)
{
	return 10;
}
