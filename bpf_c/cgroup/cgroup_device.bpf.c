/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * cgroup_device: which devices the processes of a cgroup may open and make
 * ========================================================================
 *
 * hook      open(2) and mknod(2) of a device node by a process of the cgroup (CGROUP_DEVICE)
 * context   struct bpf_cgroup_dev_ctx: access_type (type | access << 16), major, minor
 * packets   none: the hook is at devices
 * may       refuse: 0 makes the system call fail with EPERM; nothing else can be changed
 *
 *   open(2), mknod(2) -> rule of this device? -> of its major number? -> of its type?
 *                            |                                              |
 *                            +---- access in its mask? ----- no rule: the default mask
 *                                        |
 *                                1: go on | 0: EPERM   (counted, and an event if refused)
 *
 * A program of an outer cgroup (systemd's DeviceAllow=, a container runtime's) must allow the access,
 * too: all programs that are attached are asked.
 *
 * Maps
 *   rules     hash     struct device -> mask of the accesses allowed
 *   accesses  hash     struct device -> struct access_count
 *   total     cgroup_storage  struct access_count of the cgroup attached to: also of devices that
 *             `accesses` has no room for; made by attaching, and freed by detaching
 *   refused   ringbuf  struct refusal
 *   lost      array    0 -> refusals that the ring buffer had no room for
 */
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
#include <linux/sched.h>
#include <bpfkit/maps.h>

LOAD_CONST(0, default_mask, 7); /* accesses of a device without a rule */
LOAD_CONST(1, wide_rules, 1); /* 0: no rule has ANY in it */

#define ANY 0xffffffff /* in a rule: every major or minor number */

struct device {
	u32 type; /* BPF_DEVCG_DEV_BLOCK, BPF_DEVCG_DEV_CHAR */
	u32 major;
	u32 minor;
};

struct access_count {
	u64 allowed;
	u64 denied;
};

struct refusal {
	u64 time_ns; /* CLOCK_MONOTONIC */
	struct device device;
	u32 access; /* BPF_DEVCG_ACC_* */
	u32 pid;
	char comm[TASK_COMM_LEN];
};

BPF_HASH(rules, struct device, u32, 1024);
BPF_HASH(accesses, struct device, struct access_count, 4096);
BPFKIT_MAP(0, BPF_MAP_TYPE_CGROUP_STORAGE, total, u64, struct access_count, 0, 0, 0);
BPF_RINGBUF_OUTPUT(refused, 16);
EVENT_TYPE(refused, struct refusal);
BPF_ARRAY(lost, u64, 1);

/* The accesses that the most precise rule allows. */
static __always_inline u32 allowed(const struct device *dev)
{
	struct device key = *dev;
	u32 *mask;

	mask = rules.lookup(&key);
	if (mask)
		return *mask;
	if (!wide_rules())
		return default_mask();
	key.minor = ANY;
	mask = rules.lookup(&key);
	if (mask)
		return *mask;
	key.major = ANY;
	mask = rules.lookup(&key);
	return mask ? *mask : default_mask();
}

static __always_inline void report(const struct device *dev, u32 access)
{
	struct refusal *r = refused.ringbuf_reserve(sizeof(*r));
	u32 zero = 0;
	u64 *n;

	if (!r) {
		n = lost.lookup(&zero);
		if (n)
			__sync_fetch_and_add(n, 1);
		return;
	}
	r->time_ns = bpf_ktime_get_ns();
	r->device = *dev;
	r->access = access;
	r->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(r->comm, sizeof(r->comm));
	refused.ringbuf_submit(r, 0);
}

static __always_inline void add(struct access_count *count, bool ok)
{
	if (count)
		__sync_fetch_and_add(ok ? &count->allowed : &count->denied, 1);
}

SEC("cgroup/dev")
int cgroup_device(struct bpf_cgroup_dev_ctx *ctx)
{
	u32 access = ctx->access_type >> 16;
	struct device dev = {
		.type = ctx->access_type & 0xffff,
		.major = ctx->major,
		.minor = ctx->minor,
	};
	struct access_count none = {};
	bool ok = !(access & ~allowed(&dev));

	add(accesses.lookup_or_try_init(&dev, &none), ok);
	add(bpf_get_local_storage(BPFKIT_MAP_REF(total), 0), ok);
	if (!ok)
		report(&dev, access);
	return ok;
}
