/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * tcp_cc_select: a congestion control for the connections of a cgroup
 * ===================================================================
 *
 * hook      TCP events of the cgroup's sockets (SOCK_OPS): before the SYN of a connect(2), and when an
 *           accepted connection is established
 * context   struct bpf_sock_ops
 * packets   not seen; it may set socket options, here TCP_CONGESTION
 *
 *   connect(2) -> TCP_CONNECT_CB -----------------+-> bpf_setsockopt(TCP_CONGESTION, name)
 *   SYN-ACK's ACK -> PASSIVE_ESTABLISHED_CB ------+        |
 *                                                    counted: selected, refused
 *
 * A program that asks for another algorithm later gets it.
 *
 * Map
 *   selected  array  0: connections that have the algorithm, 1: those that were refused it
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>

LOAD_CONST(0, name_low, 0); /* the name, 16 bytes with zeros behind it, as it is in memory */
LOAD_CONST(1, name_high, 0);

#define SOL_TCP        6
#define TCP_CONGESTION 13

BPF_ARRAY(selected, u64, 2);

SEC("sockops")
int select_cc(struct bpf_sock_ops *ctx)
{
	u64 name[2] = { name_low(), name_high() };
	u32 key, op = ctx->op;
	u64 *n;

	if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	key = bpf_setsockopt(ctx, SOL_TCP, TCP_CONGESTION, name, sizeof(name)) != 0;
	n = selected.lookup(&key);
	if (n)
		__sync_fetch_and_add(n, 1);
	return 1;
}
