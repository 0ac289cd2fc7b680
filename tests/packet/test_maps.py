# SPDX-License-Identifier: Apache-2.0
"""Maps and buffers in the kernel.  The judges: ``bpftool``, errno, and BPF programs themselves."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from btftools import (
    EXIT,
    Builder,
    addi,
    btf_from_c,
    call,
    insn,
    ld_imm64,
    load_packet,
    mov,
    movi,
)

from bpfkit.core.cpus import possible_cpus
from bpfkit.core.errors import MapError, UnsupportedError
from bpfkit.core.kernel import syscall as sc
from bpfkit.core.maps.base import EXIST, NOEXIST, Map, MapFullError
from bpfkit.core.maps.buffers import UserRingFullError
from bpfkit.core.maps.percpu import PerCpuValue
from bpfkit.core.types import btf as B
from bpfkit.core.types.btf import Btf
from bpfkit.core.types.layout import int_layout, struct_layout

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make maps")

TEXT = """
enum dir { IN, OUT };
struct key { u16 family; u8 proto; u8 flags; u8 src[16]; u8 dst[16]; __be16 sport, dport; u32 id; };
struct val { u64 packets, bytes; };
struct odd { u32 a; u16 b; u8 c; enum dir d:2; u32 e:6; char name[7]; };
"""
CPUS = possible_cpus()


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf(btf_from_c(TEXT, "struct key", "struct val", "struct odd", "u32", "u64"))


@contextmanager
def new(
    kind: str, key: int = 4, value: int = 8, entries: int = 16, **options: object
) -> Iterator[Map]:
    try:
        m = Map.create(kind, key, value, entries, name="bpfkit_test", **options)  # type: ignore[arg-type]
    except UnsupportedError as error:
        pytest.skip(str(error))
    with m:
        yield m


def typed(btf: Btf, kind: str, key: str, value: str, entries: int = 64):  # type: ignore[no-untyped-def]
    k, v = btf.find(key), btf.find(value)
    assert k and v
    return new(kind, btf.sizeof(k), btf.sizeof(v), entries, btf=btf, key_type_id=k, value_type_id=v)


def bpftool(m: Map) -> list[dict[str, object]]:
    """The map as bpftool reads it."""
    tool = shutil.which("bpftool", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if tool is None:
        pytest.skip("no bpftool to judge by")
    out = subprocess.run(
        [tool, "map", "dump", "id", str(m.id), "-j"], check=True, capture_output=True
    )
    return json.loads(out.stdout)  # type: ignore[no-any-return]


def raw(array: list[str]) -> bytes:
    return bytes(int(byte, 16) for byte in array)


# --- dictionaries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hash", "lru_hash"])
def test_a_hash_is_a_dict(kind: str) -> None:
    with new(kind, entries=1000) as m:
        m[1] = 10
        m.update({2: 20, 3: 30})
        m.update([(4, 40)])
        assert (m[1], m.get(9), m.get(9, 0), len(m), 3 in m, 9 in m) == (
            10,
            None,
            0,
            4,
            True,
            False,
        )
        assert dict(m.items()) == {1: 10, 2: 20, 3: 30, 4: 40}
        assert sorted(m) == sorted(m.keys()) == [1, 2, 3, 4]
        assert sorted(m.values()) == [10, 20, 30, 40]
        assert sorted(m.rows()) == [(1, 10), (2, 20), (3, 30), (4, 40)]
        assert {raw(e["key"]): raw(e["value"]) for e in bpftool(m)} == {
            struct.pack("=I", k): struct.pack("=Q", v) for k, v in m.items()
        }
        assert m.pop(1) == 10
        assert m.pop(1, None) is None
        del m[2]
        for use in (lambda: m[2], lambda: m.pop(2), lambda: m.__delitem__(2)):
            with pytest.raises(KeyError):
                use()
        assert sorted(m.drain()) == [(3, 30), (4, 40)]
        assert (len(m), m.items(), m.rows(), m.keys()) == (0, [], [], [])
        m[5] = 1
        m.clear()
        assert len(m) == 0
        assert m, "an empty map is true"


def test_flags_and_errors_have_words() -> None:
    with new("hash", entries=2) as m:
        m.update_elem(1, 1, NOEXIST)
        with pytest.raises(MapError, match="the key 1 is there already"):
            m.update_elem(1, 1, NOEXIST)
        with pytest.raises(KeyError):
            m.update_elem(2, 1, EXIST)
        m[2] = 2
        with pytest.raises(MapFullError, match="max_entries is 2"):
            m[3] = 3
        with pytest.raises(MapFullError, match="max_entries is 2"):
            m.update({3: 3, 4: 4})
        with pytest.raises(ValueError, match="key of map 'bpfkit_test'"):
            m[1 << 32] = 0
        with pytest.raises(ValueError, match="value of map 'bpfkit_test'"):
            m[1] = -1
        m.freeze()
        with pytest.raises(MapError, match="frozen"):
            m[1] = 5
        assert m[1] == 1


def test_full_batch_keeps_what_fits_and_names_the_rest() -> None:
    with new("hash", entries=10) as m:
        with pytest.raises(MapFullError):
            m.update((i, i) for i in range(20))
        assert sorted(m.keys()) == list(range(10))


def test_creation_errors() -> None:
    with pytest.raises(MapError, match="cannot create hash map 'x': EINVAL"):
        Map.create("hash", 0, 8, 1, name="x")
    with pytest.raises(UnsupportedError, match="no such map type"):
        Map.create(200, 4, 4, 1)
    with pytest.raises(ValueError, match="no BPF_MAP_TYPE_HASCH"):
        Map.create("hasch", 4, 4, 1)


def test_typed_by_btf_and_read_back_from_the_kernel(btf: Btf) -> None:
    with typed(btf, "hash", "key", "val") as m:
        key = m.key_layout(family=2, proto=6, src=b"s" * 16, sport=443, id=9)  # type: ignore[operator]
        m[key] = (3, 180)
        assert m[key].bytes == 180
        assert m[key._asdict()] == (3, 180)
        assert m[tuple(key)] == m[bytes(key)] == {**m}[key] == (3, 180)
        m[key] = {"packets": 4}
        assert m[key] == (4, 0)
        (entry,) = bpftool(m)
        shown = entry["formatted"]
        assert shown["key"]["proto"] == 6 and shown["value"]["packets"] == 4  # type: ignore[index]
        assert shown["key"]["sport"] == socket.htons(443), "bpftool shows the bytes as they lie"  # type: ignore[index]
        assert m.columns[:2] == ("family", "proto") and m.columns[-1] == "bytes"
        with Map.from_id(m.id) as again:
            assert (again.name, again.type, again.max_entries) == ("bpfkit_test", "hash", 64)
            assert again.items() == m.items()
            assert again.items()[0][0].sport == 443
    with pytest.raises(MapError, match="no map with id"):
        Map.from_id(0x7FFFFFF0)


@pytest.mark.parametrize(
    "kind", ["hash", "array", "percpu_hash", "percpu_array", "lru_percpu_hash"]
)
@pytest.mark.parametrize("value", ["odd", "val", "u32"])
def test_values_of_any_size_agree_with_bpftool(btf: Btf, kind: str, value: str) -> None:
    """Values that are no multiple of 8 are where strides go wrong."""
    rng = random.Random(kind + value)
    with typed(btf, kind, "u32", value, 40) as m:
        size = m.value_size
        for i in range(40):
            if "percpu" in kind:
                m[i] = [rng.randbytes(size) for _ in range(CPUS)]
            else:
                m[i] = rng.randbytes(size)
        expected: dict[int, list[bytes]] = {}
        for entry in bpftool(m):
            values = entry["values"] if "percpu" in kind else [entry]
            expected[int.from_bytes(raw(entry["key"]), "little")] = [
                raw(v["value"])[:size] for v in values
            ]  # type: ignore[attr-defined,arg-type]
        assert len(expected) == 40
        decoded = {
            k: PerCpuValue(map(m.value_layout.decode, v))
            if "percpu" in kind
            else m.value_layout.decode(v[0])
            for k, v in expected.items()
        }
        assert dict(m.items()) == decoded
        assert {k: m[k] for k in m} == decoded
        assert sorted(m.values(), key=repr) == sorted(decoded.values(), key=repr)
        m._batch = False  # as on a kernel that cannot
        assert dict(m.items()) == decoded
        assert sorted(m.keys()) == sorted(decoded)


def test_per_cpu_sums(btf: Btf) -> None:
    with typed(btf, "percpu_hash", "key", "val", 1000) as m:
        for i in range(300):
            m[m.key_layout(id=i)] = [(cpu + i, 60 * i) for cpu in range(CPUS)]  # type: ignore[operator]
        key = m.key_layout(id=7)  # type: ignore[operator]
        total = sum(range(CPUS))
        assert m[key] == tuple((cpu + 7, 420) for cpu in range(CPUS))
        assert m.sum(key) == (total + 7 * CPUS, 420 * CPUS)
        sums = dict(m.sums())
        assert sums[key].bytes == 420 * CPUS
        assert len(sums) == 300
        assert {row[7]: row[8:] for row in m.rows()} == {
            i: (total + i * CPUS, 60 * i * CPUS) for i in range(300)
        }
        m[key] = (1, 2)
        assert m[key] == ((1, 2),) * CPUS


def test_numpy_arrays(btf: Btf) -> None:
    pytest.importorskip("numpy")
    with typed(btf, "percpu_hash", "key", "val", 1000) as m:
        for i in range(100):
            m[m.key_layout(sport=i)] = [(i, cpu) for cpu in range(CPUS)]  # type: ignore[operator]
        keys, values = m.items_arrays()
        assert values.shape == (100, CPUS)
        assert sorted(keys["sport"].tolist()) == list(range(100))
        assert (values["packets"][:, 0] == keys["sport"]).all()
        keys, sums = m.sums_arrays()
        assert (sums["packets"] == keys["sport"] * CPUS).all()
        count, raw_keys, raw_values = m.items_raw()
        assert (count, len(raw_keys), len(raw_values)) == (100, 4400, 1600 * CPUS)
        again = m.items_raw()[1]
        m.rows()
        assert bytes(again) == bytes(raw_keys), "the caller's to keep"
    with new("percpu_array", value=4, entries=5) as p:
        p[2] = [1 << 31] * CPUS
        assert p.sums_arrays()[1].tolist() == [0, 0, CPUS << 31, 0, 0], "widened"
    with new("hash", key=3, value=3) as h:
        h[b"abc"] = b"xyz"
        assert h.items_arrays()[0].tobytes() == b"abc"


def test_arrays() -> None:
    with new("array", entries=10) as m:
        assert (len(m), m.keys(), m[3], 9 in m, 10 in m) == (10, list(range(10)), 0, True, False)
        m.update({i: i * i for i in range(10)})
        assert m.values() == [i * i for i in range(10)]
        with pytest.raises(KeyError):
            m[10]
        with pytest.raises(KeyError):
            m[10] = 1
        with pytest.raises(MapError, match="cannot be deleted"):
            del m[1]
        with pytest.raises(MapError, match="without BPF_F_MMAPABLE"):
            m.mmap()
        m.clear()
        assert m.values() == [0] * 10
    with new("array", value=12, entries=3, flags=1 << 10) as m:
        with closing(m.mmap()) as memory:
            memory[16:28] = b"abcdefghijkl"
        assert m[1] == b"abcdefghijkl"


def test_many_entries_and_a_small_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with new("hash", entries=20000) as m:
        m.update((i, i) for i in range(20000))
        monkeypatch.setattr(type(m), "_capacity", lambda self: 3)
        assert sorted(m.items()) == [(i, i) for i in range(20000)]
        assert sorted(m.items()) == [(i, i) for i in range(20000)]


def test_entries_that_come_and_go() -> None:
    """Whatever is there throughout is returned, once; with and without batches."""
    with new("hash", entries=4096) as m, new("lpm_trie", key=8, entries=4096, flags=1) as trie:
        stable = range(2000)
        m.update((i, i) for i in stable)
        trie.update(((32, struct.pack(">I", i)), i) for i in stable)
        stop = threading.Event()
        churned = 0

        def churn() -> None:
            nonlocal churned
            rng = random.Random(1)
            while not stop.is_set():
                i = rng.randrange(2000, 4000)
                for target, key in ((m, i), (trie, (32, struct.pack(">I", i)))):
                    if key in target:
                        target.pop(key, None)
                    else:
                        target[key] = i
                churned += 1

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            for batch in (None, False):
                m._batch = trie._batch = batch
                for _ in range(25 if batch is None else 5):
                    pairs = m.items()
                    assert len(dict(pairs)) == len(pairs)
                    assert {k for k, _ in pairs} >= set(stable)
                    assert all(k == v for k, v in pairs)
                    pairs = trie.items()
                    assert len(dict(pairs)) == len(pairs)
                    found = {int.from_bytes(k.data, "big"): v for k, v in pairs}
                    assert all(k == v for k, v in found.items())
                    if batch is None:
                        assert set(found) >= set(stable)
        finally:
            stop.set()
            thread.join()
        assert churned > 100
        assert m._batch is False


def test_drain_loses_nothing() -> None:
    with new("hash", entries=10000) as m:
        taken: list[tuple[int, int]] = []
        done = threading.Event()

        def produce() -> None:
            for i in range(5000):
                m[i] = i
            done.set()

        thread = threading.Thread(target=produce)
        thread.start()
        while not done.is_set():
            taken += m.drain()
        thread.join()
        taken += m.drain()
        assert sorted(taken) == [(i, i) for i in range(5000)]


# --- other kinds ----------------------------------------------------------------------------------


def test_longest_prefix() -> None:
    with (
        new("lpm_trie", key=8, value=4, flags=1) as m,
        new("lpm_trie", key=20, value=4, entries=300, flags=1) as six,
    ):
        m.update({"10.0.0.0/8": 1, "10.1.0.0/16": 2, "0.0.0.0/0": 3})
        assert (m["10.1.2.3"], m["10.2.0.0"], m["8.8.8.8"]) == (2, 1, 3)
        assert sorted(m.prefix(k) for k in m) == ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16"]
        del m["0.0.0.0/0"]
        assert "8.8.8.8" not in m
        with pytest.raises(MapError, match="prefix length"):
            m[(40, b"\0\0\0\0")] = 1
        assert dict(m.items()) == {(8, b"\x0a\0\0\0"): 1, (16, b"\x0a\1\0\0"): 2}
        m.clear()
        assert m.items() == []
        addresses = [f"2001:db8:{i:x}::/48" for i in range(300)]
        six.update((a, i) for i, a in enumerate(addresses))
        assert {six.prefix(k): v for k, v in six.items()} == {
            socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, a[:-3])) + "/48": i
            for i, a in enumerate(addresses)
        }
        assert six["2001:db8:7::1"] == 7
        with pytest.raises(MapFullError, match="max_entries is 300"):
            six["::1"] = 1


def test_lpm_batches_of_long_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cursor of a trie is a whole key, not four bytes."""
    with new("lpm_trie", key=20, value=4, entries=500, flags=1) as m:
        m.update((f"2001:db8:{i:x}::/48", i) for i in range(400))
        monkeypatch.setattr(type(m), "_capacity", lambda self: 7)
        assert sorted(m.values()) == list(range(400))
        assert m._batch is True


