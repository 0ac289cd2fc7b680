/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * measure - run a command and print what it took
 *
 *	measure RUNS MARKER COMMAND [ARG ...]
 *
 * One line a run: microseconds from before vfork() until MARKER appears in the
 * command's output (stdout or stderr; "" stands for its end), microseconds until
 * its end, peak RSS in KB, exit status.
 *
 * The end is later than the marker by what the kernel does on closing: for a
 * packet socket it waits for an RCU grace period. A C program, because a child
 * starts with the peak RSS of whoever forked it: under this one that is less
 * than any command's own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

/* When the marker came, or -1; reads to the end of the output. */
static double watch(int from, const char *marker)
{
	static char text[1 << 16];
	size_t have = 0;
	double when = -1;
	ssize_t n;

	while ((n = read(from, text + have, sizeof(text) - 1 - have)) != 0) {
		if (n < 0) {
			if (errno == EINTR)
				continue;
			break;
		}
		have += n;
		text[have] = 0;
		if (when < 0 && *marker && strstr(text, marker))
			when = now_us();
		if (when >= 0 || have == sizeof(text) - 1)
			have = 0;
	}
	return when;
}

int main(int argc, char **argv)
{
	int runs = argc > 3 ? atoi(argv[1]) : 0;
	const char *marker = argv[2];
	int null;

	if (runs < 1) {
		fprintf(stderr, "usage: measure RUNS MARKER COMMAND [ARG ...]\n");
		return 2;
	}
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0)
		return 1;
	while (runs--) {
		struct rusage usage;
		double start, seen, end;
		int status, out[2];
		pid_t pid;

		if (pipe2(out, O_CLOEXEC))
			return 1;
		start = now_us();
		pid = vfork();
		if (pid < 0) {
			perror("measure: vfork");
			return 1;
		}
		if (!pid) {
			dup2(null, STDIN_FILENO);
			dup2(out[1], STDOUT_FILENO);
			dup2(out[1], STDERR_FILENO);
			execvp(argv[3], argv + 3);
			_exit(127);
		}
		close(out[1]);
		seen = watch(out[0], marker);
		while (wait4(pid, &status, 0, &usage) < 0)
			if (errno != EINTR)
				return 1;
		end = now_us();
		close(out[0]);
		printf("%.0f %.0f %ld %d\n", (*marker ? seen : end) - start, end - start,
		       usage.ru_maxrss,
		       WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
		fflush(stdout);
	}
	return 0;
}
