# SPDX-License-Identifier: Apache-2.0
"""BTF against two judges: clang's BTF of random C structs, and what gcc stores in them."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from btftools import TYPES, Builder, btf_from_c
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfkit.core.types import btf as B
from bpfkit.core.types.btf import Btf, vmlinux
from bpfkit.core.types.layout import (
    BtfError,
    Layout,
    StructLayout,
    bytes_layout,
    int_layout,
    struct_layout,
)

TEXT = """
enum color { RED, GREEN = 5, BLUE = 0x7fffffff }; enum sign { MINUS = -3, ZERO, PLUS = 3 };
struct inner { u8 a; u32 b; };
struct flow { u16 family; u8 proto; u8 flags; u8 src[16]; u8 dst[16];
  __be16 sport, dport; u32 id; };
struct net { __be32 addr; __be16 port; u8 pad[2]; };
struct val { u64 packets, bytes; };
struct bits { u32 low:3, mid:12, top:17; s32 neg:5; u64 wide:40; _Bool yes:1;
   enum color c:4; u8 after; };
struct addr { u16 family; union { u32 v4; u8 v6[16]; struct { u16 lo, hi; }; }; u16 port; };
union both { u32 word; u8 bytes[4]; struct inner in; };
struct many {
  char name[16]; enum color color; enum sign sign; _Bool ok; double d; float f; __int128 big;
  unsigned __int128 ubig; void *p; struct inner in[3]; s16 grid[2][3]; union both u;
  const volatile u32 cv; char one; enum color colors[12]; struct inner far[10]; __be16 ports[4];
};
struct bpf_spin_lock { u32 val; };
struct locked { struct bpf_spin_lock lock; u64 n; };
struct event { u32 len; char text[]; };
struct words { u32 n; u64 w[]; };
struct packed { u8 a; u32 b; u16 c; } __attribute__((packed));
"""
NAMES = ("flow net val bits addr many locked event words packed inner").split()


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf(btf_from_c(TEXT, *[f"struct {name}" for name in NAMES], "union both"))


def layout(btf: Btf, name: str, chars: str = "str") -> Layout:
    found = btf.find(name)
    assert found is not None
    return btf.layout(found, chars)


# --- the blob -----------------------------------------------------------------------------------


def test_find_by_name_and_kind(btf: Btf) -> None:
    assert btf.type(btf.find("flow", B.STRUCT)).name == "flow"
    assert btf.find("flow", "struct") == btf.find("flow")
    assert btf.find("flow", B.UNION) is None
    assert btf.find("family") is None, "a member's name is no type"
    assert btf.find("") is None
    assert btf.find("RED") is None
    assert [t.id for t in btf.types()] == list(range(1, len(btf)))


def test_members_and_names(btf: Btf) -> None:
    members = {m.name: m for m in btf.members(btf.find("bits"))}
    assert (members["mid"].bit_offset, members["mid"].bit_size) == (3, 12)
    grid = next(m for m in btf.members(btf.find("many")) if m.name == "grid")
    assert btf.name_of(grid.type_id) == "s16[2][3]"
    assert btf.sizeof(grid.type_id) == 12
    assert btf.enumerators(btf.find("sign")) == [("MINUS", -3), ("ZERO", -2), ("PLUS", 3)]
    assert btf.params(btf.find("keep0", B.FUNC))[0][0] == "it"


def test_kinds_clang_14_does_not_write() -> None:
    b = Builder()
    u32 = b.add(B.INT, "u32", 4, 32)
    e = [b.name("BIG"), 1, 1, b.name("NEG"), 0xFFFFFFFF, 0xFFFFFFFF]
    enum64 = b.add(B.ENUM64, "e64", 8, *e, vlen=2, flag=True)
    tag = b.add(B.TYPE_TAG, "rcu", u32)
    pointer = b.add(B.PTR, "", tag)
    double = b.add(B.FLOAT, "double", 8)
    var = b.add(B.VAR, "counter", u32, 1)
    data = b.add(B.DATASEC, ".bss", 4, var, 0, 4, vlen=1)
    b.add(B.DECL_TAG, "note", var, -1)
    b.add(B.FWD, "later", 0)
    proto = b.add(B.FUNC_PROTO, "", u32, b.name("x"), pointer, vlen=1)
    func = b.add(B.FUNC, "f", proto)
    # bit-fields of before kind_flag: the integer itself says where
    narrow = b.add(B.INT, "bits", 4, 3 << 16 | 5)
    old = b.add(B.STRUCT, "old", 4, b.name("x"), narrow, 8, vlen=1)
    t = Btf(b.blob())
    assert t.enumerators(enum64) == [("BIG", 1 << 32 | 1), ("NEG", -1)]
    assert t.layout(enum64).decode(b"\xff" * 8).name == "NEG"
    assert t.resolve(tag).id == u32
    assert t.layout(double).decode(struct.pack("=d", 1.5)) == 1.5
    assert t.variables(data) == [(var, 0, 4)]
    assert t.layout(var).decode(b"\1\0\0\0") == 1
    assert t.params(func) == [("x", pointer)]
    assert t.find("f", B.FUNC) == func
    field = t.layout(old).fields[0]
    assert (field.bit_offset, field.bit_size) == (11, 5)
    with pytest.raises(BtfError, match="has no layout"):
        t.layout(t.find("later"))
    with pytest.raises(BtfError, match="has no size"):
        t.sizeof(func)


def test_split_btf() -> None:
    base = Builder()
    u32 = base.add(B.INT, "u32", 4, 32)
    first = Btf(base.blob())
    own = Builder()
    own.strings = b""
    own.add(B.TYPEDEF, "", u32)
    blob = bytearray(own.blob() + b"mine\0")
    struct.pack_into("=I", blob, 20, 5)  # str_len
    struct.pack_into("=I", blob, 24, len(base.strings))  # the name lies behind the base's strings
    module = Btf(bytes(blob), first)
    assert len(module) == 3
    assert module.find("mine") == 2
    assert module.find("u32") == u32
    assert module.layout(2).decode(b"\2\0\0\0") == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d[:10], "not BTF"),
        (lambda d: b"\x7fELF" + d[4:], "not BTF"),
        (lambda d: d[1::-1] + d[2:], "other byte order"),
        (lambda d: d[:2] + b"\2" + d[3:], "version 2"),
        (lambda d: d[:-1], "truncated"),
    ],
)
def test_a_bad_blob_is_refused(change, words: str) -> None:  # type: ignore[no-untyped-def]
    b = Builder()
    b.add(B.INT, "u32", 4, 32)
    with pytest.raises(BtfError, match=words):
        Btf(change(b.blob()))


def test_bad_types_are_refused() -> None:
    b = Builder()
    b.add(25, "future", 4)
    with pytest.raises(BtfError, match="newer"):
        len(Btf(b.blob()))
    b = Builder()
    b.add(B.TYPEDEF, "a", 2)
    b.add(B.TYPEDEF, "b", 1)
    with pytest.raises(BtfError, match="loop"):
        Btf(b.blob()).resolve(1)
    b = Builder()
    b.add(B.STRUCT, "", 4, 0, 1, 0, vlen=1)
    with pytest.raises(BtfError, match="inside itself"):
        Btf(b.blob()).layout(1)
    b = Builder()
    b.add(B.STRUCT, "s", 100, vlen=9)
    with pytest.raises(BtfError, match="truncated"):
        len(Btf(b.blob()))
    with pytest.raises(BtfError, match="no type 9"):
        b = Builder()
        b.add(B.INT, "u32", 4, 32)
        Btf(b.blob()).type(9)


def test_vmlinux() -> None:
    try:
        kernel = Btf.vmlinux()
    except OSError:
        pytest.skip("this kernel has no BTF")
    task = kernel.layout(kernel.find("task_struct", B.STRUCT))
    assert task.size == kernel.sizeof(kernel.find("task_struct"))
    assert len(task.decode(bytes(task.size))._fields) > 100
    assert kernel.type(kernel.find("tcp_connect", B.FUNC)).kind == B.FUNC
    names = dict(kernel.enumerators(kernel.find("bpf_map_type", B.ENUM)))
    assert names["BPF_MAP_TYPE_RINGBUF"] == 27


# --- values -------------------------------------------------------------------------------------


def test_struct_values(btf: Btf) -> None:
    flow = layout(btf, "flow")
    key = flow(family=2, proto=6, src=b"\x0a" * 16, sport=443, dport=52000, id=7)
    raw = bytes(key)
    assert raw[36:40] == b"\x01\xbb\xcb\x20", "__be16 lies in network order"
    assert flow.decode(raw) == key == tuple(key)
    assert hash(key) == hash(tuple(key))
    assert (key.sport, key.flags, key.dst) == (443, 0, bytes(16))
    assert key._replace(sport=80).sport == 80
    assert repr(key).startswith("flow(family=2, proto=6, flags=0, src=b'")
    assert key._asdict()["dport"] == 52000
    assert flow.encode(key._asdict()) == flow.encode(tuple(key)) == flow.encode(raw) == raw
    assert copy.deepcopy(key) is key
    assert pickle.loads(pickle.dumps(key)) == key
    assert flow(2, 6).proto == 6
    assert layout(btf, "net").decode(b"\x7f\0\0\1\0\x50\0\0") == (0x7F000001, 80, b"\0\0")
    assert bytes(layout(btf, "net")(addr=0x7F000001, port=80)) == b"\x7f\0\0\1\0\x50\0\0"


def test_every_kind(btf: Btf) -> None:
    many = layout(btf, "many")
    value = many(
        name="héllo",
        color="GREEN",
        sign="MINUS",
        ok=True,
        d=0.5,
        f=0.25,
        big=-(1 << 100),
        ubig=1 << 127,
        p=0xFFFF888000000000,
        **{"in": [(1, 2), {"b": 4}] * 1 + [(0, 0)]},
        grid=((1, -2, 3), (4, 5, -6)),
        u={"word": 0x01020304},
        cv=9,
        one=-1,
        colors=["BLUE"] * 12,
        far=[(i, i) for i in range(10)],
        ports=(1, 2, 3, 443),
    )
    again = many.decode(bytes(value))
    assert again == value
    assert (again.name, str(again.color), again.color, again.sign) == ("héllo", "GREEN", 5, -3)
    assert f"{again.sign}" == "MINUS" and again.sign.name == "MINUS"
    assert (again.ok, again.d, again.f, again.big, again.ubig) == (
        True,
        0.5,
        0.25,
        -(1 << 100),
        1 << 127,
    )
    assert getattr(again, "in") == ((1, 2), (0, 4), (0, 0))
    assert getattr(again, "in")[0].a == 1
    assert again.grid == ((1, -2, 3), (4, 5, -6))
    assert again.u.bytes == b"\4\3\2\1" and again.u._fields == ("word", "bytes", "in")
    assert again.far[9].b == 9 and again.colors[11].name == "BLUE"
    assert again.ports == (1, 2, 3, 443) and again.one == -1
    unknown = many.decode(many.encode(value._replace(color=77))).color
    assert unknown == 77 and unknown.name is None and str(unknown) == "77"
    assert again._asdict()["far"][1] == {"a": 1, "b": 1}


def test_unions(btf: Btf) -> None:
    addr = layout(btf, "addr")
    assert addr.columns == ("family", "v4", "v6", "lo", "hi", "port")
    by_one = addr(family=10, v6=bytes(range(16)), port=1)
    assert (by_one.v4, by_one.lo, by_one.hi) == (0x03020100, 0x0100, 0x0302)
    assert by_one._replace(v4=0).v6 == bytes(4) + bytes(range(4, 16))
    assert addr(lo=1, hi=2).v4 == 0x20001
    assert addr.encode(tuple(by_one)) == bytes(by_one), "all members, as decoded, agree"
    with pytest.raises(ValueError, match="disagree"):
        addr(v4=1, v6=bytes(16))
    assert addr.encode((1, None, b"x" * 16, None, None, 2))[4:20] == b"x" * 16


def test_bit_fields(btf: Btf) -> None:
    bits = layout(btf, "bits")
    value = bits(
        low=5, mid=0xABC, top=0x1FFFF, neg=-16, wide=(1 << 40) - 1, yes=True, c="GREEN", after=9
    )
    assert bits.decode(bytes(value)) == value
    assert value.yes is True and value.c.name == "GREEN" and value.neg == -16
    assert bytes(value)[0] == 5 | (0xABC << 3 & 0xFF), "bit 0 is the least significant"
    assert value._replace(mid=1).top == 0x1FFFF
    with pytest.raises(ValueError, match=r"bits\.low: 8 does not fit into 3 bits"):
        bits(low=8)
    with pytest.raises(ValueError, match=r"bits\.neg"):
        bits(neg=-17)


def test_text(btf: Btf) -> None:
    raw = b"ab\0cd" + bytes(11)
    many = {c: layout(btf, "many", c) for c in ("str", "exact", "bytes")}
    data = raw + bytes(many["str"].size - 16)
    assert many["str"].decode(data).name == "ab"
    assert many["exact"].decode(data).name == "ab\0cd"
    assert many["exact"].encode(many["exact"].decode(data)) == data
    assert many["bytes"].decode(data).name == raw
    odd = many["str"].decode(b"\xff\xfe" + data[2:])
    assert many["str"].encode(odd)[:2] == b"\xff\xfe", "what is no UTF-8 survives"
    assert many["str"](name=b"raw").name == "raw"
    with pytest.raises(ValueError, match="longer"):
        many["str"](name="x" * 17)


def test_flexible_arrays(btf: Btf) -> None:
    event = layout(btf, "event")
    assert event.decode_all(b"\5\0\0\0hello\0\0\0").text == "hello"
    assert event.decode_all(b"\0\0\0\0").text == ""
    words = layout(btf, "words")
    assert words.decode_all(struct.pack("=I4x3Q4x", 3, 1, 2, 3)).w == (1, 2, 3)


def test_the_decoder_of_a_flexible_array_is_made_once_for_a_size(
    btf: Btf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To make one takes several times as long as to use it, and events of a busy ring wait."""
    monkeypatch.setattr("bpfkit.core.types.layout._MAX_TAILS", 2)
    event = cast(StructLayout, layout(btf, "event"))
    for _ in range(3):
        assert event.decode_all(b"\5\0\0\0hello\0\0\0").text == "hello"
    assert len(event._tails) == 1
    for size in range(1, 9):
        assert event.decode_all(b"\5\0\0\0" + b"x" * size + bytes(4)).text == "x" * size
    assert 0 < len(event._tails) <= 2


