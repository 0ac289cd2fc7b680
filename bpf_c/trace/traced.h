/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which processes a tracing program is about: one process, those of a cgroup and the cgroups below
 * it, or all. The programs' LOAD_CONSTs 0 to 2 are these; bpfkit/app/trace.py sets them.
 */
#ifndef __BPFKIT_TRACED_H
#define __BPFKIT_TRACED_H

#include <bpfkit/bpfkit.h>

LOAD_CONST(0, only_pid, 0); /* process id in the initial PID namespace; 0: all */
LOAD_CONST(1, only_cgroup, 0); /* cgroup id; 0: all */
LOAD_CONST(2, cgroup_level, 0); /* its depth below the root; 0: without the cgroups below it */

static __always_inline bool is_traced(void)
{
	if (only_pid() && bpf_get_current_pid_tgid() >> 32 != only_pid())
		return false;
	if (!only_cgroup())
		return true;
	if (!cgroup_level()) /* for kernels whose tracing programs may not ask for ancestors: 5.10 */
		return bpf_get_current_cgroup_id() == only_cgroup();
	return bpf_get_current_ancestor_cgroup_id(cgroup_level()) == only_cgroup();
}

#endif /* __BPFKIT_TRACED_H */
