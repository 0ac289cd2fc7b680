/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * cgroup_hooks - time a system call
 *
 *	cgroup_hooks CALL COUNT
 *
 * Says "ready" and waits for a line on standard input; for each it makes the call COUNT times and
 * prints the nanoseconds of one. The end of standard input ends it. The calls are in the table at the
 * end.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* CGROUP_DEVICE */
static void call_device(void)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (fd < 0 || close(fd))
		die("/dev/null");
}

static const struct {
	const char *name;
	void (*call)(void);
} calls[] = {
	{ "device", call_device },
};

int main(int argc, char **argv)
{
	size_t n = sizeof(calls) / sizeof(*calls), i, count, left;
	char line[16];
	double start;

	for (i = 0; i < n; i++)
		if (argc == 3 && !strcmp(argv[1], calls[i].name))
			break;
	if (argc != 3 || i == n) {
		fprintf(stderr, "usage: cgroup_hooks CALL COUNT\n");
		return 2;
	}
	count = strtoul(argv[2], NULL, 10);
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		start = now_ns();
		for (left = count; left; left--)
			calls[i].call();
		printf("%.1f\n", (now_ns() - start) / count);
	}
	return 0;
}
