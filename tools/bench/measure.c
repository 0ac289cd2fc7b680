/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * measure - run a command and print what it took
 *
 *	measure RUNS COMMAND [ARG ...]
 *
 * One line a run: wall microseconds, peak RSS in KB, exit status.  A C program,
 * because a child starts with the peak RSS of whoever forked it: under this one
 * that is less than any command's own.  The command's output is thrown away.
 */
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

int main(int argc, char **argv)
{
	int runs = argc > 2 ? atoi(argv[1]) : 0;
	int null;

	if (runs < 1) {
		fprintf(stderr, "usage: measure RUNS COMMAND [ARG ...]\n");
		return 2;
	}
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0)
		return 1;
	while (runs--) {
		struct rusage usage;
		double start = now_us();
		int status;
		pid_t pid = vfork();

		if (pid < 0) {
			perror("measure: vfork");
			return 1;
		}
		if (!pid) {
			dup2(null, STDIN_FILENO);
			dup2(null, STDOUT_FILENO);
			execvp(argv[2], argv + 2);
			_exit(127);
		}
		while (wait4(pid, &status, 0, &usage) < 0)
			if (errno != EINTR)
				return 1;
		printf("%.0f %ld %d\n", now_us() - start, usage.ru_maxrss,
		       WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
		fflush(stdout);
	}
	return 0;
}
