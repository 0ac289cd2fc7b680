#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What xdp_firewall costs with ten rules and with a million; and how long a million take to load.

::

    sudo python3 tools/bench/firewall.py [--count 1000000] [--repeat 200000]

Packets are run by BPF_PROG_TEST_RUN.  "one source" is one frame again and again, so everything it
touches is cached.  "random sources" are a million different ones: the program is compiled with a
line more, which writes the next address of a list into the frame, and what that alone costs is
subtracted.  A dropped packet's source is in the list, a passing one's is not.

Ratios are the figures to look at; both sides of each come from the same run.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import bpfkit  # noqa: E402
from bpfkit.core.children import command as child_command  # noqa: E402
from bpfkit.core.maps.base import Map  # noqa: E402
from bpfkit.net.links.lab import pair_lab  # noqa: E402
from bpfkit.net.packets.frames import ethernet, udp_packet  # noqa: E402
from bpfkit.xdp_firewall.control import MAPS, Firewall, templates  # noqa: E402
from bpfkit.xdp_firewall.rules import RuleSet, parse_data  # noqa: E402

POOL = 1 << 20
TARGET = {4: "0.0.0.0", 6: "::"}
LENGTHS = {4: (24, 24, 24, 32, 32, 28, 22, 20), 6: (48, 48, 64, 128, 56, 40)}
# As C text, whose quoted includes are looked up below bpf_c.
SOURCE = (
    (ROOT / "bpf_c/xdp/xdp_firewall.bpf.c")
    .read_text()
    .replace('"xdp_firewall.h"', '"xdp/xdp_firewall.h"')
)
POOL_C = (
    f"#define POOL {POOL}\n"
    + """
struct address { u64 words[2]; };
BPF_ARRAY(pool, struct address, POOL);
BPF_ARRAY(next_address, u64, 1);

static __always_inline bool another_source(struct xdp_md *ctx)
{
	u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 zero = 0, key;
	struct address *a;
	u64 *next;

	next = next_address.lookup(&zero);
	if (!next || data + 54 > end)
		return false;
	key = (*next)++ % POOL;
	a = pool.lookup(&key);
	if (!a)
		return false;
	if (data[12] == 8) {
		*(u32 *)(data + 26) = a->words[0];
	} else {
		*(u64 *)(data + 22) = a->words[0];
		*(u64 *)(data + 30) = a->words[1];
	}
	return true;
}

"""
)
MARK = 'SEC("xdp")\nint xdp_firewall(struct xdp_md *ctx)'
FIRST = "	p = scratch.lookup(&zero);"
assert MARK in SOURCE
assert FIRST in SOURCE
RANDOM = SOURCE.replace(MARK, POOL_C + MARK).replace(
    FIRST, "	if (!another_source(ctx))\n		return 0;\n" + FIRST
)
EMPTY = RANDOM.replace(FIRST, "	if (zero == 0)\n		return XDP_PASS;\n" + FIRST)


def prefixes(family: int, count: int, rng: random.Random) -> list[tuple[int, int]]:
    """(address, length), all different; addresses are those that hosts have."""
    bits = 32 if family == 4 else 128
    found: set[tuple[int, int]] = set()
    while len(found) < count:
        length = rng.choice(LENGTHS[family])
        found.add((_random(family, rng) >> bits - length << bits - length, length))
    return list(found)


def _random(family: int, rng: random.Random) -> int:
    return rng.getrandbits(32) if family == 4 else 0x2 << 124 | rng.getrandbits(125)


def text(family: int, entry: tuple[int, int]) -> str:
    """An entry as a line of a rules file."""
    raw = entry[0].to_bytes(4 if family == 4 else 16, "big")
    return f"{inet_ntop(AF_INET if family == 4 else AF_INET6, raw)}/{entry[1]}"


