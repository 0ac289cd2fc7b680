# SPDX-License-Identifier: Apache-2.0
"""What maps do with bytes: per-CPU sums, prefixes, repetitions.  No kernel map is needed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfkit.core import cpus as cpu_count
from bpfkit.core.compile.artifact import MapDef
from bpfkit.core.errors import MapError
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import MAP_TYPES, map_type
from bpfkit.core.maps.base import Map, map_class, open_map
from bpfkit.core.maps.percpu import PerCpuValue
from bpfkit.core.types.layout import bytes_layout, int_layout, struct_layout


def make(kind: str, key: int = 4, value: int = 8, entries: int = 16, flags: int = 0) -> Map:
    return open_map(MapDef("m", map_type(kind), key, value, entries, flags), -1)


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_count, "_possible", 4)


def test_every_map_type_has_a_class() -> None:
    assert [name for name in MAP_TYPES[1:] if map_class(map_type(name)) is Map] == []
    assert make("lru_percpu_hash").type == "lru_percpu_hash"
    assert open_map(("x", 250, 4, 4, 1), -1).type == "type 250"


def test_a_closed_map_says_so() -> None:
    m = make("hash")
    for use in (lambda: m[1], lambda: m.items(), lambda: m.update({1: 1, 2: 2}), m.clear, m.freeze):
        with pytest.raises(MapError, match="it is closed"):
            use()


def test_per_cpu_values(four_cpus: None) -> None:
    m = make("percpu_hash", value=4)
    assert m._value_bytes == 32, "each padded to 8"
    raw = m._encode_value([1, 2, 3, 4])
    assert raw == struct.pack("=I4xI4xI4xI4x", 1, 2, 3, 4)
    assert m._decode_value(raw) == (1, 2, 3, 4)
    assert isinstance(m._decode_value(raw), PerCpuValue)
    assert m._decode_value(raw).sum() == 10
    assert m._encode_value(7) == struct.pack("=I4x", 7) * 4
    assert m._encode_value(raw) == raw
    assert m._decode_values(raw * 3, 3) == [(1, 2, 3, 4)] * 3
    with pytest.raises(ValueError, match="3 values for 4 possible CPUs"):
        m._encode_value([1, 2, 3])


def test_sum_field_by_field(four_cpus: None) -> None:
    m = make("percpu_hash", value=24)
    m.value_layout = struct_layout(
        "v", [("n", int_layout(8)), ("s", int_layout(8, True)), ("mac", bytes_layout(8))]
    )
    raw = m._encode_value(
        [(1, -5, bytes(8)), (2, 1, b"abcdefgh"), (3, 1, bytes(8)), (4, 1, b"x" * 8)]
    )
    value = m._decode_value(raw).sum()
    assert value == (10, -2, b"abcdefgh")
    assert value.n == 10
    assert m._summed(raw * 2, 2) == [value] * 2
    assert list(m._value_rows(raw, 1)) == [(10, -2, b"abcdefgh")]


CODES = {"B": 1, "b": 1, "H": 2, "h": 2, "I": 4, "i": 4, "Q": 8, "q": 8}


@given(data=st.data())
def test_lane_sums_equal_plain_sums(data: st.DataObject) -> None:
    """The long-integer addition against one number at a time, large and negative ones too."""
    codes = data.draw(st.lists(st.sampled_from(sorted(CODES)), min_size=1, max_size=4))
    cpus = data.draw(st.integers(1, 5))
    count = data.draw(st.integers(0, 4))
    codes.sort(key=lambda code: -CODES[code])  # natural alignment without padding
    layout = struct_layout(
        "v", [(f"f{i}", int_layout(CODES[c], c.islower())) for i, c in enumerate(codes)]
    )
    old, cpu_count._possible = cpu_count._possible, cpus
    try:
        m = make("percpu_hash", value=layout.size)
        m.value_layout = layout
        expected, raw = [], b""
        for _ in range(count):
            entry = []
            for _ in range(cpus):
                entry.append(
                    tuple(
                        data.draw(
                            st.sampled_from([0, 1, (1 << 8 * CODES[c] - c.islower()) - 1])
                            | st.integers(
                                -(1 << 8 * CODES[c] - 1) if c.islower() else 0,
                                (1 << 8 * CODES[c] - c.islower()) - 1,
                            )
                        )
                        for c in codes
                    )
                )
            raw += m._encode_value(entry)
            expected.append(tuple(sum(column) for column in zip(*entry, strict=True)))
        columns = m._sum_columns(raw, count)
        assert columns is not None
        assert list(zip(*columns, strict=True)) == expected
        assert m._summed(raw, count) == expected
        assert list(m._value_rows(raw, count)) == expected
    finally:
        cpu_count._possible = old


def test_lane_sums_of_nested_values(four_cpus: None) -> None:
    inner = struct_layout("in", [("a", int_layout(8)), ("b", int_layout(8))])
    m = make("percpu_array", value=24)
    m.value_layout = struct_layout("v", [("n", int_layout(8)), ("in", inner)])
    raw = m._encode_value([(1, (2, 3))] * 4)
    assert m._summed(raw, 1) == [(4, (8, 12))]
    assert getattr(m._summed(raw, 1)[0], "in").b == 12
    assert list(m._value_rows(raw, 1)) == [(4, (8, 12))]


@pytest.mark.parametrize(
    ("text", "size", "length", "data"),
    [
        ("10.0.0.0/8", 4, 8, "0a000000"),
        ("10.1.2.3/8", 4, 8, "0a000000"),
        ("10.1.2.3", 4, 32, "0a010203"),
        ("0.0.0.0/0", 4, 0, "00000000"),
        ("2001:db8::/32", 16, 32, "20010db8" + "00" * 12),
        ("::1", 16, 128, "00" * 15 + "01"),
        ("10.0.0.0/8", 16, 104, "00" * 10 + "ffff0a000000"),
    ],
)
def test_prefixes_as_text(text: str, size: int, length: int, data: str) -> None:
    m = make("lpm_trie", key=4 + size)
    assert m._encode_key(text) == struct.pack("=I", length) + bytes.fromhex(data)
    assert m._encode_key((length, bytes.fromhex(data))) == m._encode_key(text)
    assert m.key_layout.decode(m._encode_key(text)) == (length, bytes.fromhex(data))


@pytest.mark.parametrize(
    "text", ["10.0.0.0/33", "10.0.0/8", "::/0", "10.0.0.0/-1", "x", "10.0.0.0/"]
)
def test_bad_prefixes(text: str) -> None:
    with pytest.raises(ValueError):
        make("lpm_trie", key=8)._encode_key(text)


def test_prefix_back_to_text() -> None:
    assert make("lpm_trie", key=8).prefix("10.9.0.0/16") == "10.9.0.0/16"
    assert make("lpm_trie", key=20).prefix("2001:DB8:0::/48") == "2001:db8::/48"
    assert make("lpm_trie", key=7).prefix((5, b"abc")) == "616263/5"


def test_repetitions_of_a_restarted_walk_are_dropped() -> None:
    m = make("lpm_trie", key=8, value=4)
    keys = b"".join(struct.pack("=II", 32, i) for i in (1, 2, 3, 1, 2, 4))
    values = struct.pack("=6I", 10, 20, 30, 11, 21, 40)
    count, k, v = m._distinct(6, memoryview(keys), memoryview(values))
    assert count == 4
    pairs = dict(zip(m.key_layout.decode_many(k), m.value_layout.decode_many(v), strict=True))
    assert {key[1][0]: value for key, value in pairs.items()} == {1: 11, 2: 21, 3: 30, 4: 40}


class _Kernel:
    """BPF_MAP_LOOKUP_BATCH as a script: (entries, errno) a call."""

    def __init__(self, script: list[tuple[int, int]]) -> None:
        self.script = script
        self.rooms: list[int] = []
        self.cursors: list[bool] = []
        self.noise: list[object] = []
        self.next = 0

    def __call__(self, fd, in_cursor, out_cursor, keys, values, count, *, delete=False):  # type: ignore[no-untyped-def]
        import ctypes

        self.rooms.append(count)
        self.cursors.append(bool(in_cursor))
        if in_cursor:  # the kernel finds what it wrote, whatever was allocated meanwhile
            self.noise += [ctypes.create_string_buffer(b"x" * 8, 8) for _ in range(100)]
            assert ctypes.string_at(in_cursor, 8) == struct.pack("=Q", len(self.rooms) - 1)
        ctypes.memmove(out_cursor, struct.pack("=Q", len(self.rooms)), 8)
        got, number = self.script.pop(0)
        assert got <= count
        for i in range(got):
            ctypes.memmove(keys + 4 * i, struct.pack("=I", self.next), 4)
            ctypes.memmove(values + 8 * i, struct.pack("=Q", self.next * 10), 8)
            self.next += 1
        return got, number


@pytest.mark.parametrize(
    ("script", "entries"),
    [
        ([(0, 2)], 0),
        ([(5, 2)], 5),
        ([(3, 0), (2, 2)], 5),
        ([(0, 28), (0, 28), (9, 2)], 9),  # ENOSPC: a bucket larger than the room
        ([(4, 28), (9, 2)], 13),
        ([(2, 4), (0, 4), (3, 2)], 5),  # EINTR
        ([(0, 11), (3, 16), (3, 2)], 6),  # EAGAIN, EBUSY
        ([(81, 0), (81, 0), (1, 2)], 163),  # more than max_entries, because they change
    ],
)
def test_batches(
    script: list[tuple[int, int]], entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = _Kernel(script)
    monkeypatch.setattr(syscall, "map_lookup_batch", kernel)
    m = make("hash")
    assert m.items() == [(i, 10 * i) for i in range(entries)]
    assert not kernel.script
    assert all(room > 0 for room in kernel.rooms)
    assert not kernel.cursors[0]


def test_an_endless_walk_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    m = make("lpm_trie", key=8, value=4, entries=10)

    def restarting(fd, in_cursor, out_cursor, keys, values, count, *, delete=False):  # type: ignore[no-untyped-def]
        return count, 0

    monkeypatch.setattr(syscall, "map_lookup_batch", restarting)
    assert len(m.items()) == 1

    n = make("hash")
    n._batch = False
    monkeypatch.setattr(syscall, "bpf", lambda cmd, attr: 0)  # always the same next key
    assert n._raw_keys() == [bytes(4)]


def test_values_that_are_references() -> None:
    class Thing:
        fd = 7

    class File:
        def fileno(self) -> int:
            return 8

    m = make("prog_array", value=4)
    assert m._encode_value(Thing()) == struct.pack("=I", 7)
    assert m._encode_value(File()) == struct.pack("=I", 8)
    assert make("sockmap")._encode_value(9) == struct.pack("=Q", 9)
    with pytest.raises(TypeError, match="is not a BPF program"):
        m._encode_value("prog")
    Thing.fd = -1
    with pytest.raises(ValueError, match="closed"):
        m._encode_value(Thing())


def test_devmap_values() -> None:
    m = make("devmap", value=8)
    assert m._encode_value(3) == struct.pack("=Ii", 3, -1)
    assert m._encode_value((3, 9)) == struct.pack("=Ii", 3, 9)
    assert m._encode_value("lo") == struct.pack("=Ii", 1, -1)
    assert m._decode_value(struct.pack("=II", 3, 12)).prog == 12
    assert make("cpumap", value=8)._decode_value(struct.pack("=II", 192, 0)).qsize == 192
    with pytest.raises(ValueError, match="no interface 'nosuch0'"):
        m._encode_value("nosuch0")
    with pytest.raises(ValueError, match="no room for a program"):
        make("devmap", value=4)._encode_value((3, 9))


def test_types_without_keys_say_so() -> None:
    for kind in ("queue", "ringbuf", "bloom_filter", "arena"):
        m = make(kind, key=0)
        for use in (lambda m=m: m[1], lambda m=m: m.items(), lambda m=m: len(m)):
            with pytest.raises(MapError, match="has no keys"):
                use()
        assert m, "and is true all the same"


def test_layout_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="4 bytes, map 'm' has 8"):
        make("hash").value_layout = int_layout(4)
