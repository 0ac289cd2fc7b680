/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * raw_tracepoint_writable: a program that changes what the kernel does after a tracepoint
 * =======================================================================================
 *
 * hook      raw tracepoint bpf_test_finish: the end of a packet run (BPF_PROG_TEST_RUN); one of the few
 *           tracepoints that the kernel declares writable (nbd_send_request is the other)
 * context   struct bpf_raw_tracepoint_args: args[0] points to the error that the run will return
 * may       write to the memory that the tracepoint declares: here four bytes, the error
 *
 *   BPF_PROG_TEST_RUN -> the program under test runs -> bpf_test_finish -> of our process?
 *                                                          no: seen | yes: *args[0] = -error, changed
 *                     <- the system call fails with that errno
 *
 * The program is attached to the whole machine; runs of other processes are left as they are.
 *
 * Maps
 *   counts  array  0: runs seen, 1: runs changed
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>

LOAD_CONST(0, tgid, 0); /* the process whose runs fail */
LOAD_CONST(1, error, 5); /* errno */

BPF_ARRAY(counts, u64, 2);

SEC("raw_tp.w/bpf_test_finish")
int finish(struct bpf_raw_tracepoint_args *ctx)
{
	u64 target = ctx->args[0];
	s32 value = -(s32)error();
	u32 key = 0;
	u64 *n;

	n = counts.lookup(&key);
	if (n)
		__sync_fetch_and_add(n, 1);
	if (bpf_get_current_pid_tgid() >> 32 != tgid())
		return 0;
	key = 1;
	n = counts.lookup(&key);
	if (n)
		__sync_fetch_and_add(n, 1);
	/* BCC turns a write through a traced pointer into a read; this is the store itself. */
	asm volatile("*(u32 *)(%0 + 0) = %1" : : "r"(target), "r"(value) : "memory");
	return 0;
}