def test_queue_and_stack() -> None:
    with new("queue", key=0, entries=3) as q, new("stack", key=0, entries=3) as s:
        for m, order in ((q, [1, 2, 3]), (s, [3, 2, 1])):
            for i in (1, 2, 3):
                m.push(i)
            with pytest.raises(MapFullError, match="replace=True"):
                m.push(4)
            assert m.peek() == order[0]
            assert m.drain() == order
            assert m.pop(None) is None and m.peek("none") == "none"
            with pytest.raises(IndexError, match="is empty"):
                m.pop()
            m.push(1)
            m.clear()
            assert m.drain() == []
        for i in range(5):
            q.push(i, replace=True)
        assert q.drain() == [2, 3, 4]


def test_bloom_filter() -> None:
    with new("bloom_filter", key=0, entries=1000, map_extra=4) as m:
        m.update(range(100))
        m.add(7777)
        assert all(i in m for i in range(100)) and 7777 in m
        assert sum(i in m for i in range(10000, 11000)) < 200


def program(code: bytes, kind: int = 1) -> int:
    return sc.prog_load(kind, code, b"GPL", b"bpfkit_test")


def test_prog_array() -> None:
    with new("prog_array", value=4, entries=4) as m:
        fd = program(movi(0, 7) + EXIT)
        try:
            m[1] = fd
            assert m[1] == sc.prog_info(fd)["id"]
            assert dict(m.items()) == {1: m[1]} and m.keys() == [1] and len(m) == 1
            tail = movi(3, 1) + ld_imm64(2, 1, m.fd) + call(12) + movi(0, 1) + EXIT
            caller = program(tail)
            try:
                assert sc.prog_test_run(caller, bytes(64))[0] == 7
                del m[1]
                assert sc.prog_test_run(caller, bytes(64))[0] == 1
            finally:
                os.close(caller)
            with pytest.raises(KeyError):
                del m[1]
            other = program(movi(0, 0) + EXIT, 6)
            try:
                with pytest.raises(MapError, match="program's type"):
                    m[0] = other
            finally:
                os.close(other)
            with pytest.raises(MapError, match="not a BPF program"):
                m[0] = 987
            m[2] = fd
            m.clear()
            assert m.items() == []
        finally:
            os.close(fd)


