/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * trace_cost_events - make events for hooks, and time them
 *
 * Reads lines from standard input, "EVENT COUNT", and answers each with the nanoseconds that COUNT
 * events took:
 *
 *	rename	prctl(PR_SET_NAME), which calls __set_task_comm() and the tracepoint task_rename
 *	nop1	a call of trace_nop1(), which begins with a nop of one byte
 *	nop10	a call of trace_nop10(), which begins with a nop of ten bytes (x86-64 only)
 *
 * There is no function with a nop of five bytes: kernels from 6.18 to 7.1 turn a uprobe on one into
 * a call, which overwrites the caller's red zone.
 */
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#ifdef __x86_64__
#define NOP10 ".byte 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0\n"
#endif

#define FUNCTION(name, first)                        \
	asm(".pushsection .text\n"                   \
	    ".globl " #name "\n"                     \
	    ".type " #name ", %function\n"           \
	    ".balign 16\n" #name ":\n" first "ret\n" \
	    ".size " #name ", . - " #name "\n"       \
	    ".popsection\n");                        \
	void name(void)

FUNCTION(trace_nop1, "nop\n");
#ifdef NOP10
FUNCTION(trace_nop10, NOP10);
#endif

static void rename_self(void)
{
	prctl(PR_SET_NAME, "trace_cost");
}

static double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(void)
{
	char line[64], event[32];
	long count;

	while (fgets(line, sizeof(line), stdin)) {
		void (*volatile make)(void) = 0;
		double begin;

		if (sscanf(line, "%31s %ld", event, &count) == 2) {
			if (!strcmp(event, "rename"))
				make = rename_self;
			else if (!strcmp(event, "nop1"))
				make = trace_nop1;
#ifdef NOP10
			else if (!strcmp(event, "nop10"))
				make = trace_nop10;
#endif
		}
		if (!make) {
			fprintf(stderr, "trace_cost_events: cannot make %s", line);
			return 2;
		}
		begin = now_ns();
		for (long i = 0; i < count; i++)
			make();
		printf("%.0f\n", now_ns() - begin);
		fflush(stdout);
	}
	return 0;
}
