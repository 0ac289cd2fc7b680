/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * libbpf_loader - the least that libbpf can do for the same program
 *
 *	libbpf_loader IMAGE INTERFACE
 *
 * Loads the very instructions and maps that bpfkit loads (startup.py writes them
 * to IMAGE), fills the tail-call array, attaches the entry to a raw socket and
 * reads a map once.  The peer that bpfkit's start-up is measured against.
 *
 * IMAGE, all integers u32 in host order:
 *
 *	maps: count, then { type, key_size, value_size, max_entries, flags }
 *	programs: count, then { insns, relocs, slot in the tail-call array or ~0,
 *	          bytes of instructions, { instruction, map } per reloc }
 *	tail-call map (or ~0), entry program
 */
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NONE (~0u)
#define MAX  64

static FILE *image;

static uint32_t u32(void)
{
	uint32_t v;

	if (fread(&v, sizeof(v), 1, image) != 1) {
		fprintf(stderr, "libbpf_loader: image is cut off\n");
		exit(1);
	}
	return v;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	uint32_t maps, progs, slot[MAX], key_size[MAX], i, j, jump, entry;
	int map_fd[MAX], prog_fd[MAX], sock;
	struct sockaddr_ll where = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	unsigned char key[512];

	if (argc != 3) {
		fprintf(stderr, "usage: libbpf_loader IMAGE INTERFACE\n");
		return 2;
	}
	image = fopen(argv[1], "rb");
	if (!image)
		die(argv[1]);
	maps = u32();
	for (i = 0; i < maps && i < MAX; i++) {
		uint32_t type = u32(), ksize = u32(), vsize = u32(), max = u32();
		LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = u32());

		key_size[i] = ksize;
		map_fd[i] = bpf_map_create(type, NULL, ksize, vsize, max, &opts);
		if (map_fd[i] < 0)
			die("bpf_map_create");
	}
	progs = u32();
	for (i = 0; i < progs && i < MAX; i++) {
		uint32_t count = u32(), relocs = u32();
		struct bpf_insn *insns = calloc(count, sizeof(*insns));

		slot[i] = u32();
		if (!insns || fread(insns, sizeof(*insns), count, image) != count)
			die("instructions");
		for (j = 0; j < relocs; j++) {
			uint32_t at = u32(), map = u32();

			insns[at].src_reg = BPF_PSEUDO_MAP_FD;
			insns[at].imm = map_fd[map];
		}
		prog_fd[i] =
			bpf_prog_load(BPF_PROG_TYPE_SOCKET_FILTER, NULL, "GPL", insns, count, NULL);
		if (prog_fd[i] < 0)
			die("bpf_prog_load");
		free(insns);
	}
	jump = u32();
	entry = u32();
	for (i = 0; i < progs; i++)
		if (jump != NONE && slot[i] != NONE &&
		    bpf_map_update_elem(map_fd[jump], &slot[i], &prog_fd[i], BPF_ANY))
			die("tail calls");
	sock = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (sock < 0)
		die("socket");
	if (setsockopt(sock, SOL_SOCKET, SO_ATTACH_BPF, &prog_fd[entry], sizeof(int)))
		die("SO_ATTACH_BPF");
	where.sll_ifindex = if_nametoindex(argv[2]);
	if (!where.sll_ifindex || bind(sock, (struct sockaddr *)&where, sizeof(where)))
		die(argv[2]);
	puts("attached");
	fflush(stdout);
	for (i = 0; i < maps; i++)
		if (key_size[i] <= sizeof(key))
			bpf_map_get_next_key(map_fd[i], NULL, key);
	return 0;
}