def test_maps_of_maps() -> None:
    with new("hash") as inner, new("hash") as second, new("array") as wrong:
        for kind in ("array_of_maps", "hash_of_maps"):
            with new(kind, value=4, inner=inner) as m:
                m[1] = inner
                m[2] = second.fd
                assert dict(m.items()) == {1: inner.id, 2: second.id}
                assert sorted(m.keys()) == [1, 2] and len(m) == 2
                with Map.from_id(m[2]) as again:
                    again[9] = 99
                assert second[9] == 99
                with pytest.raises(MapError, match="differs from the template"):
                    m[3] = wrong
                del m[1]
                assert m.keys() == [2]
                m.clear()
                assert m.items() == []


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def test_sockets() -> None:
    a, b = tcp_pair()
    with a, b:
        for kind in ("sockmap", "sockhash"):
            with new(kind, entries=4) as m:
                m[1] = a
                cookie = struct.unpack("=Q", a.getsockopt(socket.SOL_SOCKET, 57, 8))[0]  # SO_COOKIE
                assert m[1] == cookie
                assert dict(m.items()) == {1: cookie} and 1 in m and 2 not in m
                assert m.keys() == [1] and len(m) == 1
                del m[1]
                with pytest.raises(KeyError):
                    del m[1]
                m[2] = b.fileno()
                m.clear()
                assert len(m) == 0
                with open("/dev/null") as file, pytest.raises(MapError, match="is not a socket"):
                    m[1] = file
                with socket.socket() as fresh, pytest.raises(MapError, match="must be established"):
                    m[1] = fresh
            with new(kind, value=4, entries=4) as m:
                m[1] = a
                with pytest.raises(MapError, match="socket cookies have 8"):
                    m[1]
                m.clear()