def sources(family: int, entries: list[tuple[int, int]], drop: bool) -> list[bytes]:
    """A pool of addresses that the list has (``drop``), or has not."""
    rng = random.Random(2)
    bits = 32 if family == 4 else 128
    there = set(entries)
    lengths = sorted({length for _, length in entries})
    pool = []
    for _ in range(1 << 16 if family == 6 else 1 << 17):
        if drop:
            address, length = rng.choice(entries)
            pool.append(address | rng.getrandbits(bits - length) if length < bits else address)
            continue
        while True:
            address = _random(family, rng)
            if not any((address >> bits - n << bits - n, n) in there for n in lengths):
                break
        pool.append(address)
    return [address.to_bytes(bits // 8, "big") for address in pool]


def frame(family: int, source: bytes) -> bytes:
    """A UDP packet to port 9."""
    ends = inet_ntop(AF_INET if family == 4 else AF_INET6, source), TARGET[family]
    mac = "00:00:00:00:00:00"
    return ethernet(mac, mac, udp_packet(*ends, bytes(22), ports=(1000, 9), check=False))


class Bench:
    """The program with a list, in one of its variants."""

    def __init__(self, source: str, rules: RuleSet, front: str, events: int) -> None:
        kind = {"none": 0, "bits": 1, "bloom": 2}[front]
        self.templates = templates()
        consts = {"front_kind": kind, "events": events}
        self.object = bpfkit.load(source, consts=consts, reuse_maps=self.templates)
        self.firewall = Firewall({name: self.object[name] for name in MAPS})
        self.firewall.start(front, 1 << 22)
        self.firewall.load(rules)
        self.program = self.object.programs["xdp_firewall"]

    def fill_pool(self, pool: list[bytes]) -> None:
        """Sources for the frames, again and again until the pool is full."""
        values = b"".join(one.ljust(16, b"\0") for one in pool)
        values *= POOL // len(pool)
        keys = b"".join(i.to_bytes(4, sys.byteorder) for i in range(POOL))
        self.object["pool"].update_raw(keys, values)

    def ns(self, packet: bytes, repeat: int, verdict: int) -> float:
        """The best of five runs, nanoseconds a packet."""
        best = float("inf")
        for _ in range(5):
            result = self.program.run(packet, repeat)
            assert result.retval == verdict, f"verdict {result.retval}, not {verdict}"
            best = min(best, result.duration_ns)
        return best

    def close(self) -> None:
        """Unload."""
        self.object.close()
        for one in self.templates.values():
            one.close()


def load_times(count: int) -> None:
    """The whole command `load FILE` against a firewall that is running."""
    rng = random.Random(3)
    kinds = {
        "IPv4, as random": [(4, count)],
        "IPv4 and IPv6, half each": [(4, count // 2), (6, count // 2)],
    }
    with pair_lab() as lab, tempfile.TemporaryDirectory() as directory:
        netns = f"/proc/{os.getpid()}/fd/{lab['server'].fd}"
        command = child_command("bpfkit.xdp_firewall")
        for front in ("bits", "bloom"):
            running = subprocess.Popen(
                [*command, "-i", "eth0", "--netns", netns, "--front", front, "-t", "3600"],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                assert running.stderr is not None
                running.stderr.readline()
                for kind, families in kinds.items():
                    lines = [text(f, e) for f, n in families for e in prefixes(f, n, rng)]
                    rng.shuffle(lines)
                    path = Path(directory, "rules.txt")
                    path.write_text("\n".join(lines) + "\n")
                    best = float("inf")
                    for _ in range(3):
                        began = time.perf_counter()
                        subprocess.run(
                            [*command, "load", str(path), "--netns", netns],
                            cwd=ROOT,
                            check=True,
                            stderr=subprocess.DEVNULL,
                        )
                        best = min(best, time.perf_counter() - began)
                    print(f"load {len(lines)} prefixes ({kind}), front {front}: {best:.2f} s")
            finally:
                running.terminate()
                running.wait()


def packets(count: int, repeat: int, fronts: list[str]) -> None:
    """Nanoseconds a packet."""
    rng = random.Random(1)
    head = f"{'':38} {'10':>8} {count:>9} {'ratio':>6}"
    for family in (4, 6):
        large = prefixes(family, count, rng)
        lists = {10: large[:10], count: large}
        rules = {
            n: parse_data("\n".join(text(family, e) for e in entries).encode(), "bench")
            for n, entries in lists.items()
        }
        pools = {
            (n, drop): sources(family, entries, drop)
            for n, entries in lists.items()
            for drop in (False, True)
        }
        print(f"\nIPv{family}, ns a packet with … prefixes\n{head}")
        for front in fronts:
            for events in (0, 1) if front == "bits" else (0,):
                variant(family, front, events, repeat, rules, pools)


def variant(
    family: int,
    front: str,
    events: int,
    repeat: int,
    rules: dict[int, RuleSet],
    pools: dict[tuple[int, bool], list[bytes]],
) -> None:
    """With one front; with ``events`` only what is dropped, into a ring that soon is full."""
    figures: dict[tuple[str, str, int], float] = {}
    for n in rules:
        for kind, source in (("one source", SOURCE), ("random sources", RANDOM)):
            bench = Bench(source, rules[n], front, events)
            empty = Bench(EMPTY, RuleSet(), front, 0) if source is RANDOM else None
            for drop in (True,) if events else (False, True):
                pool = pools[n, drop]
                cost = 0.0
                if empty is not None:
                    bench.fill_pool(pool)
                    empty.fill_pool(pool)
                    cost = empty.ns(frame(family, pool[0]), repeat, 2)
                word = "dropped, event" if events else "dropped" if drop else "passes"
                ns = bench.ns(frame(family, pool[0]), repeat, 1 if drop else 2)
                figures[word, kind, n] = ns - cost
            bench.close()
            if empty is not None:
                empty.close()
    few_rules, many_rules = rules
    for word, kind, n in figures:
        if n == few_rules:
            few, many = figures[word, kind, n], figures[word, kind, many_rules]
            what = f"{front}, {kind}, {word}"
            print(f"{what:38} {few:8.0f} {many:9.0f} {many / few:6.2f}", flush=True)


TRIE_C = """
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
struct key { u32 len; __be32 addr; };
struct prefix { __be32 addr; u32 len; };
struct rule { u32 action; u32 zero; u64 packets; u64 bytes; };
BPF_F_TABLE("lpm_trie", struct key, struct rule, trie, 1000000, 1);
BPF_TABLE("hash", struct prefix, struct rule, hash, 1000000);
BPF_ARRAY(pool, u32, 131072);
LOAD_CONST(0, which, 0);
SEC("xdp")
int lookups(struct xdp_md *ctx)
{
	u32 i, hits = 0, at = bpf_get_prandom_u32();

#pragma clang loop unroll(disable)
	for (i = 0; i < 64; i++) {
		u32 key = (at + i) % 131072, *addr = pool.lookup(&key);
		struct prefix p = { .len = 24 };
		struct key k = { .len = 32 };

		if (!addr)
			return 0;
		k.addr = *addr;
		p.addr = *addr & bpf_htonl(0xffffff00);
		if (which() == 1)
			hits += !!trie.lookup(&k);
		else if (which() == 2)
			hits += !!hash.lookup(&p);
	}
	return hits;
}
"""


def trie_and_hash(count: int, repeat: int) -> None:
    """Why not BPF_MAP_TYPE_LPM_TRIE: the same /24s in both, fill and lookup of what is there."""
    count = min(count, 1_000_000)
    rng = random.Random(4)
    addresses = [number << 8 for number in rng.sample(range(1 << 24), count)]
    rule = (2).to_bytes(24, sys.byteorder)
    length = (24).to_bytes(4, sys.byteorder)
    pool = b"".join((rng.choice(addresses) | 7).to_bytes(4, "big") for _ in range(131072))
    indexes = b"".join(i.to_bytes(4, sys.byteorder) for i in range(131072))
    print(f"\n{count} IPv4 /24, random order")
    ns: dict[str, float] = {}
    fill: dict[str, float] = {}
    for which, name in ((0, ""), (1, "trie"), (2, "hash")):
        with bpfkit.load(TRIE_C, consts={"which": which}) as loaded:
            loaded["pool"].update_raw(indexes, pool)
            if name:
                raw = [address.to_bytes(4, "big") for address in addresses]
                keys = [length + one if which == 1 else one + length for one in raw]
                target: Map = loaded[name]
                began = time.perf_counter()
                target.update_raw(b"".join(keys), rule)
                fill[name] = time.perf_counter() - began
            program: Any = loaded.programs["lookups"]
            best = min(program.run(bytes(64), max(repeat // 64, 1000)).duration_ns for _ in "12345")
            ns[name] = best / 64
    for name in ("trie", "hash"):
        print(f"{name}: filled in {fill[name]:.2f} s, a lookup {ns[name] - ns['']:.0f} ns")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=200_000)
    fronts = ("bits", "bloom", "none")
    parser.add_argument("--front", choices=fronts, action="append", help="only this, and no more")
    options = parser.parse_args()
    if options.front is None:
        trie_and_hash(options.count, options.repeat)
    packets(options.count, options.repeat, options.front or list(fronts))
    if options.front is None:
        print()
        load_times(options.count)


if __name__ == "__main__":
    main()
