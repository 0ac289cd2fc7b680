/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * iter: tables of the kernel's objects, by programs that walk them
 * ================================================================
 *
 * hook      BPF iterators: read(2) of an iterator's descriptor runs the program once per object, and
 *           once more with no object at the end
 * context   struct bpf_iter__task, bpf_iter__tcp, bpf_iter__bpf_map_elem, bpf_iter__bpf_link: what the
 *           object is, and `meta` with the file that is being read
 * may       write to that file, nothing else
 *
 *   read(2) -> the kernel's own walk -> program: one object -> struct row -> the file -> Python
 *             (tasks, the TCP sockets of a network namespace, a map's elements, BPF links)
 *
 * No copy of the table is made in user space, no /proc text is parsed, and an object that disappears
 * during the walk is not shown half. The walk of tcp is that of the namespace whose process opened the
 * iterator.
 *
 * Maps: none; the rows are what the programs write.
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <linux/sched.h>
#include <bpfkit/sock.h>

#define NAME_LEN           16
#define MAX_BYTES          64 /* of a map's key and of its value */
#define STATE_TIME_WAIT    6 /* TCP_TIME_WAIT */
#define STATE_NEW_SYN_RECV 12 /* TCP_NEW_SYN_RECV */

struct task_row {
	u32 tgid;
	u32 tid;
	u32 ppid;
	u32 threads;
	u64 start_ns; /* since boot */
	char comm[NAME_LEN];
};

struct tcp_row {
	u16 family;
	u16 sport;
	__be16 dport;
	u8 state; /* TCP_* */
	u8 pad;
	u32 uid;
	u8 saddr[16]; /* IPv4: the first four bytes */
	u8 daddr[16];
	u64 cookie; /* 0: none was given yet */
};

struct elem_row {
	u32 key_size;
	u32 value_size;
	u8 key[MAX_BYTES]; /* the first bytes of each */
	u8 value[MAX_BYTES];
};

struct link_row {
	u32 id;
	u32 type; /* enum bpf_link_type */
	u32 prog_id;
	u32 prog_type;
	char prog_name[NAME_LEN];
};

EVENT_TYPE(task, struct task_row);
EVENT_TYPE(tcp, struct tcp_row);
EVENT_TYPE(map, struct elem_row);
EVENT_TYPE(link, struct link_row);

SEC("iter/task")
int task(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct task_row row = {};

	if (!task || task->pid != task->tgid)
		return 0; /* the end, or a thread that is not its process's first */
	row.tgid = task->tgid;
	row.tid = task->pid;
	row.ppid = task->real_parent->tgid;
	row.threads = task->signal->nr_threads;
	row.start_ns = task->start_boottime;
	bpf_probe_read_kernel_str(row.comm, sizeof(row.comm), task->comm);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

SEC("iter/tcp")
int tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;
	struct tcp_row row = {};
	__be16 sport = 0;

	if (!sk)
		return 0;
	row.uid = ctx->uid;
	row.state = sk->skc_state;
	row.family = sk->skc_family;
	row.sport = sk->skc_num;
	row.dport = sk->skc_dport;
	/* A half-open connection has its listener's place, its port is elsewhere. */
	if (row.state == STATE_NEW_SYN_RECV) {
		bpf_probe_read_kernel(&sport, sizeof(sport),
				      &((struct inet_request_sock *)sk)->ir_num);
		row.sport = sport;
	}
	sock_addresses(row.saddr, row.daddr, sk, row.family);
	bpf_probe_read_kernel(&row.cookie, sizeof(row.cookie), &sk->skc_cookie);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

SEC("iter/bpf_map_elem")
int map(struct bpf_iter__bpf_map_elem *ctx)
{
	struct elem_row row = {};
	void *key = ctx->key, *value = ctx->value;

	if (!key || !value)
		return 0;
	row.key_size = ctx->map->key_size;
	row.value_size = ctx->map->value_size;
	bpf_probe_read_kernel(row.key, row.key_size < MAX_BYTES ? row.key_size : MAX_BYTES, key);
	bpf_probe_read_kernel(row.value, row.value_size < MAX_BYTES ? row.value_size : MAX_BYTES,
			      value);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

#ifndef NO_LINK_ITER /* before 5.19 */
SEC("iter/bpf_link")
int link(struct bpf_iter__bpf_link *ctx)
{
	struct bpf_link *link = ctx->link;
	struct link_row row = {};

	if (!link)
		return 0;
	row.id = link->id;
	row.type = link->type;
	if (link->prog) {
		row.prog_id = link->prog->aux->id;
		row.prog_type = link->prog->type;
		bpf_probe_read_kernel_str(row.prog_name, sizeof(row.prog_name),
					  link->prog->aux->name);
	}
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}
#endif
