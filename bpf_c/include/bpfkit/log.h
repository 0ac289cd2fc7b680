/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * BPFKIT_LOG: a program's own standard output, by BPF streams (Linux 6.17)
 *
 *	LOAD_CONST(2, log, 0);
 *
 *	if (log())
 *		BPFKIT_LOG("dropped %u bytes from %pI4\n", len, (u64)&ip->saddr);
 *
 * What is written is the program's, unlike trace_pipe, which is the machine's: Program.read_stream()
 * takes it, and `--log` of a program shows it. The kernel keeps 100 kB and drops what comes then.
 *
 * format  a literal, as of bpf_trace_printk(); it comes to lie in a frozen map
 * ...     at most 12 values of 64 bits; of an address (%s, %pI4, %pI6) with a cast
 *
 * A kernel without streams refuses a program only if the call can be reached: a LOAD_CONST rules it out.
 */
#ifndef __BPFKIT_LOG_H
#define __BPFKIT_LOG_H

#include <bpfkit/bpfkit.h>

BPF_KFUNC(int, bpf_stream_vprintk, int stream, const char *format, const void *args, u32 args_size,
	  void *aux);

/*
 * The first word, which clang does not know, keeps it from making a constant table of constant
 * values; the last keeps the address behind it in the frame where there are none.
 */
#define BPFKIT_LOG(format, ...)                                                                    \
	({                                                                                         \
		static const char __text[] __attribute__((section("bpfkit.formats"))) = format;    \
		u64 __first = 0;                                                                   \
		asm volatile("" : "+r"(__first));                                                  \
		u64 __args[sizeof((u64[]){ 0, ##__VA_ARGS__ }) / sizeof(u64) + 1] = {              \
			__first, ##__VA_ARGS__                                                     \
		};                                                                                 \
		bpf_stream_vprintk(1, __text, __args + 1, sizeof(__args) - 2 * sizeof(u64), NULL); \
	})

#endif /* __BPFKIT_LOG_H */
