/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * proxy: a TCP proxy as they are usually written, the measure for sk_skb
 * ======================================================================
 *
 *	cc -O2 -o proxy proxy.c
 *	./proxy rw|splice LISTEN-PORT HOST PORT
 *
 * One thread, epoll, non-blocking sockets.
 *
 *   rw      recv() into a buffer of 64 KB, send() from it
 *   splice  splice() from the socket into a pipe, and from the pipe into the other socket
 *
 * A half-close is passed on after the data; an error of one end resets the other. Prints `ready` once it
 * listens, and never anything else on standard output.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER  65536
#define PIPE    (1 << 20)
#define AT_ONCE 64

struct end {
	int fd;
	bool eof; /* its peer has ended its stream */
	bool shut; /* the end was passed on to the other one */
	int pipe[2];
	size_t held; /* bytes read from fd and not written to the other end */
	size_t start; /* of them in buffer */
	char *buffer;
	struct end *other;
	bool *dead; /* shared by both ends */
	uint32_t events;
};

static bool use_splice;
static int poller;
static struct end *graves[2 * AT_ONCE];
static int buried;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void watch(struct end *e)
{
	uint32_t events = 0;
	struct epoll_event ev = { .data.ptr = e };

	if (!e->eof && !e->held)
		events |= EPOLLIN;
	if (e->other->held)
		events |= EPOLLOUT;
	if (events == e->events)
		return;
	ev.events = e->events = events;
	epoll_ctl(poller, EPOLL_CTL_MOD, e->fd, &ev);
}

static void bury(struct end *e, bool reset)
{
	struct linger linger = { 1, 0 };
	struct end *both[2] = { e, e->other };
	int i;

	if (*e->dead)
		return;
	*e->dead = true;
	for (i = 0; i < 2; i++) {
		if (reset)
			setsockopt(both[i]->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
		close(both[i]->fd);
		if (use_splice) {
			close(both[i]->pipe[0]);
			close(both[i]->pipe[1]);
		}
	}
	graves[buried++] = e;
}

/* Read from e. 1: there is data, 0: none now, -1: error. */
static int fill(struct end *e)
{
	ssize_t n;

	if (use_splice)
		n = splice(e->fd, NULL, e->pipe[1], NULL, PIPE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
	else
		n = recv(e->fd, e->buffer, BUFFER, 0);
	if (n < 0)
		return errno == EAGAIN ? 0 : -1;
	e->eof = !n;
	e->held = n;
	e->start = 0;
	return n > 0;
}

/* Write what e holds to the other end. 1: all of it, 0: no room, -1: error. */
static int drain(struct end *e)
{
	ssize_t n;

	while (e->held) {
		if (use_splice)
			n = splice(e->pipe[0], NULL, e->other->fd, NULL, e->held,
				   SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
		else
			n = send(e->other->fd, e->buffer + e->start, e->held, MSG_NOSIGNAL);
		if (n < 0)
			return errno == EAGAIN ? 0 : -1;
		e->held -= n;
		e->start += n;
	}
	return 1;
}

static void forward(struct end *e)
{
	int got = 1, turns = 16;

	while (turns--) {
		got = drain(e);
		if (got <= 0)
			break;
		if (e->eof) {
			if (!e->shut)
				shutdown(e->other->fd, SHUT_WR);
			e->shut = true;
			break;
		}
		got = fill(e);
		if (got < 0 || (!got && !e->eof))
			break;
	}
	if (got < 0) {
		bury(e, true);
	} else if (e->shut && e->other->shut) {
		bury(e, false);
	} else {
		watch(e);
		watch(e->other);
	}
}

static void add(int near, int far)
{
	struct end *ends = calloc(2, sizeof(*ends));
	bool *dead = calloc(1, sizeof(*dead));
	int one = 1, i;

	if (!ends || !dead)
		fail("calloc");
	for (i = 0; i < 2; i++) {
		struct end *e = &ends[i];
		struct epoll_event ev = { .events = EPOLLIN, .data.ptr = e };

		e->fd = i ? far : near;
		e->other = &ends[!i];
		e->dead = dead;
		e->events = EPOLLIN;
		if (use_splice) {
			if (pipe2(e->pipe, O_NONBLOCK | O_CLOEXEC))
				fail("pipe2");
			fcntl(e->pipe[0], F_SETPIPE_SZ, PIPE);
		} else {
			e->buffer = malloc(BUFFER);
			if (!e->buffer)
				fail("malloc");
		}
		setsockopt(e->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		fcntl(e->fd, F_SETFL, O_NONBLOCK);
		if (epoll_ctl(poller, EPOLL_CTL_ADD, e->fd, &ev))
			fail("epoll_ctl");
	}
}

static struct addrinfo *resolve(const char *host, const char *port, int flags)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = flags }, *found;

	if (getaddrinfo(host, port, &hints, &found))
		fail("getaddrinfo");
	return found;
}

int main(int argc, char **argv)
{
	struct epoll_event events[AT_ONCE], ev = { .events = EPOLLIN };
	int listener, one = 1, n, i;
	struct sockaddr_in6 any = { .sin6_family = AF_INET6 };
	struct addrinfo *to;

	if (argc != 5 || (strcmp(argv[1], "rw") && strcmp(argv[1], "splice"))) {
		fprintf(stderr, "usage: %s rw|splice LISTEN-PORT HOST PORT\n", argv[0]);
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	use_splice = !strcmp(argv[1], "splice");
	to = resolve(argv[3], argv[4], 0);
	poller = epoll_create1(EPOLL_CLOEXEC);
	listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	any.sin6_port = htons(atoi(argv[2]));
	if (bind(listener, (struct sockaddr *)&any, sizeof(any)) || listen(listener, 1024))
		fail("listen");
	if (epoll_ctl(poller, EPOLL_CTL_ADD, listener, &ev))
		fail("epoll_ctl");
	puts("ready");
	fflush(stdout);
	for (;;) {
		n = epoll_wait(poller, events, AT_ONCE, -1);
		for (i = 0; i < n; i++) {
			struct end *e = events[i].data.ptr;
			int near, far;

			if (e) {
				if (*e->dead)
					continue;
				if (events[i].events & EPOLLERR) {
					bury(e, true);
					continue;
				}
				if (events[i].events & (EPOLLIN | EPOLLHUP))
					forward(e);
				if (!*e->dead && events[i].events & EPOLLOUT)
					forward(e->other);
				continue;
			}
			near = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
			far = socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
			if (near >= 0 && far >= 0 && !connect(far, to->ai_addr, to->ai_addrlen)) {
				add(near, far);
			} else {
				close(near);
				close(far);
			}
		}
		while (buried) {
			struct end *e = graves[--buried];
			struct end *first = e < e->other ? e : e->other;

			free(first->buffer);
			free(first->other->buffer);
			free(first->dead);
			free(first);
		}
	}
}
