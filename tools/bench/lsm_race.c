/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * lsm_race - open files while their names are exchanged
 *
 *	lsm_race DIRECTORY COUNT
 *
 * Makes in DIRECTORY, if they are not there,
 *
 *	private/deep/secret	 a file that is to be denied by the directory private
 *	private/other/		 where it is moved to and back
 *	secret			 a file that is to be denied itself
 *	public, both		 files that may be opened
 *	link			 to public or to private/deep/secret
 *
 * prints "ready" and waits for a line on standard input. Then two threads open COUNT files in all, by
 * four names: link; private/deep/secret; renamed/deep/secret; secret. Another thread meanwhile turns
 * the link to the other file, renames private to renamed and back, moves the file between deep and
 * other, exchanges secret and both (RENAME_EXCHANGE), again and again. The last line of output is
 *
 *	OPENS ALLOWED DENIED ABSENT LEAKED EXCHANGES
 *
 * where LEAKED counts the opens that gave one of the two denied files, by device and inode.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define OPENERS 2

static atomic_long allowed, denied, absent, leaked, exchanges;
static atomic_int ended;
static struct stat secrets[2];
static long count;

static void make_file(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0) {
		perror(path);
		exit(1);
	}
	close(fd);
}

static void turn_link(const char *to)
{
	unlink("new");
	if (!symlink(to, "new"))
		rename("new", "link");
}

static void *exchange(void *argument)
{
	while (!atomic_load(&ended)) {
		turn_link("private/deep/secret");
		rename("private/deep/secret", "private/other/secret");
		rename("private/other/secret", "private/deep/secret");
		renameat2(AT_FDCWD, "secret", AT_FDCWD, "both", RENAME_EXCHANGE);
		turn_link("public");
		rename("private", "renamed");
		rename("renamed", "private");
		exchanges++;
	}
	return 0;
}

static void *open_all(void *argument)
{
	static const char *const names[] = { "link", "private/deep/secret", "renamed/deep/secret",
					     "secret" };

	for (long i = 0; i < count / OPENERS; i++) {
		int fd = open(names[i % 4], O_RDONLY | O_CLOEXEC);
		struct stat st;

		if (fd < 0 && errno == EPERM) {
			denied++;
		} else if (fd < 0) {
			absent++;
		} else {
			fstat(fd, &st);
			for (int n = 0; n < 2; n++)
				if (st.st_ino == secrets[n].st_ino &&
				    st.st_dev == secrets[n].st_dev)
					leaked++;
			allowed++;
			close(fd);
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	pthread_t openers[OPENERS], exchanger;

	if (argc != 3 || (count = atol(argv[2])) < OPENERS || chdir(argv[1])) {
		fprintf(stderr, "usage: lsm_race DIRECTORY COUNT\n");
		return 2;
	}
	mkdir("private", 0700);
	mkdir("private/deep", 0700);
	mkdir("private/other", 0700);
	make_file("private/deep/secret");
	make_file("secret");
	make_file("public");
	make_file("both");
	turn_link("public");
	if (stat("private/deep/secret", &secrets[0]) || stat("secret", &secrets[1]))
		return 1;
	puts("ready");
	fflush(stdout);
	getchar();
	pthread_create(&exchanger, NULL, exchange, NULL);
	for (int i = 0; i < OPENERS; i++)
		pthread_create(&openers[i], NULL, open_all, NULL);
	for (int i = 0; i < OPENERS; i++)
		pthread_join(openers[i], NULL);
	ended = 1;
	pthread_join(exchanger, NULL);
	printf("%ld %ld %ld %ld %ld %ld\n", count / OPENERS * OPENERS, (long)allowed, (long)denied,
	       (long)absent, (long)leaked, (long)exchanges);
	return 0;
}
