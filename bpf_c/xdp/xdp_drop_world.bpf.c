/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_drop_world: nothing gets in
 * ===============================
 *
 * hook      XDP: the receive path of an interface, before the kernel has made a packet of the frame
 * context   struct xdp_md
 * packets   not changed; all of them are dropped: ARP, IPv6 neighbour discovery, everything
 *
 *   wire -> driver -> this program -> counted, freed
 *                         x
 *                         +- - - - > tap (tcpdump), tc ingress, IP, sockets: nobody sees them
 *
 * What the interface sends is not touched: XDP has no transmit side.
 *
 * Map (struct in <bpfkit/wire.h>)
 *   dropped  percpu_array  0 -> struct traffic
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/wire.h>

BPF_TABLE("percpu_array", u32, struct traffic, dropped, 1);

SEC("xdp")
int xdp_drop_world(struct xdp_md *ctx)
{
	u32 zero = 0;
	struct traffic *sum = dropped.lookup(&zero);

	if (sum) {
		sum->packets++;
		sum->bytes += ctx->data_end - ctx->data;
	}
	return XDP_DROP;
}
