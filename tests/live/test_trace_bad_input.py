# SPDX-License-Identifier: Apache-2.0
"""Tracing programs where something is missing: one or two lines that name it, the right status."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, command, run

needs_mounts = pytest.mark.skipif(
    shutil.which("unshare") is None or shutil.which("mount") is None,
    reason="unshare and mount (util-linux) are not installed",
)
BENCH = ROOT / "tools" / "bench"


def without(script: str, cache: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A program in a mount namespace of its own, after a shell script."""
    argv = ["unshare", "-m", "sh", "-c", f'{script} || exit 99; exec "$@"', "sh"]
    return subprocess.run(
        ["env", f"BPFKIT_CACHE={cache}", *argv, *command(name, *words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


@needs_mounts
@pytest.mark.parametrize(
    ("name", "words"),
    [("opensnoop", []), ("tcpconnect", []), ("execs", []), ("fexit", ["vfs_unlink"])],
)
def test_a_kernel_without_btf_is_named_once(name: str, words: list[str], tmp_path: Path) -> None:
    done = without("mount -t tmpfs none /sys/kernel/btf", tmp_path, name, *words, "--", "true")
    if done.returncode == 99:
        pytest.skip("/sys/kernel/btf cannot be hidden here")
    if done.returncode == 0:
        pytest.skip("this machine has the kernel's headers")
    assert (done.returncode, done.stdout) == (77, ""), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) <= 2, lines
    assert lines[0].startswith(f"{name}: ")
    assert done.stderr.count("the kernel has no BTF") == 1
    assert "CONFIG_DEBUG_INFO_BTF" in done.stderr


@needs_mounts
def test_opensnoop_needs_no_mounted_tracefs(tmp_path: Path) -> None:
    hide = "umount -a -t tracefs,debugfs; mount -t tmpfs none /sys/kernel/tracing"
    done = without(hide, tmp_path, "opensnoop", "--json", "--", "cat", "/etc/hostname")
    if done.returncode == 99:
        pytest.skip("/sys/kernel/tracing cannot be hidden here")
    assert done.returncode == 0, done.stderr
    assert '"/etc/hostname"' in done.stdout


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_the_missing_capability_is_named() -> None:
    """What kernel.perf_event_paranoid asks for."""
    caps = ["--inh-caps", "-all,+bpf", "--ambient-caps", "-all,+bpf"]
    drop = ["setpriv", "--reuid", "65534", "--clear-groups", *caps]
    done = subprocess.run(
        [*drop, *command("profile", "--no-demo", "--seconds", "1")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "No module named" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip("nobody cannot read this checkout")
    assert (done.returncode, done.stdout) == (77, ""), done.stderr
    assert done.stderr == "profile: needs root: run it with sudo (missing CAP_PERFMON)\n"


def test_an_unknown_iterator_is_answered_with_those_there_are() -> None:
    done = run("iter", "taks")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'task', 'tcp', 'link', 'map'" in done.stderr


def test_a_trace_ends_with_its_process() -> None:
    script = "import sys; print('there', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        argv = command("opensnoop", "--json", "-v", "--pid", str(process.pid))
        with subprocess.Popen(
            argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as trace:
            assert trace.stderr is not None
            while "attached to" not in (line := trace.stderr.readline()):
                assert line, "it ended before"
            process.stdin.close()
            said = trace.communicate(timeout=60)[1]
    assert trace.returncode == 0, said


def test_an_instruction_that_the_kernel_does_not_probe_is_named(tmp_path: Path) -> None:
    """A nop of ten bytes, whose prefix most kernels refuse, in a process that has it mapped."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    tool = tmp_path / "events"
    subprocess.run(["cc", "-o", str(tool), str(BENCH / "trace_cost_events.c")], check=True)
    with subprocess.Popen([str(tool)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdin.write(b"nop10 1\n")
        process.stdin.flush()
        if not process.stdout.readline():
            pytest.skip("this architecture has no such instruction")
        done = run("uprobe", f"{tool}:trace_nop10", "--pid", str(process.pid), "-c", "1")
        process.stdin.close()
    if done.returncode == 0:
        pytest.skip("this kernel probes it")
    assert done.returncode == 2, done.stderr
    assert "instruction" in done.stderr
    assert len(done.stderr.splitlines()) <= 2
