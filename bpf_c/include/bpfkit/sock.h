/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The addresses of a kernel's socket, for programs that are compiled against the kernel's own types
 * (BTF).
 */
#ifndef __BPFKIT_SOCK_H
#define __BPFKIT_SOCK_H

#include <bpfkit/bpfkit.h>
#include <net/inet_sock.h>

#define FAMILY_IPV4 2 /* AF_INET */
#define FAMILY_IPV6 10 /* AF_INET6 */

/* saddr, daddr: 16 bytes each, which are zero; of an IPv4 socket the first four are set. */
static __always_inline __maybe_unused void sock_addresses(u8 *saddr, u8 *daddr,
							  struct sock_common *sk, u16 family)
{
	if (family == FAMILY_IPV4) {
		bpf_probe_read_kernel(saddr, 4, &sk->skc_rcv_saddr);
		bpf_probe_read_kernel(daddr, 4, &sk->skc_daddr);
	} else {
		bpf_probe_read_kernel(saddr, 16, &sk->skc_v6_rcv_saddr);
		bpf_probe_read_kernel(daddr, 16, &sk->skc_v6_daddr);
	}
}

#endif /* __BPFKIT_SOCK_H */
