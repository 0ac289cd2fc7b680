/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * libbpf_trace - attach a program of an object file, and detach it, as often as asked
 *
 *	libbpf_trace OBJECT PROGRAM [FILE FUNCTION]
 *
 * Loads PROGRAM alone and attaches it by its section's name, or as a uprobe to FUNCTION of FILE.
 * Standard input: a line attaches, the next one detaches, and so on; each is answered by "ok". A
 * refusal is one line on standard error and status 1.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static int quiet(enum libbpf_print_level level, const char *format, va_list arguments)
{
	return 0;
}

static int failed(const char *what, int error)
{
	fprintf(stderr, "%s: %s\n", what, strerror(error < 0 ? -error : error));
	return 1;
}

int main(int argc, char **argv)
{
	LIBBPF_OPTS(bpf_uprobe_opts, where);
	struct bpf_program *each, *wanted = 0;
	struct bpf_link *link = 0;
	struct bpf_object *object;
	char line[16];
	int error;

	if (argc != 3 && argc != 5) {
		fprintf(stderr, "usage: libbpf_trace OBJECT PROGRAM [FILE FUNCTION]\n");
		return 2;
	}
	libbpf_set_print(quiet);
	object = bpf_object__open(argv[1]);
	if (!object)
		return failed("cannot open the object", errno);
	bpf_object__for_each_program(each, object)
	{
		int is_wanted = !strcmp(bpf_program__name(each), argv[2]);

		bpf_program__set_autoload(each, is_wanted);
		if (is_wanted)
			wanted = each;
	}
	if (!wanted)
		return failed("cannot find the program", ENOENT);
	error = bpf_object__load(object);
	if (error)
		return failed("cannot load", error);
	while (fgets(line, sizeof(line), stdin)) {
		if (link) {
			bpf_link__destroy(link);
			link = 0;
		} else if (argc == 5) {
			where.func_name = argv[4];
			where.retprobe = strstr(bpf_program__section_name(wanted), "uret") != 0;
			link = bpf_program__attach_uprobe_opts(wanted, -1, argv[3], 0, &where);
			if (!link)
				return failed("cannot attach", errno);
		} else {
			link = bpf_program__attach(wanted);
			if (!link)
				return failed("cannot attach", errno);
		}
		puts("ok");
		fflush(stdout);
	}
	bpf_link__destroy(link);
	bpf_object__close(object);
	return 0;
}
