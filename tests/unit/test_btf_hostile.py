# SPDX-License-Identifier: Apache-2.0
"""BTF that nobody's compiler made: every bad blob gives BtfError, soon and in little memory."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack

import pytest
from bcctools import no_compiler

from bpfkit.core.compile.compiler import compile_source
from bpfkit.core.compile.source import Source
from bpfkit.core.types.btf import KINDS, Btf, BtfError

#: No blob of a few kilobytes may take longer (the machine of the tests may be busy).
SECONDS = 5.0
MEGABYTES = 768


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """What wants gigabytes fails here instead of taking them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (MEGABYTES << 20), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def exercise(data: bytes) -> tuple[int, int]:
    """Everything that is done with somebody's BTF; (types with a layout, types refused)."""
    fine = refused = 0
    btf = Btf(data)
    for t in btf.types():
        for work in (_describe, _layout):
            try:
                work(btf, t.id)
                fine += 1
            except BtfError:
                refused += 1
    for name in ("flow", "a", "missing"):
        try:
            btf.find(name)
            btf.offset(name, "b", "c")
        except (BtfError, KeyError):
            pass
    return fine, refused


def _describe(btf: Btf, type_id: int) -> None:
    btf.name_of(type_id)
    btf.resolve(type_id)
    kind = KINDS[btf.type(type_id).kind]
    if kind in ("STRUCT", "UNION"):
        btf.members(type_id)
    elif kind in ("ENUM", "ENUM64"):
        btf.enumerators(type_id)
    elif kind == "DATASEC":
        btf.variables(type_id)
    elif kind in ("FUNC", "FUNC_PROTO"):
        btf.params(type_id)
    btf.sizeof(type_id)


def _layout(btf: Btf, type_id: int) -> None:
    layout = btf.layout(type_id)
    layout._maker()
    if layout.size <= 1 << 16:
        layout.encode(layout.decode(bytes(layout.size)))


def blob(*types: tuple[int, int, int, int, tuple[int, ...]], strings: bytes = b"\0") -> bytes:
    """A blob of (name, kind, vlen, size or type, words) each."""
    body = b"".join(
        pack("=III", name, kind << 24 | vlen, size) + pack(f"={len(words)}I", *words)
        for name, kind, vlen, size, words in types
    )
    head = pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings))
    return head + body + strings


INT, PTR, ARRAY, STRUCT, UNION, ENUM, _, TYPEDEF, VOLATILE, CONST = range(1, 11)
VAR = 14
U8 = (1, INT, 0, 1, (8,))
U32 = (1, INT, 0, 4, (32,))
NAMES = b"\0a\0b\0c\0"


def array(of: int, count: int) -> tuple[int, int, int, int, tuple[int, ...]]:
    return (0, ARRAY, 0, 0, (of, 1, count))


