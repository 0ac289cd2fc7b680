/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * splicer: a client or server that moves its data by splice(2), as HAProxy, docker-proxy and Go do
 * ================================================================================================
 *
 *	cc -O2 -o splicer splicer.c
 *	./splicer send HOST PORT < FILE		connect, splice FILE to the server, half-close, wait for EOF
 *	./splicer receive PORT > FILE		accept one connection, splice it into FILE until EOF
 *	./splicer fetch HOST PORT > FILE	connect, splice what comes into FILE until EOF
 *
 * Data goes through a pipe and is never in a buffer of the process. Prints `ready` on standard error once
 * it listens. Exit status: 0 everything up to EOF, 1 an error, which standard error names.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <signal.h>
#include <unistd.h>

#define PIECE (1 << 20)

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int dial(const char *host, const char *port)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *to;
	int fd;

	if (getaddrinfo(host, port, &hints, &to))
		fail("getaddrinfo");
	fd = socket(to->ai_family, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, to->ai_addr, to->ai_addrlen))
		fail("connect");
	return fd;
}

static int answer(const char *port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(atoi(port)) };
	int one = 1, listener = socket(AF_INET6, SOCK_STREAM, 0), fd;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&any, sizeof(any)) || listen(listener, 1))
		fail("listen");
	fprintf(stderr, "ready\n");
	fd = accept(listener, NULL, NULL);
	if (fd < 0)
		fail("accept");
	close(listener);
	return fd;
}

static void move(int from, int to)
{
	int pipes[2];
	ssize_t n, m;

	if (pipe(pipes))
		fail("pipe");
	fcntl(pipes[0], F_SETPIPE_SZ, PIECE);
	while ((n = splice(from, NULL, pipes[1], NULL, PIECE, SPLICE_F_MOVE)) > 0) {
		for (; n; n -= m) {
			m = splice(pipes[0], NULL, to, NULL, n, SPLICE_F_MOVE | SPLICE_F_MORE);
			if (m <= 0)
				fail("splice to the target");
		}
	}
	if (n < 0)
		fail("splice from the source");
	close(pipes[0]);
	close(pipes[1]);
}

int main(int argc, char **argv)
{
	char last;
	int fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	if (argc == 4 && !strcmp(argv[1], "send")) {
		fd = dial(argv[2], argv[3]);
		move(0, fd);
		shutdown(fd, SHUT_WR);
		if (read(fd, &last, 1) < 0)
			fail("read");
	} else if (argc == 4 && !strcmp(argv[1], "fetch")) {
		move(dial(argv[2], argv[3]), 1);
	} else if (argc == 3 && !strcmp(argv[1], "receive")) {
		move(answer(argv[2]), 1);
	} else {
		fprintf(stderr, "usage: %s send HOST PORT | receive PORT | fetch HOST PORT\n",
			argv[0]);
		return 2;
	}
	return 0;
}