def test_opaque_and_packed(btf: Btf) -> None:
    locked = layout(btf, "locked")
    assert locked.decode(bytes(16)).lock == bytes(4)
    assert bytes(locked(n=1)) == bytes(8) + b"\1" + bytes(7)
    assert bytes(layout(btf, "packed")(1, 2, 3)) == b"\1\2\0\0\0\3\0"


def test_errors_name_the_field(btf: Btf) -> None:
    flow, many = layout(btf, "flow"), layout(btf, "many")
    for kind, words, make in [
        (ValueError, "flow.proto: 256 does not fit into u8", lambda: flow(proto=256)),
        (
            ValueError,
            "flow.proto: -1 does not fit",
            lambda: flow.encode((0, -1, 0, bytes(16), bytes(16), 0, 0, 0)),
        ),
        (ValueError, "flow.src: .*16 bytes, got 4", lambda: flow(src=b"1234")),
        (TypeError, "flow.proto", lambda: flow(proto="tcp")),
        (TypeError, "flow.proto", lambda: flow(proto=1.5)),
        (ValueError, r"has no field 'sprot': family, proto", lambda: flow(sprot=1)),
        (ValueError, "has 8 fields .*got 2", lambda: flow.encode((1, 2))),
        (TypeError, "is no struct flow", lambda: flow.encode(5)),
        (TypeError, "has 8 fields", lambda: flow(*range(9))),
        (TypeError, "given twice", lambda: flow(1, family=2)),
        (ValueError, "44 bytes, got 3", lambda: flow.encode(b"abc")),
        (ValueError, "is 44 bytes, there are 10", lambda: flow.decode(bytes(10))),
        (ValueError, "many.color: .*no 'PINK'", lambda: many(color="PINK")),
        (ValueError, "takes 2 values, got 3", lambda: many(grid=((1,), (2,), (3,)))),
        (ValueError, "128|does not fit", lambda: many(big=1 << 127)),
    ]:
        with pytest.raises(kind, match=words):
            make()


