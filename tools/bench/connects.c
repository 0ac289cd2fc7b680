/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * connects - make and accept TCP connections, one after the other
 *
 *	connects serve ADDRESS PORT COUNT
 *	connects ask ADDRESS PORT COUNT CONNECTIONS
 *
 * The server listens on COUNT ports from PORT on, says so, and resets every
 * connection that it accepts until its standard input ends. The client connects
 * to COUNT ports in turn and waits for the reset, so a connection that counts
 * was accepted, and none is left in TIME_WAIT. It prints seconds, seconds of CPU
 * time (the kernel's work for both ends on loopback is mostly the client's) and
 * the number of connections that were refused.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const struct linger reset = { .l_onoff = 1 };

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static double cpu(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return u.ru_utime.tv_sec + u.ru_stime.tv_sec +
	       (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static socklen_t address(struct sockaddr_storage *to, const char *text, int port)
{
	struct sockaddr_in6 *six = (void *)to;
	struct sockaddr_in *four = (void *)to;

	memset(to, 0, sizeof(*to));
	if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = htons(port);
		return sizeof(*four);
	}
	if (inet_pton(AF_INET6, text, &six->sin6_addr) == 1) {
		six->sin6_family = AF_INET6;
		six->sin6_port = htons(port);
		return sizeof(*six);
	}
	fprintf(stderr, "connects: %s is not an address\n", text);
	exit(2);
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int serve(const char *host, int port, int count)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC), i, n, sock;
	struct epoll_event event = { .events = EPOLLIN }, events[64];
	struct sockaddr_storage at;
	socklen_t len;

	for (i = 0; i < count; i++) {
		len = address(&at, host, port + i);
		sock = socket(at.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		if (sock < 0 || bind(sock, (struct sockaddr *)&at, len) || listen(sock, 1024))
			die("listen");
		event.data.fd = sock;
		if (epoll_ctl(epoll, EPOLL_CTL_ADD, sock, &event))
			die("epoll_ctl");
	}
	event.data.fd = 0;
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event))
		die("epoll_ctl");
	puts("ready");
	fflush(stdout);
	for (;;) {
		n = epoll_wait(epoll, events, 64, -1);
		for (i = 0; i < n; i++) {
			if (events[i].data.fd == 0)
				return 0;
			while ((sock = accept4(events[i].data.fd, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
				setsockopt(sock, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
				close(sock);
			}
		}
	}
}

static int ask(const char *host, int port, int count, long connections)
{
	struct sockaddr_storage to;
	double begun = now(), used = cpu();
	long i, refused = 0;
	socklen_t len;
	char byte;
	int sock;

	for (i = 0; i < connections; i++) {
		len = address(&to, host, port + i % count);
		sock = socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (sock < 0)
			die("socket");
		if (connect(sock, (struct sockaddr *)&to, len)) {
			if (errno != ECONNRESET)
				refused++;
		} else if (read(sock, &byte, 1) != -1 || errno != ECONNRESET) {
			refused++;
		}
		close(sock);
	}
	printf("%.6f %.6f %ld\n", now() - begun, cpu() - used, refused);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "serve"))
		return serve(argv[2], atoi(argv[3]), atoi(argv[4]));
	if (argc == 6 && !strcmp(argv[1], "ask"))
		return ask(argv[2], atoi(argv[3]), atoi(argv[4]), atol(argv[5]));
	fprintf(stderr, "usage: connects serve ADDRESS PORT COUNT\n"
			"       connects ask ADDRESS PORT COUNT CONNECTIONS\n");
	return 2;
}
