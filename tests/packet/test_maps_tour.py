# SPDX-License-Identifier: Apache-2.0
"""``python3 -m bpfkit.maps``: each type once, and its edges again by plain bpf(2) calls.

The raw calls below use nothing of bpfkit: the numbers and layouts are those of linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import subprocess
from typing import Any

import pytest
from running import ROOT, command

from bpfkit.core.kernel.constants import MAP_TYPES

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make maps"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of bpf(2) is x86's"),
]

HASH, LPM_TRIE, QUEUE, STACK, BLOOM, RINGBUF = 1, 11, 22, 23, 30, 27
CREATE, LOOKUP, UPDATE, DELETE, TAKE = 0, 1, 2, 3, 21


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("maps", *words),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    done = run("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    names = [row["type"] for row in found]
    assert len(names) == len(set(names))
    return {row["type"]: row for row in found}


def test_every_type_of_the_kernels_list_is_there_once(rows: dict[str, dict[str, Any]]) -> None:
    assert list(rows) == [name.lower() for name in MAP_TYPES[1:]]


def test_a_row_has_what_scripts_rely_on(rows: dict[str, dict[str, Any]]) -> None:
    for name, row in rows.items():
        assert {"ts", "round", "type", "status", "why", "checks"} <= row.keys()
        assert row["status"] in ("verified", "unsupported"), (name, row["failed"])
        assert row["failed"] == []
        if row["status"] == "verified":
            assert len(row["checks"]) >= 5, name
            assert len(set(row["checks"])) == len(row["checks"]), name
        else:
            assert row["checks"] == []
            assert row["why"], name


def test_what_the_kernel_creates_is_verified_and_nothing_else(
    rows: dict[str, dict[str, Any]],
) -> None:
    """Unsupported is only what a plain BPF_MAP_CREATE cannot make either."""
    plain = {
        "hash": (1, 4, 8, 8, 0),
        "array": (2, 4, 8, 8, 0),
        "lpm_trie": (11, 8, 8, 8, 1),
        "queue": (22, 0, 8, 8, 0),
        "ringbuf": (27, 0, 0, 4096, 0),
        "bloom_filter": (30, 0, 8, 8, 0),
        "user_ringbuf": (31, 0, 0, 4096, 0),
        "arena": (33, 0, 0, 4, 1 << 10),
    }
    for name, (number, key, value, entries, flags) in plain.items():
        fd = create(number, key, value, entries, flags)
        if fd >= 0:
            os.close(fd)
        assert (rows[name]["status"] == "verified") == (fd >= 0), name


def test_one_type_alone(rows: dict[str, dict[str, Any]]) -> None:
    done = run("--type", "LPM-trie", "--json")
    (row,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert row["type"] == "lpm_trie"
    assert row["checks"] == rows["lpm_trie"]["checks"]


def test_one_type_that_is_missing_is_77_with_the_reason(rows: dict[str, dict[str, Any]]) -> None:
    missing = [name for name, row in rows.items() if row["status"] == "unsupported"]
    if not missing:
        pytest.skip("this kernel has every map type")
    for words in (["--check"], []):
        done = run("--type", missing[0], *words)
        assert done.returncode == 77
        assert rows[missing[0]]["why"] in done.stderr


def test_text_fits_into_80_columns() -> None:
    done = run()
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert sum(line.split(" ")[0] in map(str.lower, MAP_TYPES) for line in
               done.stdout.splitlines()) == len(MAP_TYPES) - 1  # fmt: skip


# ------------------------------------------------------------ the edges, by raw system calls


def bpf(cmd: int, attr: bytes) -> int:
    """The result of bpf(2); a negative errno if it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attr, len(attr))
    result = int(libc.syscall(321, cmd, buffer, len(attr)))
    return result if result >= 0 else -ctypes.get_errno()


