/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * traffic: clients and servers whose data can be checked byte by byte
 * ===================================================================
 *
 *	cc -O2 -o traffic traffic.c
 *	./traffic echo PLACE				send back what comes, connection after connection
 *	./traffic ping PLACE COUNT SIZE			messages to an echo, one at a time
 *	./traffic send PLACE BYTES [full|half|reset]	send a stream; then read to the end
 *	./traffic sink PLACE [full|half|slow|BYTES]	receive one stream and check it
 *
 * PLACE is PORT (listen), HOST:PORT (connect) or /PATH (AF_UNIX, both). The stream is a sequence of
 * 64-bit numbers that both ends know, so a sink finds every byte that is lost, doubled or moved.
 *
 *   send full   close(2) after the last byte		sink full   read to the end
 *   send half   shut down, read to the end		sink half   answer with the same stream
 *   send reset  reset after the last byte		sink slow   read slowly (1 MB each 10 ms)
 *							sink BYTES  reset after so many bytes
 *
 * Prints `ready` once it listens, a sink `accepted` once it is connected, and one line of JSON at its end.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define BUFFER   (1 << 17)
#define STALL_NS 40000000

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void nodelay(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

/* A socket that listens (server) or is connected. */
static int open_place(const char *place, int server)
{
	const char *colon = strrchr(place, ':');
	struct sockaddr_in6 any = { .sin6_family = AF_INET6 };
	struct sockaddr_un path = { .sun_family = AF_UNIX };
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *to;
	char host[256];
	int fd, one = 1;

	if (*place == '/') {
		fd = socket(AF_UNIX, SOCK_STREAM, 0);
		strncpy(path.sun_path, place, sizeof(path.sun_path) - 1);
		if (server ? bind(fd, (struct sockaddr *)&path, sizeof(path)) || listen(fd, 64) :
			     connect(fd, (struct sockaddr *)&path, sizeof(path)))
			fail(place);
		return fd;
	}
	if (server) {
		fd = socket(AF_INET6, SOCK_STREAM, 0);
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		any.sin6_port = htons(atoi(place));
		if (bind(fd, (struct sockaddr *)&any, sizeof(any)) || listen(fd, 64))
			fail(place);
		return fd;
	}
	if (!colon)
		fail("HOST:PORT");
	snprintf(host, sizeof(host), "%.*s", (int)(colon - place), place);
	if (getaddrinfo(host, colon + 1, &hints, &to))
		fail("getaddrinfo");
	fd = socket(to->ai_family, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, to->ai_addr, to->ai_addrlen))
		fail("connect");
	nodelay(fd);
	return fd;
}

static int accept_one(const char *place)
{
	int listener = open_place(place, 1), fd;

	printf("ready\n");
	fflush(stdout);
	fd = accept(listener, NULL, NULL);
	if (fd < 0)
		fail("accept");
	printf("accepted\n");
	fflush(stdout);
	nodelay(fd);
	close(listener);
	return fd;
}