def test_reuseport() -> None:
    with new("reuseport_sockarray", entries=4) as m, socket.socket(type=socket.SOCK_DGRAM) as s:
        with pytest.raises(MapError, match="SO_REUSEPORT"):
            m[0] = s
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        s.bind(("127.0.0.1", 0))
        m[0] = s
        assert m[0] == struct.unpack("=Q", s.getsockopt(socket.SOL_SOCKET, 57, 8))[0]
        assert m.keys() == [0]
        m.clear()
        assert m.keys() == []


def test_redirect_targets() -> None:
    for kind in ("devmap", "devmap_hash"):
        with new(kind, value=4, entries=4) as m:
            m[2] = "lo"
            assert m[2] == 1 and dict(m.items()) == {2: 1}
            with pytest.raises(MapError, match="no such device"):
                m[1] = 0x7FFFFFF
            m.clear()
            assert m.items() == []
        with new(kind, value=8, entries=4) as m:
            code = movi(0, 2) + EXIT
            fd = sc.prog_load(6, code, b"GPL", b"bpfkit_test", expected_attach_type=33)
            try:
                m[1] = (1, fd)
                assert m[1] == (1, sc.prog_info(fd)["id"]) and m[1].ifindex == 1
                m[2] = 1
                assert m[2].prog == 0
            finally:
                os.close(fd)
    with new("cpumap", value=4, entries=CPUS) as m:
        m[0] = 192
        assert m[0] == 192 and m.keys() == [0]
        with pytest.raises(KeyError):
            m[CPUS] = 1


