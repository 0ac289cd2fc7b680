/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * probes: a program with USDT probes of its own, written without sys/sdt.h
 * =======================================================================
 *
 *	cc -O2 -o probes probes.c
 *	./probes ROUNDS
 *
 * In each round each probe of provider `demo` is reached once:
 *
 *	round	(int number, number - 5 as a signed char, 64-bit constant -7, pointer to text)
 *	leaf	(long number), in a function that keeps its locals below the stack pointer; the nop is
 *		followed by one of ten bytes
 *	guarded	(int number), only while its semaphore says that somebody watches
 *	inlined	(int number), the same probe in two functions; the compiler gives each its own place
 *
 * A probe is a nop and a note that says where it is and where its arguments are. The nop has one byte:
 * kernels 6.18 to 7.1 replace one of five bytes by a call, which overwrites what a leaf function has below
 * its stack pointer (seen with cc -DLEAF=NOP5: the sum is wrong while `leaf` is probed), and kernels that
 * do not know the nop of ten bytes leave it out, because of its prefix (cc -DLEAF=NOP10).
 *
 * Prints the rounds in which `guarded` was prepared, and the sum of the leaf function. Exit status: 1 if
 * that sum is wrong.
 */
#include <stdio.h>
#include <stdlib.h>

#define NOP1  "nop"
#define NOP5  ".byte 0x0f, 0x1f, 0x44, 0, 0"
#define NOP10 ".byte 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0"

#ifndef LEAF
#define LEAF NOP1 "\n" NOP10
#endif

/* arguments is text for the assembler, with the operands that follow: "-4@%0 8@%1". */
#define PROBE(nop, name, semaphore, arguments, ...)                                              \
	asm volatile("990:	" nop "\n"                                                       \
		     ".pushsection .note.stapsdt, \"\", \"note\"\n"                              \
		     ".balign 4\n"                                                               \
		     ".4byte 992f - 991f, 994f - 993f, 3\n"                                      \
		     "991: .asciz \"stapsdt\"\n"                                                 \
		     "992: .balign 4\n"                                                          \
		     "993: .8byte 990b, _.stapsdt.base, " semaphore "\n"                         \
		     ".asciz \"demo\"\n"                                                         \
		     ".asciz \"" name "\"\n"                                                     \
		     ".asciz \"" arguments "\"\n"                                                \
		     "994: .balign 4\n"                                                          \
		     ".popsection\n"                                                             \
		     ".ifndef _.stapsdt.base\n"                                                  \
		     ".pushsection .stapsdt.base, \"aG\", \"progbits\", .stapsdt.base, comdat\n" \
		     ".weak _.stapsdt.base\n"                                                    \
		     ".hidden _.stapsdt.base\n"                                                  \
		     "_.stapsdt.base: .space 1\n"                                                \
		     ".size _.stapsdt.base, 1\n"                                                 \
		     ".popsection\n"                                                             \
		     ".endif\n" ::__VA_ARGS__)

__attribute__((used, section(".probes"))) volatile unsigned short demo_guarded_semaphore;

static __attribute__((noinline)) long leaf(long number)
{
	volatile long kept[8]; /* in the red zone: the function calls nothing */
	long sum = 0;

	for (int i = 0; i < 8; i++)
		kept[i] = number + i;
	PROBE(LEAF, "leaf", "0", "-8@%0", "nor"(number));
	for (int i = 0; i < 8; i++)
		sum += kept[i];
	return sum;
}

static __attribute__((noinline)) void first(int number)
{
	PROBE(NOP1, "inlined", "0", "-4@%0", "nor"(number));
}

static __attribute__((noinline)) void second(int number)
{
	PROBE(NOP1, "inlined", "0", "-4@%0", "nor"(-number));
}

int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 10, prepared = 0;
	long sum = 0, wanted = 0;
	char text[32];

	for (int number = 0; number < rounds; number++) {
		signed char small = number - 5;

		snprintf(text, sizeof(text), "round %d", number);
		PROBE(NOP1, "round", "0", "-4@%0 -1@%1 -8@%2 8@%3", "nor"(number), "q"(small),
		      "n"(-7L), "nor"(text));
		sum += leaf(number);
		wanted += 8L * number + 28;
		if (demo_guarded_semaphore) {
			prepared++;
			PROBE(NOP1, "guarded", "demo_guarded_semaphore", "-4@%0", "nor"(number));
		}
		if (number % 2)
			first(number);
		else
			second(number);
	}
	printf("%d %ld\n", prepared, sum);
	return sum != wanted;
}