static void reset(int fd)
{
	struct linger linger = { 1, 0 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(fd);
}

/* The stream: 8 bytes of it, from their number on. */
static uint64_t word(uint64_t number)
{
	uint64_t x = number * 0x9e3779b97f4a7c15ULL + 0x1234567;

	return x ^ x >> 29;
}

static const char *end_name(int error)
{
	return error == 0          ? "EOF" :
	       error == ECONNRESET ? "ECONNRESET" :
	       error == EPIPE      ? "EPIPE" :
				     strerror(error);
}

static _Noreturn void echo(const char *place)
{
	static char buffer[BUFFER];
	int listener = open_place(place, 1);

	printf("ready\n");
	fflush(stdout);
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		ssize_t n, m, done;

		nodelay(fd);
		while ((n = read(fd, buffer, sizeof(buffer))) > 0)
			for (done = 0; done < n; done += m)
				if ((m = write(fd, buffer + done, n - done)) < 0)
					break;
		close(fd);
	}
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static int ping(const char *place, long count, long size)
{
	uint64_t *ns = calloc(count, sizeof(*ns));
	char *out = malloc(size), *in = malloc(size);
	long stalls = 0, wrong = 0, i;
	uint64_t began = now_ns();
	int fd = open_place(place, 0);

	memset(out, 'x', size);
	for (i = 0; i < count; i++) {
		uint64_t start = now_ns();
		long got = 0;
		ssize_t n;

		memcpy(out, &i, sizeof(i));
		if (write(fd, out, size) != size)
			fail("write");
		while (got < size) {
			n = read(fd, in + got, size - got);
			if (n <= 0)
				fail("read");
			got += n;
		}
		wrong += !!memcmp(in, out, size);
		ns[i] = now_ns() - start;
	}
	began = now_ns() - began;
	qsort(ns, count, sizeof(*ns), by_size);
	while (stalls < count && ns[count - 1 - stalls] > STALL_NS)
		stalls++;
	printf("{\"count\": %ld, \"wrong\": %ld, \"p50_us\": %.2f, \"p99_us\": %.2f, "
	       "\"max_us\": %.1f, \"stalls\": %ld, \"seconds\": %.4f}\n",
	       count, wrong, ns[count / 2] / 1e3, ns[count * 99 / 100] / 1e3, ns[count - 1] / 1e3,
	       stalls, began / 1e9);
	return 0;
}

/* Writes the stream; returns the error. */
static int write_stream(int fd, uint64_t bytes, uint64_t *sent)
{
	static uint64_t buffer[BUFFER / 8];
	uint64_t at = 0;

	*sent = 0;
	while (at < bytes) {
		size_t size = bytes - at < BUFFER ? bytes - at : BUFFER, done = 0, i;

		for (i = 0; i < (size + 7) / 8; i++)
			buffer[i] = word(at / 8 + i);
		while (done < size) {
			ssize_t n = send(fd, (char *)buffer + done, size - done, MSG_NOSIGNAL);

			if (n < 0)
				return errno;
			done += n;
			*sent += n;
		}
		at += size;
	}
	return 0;
}

/* Reads and checks the stream up to its end or `limit`; returns the error. */
static int read_stream(int fd, uint64_t limit, int slow, uint64_t *got, int64_t *wrong)
{
	static unsigned char buffer[BUFFER];
	struct timespec pause = { 0, 10000000 };
	uint64_t since = 0;

	*got = 0;
	*wrong = -1;
	while (*got < limit) {
		ssize_t n = read(fd, buffer, sizeof(buffer)), i;

		if (n < 0)
			return errno;
		if (!n)
			return 0;
		for (i = 0; i < n && *wrong < 0;) {
			uint64_t at = *got + i, want = word(at / 8), have;

			if (at % 8 == 0 && i + 8 <= n) {
				memcpy(&have, buffer + i, 8);
				if (have != want)
					*wrong = at;
				i += 8;
			} else {
				if (buffer[i] != (unsigned char)(want >> at % 8 * 8))
					*wrong = at;
				i++;
			}
		}
		*got += n;
		since += n;
		if (slow && since > 1 << 20) {
			since = 0;
			nanosleep(&pause, NULL);
		}
	}
	return 0;
}

static int send_stream(const char *place, uint64_t bytes, const char *how)
{
	uint64_t began = now_ns(), sent = 0, back = 0;
	int64_t wrong = -1;
	int fd = open_place(place, 0), error, end = 0;

	error = write_stream(fd, bytes, &sent);
	if (!strcmp(how, "reset")) {
		reset(fd);
	} else if (!strcmp(how, "half")) {
		if (!error)
			shutdown(fd, SHUT_WR);
		end = error ? error : read_stream(fd, ~0ULL, 0, &back, &wrong);
	} else {
		end = error;
		close(fd);
	}
	printf("{\"sent\": %lu, \"back\": %lu, \"wrong\": %ld, \"end\": \"%s\", \"seconds\": %.4f}\n",
	       sent, back, wrong, end_name(end), (now_ns() - began) / 1e9);
	return 0;
}

static int sink(const char *place, const char *how)
{
	int fd = accept_one(place), error, slow = !strcmp(how, "slow");
	uint64_t limit = strtoull(how, NULL, 10), got, sent = 0;
	uint64_t began = now_ns();
	int64_t wrong;

	error = read_stream(fd, limit ? limit : ~0ULL, slow, &got, &wrong);
	if (limit)
		reset(fd);
	else if (!error && !strcmp(how, "half"))
		error = write_stream(fd, got, &sent);
	printf("{\"got\": %lu, \"wrong\": %ld, \"back\": %lu, \"end\": \"%s\", \"seconds\": %.4f}\n",
	       got, wrong, sent, end_name(error), (now_ns() - began) / 1e9);
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[1] : "";

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	if (!strcmp(what, "echo"))
		echo(argv[2]);
	if (!strcmp(what, "ping") && argc == 5)
		return ping(argv[2], atol(argv[3]), atol(argv[4]));
	if (!strcmp(what, "send") && argc >= 4)
		return send_stream(argv[2], strtoull(argv[3], NULL, 10),
				   argc > 4 ? argv[4] : "half");
	if (!strcmp(what, "sink"))
		return sink(argv[2], argc > 3 ? argv[3] : "full");
	fprintf(stderr, "usage: see the head of traffic.c\n");
	return 2;
}
