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
