/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sockex3_owners: which process has which IP socket, for sockex3 --by process and --by cgroup
 * ===========================================================================================
 *
 * hook      BPF iterator over the open files of all processes (Linux 5.8): read(2) of an iterator's
 *           descriptor runs the program once per file
 * context   struct bpf_iter__task_file: the task, its descriptor and the file
 * may       write to the file that is being read, nothing else
 *
 *   read(2) -> the kernel's walk over tasks and their files -> is it an IP socket? -> struct owner
 *
 * One walk finds the sockets of all network namespaces, containers included, with the process that
 * holds each. Sockets that no process holds any more (TIME_WAIT, a close(2) whose data is still being
 * sent) and the kernel's own are not found.
 *
 * Maps: none; the rows are what the program writes.
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <linux/sched.h>
#include <bpfkit/sock.h>

#define NAME_LEN 16

struct owner {
	u32 pid;
	u32 netns; /* inode */
	u16 proto; /* IPPROTO_*; MPTCP is 262 */
	u16 family;
	u16 sport;
	__be16 dport;
	u8 saddr[16]; /* IPv4: the first four bytes */
	u8 daddr[16];
	char name[NAME_LEN];
};

EVENT_TYPE(owners, struct owner);

SEC("iter/task_file")
int owners(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct owner row = {};
	struct sock_common *sk;
	struct socket *sock;

	if (!task || !file)
		return 0;
	sock = bpf_sock_from_file(file);
	if (!sock || !sock->sk)
		return 0;
	sk = &sock->sk->__sk_common;
	row.family = sk->skc_family;
	row.sport = sk->skc_num;
	if ((row.family != FAMILY_IPV4 && row.family != FAMILY_IPV6) || !row.sport)
		return 0;
	row.pid = task->tgid;
	row.netns = sk->skc_net.net->ns.inum;
	row.proto = sock->sk->sk_protocol;
	row.dport = sk->skc_dport;
	sock_addresses(row.saddr, row.daddr, sk, row.family);
	bpf_probe_read_kernel_str(row.name, sizeof(row.name), task->group_leader->comm);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}
