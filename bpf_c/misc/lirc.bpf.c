/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * lirc: decodes the pulses of infrared remote controls: NEC, extended NEC, NEC32 and RC-5
 * =======================================================================================
 *
 * hook      a raw infrared receiver, /dev/lircN: for each pulse and each space that it reports
 * context   u32 *: the length in µs (24 bits) and what it was: pulse, space, timeout, overflow (lirc.h)
 * may       report keys: bpf_rc_keydown, bpf_rc_repeat. The return value is ignored, and the pulses go
 *           on to the kernel's own decoders and to whoever reads /dev/lircN
 *
 *   remote ~~> receiver, or rc-loopback
 *                  | pulses and spaces, the last space as "timeout"
 *                  v
 *   decode(): NEC  ─┐
 *             RC-5 ─┴─> bpf_rc_keydown(protocol, scancode, toggle)
 *                              |
 *                              v
 *                       rc-core: the keymap, scancode -> key; the release when no repeat comes
 *                              |-> /dev/input/eventN   KEY_VOLUMEUP pressed … released
 *                              '-> /dev/lircN          scancodes, for who reads LIRC_MODE_SCANCODE
 *
 * NEC: pulse distance. A frame and, while the key is held, a repeat every 108 ms:
 *
 *   16 units pulse, 8 space, 32 bits, lowest first: 1 pulse + 1 space is 0, 1 + 3 is 1; 1 pulse, silence
 *   16 units pulse, 4 space, 1 pulse, silence: a repeat, which does not say of what
 *
 * RC-5: bi-phase. 14 bits of two halves, highest first: space, pulse is 1 and pulse, space is 0. The
 * whole frame comes again while the key is held; the toggle bit changes with each new press:
 *
 *   start, inverted bit 6 of the command, toggle, 5 bits address, 6 bits command
 *
 * Maps: nec and rc5, the states of the two decoders, which run on every sample side by side; figures.
 * The kernel decodes a receiver's samples in one thread, so no other CPU is in here at the same time.
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <uapi/linux/lirc.h>

LOAD_CONST(0, repeat_ms, 250); /* a repeat that comes later than this is about no key of ours */

#define NEC_UNIT      563 /* µs */
#define NEC_BITS      32
#define RC5_UNIT      889 /* µs: half a bit */
#define RC5_HALVES    28
#define RC5_PLAUSIBLE 12 /* halves after which a frame that breaks off counts as rejected */

/* figures: for each decoder frames, repeats and rejected; then what is not about a frame */
enum {
	NEC_FRAMES,
	NEC_REPEATS,
	NEC_REJECTED,
	NEC_STRAY, /* repeats without a key, or after a frame that was rejected */
	RC5_FRAMES,
	RC5_REJECTED,
	SAMPLES,
	OVERFLOWS, /* the receiver lost samples */
	FIGURES,
};

enum {
	IDLE,
	HEADER,
	BIT_PULSE,
	BIT_SPACE,
	TRAILER,
	SILENCE,
};

struct nec {
	u64 last_ns; /* of the latest frame or repeat, CLOCK_MONOTONIC; 0: repeats are about no key */
	u32 state;
	u32 bits; /* the latest in the highest bit */
	u32 count;
};

struct rc5 {
	u32 halves; /* the latest in the lowest bit: 1 pulse, 0 space */
	u32 count;
};

BPF_ARRAY(nec, struct nec, 1);
BPF_ARRAY(rc5, struct rc5, 1);
BPF_ARRAY(figures, u64, FIGURES);

static __always_inline void count(u32 what)
{
	count_one(figures.lookup(&what));
}

static __always_inline bool is_near(u32 length, u32 wanted, u32 margin)
{
	return length + margin >= wanted && length <= wanted + margin;
}

/* Report the 32 bits of a frame, in the scancodes of the kernel's keymaps. */
static __always_inline void nec_key(u32 *sample, u32 bits)
{
	u32 address = bits & 0xff, not_address = bits >> 8 & 0xff;
	u32 command = bits >> 16 & 0xff, not_command = bits >> 24;

	if ((command ^ not_command) != 0xff)
		bpf_rc_keydown(sample, RC_PROTO_NEC32,
			       not_address << 24 | address << 16 | not_command << 8 | command, 0);
	else if ((address ^ not_address) != 0xff)
		bpf_rc_keydown(sample, RC_PROTO_NECX, address << 16 | not_address << 8 | command,
			       0);
	else
		bpf_rc_keydown(sample, RC_PROTO_NEC, address << 8 | command, 0);
}

/* The silence behind a frame or a repeat: now it is sure that no more bits follow. */
static __always_inline void nec_end(u32 *sample, struct nec *s)
{
	u64 now = bpf_ktime_get_ns();

	if (s->count == NEC_BITS) {
		nec_key(sample, s->bits);
		count(NEC_FRAMES);
	} else if (s->last_ns && now - s->last_ns < repeat_ms() * 1000000) {
		bpf_rc_repeat(sample);
		count(NEC_REPEATS);
	} else {
		/* rc-core would take it for the last key that it knows, whose frame was another one. */
		count(NEC_STRAY);
		return;
	}
	s->last_ns = now;
}

