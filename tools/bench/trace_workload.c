/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * trace_workload - opens, connects or execs by many threads or processes at once
 *
 *	trace_workload opens COUNT WORKERS RECORD DIRECTORY
 *	trace_workload connects COUNT WORKERS RECORD
 *	trace_workload execs COUNT WORKERS RECORD
 *
 * No two of the COUNT events are alike. RECORD gets a line for each, written from what the calls
 * returned, which is what an observer must have seen:
 *
 *	opens     PATH RET           half of the files are created, the others are not there
 *	connects  ADDRESS PORT SOURCE_PORT ERRNO   half of the ports have a listener; the source port
 *	                             is 0 where the connect failed
 *	execs     PID WORKER NUMBER LENGTH         argv is "noop", these three, and LENGTH times "x"
 *
 * Connects go to 127.0.0.0/8: run this in a network namespace of its own.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define LONGEST 3000 /* of the x of an exec */

struct worker {
	pthread_t thread;
	int number, first, end;
	FILE *record;
	char *text;
	size_t size;
};

static const char *directory, *self;
static int listener, open_port, closed_port;
extern char **environ;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void open_one(struct worker *w, int number)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/%s-%d-%d", directory, number % 2 ? "absent" : "present",
		 w->number, number);
	fd = open(path, number % 2 ? O_RDONLY : O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	fprintf(w->record, "%s %d\n", path, fd < 0 ? -errno : fd);
	if (fd >= 0)
		close(fd);
}

static void connect_one(struct worker *w, int number)
{
	struct linger at_once = { .l_onoff = 1 };
	struct sockaddr_in to = { .sin_family = AF_INET }, from = {};
	socklen_t size = sizeof(from);
	int fd, error;

	to.sin_port = htons(number % 2 ? closed_port : open_port);
	to.sin_addr.s_addr = htonl(0x7f010001 + number);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	error = connect(fd, (struct sockaddr *)&to, sizeof(to)) ? errno : 0;
	if (!error)
		getsockname(fd, (struct sockaddr *)&from, &size);
	fprintf(w->record, "%s %d %d %d\n", inet_ntoa(to.sin_addr), ntohs(to.sin_port),
		ntohs(from.sin_port), error);
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close(fd);
}

static void exec_one(struct worker *w, int number)
{
	char which[16], what[16], length[16], *text = malloc(LONGEST + 1);
	char *words[] = { "noop", which, what, length, text, NULL };
	int size = number * 7 % LONGEST, status;
	pid_t pid;

	snprintf(which, sizeof(which), "%d", w->number);
	snprintf(what, sizeof(what), "%d", number);
	snprintf(length, sizeof(length), "%d", size);
	memset(text, 'x', size);
	text[size] = 0;
	errno = posix_spawn(&pid, self, NULL, NULL, words, environ);
	if (errno)
		die("posix_spawn");
	if (waitpid(pid, &status, 0) != pid || status)
		die("waitpid");
	fprintf(w->record, "%d %s %s %s\n", pid, which, what, length);
	free(text);
}

static void (*make)(struct worker *w, int number);

static void *work(void *argument)
{
	struct worker *w = argument;

	for (int number = w->first; number < w->end; number++)
		make(w, number);
	return 0;
}

static void *serve(void *argument)
{
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd >= 0)
			close(fd);
	}
	return 0;
}

static int bound(int *port)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in at = { .sin_family = AF_INET };
	socklen_t size = sizeof(at);

	if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at)) ||
	    getsockname(fd, (struct sockaddr *)&at, &size))
		die("bind");
	*port = ntohs(at.sin_port);
	return fd;
}

int main(int argc, char **argv)
{
	int count, workers;
	struct worker *all;
	pthread_t server;
	FILE *record;

	if (!strcmp(argv[0], "noop"))
		return 0;
	count = argc > 4 ? atoi(argv[2]) : 0;
	workers = argc > 4 ? atoi(argv[3]) : 0;
	if (count < 1 || workers < 1 || (!strcmp(argv[1], "opens") && argc != 6)) {
		fprintf(stderr,
			"usage: trace_workload opens|connects|execs COUNT WORKERS RECORD [DIR]\n");
		return 2;
	}
	self = "/proc/self/exe";
	directory = argv[argc - 1];
	if (!strcmp(argv[1], "opens")) {
		make = open_one;
	} else if (!strcmp(argv[1], "execs")) {
		make = exec_one;
	} else {
		make = connect_one;
		listener = bound(&open_port);
		bound(&closed_port); /* nobody listens on it, and nobody gets it as a source */
		if (listen(listener, 4096) || pthread_create(&server, NULL, serve, NULL))
			die("listen");
	}
	record = fopen(argv[4], "we");
	all = calloc(workers, sizeof(*all));
	if (!record || !all)
		die(argv[4]);
	for (int i = 0; i < workers; i++) {
		struct worker *w = &all[i];

		w->number = i;
		w->first = (long)count * i / workers;
		w->end = (long)count * (i + 1) / workers;
		w->record = open_memstream(&w->text, &w->size);
		if (!w->record || pthread_create(&w->thread, NULL, work, w))
			die("pthread_create");
	}
	for (int i = 0; i < workers; i++) {
		pthread_join(all[i].thread, NULL);
		fclose(all[i].record);
		fwrite(all[i].text, 1, all[i].size, record);
	}
	if (fclose(record))
		die(argv[4]);
	return 0;
}
