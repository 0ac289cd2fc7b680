/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * usdt: the probes that a program has built in (USDT), counted, and shown with their arguments
 * ============================================================================================
 *
 * hook      uprobes at the probes' nop instructions
 * context   struct pt_regs: the program's registers
 * may       observe only; the kernel counts up the probe's semaphore while it is attached, so the
 *           program prepares its arguments
 *
 *   nop  ->  places[place]  ->  each argument from a register, from memory, or a constant
 *                           ->  counts[place] += 1  ->  hits (ring buffer), if asked
 *
 * A probe that the compiler put into several functions has several places. Where the arguments are is
 * in the file's notes, as text for the assembler ("-4@8(%rbp)"); bpfkit/usdt/notes.py makes struct
 * argument of it.
 *
 * Maps
 *   places  array         place -> struct place
 *   counts  percpu_array  place -> hits
 *   hits    ringbuf       struct hit
 *   lost    array         0: events without room in the ring
 */
#include "traced.h"
#include <linux/sched.h>

LOAD_CONST(3, place_number, 0); /* the place's number; else it is the attach cookie */
LOAD_CONST(4, with_events, 0);

#define ARGUMENTS 12
#define TEXT_SIZE 64

enum where { ARG_NONE, ARG_CONSTANT, ARG_REGISTER, ARG_MEMORY };
#define NO_REGISTER 0xffff

struct argument {
	u64 constant; /* the value, or what is added to the address */
	u16 base; /* offset of a register in struct pt_regs */
	u16 index; /* another register, or NO_REGISTER */
	u8 shift; /* index << shift is added to the address */
	u8 where; /* enum where */
	u8 unused_bits; /* 64 - 8 * size */
	u8 is_signed;
	u8 is_text; /* the address of a string */
	u8 pad[7];
};

struct place {
	struct argument arguments[ARGUMENTS];
};

struct hit {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 pid;
	u32 tid;
	u32 place;
	u32 unreadable; /* a bit for each argument whose memory could not be read */
	char comm[TASK_COMM_LEN];
	u64 values[ARGUMENTS];
	s32 text_len[ARGUMENTS]; /* with the final 0; less than 0: it could not be read */
	u8 text[ARGUMENTS * TEXT_SIZE];
};

BPF_ARRAY(places, struct place, 1);
BPF_PERCPU_ARRAY(counts, u64, 1);
BPF_RINGBUF_OUTPUT(hits, 256);
EVENT_TYPE(hits, struct hit);
BPF_ARRAY(lost, u64, 1);

static __always_inline u64 register_of(struct pt_regs *ctx, u16 offset)
{
	u64 value = 0;

	/* The offset is no constant, so the verifier takes no direct read. */
	bpf_probe_read_kernel(&value, sizeof(value), (void *)ctx + offset);
	return value;
}

/* The value of an argument; false if its memory cannot be read. */
static __always_inline bool read_argument(struct pt_regs *ctx, struct argument *a, u64 *value)
{
	u64 found = a->constant, address;

	if (a->where == ARG_REGISTER) {
		found = register_of(ctx, a->base);
	} else if (a->where == ARG_MEMORY) {
		address = a->constant;
		if (a->base != NO_REGISTER)
			address += register_of(ctx, a->base);
		if (a->index != NO_REGISTER)
			address += register_of(ctx, a->index) << (a->shift & 3);
		found = 0;
		switch (a->unused_bits) {
		case 56:
			if (bpf_probe_read_user(&found, 1, (void *)address))
				return false;
			break;
		case 48:
			if (bpf_probe_read_user(&found, 2, (void *)address))
				return false;
			break;
		case 32:
			if (bpf_probe_read_user(&found, 4, (void *)address))
				return false;
			break;
		default:
			if (bpf_probe_read_user(&found, 8, (void *)address))
				return false;
		}
	}
	found <<= a->unused_bits & 63;
	*value = a->is_signed ? (u64)((s64)found >> (a->unused_bits & 63)) :
				found >> (a->unused_bits & 63);
	return true;
}

static __always_inline int hit(struct pt_regs *ctx, u32 number)
{
	u64 id = bpf_get_current_pid_tgid(), *count;
	struct place *place;
	u64 *missed;
	struct hit *h;
	u32 zero = 0;
	u32 i;

	if (!is_traced())
		return 0;
	count = counts.lookup(&number);
	if (count)
		__sync_fetch_and_add(count, 1); /* another thread's run may preempt this one */
	if (!with_events())
		return 0;
	place = places.lookup(&number);
	if (!place)
		return 0;
	h = hits.ringbuf_reserve(sizeof(*h));
	if (!h) {
		missed = lost.lookup(&zero);
		if (missed)
			__sync_fetch_and_add(missed, 1);
		return 0;
	}
	h->time_ns = bpf_ktime_get_ns();
	h->pid = id >> 32;
	h->tid = id;
	h->place = number;
	h->unreadable = 0;
	bpf_get_current_comm(h->comm, sizeof(h->comm));
#pragma unroll
	for (i = 0; i < ARGUMENTS; i++) {
		struct argument *a = &place->arguments[i];
		u64 value = 0;

		h->text_len[i] = 0;
		if (a->where != ARG_NONE && !read_argument(ctx, a, &value))
			h->unreadable |= 1 << i;
		h->values[i] = value;
		if (a->is_text)
			h->text_len[i] = bpf_probe_read_user_str(&h->text[i * TEXT_SIZE], TEXT_SIZE,
								 (void *)value);
	}
	hits.ringbuf_submit(h, 0);
	return 0;
}

SEC("uprobe.multi")
int multi(struct pt_regs *ctx)
{
	return hit(ctx, bpf_get_attach_cookie(ctx));
}

SEC("uprobe")
int single(struct pt_regs *ctx)
{
	return hit(ctx, place_number());
}
