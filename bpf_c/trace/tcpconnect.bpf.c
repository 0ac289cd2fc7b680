/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * tcpconnect: who connects where by TCP, how long it takes, with what result
 * ==========================================================================
 *
 * hook      the call that connects, by one of these:
 *             kprobe and kretprobe, kprobe.multi, or fentry and fexit of tcp_v4_connect() and
 *             tcp_v6_connect();
 *             tracepoints sys_enter and sys_exit of connect(2)
 *           and tp_btf/inet_sock_set_state, which tells how the handshake ends
 * context   struct pt_regs; the function's arguments, typed by BTF; struct trace_event_raw_sys_enter
 *           and …_sys_exit; (struct sock *, int old state, int new state)
 * may       observe only
 *
 *   connect    -> calls[thread] = { start, process, destination }
 *     SYN_SENT          -> connecting[socket] = { start, process }
 *     returns an error  -> attempts: that error (no route, no port left, …)
 *   later, in another context
 *     ESTABLISHED       -> attempts: 0
 *     CLOSE             -> attempts: the socket's error (refused, timed out, unreachable)
 *
 * The process is the one that called connect(); the end of a handshake comes with a packet or a timer,
 * in the middle of any process. A socket that its process closes during the handshake is ECANCELED.
 * TCP Fast Open and MPTCP subflows come by the same functions.
 *
 * Maps
 *   calls       hash     thread id -> struct call
 *   connecting  hash     struct sock * -> struct attempt, its result still open
 *   attempts    ringbuf  struct attempt
 *   lost        array    0: events without room in the ring, 1: connects without room in a hash
 */
#include "traced.h"
#include <uapi/linux/ptrace.h>
#include <linux/sched.h>
#include <bpfkit/sock.h>

#define PROTO_TCP        6
#define PROTO_MPTCP      262
#define ERROR_CANCELED   125
#define ERROR_INPROGRESS 115
#define ERROR_ALREADY    114
#define ERROR_ISCONN     106
#define ERROR_INTR       4
#define MAX_ERRNO        511 /* above are those that restart a system call */

struct address {
	u32 family;
	__be16 port;
	u8 bytes[16]; /* IPv4: the first four */
} __attribute__((packed, aligned(2)));

struct call {
	u64 start_ns;
	u64 sk;
	u32 closed; /* the socket went from SYN_SENT to CLOSE in this call */
	struct address to;
};

struct attempt {
	u64 time_ns; /* CLOCK_MONOTONIC, when it began */
	u64 took_ns;
	u32 pid;
	s32 result; /* 0, or an errno */
	u16 family;
	u16 sport;
	__be16 dport;
	u8 saddr[16]; /* IPv4: the first four bytes */
	u8 daddr[16];
	char comm[TASK_COMM_LEN];
};

BPF_HASH(calls, u32, struct call, 8192);
BPF_HASH(connecting, u64, struct attempt, 16384);
BPF_RINGBUF_OUTPUT(attempts, 1024);
EVENT_TYPE(attempts, struct attempt);
BPF_ARRAY(lost, u64, 2);

static __always_inline void count_lost(u32 what)
{
	count_one(lost.lookup(&what));
}

static __always_inline void set_process(struct attempt *a)
{
	a->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(a->comm, sizeof(a->comm));
}

/* The addresses of a socket, as far as it has them. */
static __always_inline void set_addresses(struct attempt *a, struct sock *sk)
{
	struct inet_sock *inet = (struct inet_sock *)sk;
	__be16 sport = 0;

	bpf_probe_read_kernel(&a->family, sizeof(a->family), &sk->__sk_common.skc_family);
	bpf_probe_read_kernel(&sport, sizeof(sport), &inet->inet_sport);
	a->sport = bpf_ntohs(sport);
	bpf_probe_read_kernel(&a->dport, sizeof(a->dport), &sk->__sk_common.skc_dport);
	sock_addresses(a->saddr, a->daddr, &sk->__sk_common, a->family);
}

static __always_inline void report(struct attempt *a)
{
	if (attempts.ringbuf_output(a, sizeof(*a), 0))
		count_lost(0);
}

/* --- the call ---------------------------------------------------------------------------- */

static __always_inline int enter(struct sock *sk, struct call *call)
{
	u32 tid = bpf_get_current_pid_tgid();

	if (call->to.family != FAMILY_IPV4 && call->to.family != FAMILY_IPV6)
		return 0;
	call->start_ns = bpf_ktime_get_ns();
	call->sk = (u64)sk;
	if (calls.update(&tid, call))
		count_lost(1);
	return 0;
}

/* sockaddr_in: family, port, address; sockaddr_in6: family, port, flow label, address. */
static __always_inline int enter_kernel(struct sock *sk, void *to)
{
	struct call call = {};
	u16 family = 0;

	if (!is_traced())
		return 0;
	bpf_probe_read_kernel(&family, sizeof(family), to);
	call.to.family = family;
	bpf_probe_read_kernel(&call.to.port, sizeof(call.to.port), to + 2);
	if (family == FAMILY_IPV4)
		bpf_probe_read_kernel(call.to.bytes, 4, to + 4);
	else
		bpf_probe_read_kernel(call.to.bytes, 16, to + 8);
	return enter(sk, &call);
}

