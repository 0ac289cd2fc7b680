/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sockops: an event as a line in trace_pipe.
 */
#ifndef __SOCKOPS_TRACE_H
#define __SOCKOPS_TRACE_H

static __always_inline void trace(const struct event *e)
{
	char ipv4[] = "sockops: %s %pI4:%u > %pI4:%u sent %llu received %llu retransmits %u";
	char ipv6[] = "sockops: %s [%pI6]:%u > [%pI6]:%u sent %llu received %llu retransmits %u";
	bool mapped = is_mapped(e->ends.local_addr);
	char word[16];
	u64 args[8];

	switch (e->kind) {
	case EVENT_ESTABLISHED:
		__builtin_memcpy(word, "established", 12);
		break;
	case EVENT_RETRANSMIT:
		__builtin_memcpy(word, "retransmit", 11);
		break;
	case EVENT_ZERO_WINDOW:
		__builtin_memcpy(word, "zero_window", 12);
		break;
	case EVENT_WINDOW_OPEN:
		__builtin_memcpy(word, "window_open", 12);
		break;
	case EVENT_STATE:
		__builtin_memcpy(word, "state", 6);
		break;
	case EVENT_FAILED:
		__builtin_memcpy(word, "failed", 7);
		break;
	default:
		__builtin_memcpy(word, "close", 6);
	}
	args[0] = (u64)word;
	args[1] = (u64)(mapped ? &e->ends.local_addr[12] : e->ends.local_addr);
	args[2] = e->ends.local_port;
	args[3] = (u64)(mapped ? &e->ends.remote_addr[12] : e->ends.remote_addr);
	args[4] = e->ends.remote_port;
	args[5] = e->tcp.bytes_sent;
	args[6] = e->tcp.bytes_received;
	args[7] = e->tcp.retransmits;
	if (mapped)
		bpf_trace_vprintk(ipv4, sizeof(ipv4), args, sizeof(args));
	else
		bpf_trace_vprintk(ipv6, sizeof(ipv6), args, sizeof(args));
}

#endif /* __SOCKOPS_TRACE_H */