def test_write_only_types() -> None:
    with new("xskmap", value=4) as m:
        with socket.socket() as s, pytest.raises(MapError, match="not an AF_XDP socket"):
            m[0] = s
        with pytest.raises(MapError, match="does not let user space"):
            m[0]
    with new("cgroup_array", value=4) as m:
        path = next(
            (
                p
                for p in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")
                if os.path.exists(p + "/cgroup.procs")
            ),
            None,
        )
        if path is None:
            pytest.skip("no cgroup v2 here")
        m[0] = path
        with pytest.raises(MapError, match="does not let user space"):
            m[0]
        del m[0]


def test_storage() -> None:
    # the kernel wants a signed int for the key
    b = Builder()
    s32 = b.add(B.INT, "int", 4, 1 << 24 | 32)
    u64 = b.add(B.INT, "u64", 8, 64)
    types = Btf(b.blob())

    def make(kind: str):  # type: ignore[no-untyped-def]
        return new(kind, 4, 8, 0, flags=1, btf=types, key_type_id=s32, value_type_id=u64)

    with socket.socket() as s, make("sk_storage") as m:
        with pytest.raises(KeyError):
            m[s]
        m[s] = 5
        assert m[s] == m[s.fileno()] == 5 and s in m
        with pytest.raises(MapError, match="does not let user space walk"):
            m.items()
        with pytest.raises(MapError, match="iterator"):
            len(m)
        del m[s]
        assert s not in m
    pid = os.pidfd_open(os.getpid())
    try:
        with make("task_storage") as m:
            m[pid] = 6
            assert m[pid] == 6
    finally:
        os.close(pid)
    with make("cgrp_storage") as m:
        for path in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
            if os.path.exists(path + "/cgroup.procs"):
                m[path] = 7
                assert m[path] == 7 and path in m
                del m[path]
                with pytest.raises(KeyError, match="cgroup"):
                    m[path]
                break


