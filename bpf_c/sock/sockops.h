/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The two ends of a TCP connection as sockops programs see them.
 */
#ifndef __SOCKOPS_H
#define __SOCKOPS_H

#define FAMILY_IPV6 10 /* AF_INET6 */
#define MAPPED      bpf_htonl(0xffff) /* third word of an IPv4-mapped address */

/* Addresses in network byte order, IPv4 as ::ffff:a.b.c.d; ports in host byte order. */
struct ends {
	u8 local_addr[16] __aligned(4);
	u8 remote_addr[16] __aligned(4);
	u16 local_port;
	u16 remote_port;
};

static __always_inline bool is_mapped(const u8 address[16])
{
	const __be32 *addr = (const __be32 *)address;

	return !addr[0] && !addr[1] && addr[2] == MAPPED;
}

/*
 * A context field, read here and now: the compiler would merge the reads of two branches by moving the
 * context pointer, which the verifier refuses.
 */
static __always_inline u32 read_now(volatile u32 *field)
{
	u32 value = *field;

	asm volatile("" : "+r"(value));
	return value;
}

static __always_inline void remote_addr_of(struct bpf_sock_ops *ctx, u8 address[16])
{
	__be32 *addr = (__be32 *)address;

	addr[0] = 0;
	addr[1] = 0;
	addr[2] = MAPPED;
	addr[3] = read_now(&ctx->remote_ip4);
	if (ctx->family == FAMILY_IPV6) {
		addr[0] = ctx->remote_ip6[0];
		addr[1] = ctx->remote_ip6[1];
		addr[2] = ctx->remote_ip6[2];
		addr[3] = ctx->remote_ip6[3];
	}
}

static __always_inline void ends_of(struct bpf_sock_ops *ctx, struct ends *e)
{
	__be32 *addr = (__be32 *)e->local_addr;

	addr[0] = 0;
	addr[1] = 0;
	addr[2] = MAPPED;
	addr[3] = read_now(&ctx->local_ip4);
	if (ctx->family == FAMILY_IPV6) {
		addr[0] = ctx->local_ip6[0];
		addr[1] = ctx->local_ip6[1];
		addr[2] = ctx->local_ip6[2];
		addr[3] = ctx->local_ip6[3];
	}
	remote_addr_of(ctx, e->remote_addr);
	e->local_port = ctx->local_port;
	e->remote_port = bpf_ntohl(ctx->remote_port); /* network byte order in a u32 */
}

#endif /* __SOCKOPS_H */
