# SPDX-License-Identifier: Apache-2.0
"""A machine that lacks something is no bug in bpfkit: what is missing is named, and the remedy."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bpfkit.core.errors import BpfkitError, UnsupportedError, resource_error

ROOT = Path(__file__).resolve().parents[2]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="loading programs and mounting take root")


@pytest.mark.parametrize(
    ("number", "name", "status", "text"),
    [
        (errno.EMFILE, "/a", 1, "ulimit -n"),
        (errno.ENFILE, "/a", 1, "fs.file-max"),
        (errno.ENOSPC, "/a", 1, "no space"),
        (errno.EDQUOT, b"/a\xe9", 1, "quota"),
        (errno.EROFS, "/a", 1, "read-only"),
        (errno.EROFS, "/proc/sys/net/ipv4/ip_forward", 77, "read-only"),
        (errno.ENOMEM, None, 1, "memory"),
        (errno.ENOSYS, None, 77, "CONFIG_BPF_SYSCALL"),
        (errno.ENOENT, "/sys/devices/system/cpu/possible", 77, "mount -t sysfs"),
    ],
)
def test_a_lack_is_an_error_of_the_family(
    number: int, name: str | bytes | None, status: int, text: str
) -> None:
    found = resource_error(OSError(number, os.strerror(number), name))
    assert isinstance(found, BpfkitError)
    assert isinstance(found, UnsupportedError) == (status == 77)
    assert found.exit_status == status
    assert text in str(found)
    assert name is None or os.fsdecode(name) in str(found)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), FileNotFoundError(2, "x", "/tmp/x")])
def test_any_other_error_is_none_of_these(error: OSError) -> None:
    assert resource_error(error) is None


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*words, "sh", "-c", code.replace("python3", sys.executable)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@root_only
@pytest.mark.loads
@pytest.mark.parametrize("program", ["sockex3", "hooks", "fanout", "xdp_firewall", "xdp_lb"])
def test_too_few_descriptors(program: str) -> None:
    for limit in (12, 16, 20):
        done = run(f"ulimit -n {limit}; python3 -m bpfkit.{program} -c 1 -t 0.1")
        if done.returncode:
            assert "oo many open files" in done.stderr, done.stderr
            assert "bug" not in done.stderr
            assert len(done.stderr.splitlines()) <= 2


@root_only
@pytest.mark.loads
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare (util-linux) is missing")
def test_no_sys() -> None:
    code = "mount -t tmpfs none /sys; python3 -m bpfkit.sockex3 -c 1 -t 0.1"
    done = run(code, "unshare", "--mount")
    assert done.returncode == 77
    assert "/sys/devices/system/cpu/possible" in done.stderr
    assert "mount -t sysfs" in done.stderr


@root_only
@pytest.mark.loads
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare (util-linux) is missing")
@pytest.mark.parametrize("program", ["sockex1 --check", "lwt_in", "seg6local", "lwt_xmit"])
def test_proc_sys_is_read_only(program: str) -> None:
    code = f"mount -o bind,ro /proc/sys /proc/sys; python3 -m bpfkit.{program} -c 1 -t 0.1"
    done = run(code, "unshare", "--mount")
    assert done.returncode == 77, done.stderr
    assert "/proc/sys is read-only" in done.stderr


# --- the compile --------------------------------------------------------------------------------


@pytest.mark.parametrize("kilobytes", [120_000, 150_000, 200_000, 250_000, 350_000])
def test_too_little_memory_is_not_a_missing_bcc(kilobytes: int, tmp_path: Path) -> None:
    code = f"ulimit -v {kilobytes}; python3 -m bpfkit info sockex3 --json"
    done = run(f"BPFKIT_CACHE={tmp_path} sh -c '{code}'")
    text = done.stdout + done.stderr
    assert "not installed" not in text
    assert "bug in bpfkit" not in text
    if "maps_unknown" in text:
        assert "failed to map" in text or "memory" in text


def _full(tmp_path: Path, more: str = "") -> str:
    """Shell text: a cache, /dev/shm, /tmp and /var/tmp without room, in a mount namespace."""
    places = [str(tmp_path), "/dev/shm", "/var/tmp"]
    mounts = [
        f"mount -t tmpfs -o size=32k none {p}; head -c 1M /dev/zero >{p}/fill" for p in places
    ]
    return "; ".join([f"({m}) 2>/dev/null" for m in mounts]) + f"; {more}"


@root_only
@pytest.mark.loads
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare (util-linux) is missing")
def test_no_room_for_headers(tmp_path: Path) -> None:
    start = f"BPFKIT_CACHE={tmp_path} TMPDIR={tmp_path} python3 -m bpfkit.sockex1 -c 1 -t 0.1"
    done = run(_full(tmp_path, start), "unshare", "--mount")
    assert done.returncode == 1, done.stderr
    assert "no room for the headers" in done.stderr
    assert "/dev/shm: ENOSPC" in done.stderr
    assert "bug" not in done.stderr


@root_only
@pytest.mark.loads
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare (util-linux) is missing")
def test_room_elsewhere_is_enough(tmp_path: Path) -> None:
    """The cache and /dev/shm are full, TMPDIR is not: nothing is missing."""
    full, room = tmp_path / "full", tmp_path / "room"
    full.mkdir()
    room.mkdir()
    start = f"BPFKIT_CACHE={full} TMPDIR={room} python3 -m bpfkit.sockex1 -c 1 -t 0.1"
    done = run(_full(full, start), "unshare", "--mount")
    assert done.returncode == 0, done.stderr
    assert not list(room.iterdir())


_NO_BPF = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
load, errno, allow = (0x20, 0, 0, 0), (6, 0, 0, 0x00050026), (6, 0, 0, 0x7fff0000)
code = struct.pack("HBBI" * 4, *load, 0x15, 0, 1, number, *errno, *allow)
data = ctypes.create_string_buffer(code)
filter = struct.pack("HxxxxxxQ", 4, ctypes.addressof(data))
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, filter) == 0
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
"""


@root_only
@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="syscall number")
@pytest.mark.parametrize(
    "program", ["sockex1", "sockex3", "xdp_drop_tcp", "xdp_firewall", "fanout"]
)
def test_no_bpf_system_call(program: str, tmp_path: Path) -> None:
    """bpf(2) answers ENOSYS, as without CONFIG_BPF_SYSCALL or below some seccomp filters."""
    done = subprocess.run(
        [sys.executable, "-c", _NO_BPF, f"bpfkit.{program}", "-c", "1", "-t", "0.1"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 77, done.stderr
    assert "CONFIG_BPF_SYSCALL" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_the_reason_of_the_library_that_is_there(tmp_path: Path) -> None:
    """libbcc.so.0 exists and does not load; that libbcc.so does not exist says nothing."""
    from bpfkit.core.compile.compiler import _no_bcc

    error = _no_bcc([("/usr/bin/python3", "libLLVM-14.so.1: failed to map segment")])
    assert "cannot be loaded" in str(error) and "ulimit -v" in str(error)
    error = _no_bcc([("/usr/bin/python3", "libbcc.so: No such file or directory")])
    assert "not installed" in str(error)
