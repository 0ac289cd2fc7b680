/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp_redirect: a wire between two interfaces
 * ===========================================
 *
 * hook      XDP, at each of the ports
 * context   struct xdp_md
 * packets   not changed, whatever is in them
 *
 *   port A -> xdp_redirect -> DEVMAP[slot of A] = B -> xdp_redirect_egress -> port B
 *   port B -> xdp_redirect -> DEVMAP[slot of B] = A -> xdp_redirect_egress -> port A
 *
 * The kernel sees nothing of what crosses the wire. A frame whose way out is gone is the kernel's:
 * bpf_redirect_map() returns its flags then, here XDP_PASS.
 *
 * Maps (`ports` and `results`: "xdp_redirect.h")
 *   wires  devmap  slot of the port a frame came in by -> the port it leaves by, and the program
 *                  that runs there (struct bpf_devmap_val)
 */
#include <bpfkit/bpfkit.h>
#include <bpfkit/maps.h>
#include "xdp_redirect.h"

BPFKIT_MAP(0, BPF_MAP_TYPE_DEVMAP, wires, u32, u64, MAX_PORTS, 0, 0);
BPF_HASH(ports, u32, struct port, MAX_PORTS);
BPF_TABLE("percpu_hash", struct seen, struct traffic, results, MAX_RESULTS);

static __always_inline void count(struct xdp_md *ctx, u32 result)
{
	struct seen key = { .ifindex = ctx->ingress_ifindex, .result = result };
	struct traffic zero = {};

	add_frame(results.lookup_or_try_init(&key, &zero), ctx->data_end - ctx->data);
}

SEC("xdp")
int xdp_redirect(struct xdp_md *ctx)
{
	u32 ifindex = ctx->ingress_ifindex;
	struct port *port = ports.lookup(&ifindex);
	int action = XDP_PASS;

	if (port)
		action = bpf_redirect_map(BPFKIT_MAP_REF(wires), port->slot, XDP_PASS);
	count(ctx, action == XDP_REDIRECT ? RESULT_REDIRECTED : RESULT_NO_PORT);
	return action;
}