static __always_inline int leave(s32 ret)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct attempt a = {};
	struct call *found, call;

	found = calls.lookup(&tid);
	if (!found)
		return 0;
	call = *found;
	calls.delete(&tid);
	/* 0, or the handshake goes on; what becomes of it comes by the socket's state. */
	if (ret >= 0 || ret < -MAX_ERRNO || ret == -ERROR_INPROGRESS || ret == -ERROR_ALREADY ||
	    ret == -ERROR_ISCONN || ret == -ERROR_INTR)
		return 0;
	if (call.sk)
		connecting.delete(&call.sk);
	a.time_ns = call.start_ns;
	a.took_ns = bpf_ktime_get_ns() - call.start_ns;
	a.result = -ret;
	set_process(&a);
	if (call.sk)
		set_addresses(&a, (struct sock *)call.sk);
	/* The destination that was asked for: a socket may have lost it by now. */
	a.family = call.to.family;
	a.dport = call.to.port;
	__builtin_memcpy(a.daddr, call.to.bytes, sizeof(a.daddr));
	report(&a);
	return 0;
}

SEC("kprobe/tcp_v4_connect")
int kprobe_v4(struct pt_regs *ctx)
{
	return enter_kernel((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx));
}

SEC("kprobe/tcp_v6_connect")
int kprobe_v6(struct pt_regs *ctx)
{
	return enter_kernel((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx));
}

SEC("kretprobe/tcp_v4_connect")
int kretprobe_v4(struct pt_regs *ctx)
{
	return leave(PT_REGS_RC(ctx));
}

SEC("kretprobe/tcp_v6_connect")
int kretprobe_v6(struct pt_regs *ctx)
{
	return leave(PT_REGS_RC(ctx));
}

SEC("kprobe.multi/tcp_v?_connect")
int multi_entry(struct pt_regs *ctx)
{
	return enter_kernel((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx));
}

SEC("kretprobe.multi/tcp_v?_connect")
int multi_return(struct pt_regs *ctx)
{
	return leave(PT_REGS_RC(ctx));
}

SEC("fentry/tcp_v4_connect")
int fentry_v4(u64 *ctx)
{
	return enter_kernel((void *)ctx[0], (void *)ctx[1]);
}

SEC("fentry/tcp_v6_connect")
int fentry_v6(u64 *ctx)
{
	return enter_kernel((void *)ctx[0], (void *)ctx[1]);
}

/* The arguments of an fexit program are the function's and, behind them, its return value. */
SEC("fexit/tcp_v4_connect")
int fexit_v4(u64 *ctx)
{
	return leave(ctx[3]);
}

SEC("fexit/tcp_v6_connect")
int fexit_v6(u64 *ctx)
{
	return leave(ctx[3]);
}

/* The protocol of a socket of the current process. */
static __always_inline u16 protocol_of(u32 fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct file **files, *file = 0;
	struct socket *socket = 0;
	struct sock *sk = 0;
	u16 protocol = 0;

	files = task->files->fdt->fd;
	bpf_probe_read_kernel(&file, sizeof(file), &files[fd]);
	bpf_probe_read_kernel(&socket, sizeof(socket), &file->private_data);
	bpf_probe_read_kernel(&sk, sizeof(sk), &socket->sk);
	bpf_probe_read_kernel(&protocol, sizeof(protocol), &sk->sk_protocol);
	return protocol;
}

SEC("tp/syscalls/sys_enter_connect")
int enter_connect(struct trace_event_raw_sys_enter *ctx)
{
	void *to = (void *)ctx->args[1];
	struct call call = {};
	u16 family = 0, protocol;

	if (!is_traced())
		return 0;
	/* The caller's page with the address was written a moment ago, so it is in memory. */
	bpf_probe_read_user(&family, sizeof(family), to);
	if (family != FAMILY_IPV4 && family != FAMILY_IPV6)
		return 0;
	protocol = protocol_of(ctx->args[0]);
	if (protocol != PROTO_TCP && protocol != PROTO_MPTCP)
		return 0;
	call.to.family = family;
	bpf_probe_read_user(&call.to.port, sizeof(call.to.port), to + 2);
	if (family == FAMILY_IPV4)
		bpf_probe_read_user(call.to.bytes, 4, to + 4);
	else
		bpf_probe_read_user(call.to.bytes, 16, to + 8);
	return enter(0, &call);
}

/* connect(2) waits for the handshake, whose result was reported, unless no SYN was ever sent. */
SEC("tp/syscalls/sys_exit_connect")
int exit_connect(struct trace_event_raw_sys_exit *ctx)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct call *call = calls.lookup(&tid);

	if (call && call->sk && !call->closed) {
		calls.delete(&tid);
		return 0;
	}
	return leave(ctx->ret);
}

/* --- the handshake ----------------------------------------------------------------------- */

SEC("tp_btf/inet_sock_set_state")
int set_state(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	int old = ctx[1], new = ctx[2], error = 0;
	struct attempt *found, a = {};
	u32 tid = bpf_get_current_pid_tgid();
	u64 key = (u64)sk;
	struct call *call;
	u16 protocol = 0;

	bpf_probe_read_kernel(&protocol, sizeof(protocol), &sk->sk_protocol);
	if (protocol == PROTO_MPTCP)
		return 0; /* its subflow is the TCP socket that connects */
	if (new == TCP_SYN_SENT) {
		call = calls.lookup(&tid);
		if (!call)
			return 0;
		call->sk = key;
		a.time_ns = call->start_ns;
		set_process(&a);
		if (connecting.update(&key, &a))
			count_lost(1);
		return 0;
	}
	if (old != TCP_SYN_SENT)
		return 0;
	found = connecting.lookup(&key);
	if (!found)
		return 0;
	a = *found;
	if (new == TCP_CLOSE) {
		bpf_probe_read_kernel(&error, sizeof(error), &sk->sk_err);
		call = calls.lookup(&tid);
		if (!error && call && call->sk == key) {
			call->closed = 1; /* the call will say why */
			return 0;
		}
		a.result = error ? error : ERROR_CANCELED;
	}
	connecting.delete(&key);
	a.took_ns = bpf_ktime_get_ns() - a.time_ns;
	set_addresses(&a, sk);
	report(&a);
	return 0;
}