def test_arena_is_memory() -> None:
    with new("arena", key=0, value=0, entries=4, flags=1 << 10) as m, closing(m.mmap()) as memory:
        memory[0:4] = b"abcd"
        assert memory[0:4] == b"abcd" and len(memory) == 4 * 4096


def test_stack_trace() -> None:
    with new("stack_trace", value=8 * 20, entries=64) as m:
        # bpf_get_stackid needs a traced program: a raw tracepoint that every system call passes
        code = ld_imm64(2, 1, m.fd) + movi(3, 0) + call(27) + movi(0, 0) + EXIT
        fd = program(code, 17)
        try:
            link = sc.raw_tracepoint_open(fd, b"sys_enter")
            os.getppid()
            os.close(link)
        finally:
            os.close(fd)
        ids = m.keys()
        assert ids
        frames = m.walk(ids[0])
        assert frames and all(frames)
        assert m[ids[0]] == frames
        assert dict(m.items())[ids[0]] == frames
        assert m.walk(-14) == ()
        m.clear()
        assert m.keys() == []


# --- buffers --------------------------------------------------------------------------------------

EVENT = struct_layout("event", [("n", int_layout(4)), ("port", int_layout(4))])


@contextmanager
def sender(m: Map, size: int = 8, perf: bool = False) -> Iterator[object]:
    """A socket filter that sends the first ``size`` bytes of its packet through ``m``."""
    code = load_packet(size)
    if perf:
        code += mov(1, 6) + ld_imm64(2, 1, m.fd) + insn(0xB4, 3, imm=-1) + mov(4, 10)
        code += addi(4, -size) + movi(5, size) + call(25)
    else:
        code += ld_imm64(1, 1, m.fd) + mov(2, 10) + addi(2, -size) + movi(3, size) + movi(4, 0)
        code += call(130)
    fd = program(code + EXIT)
    try:
        yield lambda data, repeat=1: sc.prog_test_run(fd, bytes(14) + data, repeat=repeat)[0]
    finally:
        os.close(fd)


