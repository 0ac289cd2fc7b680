// SPDX-License-Identifier: Apache-2.0
/*
 * uname(2) of another kernel, for LD_PRELOAD: tools/vm_warm.py compiles BPF
 * programs here for the kernel of a VM, and libbcc asks uname for its version.
 *
 * UNAME_RELEASE and UNAME_VERSION in the environment say what to answer.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

static void set(char *field, size_t size, const char *name)
{
	const char *value = getenv(name);

	if (value) {
		strncpy(field, value, size - 1);
		field[size - 1] = '\0';
	}
}

int uname(struct utsname *names)
{
	int (*next)(struct utsname *) = (int (*)(struct utsname *))dlsym(RTLD_NEXT, "uname");
	int error = next(names);

	if (!error) {
		set(names->release, sizeof(names->release), "UNAME_RELEASE");
		set(names->version, sizeof(names->version), "UNAME_VERSION");
	}
	return error;
}
