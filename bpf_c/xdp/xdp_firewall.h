/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The layouts and hashes that xdp_firewall.bpf.c (looks rules up) and xdp_firewall_fill.bpf.c (fills
 * the pre-filter) must agree on; bpfkit/xdp_firewall/control.py has the same layouts.
 */
#ifndef BPFKIT_FIREWALL_H
#define BPFKIT_FIREWALL_H

#include <bpfkit/maps.h>
#include <bpfkit/headers.h>

#define LINES   (1 << 15) /* 2 MB of cache lines: with a million prefixes 30 in each of 512 bits */
#define LENGTHS 192 /* room for a list of prefix lengths */
#define END     255 /* the end of such a list */

#define FRONT_NONE  0 /* no pre-filter: every prefix length in use is looked up */
#define FRONT_BITS  1
#define FRONT_BLOOM 2

/* A prefix: the address with its host bits cleared, and how many bits it has. */
struct prefix4 {
	__be32 addr;
	u32 len;
};

struct prefix6 {
	__be64 addr[2];
	u64 len;
};

/*
 * The pre-filter, consulted before the prefix lookup: two bits for each rule. If one of them is clear,
 * the rule does not exist. The bits of all prefixes that share the first 24, 16, 8 or 0 bits of the
 * address (IPv6: 64, 48, ...) are in one cache line, so that an address without a rule costs one or
 * two cache misses instead of one per prefix length.
 */
struct front {
	u8 lengths4[LENGTHS]; /* lengths in use, longest first, then END */
	u8 lengths6[LENGTHS];
	u64 count[8]; /* rules of IPv4 and of IPv6; kept by user space */
	u64 lines[LINES][8];
};

/* The position of a rule's bits: a cache line, and two bits of its 512. */
struct place {
	u64 line;
	u64 bits;
};

static __always_inline __be64 be64(u64 number)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	number = __builtin_bswap64(number);
#endif
	return number;
}

/*
 * Multiplicative hashing: the upper bits of the product depend on all bits of x. The factors of
 * line and bits must differ, or the line would determine the bits.
 */
static __always_inline u64 scatter(u64 x)
{
	return x * 0x9e3779b97f4a7c15ULL;
}

static __always_inline u64 scatter_line(u64 x)
{
	return x * 0xff51afd7ed558ccdULL;
}

static __always_inline void place4(const struct prefix4 *p, struct place *at)
{
	u64 level = p->len & 0x38;

	level -= level >> 2 & 8; /* 32 is with 24 */
	at->line =
		scatter_line((p->addr & bpf_htonl(~(u32)(0xffffffffULL >> level))) + (level << 33));
	at->bits = scatter(p->addr | (u64)p->len << 33);
}

static __always_inline void place6(const struct prefix6 *p, struct place *at)
{
	u64 level = p->len & 0x70, whole, mask;

	/* from 64 on: all of the first word */
	whole = -((p->len >> 6 | p->len >> 7) & 1);
	mask = ~(~0ULL >> (level & 0x3f)) | whole;
	level = (level & 0x3f & ~whole) | (64 & whole);
	at->line = scatter_line((p->addr[0] & be64(mask)) + level + 1);
	at->bits = scatter(p->addr[0]) ^ p->addr[1];
	at->bits = scatter((at->bits ^ at->bits >> 32) + p->len);
}

static __always_inline u64 *front_word(struct front *front, const struct place *at, u64 bit)
{
	return &front->lines[at->line >> 49][bit >> 6 & 7];
}

static __always_inline bool front_has(struct front *front, const struct place *at)
{
	u64 first = at->bits >> 55, second = at->bits >> 46 & 511;

	return *front_word(front, at, first) >> (first & 63) &
	       *front_word(front, at, second) >> (second & 63) & 1;
}

static __always_inline void front_add(struct front *front, const struct place *at)
{
	u64 first = at->bits >> 55, second = at->bits >> 46 & 511;

	__sync_fetch_and_or(front_word(front, at, first), 1ULL << (first & 63));
	__sync_fetch_and_or(front_word(front, at, second), 1ULL << (second & 63));
}

#endif