def test_ring_buffer() -> None:
    with (
        new("ringbuf", key=0, value=0, entries=4096) as m,
        m.open(EVENT) as ring,
        sender(m) as send,
    ):
        assert list(ring.poll(0)) == []
        send(struct.pack("=II", 1, 443))
        send(struct.pack("=II", 2, 80))
        (first, second) = ring.poll(1)
        assert (first.n, first.port, second.n) == (1, 443, 2)
        assert ring.pending == 0
        started = time.monotonic()
        assert list(ring.poll(0.05)) == []
        assert 0.04 < time.monotonic() - started < 2


def test_ring_buffer_wraps_and_fills() -> None:
    with (
        new("ringbuf", key=0, value=0, entries=4096) as m,
        m.open() as ring,
        sender(m, 100) as send,
    ):
        for i in range(1000):
            data = bytes([i & 0xFF]) * 100
            assert send(data) == 0
            assert list(ring.drain()) == [data]
        # 112 bytes a record: 36 fit, the program hears of the rest
        results = [send(bytes([i]) * 100) for i in range(40)]
        assert results == [0] * 36 + [(-errno.EAGAIN) & 0xFFFFFFFF] * 4
        events = ring.poll(1)
        assert next(events) == bytes(100)
        events.close()
        assert len(list(ring.drain())) == 35, "what was not consumed stays"


def test_ring_buffer_wakes_a_sleeping_reader() -> None:
    with (
        new("ringbuf", key=0, value=0, entries=4096) as m,
        m.open(EVENT) as ring,
        sender(m) as send,
    ):
        got: list[int] = []

        def read() -> None:
            while len(got) < 200:
                got.extend(event.n for event in ring.poll(5))

        thread = threading.Thread(target=read)
        thread.start()
        for i in range(200):
            while send(struct.pack("=II", i, 0)):
                time.sleep(0.001)
        thread.join(10)
        assert not thread.is_alive()
        assert got == list(range(200))


def test_ring_buffer_passes_over_what_was_discarded() -> None:
    with new("ringbuf", key=0, value=0, entries=4096) as m, m.open() as ring, sender(m) as send:
        # reserve 24 bytes, then discard
        code = ld_imm64(1, 1, m.fd) + movi(2, 24) + movi(3, 0) + call(131)
        code += insn(0x55, 0, 0, 2, 0) + movi(0, 1) + EXIT
        code += mov(1, 0) + movi(2, 0) + call(133) + movi(0, 0) + EXIT
        fd = program(code)
        try:
            assert sc.prog_test_run(fd, bytes(64))[0] == 0
        finally:
            os.close(fd)
        send(b"12345678")
        assert list(ring.poll(1)) == [b"12345678"]
        assert ring.discarded == 1


def test_event_shorter_than_its_type() -> None:
    with (
        new("ringbuf", key=0, value=0, entries=4096) as m,
        m.open(EVENT) as ring,
        sender(m, 4) as send,
    ):
        send(b"1234")
        with pytest.raises(MapError, match="it has 4 bytes, the type 8"):
            list(ring.poll(1))


def test_closed_buffers() -> None:
    with new("ringbuf", key=0, value=0, entries=4096) as m:
        ring = m.open()
        ring.close()
        ring.close()
        with pytest.raises(MapError, match="closed"):
            list(ring.poll(0))


def test_perf_buffer() -> None:
    with new("perf_event_array", value=4, entries=CPUS) as m:
        with m.open(EVENT, pages=1) as perf, sender(m, perf=True) as send:
            send(struct.pack("=II", 7, 443))
            (event,) = perf.poll(1)
            assert (event.n, event.port) == (7, 443)
            assert 0 <= perf.cpu < CPUS
            assert list(perf.poll(0)) == []
            # 32 bytes a record, 4096 a CPU: fills, and the kernel counts what it drops
            cpu = {next(iter(os.sched_getaffinity(0)))}
            before = os.sched_getaffinity(0)
            os.sched_setaffinity(0, cpu)
            try:
                for i in range(300):
                    send(struct.pack("=II", i, 0))
                got = [event.n for event in perf.poll(1)]
                assert got == list(range(len(got))) and 100 < len(got) < 300
                for i in range(300, 310):  # the count of the lost ones comes with the next event
                    send(struct.pack("=II", i, 0))
                got += [event.n for event in perf.poll(1)]
                assert len(got) + perf.lost == 310
                for i in range(2000):  # around the end of the ring, many times
                    send(struct.pack("=II", i, ~i & 0xFFFFFFFF))
                    (event,) = perf.drain()
                    assert event.n == i and event.port == ~i & 0xFFFFFFFF
            finally:
                os.sched_setaffinity(0, before)
        with pytest.raises(MapError, match="does not let user space"):
            m[0]
    with pytest.raises(ValueError, match="power of two"), new("perf_event_array", value=4) as m:
        m.open(pages=3)


