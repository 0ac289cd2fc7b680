# SPDX-License-Identifier: Apache-2.0
"""The artifact cache: what it refuses to believe, and what it survives."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat

import pytest

from bpfkit.core import log
from bpfkit.core.compile import cache as cache_module
from bpfkit.core.compile.artifact import FORMAT
from bpfkit.core.compile.cache import Cache, cache_dir, digest

ARTIFACT = {
    "v": FORMAT,
    "license": b"GPL",
    "kern_version": 0,
    "btf": b"",
    "maps": [("m", 1, 4, 8, 16, 0, 0, 0, 0, -1)],
    "progs": [("f", bytes(32), [(0, 0)], [], b"", 8, b"", 16)],
    "sections": [("f", "socket", 3)],
    "unnamed": [],
    "consts": [],
    "deps": [],
    "diagnostics": "",
    "formats": b"",
}
KEY = "a" * 64


@pytest.fixture
def store(tmp_path):
    return Cache(str(tmp_path / "cache"))


@pytest.fixture
def said(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(cache_module, "say", lines.append)
    return lines


def entry(store):
    return os.path.join(store.path, KEY)


def test_what_was_put_is_got(store):
    assert store.get(KEY) is None
    store.put(KEY, ARTIFACT)
    assert store.get(KEY) == ARTIFACT


def test_directory_is_0700_and_entry_is_0600(store):
    store.put(KEY, ARTIFACT)
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(entry(store)).st_mode) == 0o600


def test_truncation_at_every_length_is_noticed(store, said):
    store.put(KEY, ARTIFACT)
    with open(entry(store), "rb") as file:
        whole = file.read()
    for size in range(len(whole)):
        with open(entry(store), "wb") as file:
            file.write(whole[:size])
        assert store.get(KEY) is None, size
    assert len(said) == len(whole)
    assert all("rebuilding" in line for line in said)


def test_every_flipped_byte_is_noticed(store, said):
    store.put(KEY, ARTIFACT)
    with open(entry(store), "rb") as file:
        whole = file.read()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x20
        with open(entry(store), "wb") as file:
            file.write(damaged)
        assert store.get(KEY) is None, at


def test_entry_of_another_key_is_not_taken(store, said):
    store.put(KEY, ARTIFACT)
    other = "b" * 64
    os.rename(entry(store), os.path.join(store.path, other))
    assert store.get(other) is None
    assert "another key" in said[-1]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o660])
def test_entry_writable_by_others_is_not_loaded(store, said, mode):
    store.put(KEY, ARTIFACT)
    os.chmod(entry(store), mode)
    assert store.get(KEY) is None
    assert "others may write" in said[-1]
    store.put(KEY, ARTIFACT)  # rebuilt over it
    assert store.get(KEY) == ARTIFACT


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_entry_of_another_owner_is_not_loaded(store, said):
    store.put(KEY, ARTIFACT)
    os.chown(entry(store), 65534, -1)
    assert store.get(KEY) is None
    assert "uid 65534" in said[-1]


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away needs root")
def test_directory_of_another_owner_is_not_used(store, said):
    store.put(KEY, ARTIFACT)
    os.chown(store.path, 65534, -1)
    assert store.get(KEY) is None
    store.put("c" * 64, ARTIFACT)
    assert os.listdir(store.path) == [KEY]
    assert "uid 65534" in said[-1]


def test_symbolic_link_is_not_followed(store, said, tmp_path):
    store.put(KEY, ARTIFACT)
    elsewhere = tmp_path / "elsewhere"
    os.rename(entry(store), elsewhere)
    os.symlink(elsewhere, entry(store))
    assert store.get(KEY) is None


def test_open_directory_is_closed_to_others(store):
    store.put(KEY, ARTIFACT)
    os.chmod(store.path, 0o777)
    assert store.get(KEY) == ARTIFACT
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o700


def test_changed_dependency_makes_the_entry_stale(store, said, tmp_path):
    header = tmp_path / "header.h"
    header.write_text("#define A 1\n")
    s = header.stat()
    store.put(KEY, ARTIFACT | {"deps": [(str(header), s.st_size, s.st_mtime_ns, s.st_ino)]})
    assert store.get(KEY) is not None
    header.write_text("#define A 2\n")
    os.utime(header, ns=(s.st_atime_ns, s.st_mtime_ns + 1))
    assert store.get(KEY) is None
    assert "has changed" in said[-1]
    header.unlink()
    assert store.get(KEY) is None


def test_artifact_of_another_version_is_not_taken(store, said):
    store.put(KEY, ARTIFACT | {"v": 0})
    assert store.get(KEY) is None
    assert "not an artifact" in said[-1]


def test_relocation_outside_the_program_is_not_taken(store, said):
    bad = [("f", bytes(32), [(24, 0)], [], b"", 8, b"", 16)]
    store.put(KEY, ARTIFACT | {"progs": bad})
    assert store.get(KEY) is None


def test_bound_removes_the_oldest_first(tmp_path):
    store = Cache(str(tmp_path), bound=3000)
    for n in range(8):
        key = f"{n:064x}"
        store.put(key, ARTIFACT | {"diagnostics": "x" * 800})
        os.utime(os.path.join(store.path, key), (n, n))
    store.put(KEY, ARTIFACT | {"diagnostics": "x" * 800})
    names = set(os.listdir(store.path))
    assert KEY in names
    assert f"{7:064x}" in names
    assert f"{0:064x}" not in names
    assert sum(os.stat(os.path.join(store.path, n)).st_size for n in names) <= 3000


def test_full_disk_is_no_error_and_leaves_nothing(store, said, monkeypatch):
    store.put("d" * 64, ARTIFACT)

    def write(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module.os, "write", write)
    store.put(KEY, ARTIFACT)
    monkeypatch.undo()
    assert os.listdir(store.path) == ["d" * 64]


def test_unwritable_place_is_no_error(said, monkeypatch):
    store = Cache("/proc/nowhere/bpfkit")
    store.put(KEY, ARTIFACT)
    assert store.get(KEY) is None
    assert store.clear() == 0
    assert "no cache" in said[0]


def _hammer(path, n):
    store = Cache(path)
    for i in range(100):
        store.put(KEY, ARTIFACT | {"diagnostics": f"{n} {i}"})
        got = store.get(KEY)
        if got is None or got["maps"] != ARTIFACT["maps"]:
            os._exit(1)
    os._exit(0)


def test_concurrent_writers_never_show_half_an_entry(store):
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_hammer, args=(os.path.dirname(store.path), n)) for n in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0] * 4
    assert os.listdir(store.path) == [KEY]


def test_key_depends_on_texts_flags_and_environment(monkeypatch):
    monkeypatch.delenv("BPFKIT_HEADERS", raising=False)
    base = digest([b"a.c", b"int x;"], ["-DA"])
    assert digest([b"a.c", b"int x;"], ["-DA"]) == base
    assert digest([b"a.c", b"int y;"], ["-DA"]) != base
    assert digest([b"a.c", b"int x;"], ["-DB"]) != base
    assert digest([b"a.c", b"int x", b";"], ["-DA"]) != base
    monkeypatch.setenv("BPFKIT_HEADERS", "/somewhere")
    assert digest([b"a.c", b"int x;"], ["-DA"]) != base


def test_place_follows_the_environment(monkeypatch):
    monkeypatch.setenv("BPFKIT_CACHE", "/x/y")
    assert cache_dir() == "/x/y"
    monkeypatch.delenv("BPFKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/u/.cache")
    assert cache_dir() == "/home/u/.cache/bpfkit"


def test_verbose_says_why_on_stderr(store, capsys):
    store.put(KEY, ARTIFACT)
    os.truncate(entry(store), 10)
    log.set_verbose(True)
    try:
        assert store.get(KEY) is None
    finally:
        log.set_verbose(False)
    assert "truncated" in capsys.readouterr().err
