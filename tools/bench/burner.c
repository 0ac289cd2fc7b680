/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * burner - keep every CPU busy in functions with known shares
 *
 *	burner SECONDS
 *
 * A thread on each CPU calls eleven functions in turn, share_24() for 24 of every 100 units of work,
 * share_20() for 20, and so on, until SECONDS have passed. Prints the CPU time that all of it took.
 * Compile with -fno-omit-frame-pointer.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double deadline;

static double seconds(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

#define SHARE(n)                                                        \
	__attribute__((noinline)) static unsigned share_##n(unsigned v) \
	{                                                               \
		for (int i = 0; i < n * 400; i++)                       \
			v = v * 1664525 + 1013904223 + n;               \
		return v;                                               \
	}

SHARE(24)
SHARE(20)
SHARE(14)
SHARE(11)
SHARE(9)
SHARE(7)
SHARE(5)
SHARE(4)
SHARE(3)
SHARE(2)
SHARE(1)

static volatile unsigned sink;

static void *burn(void *cpu)
{
	cpu_set_t only;
	unsigned v = 1;

	CPU_ZERO(&only);
	CPU_SET((long)cpu, &only);
	sched_setaffinity(0, sizeof(only), &only);
	while (seconds(CLOCK_MONOTONIC) < deadline) {
		for (int i = 0; i < 16; i++) {
			v = share_24(v);
			v = share_20(v);
			v = share_14(v);
			v = share_11(v);
			v = share_9(v);
			v = share_7(v);
			v = share_5(v);
			v = share_4(v);
			v = share_3(v);
			v = share_2(v);
			v = share_1(v);
		}
	}
	sink = v;
	return 0;
}

int main(int argc, char **argv)
{
	cpu_set_t all;
	pthread_t threads[CPU_SETSIZE];
	int count = 0;

	if (argc != 2)
		return 2;
	deadline = seconds(CLOCK_MONOTONIC) + atof(argv[1]);
	sched_getaffinity(0, sizeof(all), &all);
	for (long cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &all) &&
		    !pthread_create(&threads[count], NULL, burn, (void *)cpu))
			count++;
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	printf("%.6f\n", seconds(CLOCK_PROCESS_CPUTIME_ID));
	return 0;
}
