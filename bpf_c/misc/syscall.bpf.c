/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * syscall: a program that makes bpf(2) calls itself, and runs when it is asked to
 * ===============================================================================
 *
 * hook      none: BPF_PROG_TEST_RUN runs it in the context of the calling process (5.14)
 * context   struct request, ours: what user space passes comes in, what the program writes goes back
 * may       sleep, read user memory, and call bpf(2) with the caller's rights: libbpf's light skeletons
 *           load a whole object in one such run
 *
 *   BPF_PROG_TEST_RUN, ctx_in = request
 *       -> BPF_MAP_CREATE          -> request.map_fd, a descriptor of the calling process
 *       -> BPF_MAP_UPDATE_ELEM × n -> request.filled
 *       -> request back to the caller, with `error` of the first call that failed
 *
 * Maps: one, which the program creates.
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>

#define MAX_ENTRIES 1024

struct request {
	u32 entries; /* in: how many elements */
	u32 factor; /* in: the value of element n is n * factor */
	s32 map_fd; /* out: of the new map, or an errno times -1 */
	s32 error; /* out: of the updates */
	u32 filled; /* out: elements that were written */
	u32 tgid; /* out: whom it ran in */
};

/* The members of union bpf_attr that are used, as the kernel has them. */
struct create_attr {
	u32 map_type;
	u32 key_size;
	u32 value_size;
	u32 max_entries;
};

struct update_attr {
	u32 map_fd;
	u32 pad;
	u64 key;
	u64 value;
	u64 flags;
};

SEC("syscall")
int make_map(struct request *ctx)
{
	struct create_attr create = {
		.map_type = BPF_MAP_TYPE_HASH,
		.key_size = sizeof(u32),
		.value_size = sizeof(u64),
		.max_entries = MAX_ENTRIES,
	};
	struct update_attr update = {};
	u32 key = 0, i, count = ctx->entries, factor = ctx->factor;
	s64 error = 0;
	u64 value;

	ctx->tgid = bpf_get_current_pid_tgid() >> 32;
	ctx->map_fd = bpf_sys_bpf(BPF_MAP_CREATE, &create, sizeof(create));
	if (ctx->map_fd < 0)
		return 1;
	update.map_fd = ctx->map_fd;
	update.key = (u64)&key;
	update.value = (u64)&value;
	for (i = 0; i < MAX_ENTRIES && i < count; i++) {
		key = i;
		value = (u64)i * factor;
		error = bpf_sys_bpf(BPF_MAP_UPDATE_ELEM, &update, sizeof(update));
		if (error)
			break;
		/* Or clang counts down to !=, and the verifier of Linux 6.1 sees no end. */
		asm volatile("" : "+r"(i));
	}
	ctx->filled = i;
	ctx->error = error;
	return 0;
}
