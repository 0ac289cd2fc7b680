/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * redirect: every frame out of another device, by XDP and by tc, for tools/bench/rates.py
 * =======================================================================================
 *
 * hook      XDP, tc ingress
 * context   struct xdp_md, struct __sk_buff
 * packets   not changed
 *
 *   frame ------------------> by_xdp -> DEVMAP ---------+-> the other device
 *   frame -> socket buffer -> by_tc --> bpf_redirect() -+
 *
 * Map
 *   out  devmap  0 -> the other device
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>

LOAD_CONST(0, ifindex, 0); /* the other device, for tc */

BPF_DEVMAP(out, 1);

SEC("xdp")
int by_xdp(struct xdp_md *ctx)
{
	return out.redirect_map(0, XDP_DROP);
}

SEC("tc")
int by_tc(struct __sk_buff *skb)
{
	return bpf_redirect(ifindex(), 0);
}
