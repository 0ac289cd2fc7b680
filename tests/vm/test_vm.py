# SPDX-License-Identifier: Apache-2.0
"""tools/vm.py with a stock kernel: status, output, limits, and that bpfkit works in there.

Without KVM a boot takes 5 seconds and a compile 5 more, so a test looks at several things per boot.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VM = ROOT / "tools/vm.py"
sys.path.insert(0, str(VM.parent))
from vm_guest import image  # noqa: E402


def missing() -> str:
    """Why there can be no VM here, or ""."""
    if not shutil.which("qemu-system-x86_64"):
        return "no qemu-system-x86_64: apt-get install qemu-system-x86"
    try:
        image.static_busybox()
        image.find_kernel()
    except image.VmError as error:
        return " ".join(str(error).split("\n"))
    return ""


WHY_NOT = missing()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def vm(*words: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run tools/vm.py; everything after "--" is the guest's."""
    return subprocess.run(
        [*prefix, sys.executable, str(VM), *words],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **env},
        timeout=900,
    )


def ours() -> set[str]:
    """The QEMUs that run now."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"mount_tag=root" in path.read_bytes():
                found.add(path.parent.name)
    return found


def test_status_output_and_an_untouched_host(tmp_path: Path) -> None:
    """Every byte and the status get through; what the guest writes is gone."""
    (tmp_path / "old").write_text("as it was")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    script = tmp_path / "x.py"
    script.write_text(
        "import os, sys\n"
        "os.write(1, bytes(range(256)) * 1000)\n"
        "os.write(2, b'to stderr\\r\\n\\0')\n"
        "print(sys.argv[1:], os.uname().release, open('/dev/null').read(), flush=True)\n"
        "os.remove('old'); open('new', 'w').write('x'); os.mkdir('/vm-test-folder')\n"
        "open('/dev/stdout', 'w').write(os.environ['GIVEN'])\n"
        "os.system('sleep 1000 &')\n"
        "os._exit(43)\n"
    )
    arguments = ["two words", "$HOME 'quoted\"", "ä\n*"]
    done = vm(
        "--cwd",
        str(tmp_path),
        "--env",
        "GIVEN=a b",
        "--",
        sys.executable,
        str(script),
        *arguments,
        TMPDIR=str(temporary),
    )
    release = image.find_kernel().release
    assert done.returncode == 43, done.stderr
    assert done.stdout == bytes(range(256)) * 1000 + f"{arguments} {release} \na b".encode()
    assert b"to stderr\r\n\0" in done.stderr
    assert b"complained" not in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["old", "temporary", "x.py"]
    assert (tmp_path / "old").read_text() == "as it was"
    assert not os.path.exists("/vm-test-folder")
    assert not os.listdir(temporary)


def test_bpf_program_runs_in_the_guest() -> None:
    """One of bpfkit's own packet tests, on the stock kernel, with nothing installed there."""
    done = vm(
        *("--mem", "2048M", "--"),
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        "tests/packet/test_truncate.py::test_limits_are_constants",
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")[-4000:]
    assert re.search(rb"[1-9]\d* passed", done.stdout)
    assert b"complained" not in done.stderr


def test_what_this_machine_may_lack_works_in_the_guest() -> None:
    """act_bpf behind u32 and flower, VLAN devices below routes with programs, GRE tunnels."""
    checks = [
        f"{sys.executable} -m bpfkit.tc_action --check -c 1 --match {m}" for m in ("u32", "flower")
    ]
    tests = "tests/live/test_lab.py::test_vlan tests/live/test_routes_live.py"
    tests += " tests/live/test_gre.py -k 'vlan or gre'"
    pytest_ = f"{sys.executable} -m pytest -q -p no:cacheprovider {tests}"
    gre = ("--modprobe", "ip_gre", "--modprobe", "ip6_gre")
    done = vm("--mem", "2048M", *gre, "--", "sh", "-ec", "; ".join([*checks, pytest_]))
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said[-4000:] + done.stderr.decode(errors="replace")[-2000:]
    assert len(re.findall(r"tc_action: (\d+) of \1 verified", said)) == 2
    assert re.search(r"\b12 passed", said) and "skipped" not in said
    assert b"complained" not in done.stderr


def test_time_limit() -> None:
    started = time.monotonic()
    done = vm("--timeout", "2", "--", "sleep", "1000")
    assert done.returncode == 124
    assert b"time limit of 2 s" in done.stderr
    assert time.monotonic() - started < 60


def test_panic_is_125_with_the_console() -> None:
    done = vm("--", "sh", "-c", "echo before; echo c >/proc/sysrq-trigger; sleep 1000")
    assert done.returncode == 125
    assert done.stdout == b"before\n"
    assert b"the guest died" in done.stderr and b"Kernel panic - not syncing" in done.stderr


def test_share_modprobe_warning_and_no_root(tmp_path: Path) -> None:
    """A shared folder is written through; the kernel's complaint is passed on; nobody suffices."""
    prefix: tuple[str, ...] = ()
    folder = tmp_path
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    if os.geteuid() == 0 and shutil.which("setpriv"):
        shared = Path("/tmp") / f"bpfkit-vm-{os.getpid()}"
        if subprocess.run([*nobody, "test", "-r", str(VM)]).returncode == 0:
            prefix, folder = nobody, shared
            folder.mkdir()
            os.chown(folder, 65534, 65534)
    try:
        done = vm(
            *("--share", f"{folder}:/mnt/a, b", "--modprobe", "sch_netem", "--"),
            "sh",
            "-c",
            "ls -d /sys/module/sch_netem /sys/fs/cgroup/cgroup.procs /sys/kernel/tracing/events;"
            "grep -c ' /sys/fs/bpf bpf ' /proc/mounts; echo text >'/mnt/a, b/file'; id -u;"
            "echo '<4>WARNING: CPU: 0 PID: 1 at a test' >/dev/kmsg; sleep 0.2",
            prefix=prefix,
            BPFKIT_CACHE="/nonexistent/cache",  # without a cache it works too
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode().split() == [
            "/sys/fs/cgroup/cgroup.procs",
            "/sys/kernel/tracing/events",
            "/sys/module/sch_netem",
            "1",
            "0",
        ]
        assert (folder / "file").read_text() == "text\n"
        assert b"the guest's kernel complained" in done.stderr
        assert b"PID: 1 at a test" in done.stderr
    finally:
        if folder != tmp_path:
            shutil.rmtree(folder)


def test_qemu_dies_with_its_runner() -> None:
    before = ours()
    runner = subprocess.Popen([sys.executable, str(VM), "--", "sleep", "1000"])
    try:
        deadline = time.monotonic() + 60
        while not ours() - before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ours() - before
    finally:
        runner.kill()
        runner.wait()
    while ours() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not ours() - before