def test_layouts_without_btf() -> None:
    assert int_layout(8).encode(-1 & (1 << 64) - 1) == b"\xff" * 8
    assert int_layout(2, signed=True).decode(b"\xfe\xff") == -2
    assert int_layout(4).encode(b"abcd") == b"abcd"
    with pytest.raises(ValueError, match="does not fit into u32"):
        int_layout(4).encode(1 << 32)
    with pytest.raises(TypeError):
        int_layout(4).encode("7")
    assert bytes_layout(3).decode(b"abc") == b"abc"
    pair = struct_layout("pair", [("a", int_layout(4)), ("b", bytes_layout(4))])
    assert pair.decode(b"\1\0\0\0wxyz") == (1, b"wxyz")


# --- many at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, "both"])
def test_bulk_equals_single(btf: Btf, name: str) -> None:
    one = layout(btf, name)
    data = random.Random(name).randbytes(one.size * 50)
    singles = [one.decode(data, i * one.size) for i in range(50)]
    # repr, because NaN is not equal to itself
    assert repr(one.decode_many(data)) == repr(singles)
    assert repr(one.decode_many(memoryview(data), 7)) == repr(singles[:7])
    rows = list(one.rows(data))
    assert repr(rows) == repr([tuple(value) for value in singles])
    assert all(type(row) is tuple for row in rows)