def test_perf_record_of_odd_size_and_wrap() -> None:
    with new("perf_event_array", value=4, entries=CPUS) as m:
        with m.open(pages=1) as perf, sender(m, 100, perf=True) as send:
            for i in range(300):
                send(bytes([i & 255]) * 100)
                (event,) = perf.poll(1)
                assert event[:100] == bytes([i & 255]) * 100 and 100 <= len(event) < 108


def user_ring_reader(m: Map, out: Map) -> int:
    """A program that drains a user ring buffer: each record's first 8 bytes go to ``out``."""
    b = Builder()
    integer = b.add(B.INT, "int", 4, 1 << 24 | 32)
    void = b.add(B.PTR, "", 0)
    main = b.add(B.FUNC, "main", b.add(B.FUNC_PROTO, "", integer, b.name("ctx"), void, vlen=1))
    proto = b.add(B.FUNC_PROTO, "", integer, b.name("d"), void, b.name("c"), void, vlen=2)
    callback = b.add(B.FUNC, "callback", proto)
    start = ld_imm64(1, 1, m.fd) + ld_imm64(2, 4, 0) + movi(3, 0) + movi(4, 0) + call(209) + EXIT
    at = len(start) // 8
    start = start.replace(ld_imm64(2, 4, 0), ld_imm64(2, 4, at - 3))
    body = mov(3, 1) + mov(1, 10) + addi(1, -8) + movi(2, 8) + movi(4, 0) + movi(5, 0) + call(201)
    body += ld_imm64(1, 1, out.fd) + mov(2, 10) + addi(2, -8) + movi(3, 8) + movi(4, 0) + call(130)
    body += movi(0, 0) + EXIT
    fd = sc.btf_load(b.blob(), 65536)
    try:
        import ctypes

        log = ctypes.create_string_buffer(1 << 16)
        try:
            return sc.prog_load(
                1, start + body, b"GPL", b"bpfkit_test", btf_fd=fd,
                func_info=struct.pack("=IIII", 0, main, at, callback), log_level=1, log=log,
            )  # fmt: skip
        except OSError as error:
            raise AssertionError(log.value.decode()) from error
    finally:
        os.close(fd)


def test_user_ring_buffer() -> None:
    with (
        new("user_ringbuf", key=0, value=0, entries=4096) as m,
        new("ringbuf", key=0, value=0, entries=8192) as out,
        m.open(EVENT) as ring,
        out.open(EVENT) as events,
    ):
        fd = user_ring_reader(m, out)
        try:
            ring.send({"n": 1, "port": 443})
            ring.send((2, 80))
            gone = ring.reserve(16)
            room = ring.reserve(8)
            room[:] = struct.pack("=II", 3, 0)
            ring.submit(room)
            ring.discard(gone)
            assert sc.prog_test_run(fd, bytes(64))[0] == 3
            assert [event.n for event in events.poll(1)] == [1, 2, 3]
            assert ring.pending == 0
            for turn in range(20):  # around the end
                sent = 0
                with pytest.raises(UserRingFullError, match="wait for the program"):
                    while True:
                        ring.send((sent, turn))
                        sent += 1
                assert sent == 256
                assert sc.prog_test_run(fd, bytes(64))[0] == 256
                assert [event.n for event in events.drain()] == list(range(256))
            with pytest.raises(ValueError, match="not a reserved record"):
                ring.submit(memoryview(b"x"))
            with pytest.raises(ValueError, match="does not fit"):
                ring.reserve(5000)
        finally:
            os.close(fd)
