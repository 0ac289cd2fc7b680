/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What every bpfkit program starts from: SEC, LICENSE, LOAD_CONST, BPF_KFUNC and EVENT_TYPE.
 *
 * A source says with SEC() what its programs are, in libbpf's words.  The
 * name travels with the function through the compiler, as a declaration tag
 * in its BTF, so SEC() may stand behind other macros and in #if branches:
 *
 *	SEC("socket")
 *	int count(struct __sk_buff *skb)
 *
 *	LICENSE("Dual BSD/GPL");
 *
 * Without LICENSE a program is "GPL".
 */
#ifndef __BPFKIT_H
#define __BPFKIT_H

#ifdef BPFKIT_NO_LOADER /* compiled and loaded by BCC alone: everything has its default */
#define SEC(name)
#define LICENSE(name) struct __bpfkit_license
#else
#if __has_attribute(btf_decl_tag) && !defined(BPFKIT_NO_TAGS)
#define SEC(name) __attribute__((used, btf_decl_tag("bpfkit:sec:" name)))
#else /* clang before 14, or BCC would stumble over the tags */
#pragma message("bpfkit: no btf_decl_tag")
#define SEC(name)
#endif
#define LICENSE(name) \
	static const char __bpfkit_license[] __attribute__((used, section("bpfkit.license"))) = name
#endif

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#ifndef __noinline
#define __noinline __attribute__((__noinline__))
#endif
#ifndef __maybe_unused
#define __maybe_unused __attribute__((unused))
#endif
#ifndef __packed
#define __packed __attribute__((packed))
#endif
#ifndef __aligned
#define __aligned(n) __attribute__((aligned(n)))
#endif
#ifndef likely
#define likely(x) __builtin_expect(!!(x), 1)
#endif
#ifndef unlikely
#define unlikely(x) __builtin_expect(!!(x), 0)
#endif

/*
 * A constant that the loader fills in: LOAD_CONST(index, name, default)
 * declares u64 name(void).  The verifier sees a number, so it removes the
 * branches that this value rules out; changing it needs no new compile.
 * Indices count from 0 and are the program's own.
 *
 * It is a 64-bit load whose source register, 15, exists nowhere else: the
 * loader finds it by that and puts the value in (libbpf's way, a frozen
 * .rodata map, is not open to BCC).  Index, default and name are in a section
 * of the object file that nothing loads.
 */
#ifdef BPFKIT_NO_LOADER
#define LOAD_CONST(index, name, def)                         \
	static __always_inline __maybe_unused u64 name(void) \
	{                                                    \
		return def;                                  \
	}                                                    \
	struct __bpfkit_const_##name
#else
#define LOAD_CONST(index, name, def)                         \
	static __always_inline __maybe_unused u64 name(void) \
	{                                                    \
		return bpf_pseudo_fd(15, index);             \
	}                                                    \
	static const struct {                                \
		unsigned long long __number, __value;        \
		char __text[64];                             \
	} __bpfkit_const_##name __attribute__((              \
		used, section("bpfkit.consts"))) = { index, (unsigned long long)(def), #name }
#endif

/*
 * A kernel function (kfunc): BPF_KFUNC(type, name, arguments) declares it, and the loader puts the id
 * in that the running kernel's BTF has for the name:
 *
 *	BPF_KFUNC(void, bpf_rcu_read_lock);
 *	BPF_KFUNC(int, bpf_sock_destroy, struct sock_common *sock);
 *
 * A kernel that does not have the function refuses the program only if the call can be reached, so a
 * LOAD_CONST can rule it out (bpfkit.core.features.kfuncs.has_kfunc() says whether it is there).
 *
 * clang emits a call of a helper whose number no kernel has; name and number are in a section of the
 * object file that nothing loads.
 */
#ifdef BPFKIT_NO_LOADER
#define BPF_KFUNC(type, name, ...) \
	static type (*name)(__VA_ARGS__) __maybe_unused = (void *)0x7f000000
#else
#define BPF_KFUNC(type, name, ...) __BPF_KFUNC(__COUNTER__, type, name, __VA_ARGS__)
#define __BPF_KFUNC(number, type, name, ...)                                                \
	static type (*name)(__VA_ARGS__) __maybe_unused = (void *)(0x7f000000UL + number);  \
	static const struct {                                                               \
		unsigned long long __number;                                                \
		char __text[64];                                                            \
	} __bpfkit_kfunc_##name                                                             \
		__attribute__((used, section("bpfkit.kfuncs"))) = { 0x7f000000ULL + number, \
								    #name }
#endif

/*
 * The type of the records in a ring buffer or perf buffer: EVENT_TYPE(map, struct record). The struct
 * reaches the object's BTF by it, and obj["map"].open() decodes its records into named fields.
 */
#ifdef BPFKIT_NO_LOADER
#define EVENT_TYPE(map, type) struct __bpfkit_event_##map
#else
#define EVENT_TYPE(map, type)                        \
	static const struct ____bpfkit_event_##map { \
		type value;                          \
	} __bpfkit_event_##map __attribute__((used, section("bpfkit.events"))) = {}
#endif

/*
 * How a member of an event, a key or a value is shown to people and in JSON: ip (4 or 16 bytes in
 * network byte order), mac, proto, time (bpf_ktime_get_ns()), hex, number (whatever its type and name).
 *
 *	u32 daddr SHOWN_AS(ip);
 */
#if __has_attribute(btf_decl_tag) && !defined(BPFKIT_NO_TAGS) && !defined(BPFKIT_NO_LOADER)
#define SHOWN_AS(form) __attribute__((btf_decl_tag("bpfkit:show:" #form)))
#else
#define SHOWN_AS(form)
#endif

/* Add 1 to a counter, which other CPUs add to as well; nothing if the lookup found none. */
static __always_inline __maybe_unused void count_one(u64 *counter)
{
	if (counter)
		__sync_fetch_and_add(counter, 1);
}

#endif /* __BPFKIT_H */