@given(data=st.binary(min_size=44, max_size=44))
def test_bytes_survive_where_there_is_no_padding(data: bytes) -> None:
    flow = struct_layout(
        "flow",
        [
            ("a", int_layout(2)),
            ("b", bytes_layout(32)),
            ("c", int_layout(8, True)),
            ("d", int_layout(2)),
        ],
    )
    assert flow.encode(flow.decode(data)) == data


def test_numpy_sees_the_same(btf: Btf) -> None:
    np = pytest.importorskip("numpy")
    rng = random.Random(1)
    flow = layout(btf, "flow")
    data = rng.randbytes(flow.size * 20)
    array = np.frombuffer(data, flow.numpy_dtype())
    for row, value in zip(array, flow.decode_many(data), strict=True):
        assert row["sport"] == value.sport and row["id"] == value.id
        assert row["src"].tobytes() == value.src
    bits = layout(btf, "bits")
    data = rng.randbytes(bits.size * 20)
    array = np.frombuffer(data, bits.numpy_dtype())
    values = bits.decode_many(data)
    for name in ("low", "mid", "top", "neg", "wide"):
        assert bits.bit_field(array, name).tolist() == [getattr(v, name) for v in values], name
    assert bits.bit_field(array, "after").tolist() == [v.after for v in values]
    for name in NAMES:
        dtype = layout(btf, name).numpy_dtype()
        assert dtype.itemsize == layout(btf, name).size
        for field in layout(btf, name).fields:
            if not field.bit_size:
                assert dtype.fields[field.name][1] == field.offset