static __always_inline void nec_sample(u32 *sample, struct nec *s, bool pulse, u32 length)
{
	switch (s->state) {
	case IDLE:
		if (pulse && is_near(length, 16 * NEC_UNIT, 2 * NEC_UNIT))
			s->state = HEADER;
		return;
	case HEADER:
		if (pulse)
			break;
		s->count = 0;
		s->bits = 0;
		if (is_near(length, 8 * NEC_UNIT, NEC_UNIT))
			s->state = BIT_PULSE;
		else if (is_near(length, 4 * NEC_UNIT, NEC_UNIT / 2))
			s->state = TRAILER;
		else
			break;
		return;
	case BIT_PULSE:
		if (!pulse || !is_near(length, NEC_UNIT, NEC_UNIT / 2))
			break;
		s->state = BIT_SPACE;
		return;
	case BIT_SPACE:
		if (pulse)
			break;
		s->bits >>= 1;
		if (is_near(length, 3 * NEC_UNIT, NEC_UNIT / 2))
			s->bits |= 1u << 31;
		else if (!is_near(length, NEC_UNIT, NEC_UNIT / 2))
			break;
		s->count++;
		s->state = s->count == NEC_BITS ? TRAILER : BIT_PULSE;
		return;
	case TRAILER:
		if (!pulse || !is_near(length, NEC_UNIT, NEC_UNIT / 2))
			break;
		s->state = SILENCE;
		return;
	default: /* SILENCE */
		if (pulse || length < 10 * NEC_UNIT)
			break;
		s->state = IDLE;
		nec_end(sample, s);
		return;
	}
	count(NEC_REJECTED);
	s->last_ns = 0;
	/* A pulse that ends one frame may begin the next. */
	s->state = pulse && is_near(length, 16 * NEC_UNIT, 2 * NEC_UNIT) ? HEADER : IDLE;
}

/* The silence behind the 14 bits: false if they are none. */
static __always_inline bool rc5_end(u32 *sample, struct rc5 *s)
{
	u32 halves = s->halves, bits = 0, i, command;

	if (s->count == RC5_HALVES - 1) /* the second half of a 0 is part of the silence */
		halves <<= 1;
	else if (s->count != RC5_HALVES)
		return false;
#pragma unroll
	for (i = 0; i < RC5_HALVES; i += 2) {
		u32 pair = halves >> (RC5_HALVES - 2 - i) & 3;

		if (pair == 0 || pair == 3)
			return false;
		bits = bits << 1 | (pair == 1);
	}
	command = (bits & 0x3f) | (bits & 0x1000 ? 0 : 0x40);
	bpf_rc_keydown(sample, RC_PROTO_RC5, (bits >> 6 & 0x1f) << 8 | command, bits >> 11 & 1);
	count(RC5_FRAMES);
	return true;
}

/* True if a frame was reported. */
static __always_inline bool rc5_sample(u32 *sample, struct rc5 *s, bool pulse, u32 length)
{
	bool good = false;

	if (!s->count) {
		if (!pulse)
			return false;
		s->halves =
			0; /* the first half of the start bit is part of the silence before it */
		s->count = 1;
	}
	if (!pulse && length >= 6 * RC5_UNIT) {
		good = rc5_end(sample, s);
		if (!good && s->count >= RC5_PLAUSIBLE)
			count(RC5_REJECTED);
		s->count = 0;
	} else if (is_near(length, RC5_UNIT, RC5_UNIT / 3) && s->count < RC5_HALVES) {
		s->halves = s->halves << 1 | pulse;
		s->count++;
	} else if (is_near(length, 2 * RC5_UNIT, RC5_UNIT / 3) && s->count < RC5_HALVES - 1) {
		s->halves = s->halves << 2 | (pulse ? 3 : 0);
		s->count += 2;
	} else {
		if (s->count >= RC5_PLAUSIBLE)
			count(RC5_REJECTED);
		s->count = 0;
	}
	return good;
}

SEC("lirc_mode2")
int decode(u32 *sample)
{
	bool pulse = LIRC_IS_PULSE(*sample);
	u32 zero = 0, length = LIRC_VALUE(*sample);
	struct nec *n = nec.lookup(&zero);
	struct rc5 *r = rc5.lookup(&zero);

	if (!n || !r)
		return 0;
	count(SAMPLES);
	if (LIRC_IS_OVERFLOW(*sample)) {
		count(OVERFLOWS);
		if (n->state != IDLE)
			count(NEC_REJECTED);
		n->state = IDLE;
		n->last_ns = 0;
		r->count = 0;
	} else if (pulse || LIRC_IS_SPACE(*sample) || LIRC_IS_TIMEOUT(*sample)) {
		nec_sample(sample, n, pulse, length);
		if (rc5_sample(sample, r, pulse, length))
			n->last_ns = 0; /* a repeat of NEC would be taken for one of this key */
	}
	return 0;
}