def words(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


def create(number: int, key: int, value: int, entries: int, flags: int = 0) -> int:
    return bpf(CREATE, words(number, key, value, entries, flags).ljust(64, b"\0"))


def element(
    cmd: int, fd: int, key: bytes | None, value: bytes, flags: int = 0
) -> tuple[int, bytes]:
    """(result, the value afterwards)"""
    k = ctypes.create_string_buffer(key, len(key)) if key is not None else None
    v = ctypes.create_string_buffer(value, len(value) or 1)
    attr = words(fd, 0)
    for number in (ctypes.addressof(k) if k else 0, ctypes.addressof(v), flags):
        attr += number.to_bytes(8, "little")
    return bpf(cmd, attr), v.raw


def checked(rows: dict[str, dict[str, Any]], name: str, words: str) -> bool:
    return any(words in text for text in rows[name]["checks"])


def test_a_full_hash_is_e2big_as_the_tour_says(rows: dict[str, dict[str, Any]]) -> None:
    fd = create(HASH, 4, 8, 2)
    try:
        assert element(UPDATE, fd, words(1), bytes(8))[0] == 0
        assert element(UPDATE, fd, words(2), bytes(8))[0] == 0
        assert element(UPDATE, fd, words(3), bytes(8))[0] == -errno.E2BIG
        assert element(UPDATE, fd, words(1), bytes(8), 1)[0] == -errno.EEXIST
    finally:
        os.close(fd)
    assert checked(rows, "hash", "full: E2BIG")
    assert checked(rows, "hash", "a key that is there: EEXIST")


def test_a_full_trie_is_enospc_as_the_tour_says(rows: dict[str, dict[str, Any]]) -> None:
    fd = create(LPM_TRIE, 8, 8, 1, 1)
    try:
        assert element(UPDATE, fd, words(8) + bytes([10, 0, 0, 0]), bytes(8))[0] == 0
        assert element(UPDATE, fd, words(8) + bytes([11, 0, 0, 0]), bytes(8))[0] == -errno.ENOSPC
        assert element(LOOKUP, fd, words(32) + bytes([10, 9, 8, 7]), bytes(8))[0] == 0
    finally:
        os.close(fd)
    assert checked(rows, "lpm_trie", "full: ENOSPC")


@pytest.mark.parametrize(
    ("name", "number", "order"), [("queue", QUEUE, [2, 3]), ("stack", STACK, [3, 2])]
)
def test_bpf_exist_drops_the_oldest_as_the_tour_says(
    rows: dict[str, dict[str, Any]], name: str, number: int, order: list[int]
) -> None:
    fd = create(number, 0, 4, 2)
    try:
        for value in (1, 2):
            assert element(UPDATE, fd, None, words(value))[0] == 0
        assert element(UPDATE, fd, None, words(3))[0] == -errno.E2BIG
        assert element(UPDATE, fd, None, words(3), 2)[0] == 0
        taken = [element(TAKE, fd, None, bytes(4))[1][:4] for _ in order]
        assert taken == [words(value) for value in order]
        assert element(TAKE, fd, None, bytes(4))[0] == -errno.ENOENT
    finally:
        os.close(fd)
    assert checked(rows, name, "BPF_EXIST on a full map dropped the oldest")


def test_a_bloom_filter_misses_nothing_as_the_tour_says(rows: dict[str, dict[str, Any]]) -> None:
    if rows["bloom_filter"]["status"] == "unsupported":
        pytest.skip(rows["bloom_filter"]["why"])
    fd = create(BLOOM, 0, 4, 100)
    try:
        for value in range(100):
            assert element(UPDATE, fd, None, words(value))[0] == 0
        assert all(element(LOOKUP, fd, None, words(value))[0] == 0 for value in range(100))
        wrong = sum(element(LOOKUP, fd, None, words(value))[0] == 0 for value in range(1000, 3000))
        assert wrong < 200  # 5 hashes: about 2 %
    finally:
        os.close(fd)
    assert checked(rows, "bloom_filter", "by the formula")