# --- against a compiler ---------------------------------------------------------------------------

_SCALARS = {
    "u8": (0, 255), "u16": (0, 65535), "u32": (0, (1 << 32) - 1), "u64": (0, (1 << 64) - 1),
    "s8": (-128, 127), "s16": (-(1 << 15), (1 << 15) - 1), "s32": (-(1 << 31), (1 << 31) - 1),
    "s64": (-(1 << 63), (1 << 63) - 1),
}  # fmt: skip


_numbers = itertools.count()


def _random_struct(
    rng: random.Random, name: str, depth: int = 0
) -> tuple[str, dict[str, object], list[str]]:
    """(C text, values by field, C statements that set them in ``x``)."""
    text, values, sets = [], {}, []
    for _ in range(rng.randint(1, 7)):
        field = f"f{next(_numbers)}"
        kind = rng.choice(["scalar", "scalar", "bits", "bits", "array", "struct", "anon", "be"])
        scalar = rng.choice(list(_SCALARS))
        low, high = _SCALARS[scalar]
        if kind == "bits":
            width = rng.randint(1, high.bit_length() + (low < 0))
            low, high = (-(1 << width - 1), (1 << width - 1) - 1) if low else (0, (1 << width) - 1)
            text.append(f"{scalar} {field}:{width};")
            if rng.random() < 0.15:
                text.append(f"{scalar} :{rng.choice([0, 1, 3])};")
        elif kind == "array":
            count = rng.randint(1, 12)
            text.append(f"{scalar} {field}[{count}];")
            items = [rng.randint(low, high) for _ in range(count)]
            values[field] = bytes(items) if scalar == "u8" else tuple(items)
            sets += [f"{field}[{k}] = {_c(item)};" for k, item in enumerate(items)]
            continue
        elif kind in ("struct", "anon") and depth < 2:
            inner, inner_values, inner_sets = _random_struct(rng, "", depth + 1)
            if kind == "anon":
                text.append(f"{inner};")
                values |= inner_values
                sets += inner_sets
            else:
                text.append(f"{inner} {field};")
                values[field] = tuple(inner_values.values())
                sets += [f"{field}.{statement}" for statement in inner_sets]
            continue
        elif kind == "be":
            size = rng.choice([16, 32, 64])
            number = rng.randrange(1 << size)
            text.append(f"__be{size} {field};")
            values[field] = number
            sets.append(f"{field} = __builtin_bswap{size}({_c(number)});")
            continue
        else:
            text.append(f"{scalar} {field};")
        number = rng.randint(low, high)
        values[field] = number
        sets.append(f"{field} = {_c(number)};")
    packed = " __attribute__((packed))" if rng.random() < 0.2 else ""
    return f"struct {name} {{ {' '.join(text)} }}{packed}", values, sets


