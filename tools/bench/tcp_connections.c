/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Short TCP connections on loopback, one after another: connect, a request of SIZE bytes, an answer of
 * SIZE bytes, close. Prints the connections per second.
 *
 *	tcp_connections CONNECTIONS SIZE CLIENTS
 *
 * Each client is a process with a server process of its own. A destination address takes PER_ADDRESS
 * connections, so that ports in TIME_WAIT do not run out.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PER_ADDRESS 10000
#define MOST        65536

static char data[MOST];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void transfer(int fd, size_t size, ssize_t (*call)(int, size_t))
{
	while (size > 0) {
		ssize_t n = call(fd, size);

		if (n <= 0)
			fail("connection");
		size -= n;
	}
}

static ssize_t take(int fd, size_t size)
{
	return recv(fd, data, size, 0);
}

static ssize_t give(int fd, size_t size)
{
	return send(fd, data, size, MSG_NOSIGNAL);
}

static void serve(int listener, long connections, size_t size)
{
	while (connections-- > 0) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			fail("accept");
		transfer(fd, size, take);
		transfer(fd, size, give);
		if (recv(fd, data, 1, 0) != 0)
			fail("end");
		close(fd);
	}
}

static void run(long connections, size_t size, int client)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY) };
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	socklen_t len = sizeof(addr);
	pid_t server;
	long i;

	if (listener < 0 || bind(listener, (struct sockaddr *)&addr, sizeof(addr)) ||
	    listen(listener, 128) || getsockname(listener, (struct sockaddr *)&addr, &len))
		fail("listen");
	server = fork();
	if (server == 0) {
		serve(listener, connections, size);
		exit(0);
	}
	close(listener);
	for (i = 0; i < connections; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK + client * 256 + i / PER_ADDRESS);
		if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
			fail("connect");
		transfer(fd, size, give);
		transfer(fd, size, take);
		close(fd);
	}
	waitpid(server, NULL, 0);
}

int main(int argc, char **argv)
{
	long connections = argc > 1 ? atol(argv[1]) : 10000;
	size_t size = argc > 2 ? atol(argv[2]) : 1;
	int clients = argc > 3 ? atoi(argv[3]) : 1, i, status, failed = 0;
	struct timespec begun, ended;

	if (connections < 1 || size < 1 || size > MOST || clients < 1 || clients > 64) {
		fprintf(stderr, "usage: tcp_connections CONNECTIONS SIZE CLIENTS\n");
		return 2;
	}
	clock_gettime(CLOCK_MONOTONIC, &begun);
	for (i = 0; i < clients; i++)
		if (fork() == 0) {
			run(connections / clients, size, i);
			exit(0);
		}
	while (wait(&status) > 0)
		failed |= status;
	clock_gettime(CLOCK_MONOTONIC, &ended);
	printf("%.0f\n",
	       connections / (ended.tv_sec - begun.tv_sec + (ended.tv_nsec - begun.tv_nsec) / 1e9));
	return failed != 0;
}
