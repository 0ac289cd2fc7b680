/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The design of systemd's IPAddressAllow=, IPAddressDeny= and IPAccounting=, rebuilt to compare with:
 * two tries, an allow list and a deny list, both looked up for every packet, the allow list first; and
 * one pair of counters for the whole cgroup, added to atomically. No ports, no processes.
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <bpfkit/ip.h>

struct prefix4 {
	u32 len;
	__be32 addr;
};

struct prefix6 {
	u32 len;
	__be32 addr[4];
};

BPF_LPM_TRIE(allow4, struct prefix4, u64, 16384);
BPF_LPM_TRIE(deny4, struct prefix4, u64, 16384);
BPF_LPM_TRIE(allow6, struct prefix6, u64, 16384);
BPF_LPM_TRIE(deny6, struct prefix6, u64, 16384);
BPF_ARRAY(counters, u64, 2);

static __always_inline bool listed4(__be32 addr)
{
	struct prefix4 key = { .len = 32, .addr = addr };

	return !allow4.lookup(&key) & !!deny4.lookup(&key);
}

static __always_inline bool listed6(__be32 *addr)
{
	struct prefix6 key = { .len = 128 };

	__builtin_memcpy(key.addr, addr, sizeof(key.addr));
	return !allow6.lookup(&key) & !!deny6.lookup(&key);
}

SEC("cgroup_skb/egress")
int two_lists(struct __sk_buff *skb)
{
	u32 packets = 0, bytes = 1;
	bool deny = false;
	__be32 addr[4];
	u64 *n;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (!bpf_skb_load_bytes(skb, 16, addr, 4))
			deny = listed4(addr[0]);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (!bpf_skb_load_bytes(skb, 24, addr, sizeof(addr)))
			deny = listed6(addr);
	}
	if (deny)
		return 0;
	n = counters.lookup(&packets);
	if (n)
		__sync_fetch_and_add(n, 1);
	n = counters.lookup(&bytes);
	if (n)
		__sync_fetch_and_add(n, skb->len);
	return 1;
}
