/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The map types for which BCC has no macro (bloom filter, devmap_hash,
 * reuseport_sockarray, user ring buffer, arena, ...).
 *
 *	BPFKIT_MAP(0, BPF_MAP_TYPE_BLOOM_FILTER, seen, void, u32, 1000, 0, 3);
 *	...
 *	bpf_map_push_elem(BPFKIT_MAP_REF(seen), &addr, 0);
 *
 * index	counts from 0, the program's own
 * type		enum bpf_map_type
 * key, value	C types; void for none
 * flags	BPF_F_...
 * extra	map_extra, 0 for most types; for maps of maps the index of the template
 *
 * The definition travels in BTF, written the way libbpf writes it (numbers
 * as array dimensions); the reference is a 64-bit load whose source register,
 * 14, exists nowhere else, and which the loader turns into the map's fd.
 */
#ifndef __BPFKIT_MAPS_H
#define __BPFKIT_MAPS_H

#define BPFKIT_MAP(index, map_type, name, key_type, value_type, entries, flags, extra) \
	enum { __bpfkit_map_index_##name = (index) };                                  \
	struct ____bpfkit_map_##name {                                                 \
		int (*map_index)[(index) + 1];                                         \
		int (*type)[(map_type)];                                               \
		int (*max_entries)[(entries) + 1];                                     \
		int (*map_flags)[(flags) + 1];                                         \
		int (*map_extra)[(extra) + 1];                                         \
		key_type *key;                                                         \
		value_type *value;                                                     \
	};                                                                             \
	struct ____bpfkit_map_##name __attribute__((section(".bpfkit.maps"), used))    \
	____bpfkit_map_##name = {}

/*
 * clang leaves a struct that only BPFKIT_MAP() names incomplete in BTF, so that the loader cannot see
 * its size; this completes it.
 */
#define BPFKIT_VALUE(name, type)                      \
	static const struct ____bpfkit_value_##name { \
		type value;                           \
	} __bpfkit_value_##name __attribute__((used, section("bpfkit.values"))) = {}

/* The map as helpers take it. */
#define BPFKIT_MAP_REF(name) ((void *)bpf_pseudo_fd(14, __bpfkit_map_index_##name))

#endif /* __BPFKIT_MAPS_H */
