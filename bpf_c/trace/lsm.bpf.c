/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * lsm: opens and executions of files below a directory denied; sockets and connects logged
 * =========================================================================================
 *
 * hook      LSM hooks file_open, bprm_check_security, socket_create, socket_connect: after the kernel's
 *           own permission checks, beside SELinux and AppArmor (CONFIG_BPF_LSM, and `bpf` among lsm=)
 * context   the hook's arguments, typed by BTF, and behind them what the programs before returned
 * may       refuse: a negative errno
 *
 *   file_open           -> traced? -> the file, its directory, that one's, …: in `places`? -> -EPERM
 *   bprm_check_security -> traced? -> the same for the file to execute                     -> -EPERM
 *   socket_create, socket_connect -> traced? -> events
 *
 * A place is a file or directory by device and inode, not by name: neither a rename nor a symbolic link
 * or another mount helps, and nothing can be exchanged between the check and the open, because the
 * file that is checked is the one that is opened. A file is below a directory by the link that was
 * used. The walk leaves a mounted file system at its mount point.
 *
 * Maps
 *   places   hash     struct place -> DENY_OPEN | DENY_EXEC
 *   events   ringbuf  struct lsm_event
 *   counts   array    enum what -> u64: calls seen; SAW_DENIED: refused
 *   lost     array    0: events without room in the ring
 */
#include "traced.h"
#include <linux/sched.h>
#include <linux/fs.h>
#include <linux/binfmts.h>
#include <linux/mount.h>
#include <linux/net.h>

LOAD_CONST(3, log_opens, 0);

#define MAX_DEPTH   48 /* directories of a path */
#define NAME_LEN    256
#define ERROR_PERM  1
#define FAMILY_IPV4 2 /* AF_INET */
#define FAMILY_IPV6 10 /* AF_INET6 */

enum action {
	DENY_OPEN = 1,
	DENY_EXEC = 2,
};

enum what {
	SAW_OPENED,
	SAW_EXECUTED,
	SAW_SOCKET,
	SAW_CONNECTED,
	SAW_DENIED,
	SAW_KINDS,
};

struct place {
	u32 device; /* as the kernel has it: major << 20 | minor */
	u32 pad;
	u64 inode;
};

struct lsm_event {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 pid;
	u32 what; /* enum what */
	s32 result; /* 0, or -EPERM */
	u32 family; /* of a socket */
	u32 type;
	u32 protocol;
	__be16 port; /* of a connect */
	u16 pad;
	u8 address[16]; /* of a connect; IPv4: the first four bytes */
	char comm[TASK_COMM_LEN];
	char name[NAME_LEN]; /* of a file: its last part */
};

BPF_HASH(places, struct place, u32, 1024);
BPF_RINGBUF_OUTPUT(events, 64);
EVENT_TYPE(events, struct lsm_event);
BPF_PERCPU_ARRAY(scratch, struct lsm_event, 1);
BPF_ARRAY(counts, u64, SAW_KINDS);
BPF_ARRAY(lost, u64, 1);

static __always_inline void count(u32 what)
{
	count_one(counts.lookup(&what));
}

static __always_inline struct lsm_event *begin(u32 what)
{
	struct lsm_event *e;
	u32 zero = 0;

	count(what);
	e = scratch.lookup(&zero);
	if (!e)
		return 0;
	__builtin_memset(e, 0, offsetof(struct lsm_event, name) + 1);
	e->time_ns = bpf_ktime_get_ns();
	e->pid = bpf_get_current_pid_tgid() >> 32;
	e->what = what;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	return e;
}

static __always_inline void send(struct lsm_event *e)
{
	u32 zero = 0;
	u64 *n;

	if (e->result)
		count(SAW_DENIED);
	if (events.ringbuf_output(e, sizeof(*e), 0)) {
		n = lost.lookup(&zero);
		if (n)
			__sync_fetch_and_add(n, 1);
	}
}

