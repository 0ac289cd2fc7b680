/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * seg6local: SRv6 segments whose behaviour is a program (End.BPF)
 * ===============================================================
 *
 * hook      a segment's route: `ip -6 route add SEGMENT encap seg6local action End.BPF ...`
 * context   struct __sk_buff, at the outer IPv6 header
 * packets   changed by helpers only: the segment routing header's tag, flags and TLVs
 *           (bpf_lwt_seg6_store_bytes()), or a standard action (bpf_lwt_seg6_action())
 *
 *   IPv6 to this segment, SRH with segments left -> the kernel does End: segments_left--, the
 *     next segment becomes the destination -> program
 *        end_tag -> SRH tag := 0xbeef -----------------> BPF_OK: on to the next segment
 *        end_dt6 -> End.DT6: outer header and SRH off -> BPF_REDIRECT: the inner IPv6 packet by
 *                                                        the main table
 *
 * The kernel's End.BPF takes no packet whose segments are used up. SRv6 is IPv6 only; of the
 * decapsulating actions the helper offers End.DT6 alone, so that inner packets are IPv6 too.
 *
 * Map
 *   rows  percpu_array  0: end_tag, 1: end_dt6 -> packets, failed
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/seg6.h>
#include <uapi/linux/seg6_local.h>
#include <bpfkit/bpfkit.h>
#include <bpfkit/ip.h>

#define TAG    0xbeef
#define MAIN   254 /* RT_TABLE_MAIN */
#define SRH_AT sizeof(struct ipv6_header)

struct row {
	u64 packets;
	u64 failed;
};

BPF_TABLE("percpu_array", u32, struct row, rows, 2);

static __always_inline int count(u32 which, bool failed, int verdict)
{
	struct row *row = rows.lookup(&which);

	if (row) {
		row->packets++;
		row->failed += failed;
	}
	return failed ? BPF_DROP : verdict;
}

SEC("lwt_seg6local")
int end_tag(struct __sk_buff *skb)
{
	struct ipv6_header ip;
	__be16 tag = bpf_htons(TAG);
	bool failed;

	/* the segment routing header need not come first */
	failed = bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || ip.nexthdr != IPPROTO_ROUTING ||
		 bpf_lwt_seg6_store_bytes(skb, SRH_AT + offsetof(struct ipv6_sr_hdr, tag), &tag,
					  sizeof(tag));
	return count(0, failed, BPF_OK);
}

SEC("lwt_seg6local")
int end_dt6(struct __sk_buff *skb)
{
	int table = MAIN;

	return count(1, bpf_lwt_seg6_action(skb, SEG6_LOCAL_ACTION_END_DT6, &table, sizeof(table)),
		     BPF_REDIRECT);
}