def _c(number: int) -> str:
    return f"({number + 1}LL - 1)" if number < 0 else f"{number}ULL"


@pytest.mark.skipif(sys.byteorder != "little", reason="the judge stores __be* by swapping")
def test_what_gcc_stores_is_what_we_decode_and_encode(tmp_path: Path) -> None:
    gcc = shutil.which("gcc") or shutil.which("cc")
    if gcc is None:
        pytest.skip("no C compiler")
    rng = random.Random(20)
    structs = [_random_struct(rng, f"r{i}") for i in range(80)]
    declarations = "\n".join(text + ";" for text, _, _ in structs)
    body = "\n".join(
        f"{{ struct r{i} x; memset(&x, 0, sizeof x); {' '.join('x.' + s for s in sets)} "
        f"unsigned n = sizeof x; fwrite(&n, 4, 1, stdout); fwrite(&x, n, 1, stdout); }}"
        for i, (_, _, sets) in enumerate(structs)
    )
    source = tmp_path / "judge.c"
    source.write_text(
        "#include <stdio.h>\n#include <string.h>\n"
        f"{TYPES}{declarations}\nint main(void){{{body}}}\n"
    )
    subprocess.run([gcc, "-w", "-O1", "-o", tmp_path / "judge", source], check=True)
    out = subprocess.run([tmp_path / "judge"], check=True, capture_output=True).stdout
    btf = Btf(btf_from_c(declarations, *[f"struct r{i}" for i in range(len(structs))]))
    at = 0
    for i, (text, values, _) in enumerate(structs):
        size = int.from_bytes(out[at : at + 4], "little")
        raw = out[at + 4 : at + 4 + size]
        at += 4 + size
        one = layout(btf, f"r{i}")
        assert one.size == size, text
        assert dict(zip(one.columns, tuple(one.decode(raw)), strict=True)) == values, text
        assert one.encode(values) == raw, text
        assert one.encode(tuple(one.decode(raw))) == raw, text
        assert one.decode_many(raw * 3) == [one.decode(raw)] * 3
    assert at == len(out)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_round_trips(data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 1 << 30)))
    fields = []
    for i in range(rng.randint(1, 8)):
        size = rng.choice([1, 2, 4, 8])
        fields.append(
            (
                f"f{i}",
                rng.choice(
                    [int_layout(size, rng.random() < 0.5), bytes_layout(rng.randint(1, 20))]
                ),
            )
        )
    one = struct_layout("s", fields)
    raw = data.draw(st.binary(min_size=one.size, max_size=one.size))
    value = one.decode(raw)
    assert one.encode(value) == one.encode(value._asdict()) == one.encode(list(value)) == raw
    assert one(**value._asdict()) == value


# --- cost -----------------------------------------------------------------------------------------


def test_imports_stay_light() -> None:
    code = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; "
        "before = set(sys.modules); import bpfkit.core.maps.base, bpfkit.core.maps.buffers; "
        "print(*(set(sys.modules) - before))"
    )
    names = subprocess.run(
        [sys.executable, "-S", "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    heavy = {
        "dataclasses", "typing", "pathlib", "subprocess", "hashlib", "json", "re", "socket", "enum",
        "ipaddress", "inspect", "logging", "tempfile", "shutil", "numpy", "contextlib",
        "collections", "functools", "mmap",
    }  # fmt: skip
    assert not heavy & set(names)


def test_offsets_of_members_in_members_and_in_what_has_no_name() -> None:
    kernel = vmlinux()
    if kernel is None:
        pytest.skip("this kernel has no BTF")
    # the UAPI's, which are the same for ever
    assert kernel.offset("iphdr", "daddr") == 16
    assert kernel.offset("bpf_fib_lookup", "ifindex") == 8
    assert kernel.offset("bpf_fib_lookup", "ipv6_dst") == 32
    assert kernel.offset("bpf_fib_lookup", "dmac") == 58
    # possible_net_t, which has one member
    assert kernel.offset("net_device", "nd_net", "net") == kernel.offset("net_device", "nd_net")
    for path in (("no_such_struct", "x"), ("iphdr", "no_such"), ("iphdr", "daddr", "x")):
        with pytest.raises(KeyError, match=r"has no"):
            kernel.offset(*path)