/* The actions of the places that a path leads through. */
static __always_inline u32 actions_of(struct file *file)
{
	struct dentry *dentry = 0, *parent = 0;
	struct super_block *sb = 0;
	struct vfsmount *mnt = 0;
	struct inode *inode = 0;
	struct place place = {};
	struct mount *m, *above;
	u32 found = 0, *action, i;

	bpf_probe_read_kernel(&dentry, sizeof(dentry), &file->f_path.dentry);
	bpf_probe_read_kernel(&mnt, sizeof(mnt), &file->f_path.mnt);
	m = (void *)mnt - offsetof(struct mount, mnt);
	for (i = 0; i < MAX_DEPTH; i++) {
		bpf_probe_read_kernel(&inode, sizeof(inode), &dentry->d_inode);
		bpf_probe_read_kernel(&place.inode, sizeof(place.inode), &inode->i_ino);
		bpf_probe_read_kernel(&sb, sizeof(sb), &inode->i_sb);
		bpf_probe_read_kernel(&place.device, sizeof(place.device), &sb->s_dev);
		action = places.lookup(&place);
		if (action)
			found |= *action;
		bpf_probe_read_kernel(&parent, sizeof(parent), &dentry->d_parent);
		if (parent == dentry) {
			/* The root of a file system: go on where it is mounted. */
			bpf_probe_read_kernel(&above, sizeof(above), &m->mnt_parent);
			if (above == m)
				break;
			bpf_probe_read_kernel(&dentry, sizeof(dentry), &m->mnt_mountpoint);
			m = above;
		} else {
			dentry = parent;
		}
	}
	return found;
}

static __always_inline void set_name(struct lsm_event *e, struct file *file)
{
	const unsigned char *name = 0;
	struct dentry *dentry = 0;

	bpf_probe_read_kernel(&dentry, sizeof(dentry), &file->f_path.dentry);
	bpf_probe_read_kernel(&name, sizeof(name), &dentry->d_name.name);
	bpf_probe_read_kernel_str(e->name, sizeof(e->name), name);
}

SEC("lsm/file_open")
int file_open(u64 *ctx)
{
	struct file *file = (void *)ctx[0];
	s32 before = ctx[1];
	struct lsm_event *e;
	u32 actions;

	if (before || !is_traced())
		return before;
	actions = actions_of(file);
	if (!(actions & DENY_OPEN) && !log_opens()) {
		count(SAW_OPENED);
		return 0;
	}
	e = begin(SAW_OPENED);
	if (!e)
		return actions & DENY_OPEN ? -ERROR_PERM : 0;
	e->result = actions & DENY_OPEN ? -ERROR_PERM : 0;
	set_name(e, file);
	send(e);
	return e->result ? -ERROR_PERM : 0;
}

SEC("lsm/bprm_check_security")
int check_exec(u64 *ctx)
{
	struct linux_binprm *bprm = (void *)ctx[0];
	s32 before = ctx[1];
	struct file *file = 0;
	struct lsm_event *e;
	u32 denied;

	if (before || !is_traced())
		return before;
	bpf_probe_read_kernel(&file, sizeof(file), &bprm->file);
	denied = actions_of(file) & DENY_EXEC;
	e = begin(SAW_EXECUTED);
	if (e) {
		e->result = denied ? -ERROR_PERM : 0;
		set_name(e, file);
		send(e);
	}
	return denied ? -ERROR_PERM : 0;
}

SEC("lsm/socket_create")
int socket_create(u64 *ctx)
{
	s32 before = ctx[4];
	struct lsm_event *e;

	if (before || ctx[3] || !is_traced()) /* ctx[3]: the kernel's own socket */
		return before;
	e = begin(SAW_SOCKET);
	if (!e)
		return 0;
	e->family = ctx[0];
	e->type = ctx[1];
	e->protocol = ctx[2];
	send(e);
	return 0;
}

SEC("lsm/socket_connect")
int socket_connect(u64 *ctx)
{
	void *to = (void *)ctx[1];
	s32 before = ctx[3];
	struct lsm_event *e;
	u16 family = 0;

	if (before || !is_traced())
		return before;
	e = begin(SAW_CONNECTED);
	if (!e)
		return 0;
	bpf_probe_read_kernel(&family, sizeof(family), to);
	e->family = family;
	if (family == FAMILY_IPV4 || family == FAMILY_IPV6)
		bpf_probe_read_kernel(&e->port, sizeof(e->port), to + 2);
	if (family == FAMILY_IPV4)
		bpf_probe_read_kernel(e->address, 4, to + 4);
	else if (family == FAMILY_IPV6)
		bpf_probe_read_kernel(e->address, 16, to + 8);
	send(e);
	return 0;
}
