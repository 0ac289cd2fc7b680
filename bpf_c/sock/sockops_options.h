/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sockops: options by destination. `rules` and has_rules() are the program's.
 */
#ifndef __SOCKOPS_OPTIONS_H
#define __SOCKOPS_OPTIONS_H

#define SOL_SOCKET         1
#define SO_SNDBUF          7
#define SO_RCVBUF          8
#define SO_MAX_PACING_RATE 47
#define SOL_IP             0
#define IP_TOS             1
#define SOL_IPV6           41
#define IPV6_TCLASS        67
#define SOL_TCP            6
#define TCP_CONGESTION     13

static __always_inline struct rule *rule_of(struct bpf_sock_ops *ctx)
{
	struct prefix key = { .bits = 160 };

	if (!has_rules())
		return 0;
	remote_addr_of(ctx, key.addr);
	key.version = is_mapped(key.addr) ? 4 : 6;
	return rules.lookup(&key);
}

static __always_inline void result(struct conn *c, u32 option, long error)
{
	*(error ? &c->refused : &c->applied) |= 1 << option;
}

/* What must be set before the SYN leaves; for an accepted socket, before its first data does. */
static __always_inline void set_options(struct bpf_sock_ops *ctx, struct conn *c)
{
	struct rule *rule = rule_of(ctx);
	u32 value;
	long error;

	if (!rule)
		return;
	if (rule->options & 1 << OPTION_INITIAL_RTO)
		c->applied |= 1 << OPTION_INITIAL_RTO; /* by TIMEOUT_INIT */
	if (rule->options & 1 << OPTION_SNDBUF) {
		value = rule->sndbuf;
		error = bpf_setsockopt(ctx, SOL_SOCKET, SO_SNDBUF, &value, sizeof(value));
		result(c, OPTION_SNDBUF, error);
	}
	if (rule->options & 1 << OPTION_RCVBUF) {
		value = rule->rcvbuf;
		error = bpf_setsockopt(ctx, SOL_SOCKET, SO_RCVBUF, &value, sizeof(value));
		result(c, OPTION_RCVBUF, error);
	}
	if (rule->options & 1 << OPTION_PACING) {
		value = rule->pacing;
		error = bpf_setsockopt(ctx, SOL_SOCKET, SO_MAX_PACING_RATE, &value, sizeof(value));
		result(c, OPTION_PACING, error);
	}
	if (rule->options & 1 << OPTION_TOS) {
		value = rule->tos;
		if (ctx->family == FAMILY_IPV6)
			error = bpf_setsockopt(ctx, SOL_IPV6, IPV6_TCLASS, &value, sizeof(value));
		else
			error = bpf_setsockopt(ctx, SOL_IP, IP_TOS, &value, sizeof(value));
		result(c, OPTION_TOS, error);
	}
	if (rule->options & 1 << OPTION_CC) {
		error = bpf_setsockopt(ctx, SOL_TCP, TCP_CONGESTION, rule->cc, sizeof(rule->cc));
		result(c, OPTION_CC, error);
	}
}

/* The handshake has just set the congestion window; nothing was sent yet. */
static __always_inline void set_window(struct bpf_sock_ops *ctx, struct conn *c)
{
	struct rule *rule = rule_of(ctx);
	u32 value;

	if (!rule || !(rule->options & 1 << OPTION_IW))
		return;
	value = rule->iw;
	result(c, OPTION_IW, bpf_setsockopt(ctx, SOL_TCP, TCP_BPF_IW, &value, sizeof(value)));
}

#endif /* __SOCKOPS_OPTIONS_H */
