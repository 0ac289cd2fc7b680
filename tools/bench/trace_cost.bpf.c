/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * An empty program on every tracing hook: what is left is the hook's own cost.
 *
 * hook      kprobe, kprobe.multi, kretprobe, fentry, fexit of __set_task_comm(); tracepoint,
 *           raw_tp, tp_btf task_rename, which that function calls; a uprobe and a uretprobe
 * context   not looked at
 * may       observe only
 *
 *   prctl(PR_SET_NAME) -> __set_task_comm(): function hooks -> task_rename: tracepoint hooks
 *   a call in user space -> uprobe
 *
 * trace_cost.py loads this by bpfkit, and the object that clang makes of it with -DLIBBPF by libbpf.
 */
#ifdef LIBBPF
#define SEC(name) __attribute__((used, section(name)))
char gpl[] SEC("license") = "GPL";
#else
#include <bpfkit/bpfkit.h>
#endif

SEC("kprobe/__set_task_comm")
int on_kprobe(void *ctx)
{
	return 0;
}

SEC("kprobe.multi/__set_task_comm")
int on_kprobe_multi(void *ctx)
{
	return 0;
}

SEC("kretprobe/__set_task_comm")
int on_kretprobe(void *ctx)
{
	return 0;
}

SEC("fentry/__set_task_comm")
int on_fentry(void *ctx)
{
	return 0;
}

SEC("fexit/__set_task_comm")
int on_fexit(void *ctx)
{
	return 0;
}

SEC("tp/task/task_rename")
int on_tracepoint(void *ctx)
{
	return 0;
}

SEC("raw_tp/task_rename")
int on_raw_tp(void *ctx)
{
	return 0;
}

SEC("tp_btf/task_rename")
int on_tp_btf(void *ctx)
{
	return 0;
}

SEC("uprobe")
int on_uprobe(void *ctx)
{
	return 0;
}

SEC("uretprobe")
int on_uretprobe(void *ctx)
{
	return 0;
}
