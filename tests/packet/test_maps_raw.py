# SPDX-License-Identifier: Apache-2.0
"""Many entries from raw memory, a program's maps by their ids, BPFKIT_MAP of maps."""

from __future__ import annotations

import struct

import pytest

import bpfkit
from bpfkit.core.compile.compiler import compile_source
from bpfkit.core.compile.source import Source
from bpfkit.core.errors import CompileError
from bpfkit.core.kernel import syscall as sc
from bpfkit.core.maps.base import Map, MapFullError


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 16])
@pytest.mark.parametrize("kind", ["hash", "lpm_trie", "percpu_hash"])
def test_update_raw(kind: str, step: int) -> None:
    count = 1000
    keys = b"".join(struct.pack("=I", 32) + i.to_bytes(4, "big") for i in range(count))
    with Map.create(kind, 8, 8, count, flags=1 if kind == "lpm_trie" else 0) as m:
        width = m._value_bytes
        values = b"".join(i.to_bytes(8, "little") * (width // 8) for i in range(count))
        m.update_raw(keys, values, step=step)
        got, found, _ = m.items_raw()
        assert got == count
        size = 8
        there = {bytes(found[i * size : (i + 1) * size]) for i in range(got)}
        assert there == {keys[i * size : (i + 1) * size] for i in range(count)}
        key = (32, (77).to_bytes(4, "big")) if kind == "lpm_trie" else keys[77 * 8 : 78 * 8]
        value = m[key]
        assert value == (77 if kind != "percpu_hash" else (77,) * (width // 8))
        m.update_raw(bytearray(keys), (5).to_bytes(8, "little") * (width // 8), step=step)
        assert m[key] == (5 if kind != "percpu_hash" else (5,) * (width // 8))
        m.update_raw(b"", b"")
        for wrong in ((keys[:-1], values), (keys, values[:-1])):
            with pytest.raises(ValueError, match="do not match in number"):
                m.update_raw(*wrong)


def test_update_raw_says_when_it_is_full() -> None:
    with Map.create("hash", 4, 4, 10) as m:
        keys = b"".join(i.to_bytes(4, "little") for i in range(11))
        with pytest.raises(MapFullError, match="max_entries is 10"):
            m.update_raw(keys, bytes(4))
        assert len(m) == 10


SOURCE = """
#include <bpfkit/bpfkit.h>
#include <bpfkit/maps.h>
#include <uapi/linux/bpf.h>
BPF_ARRAY(plain, u32, 1);
BPFKIT_MAP(0, BPF_MAP_TYPE_BLOOM_FILTER, inner, void, u32, 10, 0, 3);
BPFKIT_MAP(1, BPF_MAP_TYPE_ARRAY_OF_MAPS, outer, u32, u32, 2, 0, %d);
SEC("xdp")
int peek(struct xdp_md *ctx)
{
	u32 one = 1, value = 7;
	void *m = bpf_map_lookup_elem(BPFKIT_MAP_REF(outer), &one);

	plain.lookup(&one);
	return m && !bpf_map_peek_elem(m, &value);
}
"""


def test_a_map_of_maps_that_bcc_does_not_know() -> None:
    with (
        bpfkit.load(SOURCE % 0) as loaded,
        Map.create("bloom_filter", 0, 4, 100, map_extra=2) as bloom,
    ):
        program = loaded.programs["peek"]
        assert program.run(bytes(64)).retval == 0
        loaded["outer"][1] = bloom
        assert program.run(bytes(64)).retval == 0
        bloom.add(7)
        assert program.run(bytes(64)).retval == 1
        ids = sc.prog_map_ids(program.fd)
        assert sorted(ids) == sorted([loaded["outer"].id, loaded["plain"].id])
        assert loaded["outer"].lookup(1) == bloom.id
        sc.grace_period()


def test_a_template_must_come_first() -> None:
    with pytest.raises(CompileError, match="must have a lower index"):
        compile_source(Source.find(SOURCE % 5), ())


def test_a_grace_period_without_membarrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels with nohz_full refuse membarrier's global command (EINVAL): another way waits."""
    from time import perf_counter

    from bpfkit.core.kernel import syscall

    def wait() -> float:
        start = perf_counter()
        syscall.grace_period()
        return perf_counter() - start

    def refuse(number: int, *rest: object) -> int:
        return -1 if number == syscall._NR_MEMBARRIER else real(number, *rest)

    real = syscall._syscall
    monkeypatch.setattr(syscall, "_syscall", refuse)
    # An update of any other map takes a few microseconds; a grace period is some ticks.
    assert sorted(wait() for _ in range(5))[2] > 0.0005
