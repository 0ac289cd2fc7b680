/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What sockops stores, and what it reports: read by bpfkit/sockops/ by these names.
 */
#ifndef __SOCKOPS_RECORDS_H
#define __SOCKOPS_RECORDS_H

#include "sockops.h"

enum kind {
	EVENT_ESTABLISHED,
	EVENT_RETRANSMIT,
	EVENT_ZERO_WINDOW, /* the peer closed its window */
	EVENT_WINDOW_OPEN,
	EVENT_STATE,
	EVENT_FAILED, /* connect(2) did */
	EVENT_CLOSE,
};

enum cause {
	CAUSE_RTO,
	CAUSE_FAST,
	CAUSE_SYN,
	CAUSE_SYN_ACK,
	CAUSE_PROBE, /* tail loss probe */
	CAUSES,
};

enum side {
	SIDE_NONE,
	SIDE_LISTENER,
	SIDE_ACTIVE,
	SIDE_PASSIVE,
};

enum count {
	OPENED,
	CLOSED,
	LOST,
	COUNTS,
};

/* Options of struct rule: 1 << OPTION_... */
enum option {
	OPTION_INITIAL_RTO,
	OPTION_CC,
	OPTION_TOS,
	OPTION_SNDBUF,
	OPTION_RCVBUF,
	OPTION_IW,
	OPTION_PACING,
};

struct prefix {
	u32 bits; /* of what follows */
	u32 version; /* 4: the address is IPv4-mapped; 6 */
	u8 addr[16] __aligned(4); /* network byte order */
};

struct rule {
	u32 options; /* those that are set */
	u32 initial_rto; /* jiffies */
	u32 tos;
	u32 sndbuf; /* bytes, as setsockopt(2) takes them */
	u32 rcvbuf;
	u32 iw; /* segments */
	u32 pacing; /* bytes per second */
	char cc[16];
};

struct conn {
	u64 begun_ns; /* connect(2), or the listener's listen(2) */
	u64 established_ns; /* 0: not yet */
	u64 zero_since_ns; /* 0: the peer's window is open */
	u64 zero_ns; /* sum of earlier closed times */
	u32 handshake_us; /* 0: not known */
	u32 rtt_min_us;
	u32 rtt_max_us;
	u32 rtt_samples;
	u32 retransmits[CAUSES];
	u32 zero_windows;
	u32 applied; /* 1 << OPTION_... */
	u32 refused;
	u32 pid; /* 0: not known */
	char comm[TASK_COMM_LEN];
	u8 side;
	u8 open; /* counted in OPENED, no close event yet */
	u8 header_flag; /* the listener's flag for header options is ours */
	u8 watched; /* each segment is looked at, for its window */
};

/* What TCP_INFO shows, by the kernel's names. */
struct counters {
	u64 bytes_sent;
	u64 bytes_received;
	u64 bytes_acked;
	u64 bytes_retrans;
	u32 segs_out;
	u32 segs_in;
	u32 retransmits; /* total_retrans */
	u32 srtt_us;
};

struct event {
	u64 time_ns; /* CLOCK_MONOTONIC */
	struct ends ends;
	u32 kind;
	struct conn conn;
	struct counters tcp;
	u32 cause; /* of a retransmission */
	u32 segments; /* retransmitted */
	u32 error; /* errno of the socket: 0, or why it closed */
	u8 old_state;
	u8 new_state;
	u8 mptcp;
	u8 aborted; /* a RST of this socket ended it */
};

/* A connection as the iterator writes it. */
struct live {
	u64 now_ns;
	struct ends ends;
	u32 state; /* BPF_TCP_... */
	struct conn conn;
	struct counters tcp;
};

/* What one callback has to report. */
struct news {
	u64 now_ns;
	u32 kind;
	u32 cause;
	u32 segments;
	u8 old_state;
	u8 new_state;
	u8 aborted;
};

#endif /* __SOCKOPS_RECORDS_H */