def struct(*members: tuple[int, int, int], size: int = 4, kind: int = STRUCT, name: int = 1):  # type: ignore[no-untyped-def]
    return (name, kind, len(members), size, tuple(word for member in members for word in member))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "pointer to itself": lambda: blob((0, PTR, 0, 1, ()), strings=NAMES),
    "const loop": lambda: blob((0, CONST, 0, 2, ()), (0, VOLATILE, 0, 1, ()), strings=NAMES),
    "typedef loop": lambda: blob((1, TYPEDEF, 0, 1, ()), strings=NAMES),
    "variable of itself": lambda: blob((1, VAR, 0, 1, (0,)), strings=NAMES),
    "array of itself": lambda: blob(array(1, 2), strings=NAMES),
    "arrays of one another": lambda: blob(array(2, 1), array(1, 1), strings=NAMES),
    "struct in itself": lambda: blob(struct((3, 1, 0)), strings=NAMES),
    "struct in itself without a name": lambda: blob(struct((0, 1, 0), (0, 1, 0)), strings=NAMES),
    "struct in itself by an array": lambda: blob(array(2, 1), struct((3, 1, 0)), strings=NAMES),
    "a deep chain of pointers": lambda: blob(
        U32, *[(0, PTR, 0, i + 1, ()) for i in range(5000)], strings=NAMES
    ),
    "a deep chain of structs": lambda: blob(
        U32, *[struct((3, i + 1, 0)) for i in range(5000)], strings=NAMES
    ),
    "doubling without names": lambda: blob(
        U32, *[struct((0, i + 1, 0), (0, i + 1, 0), kind=UNION) for i in range(60)], strings=NAMES
    ),
    "doubling with names": lambda: blob(
        U32, *[struct((3, i + 1, 0), (5, i + 1, 0), kind=UNION) for i in range(30)], strings=NAMES
    ),
    "eight times eight times eight": lambda: blob(
        U8,
        struct((3, 1, 0), (5, 1, 8), size=2),
        *[array(i + 2, 8) for i in range(30)],
        strings=NAMES,
    ),
    "a huge array": lambda: blob(U32, array(1, 0xFFFFFFFF), strings=NAMES),
    "huge arrays of arrays": lambda: blob(
        U32, *[array(i + 1, 0xFFFF) for i in range(6)], strings=NAMES
    ),
    "a huge array of nothing": lambda: blob(struct(size=0), array(1, 0xFFFFFFFF), strings=NAMES),
    "a huge array of padding": lambda: blob(struct(size=3), array(1, 50_000_000), strings=NAMES),
    "a huge array of swapped numbers": lambda: blob(
        (7, INT, 0, 4, (32,)),
        (7, TYPEDEF, 0, 1, ()),
        array(2, 900_000),
        struct((3, 3, 0), size=3_600_000),
        strings=b"\0a\0b\0c\0__be32\0",
    ),
    "a huge integer": lambda: blob((1, INT, 0, 0xFFFFFFFF, (8,)), strings=NAMES),
    "an enum of three bytes": lambda: blob((1, ENUM, 1, 3, (3, 5)), strings=NAMES),
    "a union of sixty thousand": lambda: blob(
        U32, struct(*[(3, 1, 0)] * 60_000, kind=UNION), strings=NAMES
    ),
    "long names": lambda: blob(
        (1, ENUM, 60_000, 4, tuple(n for i in range(60_000) for n in (i * 10 + 1, i))),
        strings=b"\0" + b"x" * 600_000 + b"\0",
    ),
    "a string that does not end": lambda: blob((1, TYPEDEF, 0, 0, ()), strings=b"\0abc"),
    "a member of a type that is not there": lambda: blob(struct((3, 77, 0)), strings=NAMES),
    "a bit-field of a struct": lambda: blob(
        struct(), (1, STRUCT | 128, 1, 4, (3, 1, 5 << 24)), strings=NAMES
    ),
    "half a type": lambda: pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 4, 4, 1) + bytes(5),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile(kind: str) -> None:
    data = HOSTILE[kind]()
    start = time.process_time()
    try:
        exercise(data)
    except BtfError:
        pass
    assert time.process_time() - start < SECONDS


SOURCE = """
#include <bpfkit/bpfkit.h>
#include <bpfkit/maps.h>
enum color { RED, GREEN = 5, BLUE = 0x7fffffff };
struct inner { u8 a; u32 b; };
struct key { u16 family; union { u32 v4; u8 v6[16]; struct { u16 lo, hi; }; }; __be16 port; };
struct value {
	char name[16]; enum color color; bool ok; struct inner in[3]; s16 grid[2][3];
	u32 low:3, mid:12; u64 wide:40; void *p; const volatile u32 cv; struct inner far[10];
};
BPF_HASH(m, struct key, struct value);
SEC("xdp")
int p(struct xdp_md *ctx) { struct key k = {}; return m.lookup(&k) ? 1 : 2; }
"""


@pytest.mark.skipif(bool(no_compiler()), reason=no_compiler())
def test_mutations() -> None:
    """3,000 blobs with a few changed words and bytes each."""
    blob = compile_source(Source.from_text(SOURCE))["btf"]
    chance = random.Random(9)
    worst = 0.0
    refused = 0
    for _ in range(3000):
        data = bytearray(blob)
        for _ in range(chance.choice((1, 1, 2, 4, 8))):
            at = chance.randrange(len(data))
            what = chance.randrange(4)
            if what == 0:
                data[at] = chance.randrange(256)
            elif what == 1:
                data[at & ~3 : (at & ~3) + 4] = pack("=I", chance.randrange(40))
            elif what == 2:
                data[at & ~3 : (at & ~3) + 4] = pack("=I", chance.choice((1 << 31, 0xFFFFFFFF)))
            else:
                data[at] ^= 1 << chance.randrange(8)
        start = time.process_time()
        try:
            refused += exercise(bytes(data))[1] > 0
        except BtfError:
            refused += 1
        worst = max(worst, time.process_time() - start)
    assert refused > 600
    assert worst < SECONDS


def test_the_kernels_own_types_cost_no_more_than_allowed() -> None:
    if not Path("/sys/kernel/btf/vmlinux").exists():
        pytest.skip("no kernel BTF")
    btf = Btf.vmlinux()
    for name in ("task_struct", "sk_buff", "net", "rq", "mem_cgroup", "pglist_data"):
        number = btf.find(name, "struct")
        if number is not None:
            layout = btf.layout(number)
            layout.decode(bytes(layout.size))
    assert btf.offset("sock", "__sk_common", "skc_daddr") < 64
