# SPDX-License-Identifier: Apache-2.0
"""Programs on cgroups: around a command, on a cgroup that is there, and what stays behind.

cgroup_device stands for all of them: what is tested is the base, by what the kernel and the command
say.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running import command, run

from bpfkit.core.cgroups import Cgroup, cgroup_root, own_cgroup
from bpfkit.core.errors import BpfkitError, InputError
from bpfkit.core.kernel import syscall

PROGRAM = "cgroup_device"
#: One more than cgroup_sysctl takes values for.
PARAMETERS = [str(path) for path in sorted(Path("/proc/sys/net").rglob("*")) if path.is_file()][
    :257
]


def cgroups() -> set[str]:
    """The directories of the program in the v2 hierarchy."""
    return {str(path) for path in Path(cgroup_root()).rglob("bpfkit-cgroup-device-*")}


def started(*words: str) -> subprocess.Popen[str]:
    """The program around a command that is at work: its first line of output has come."""
    process = subprocess.Popen(
        command(PROGRAM, "--", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["/nonexistent/command"], 127),
        (["/"], 126),
    ],
)
def test_the_exit_status_is_the_commands(words: list[str], status: int) -> None:
    done = run(PROGRAM, "--", *words)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert cgroups() == set()


def test_standard_output_is_the_commands_and_input_reaches_it() -> None:
    done = run(PROGRAM, "--", "cat", input="two\nlines\n")
    assert done.stdout == "two\nlines\n"


def test_with_json_rows_have_standard_output_to_themselves() -> None:
    done = run(PROGRAM, "--json", "--", "sh", "-c", "echo from the command; cat /dev/null")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows if row.get("minor") == 3] == ["/dev/null"]
    assert "from the command" in done.stderr


def test_the_command_is_in_a_cgroup_below_the_callers() -> None:
    done = run(PROGRAM, "--", "grep", "^0::", "/proc/self/cgroup")
    path = done.stdout.strip().removeprefix("0::")
    with open("/proc/self/cgroup") as own:
        mine = next(line[3:].strip() for line in own if line.startswith("0::"))
    assert os.path.dirname(path) == mine
    assert os.path.basename(path).startswith("bpfkit-cgroup-device-")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_to_the_command(number: signal.Signals) -> None:
    script = (
        "import signal, sys\n"
        f"signal.signal({int(number)}, lambda *a: sys.exit(5))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    with started("/usr/bin/python3", "-c", script) as process:
        process.send_signal(number)
        assert process.wait(20) == 5
    assert cgroups() == set()


def test_a_command_that_ignores_the_signal_is_killed_after_three_seconds() -> None:
    with started("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done") as process:
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGKILL
    assert cgroups() == set()


def test_kill_9_takes_the_command_along_and_the_next_start_removes_the_cgroup() -> None:
    with started("sh", "-c", "echo $$ >&2; echo ready; exec sleep 1000") as process:
        assert process.stderr is not None
        pid = int(process.stderr.readline())
        process.kill()
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{pid}")
    left = cgroups()
    assert len(left) == 1  # a directory has no owner to the kernel
    assert run(PROGRAM, "--", "true").returncode == 0
    assert cgroups() == set()


def test_what_the_command_leaves_running_goes_on_and_is_said(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"setsid sleep 60 >/dev/null 2>&1 & echo $! > {pid_file}"
    done = run(PROGRAM, "--", "sh", "-c", script)
    pid = int(pid_file.read_text())
    try:
        assert done.returncode == 0
        assert "sh has ended; a process of it goes on without the program" in done.stderr
        with open(f"/proc/{pid}/cgroup") as groups:
            assert "bpfkit" not in groups.read()
        assert cgroups() == set()
    finally:
        os.kill(pid, signal.SIGKILL)


def test_an_existing_cgroup_is_observed_and_stays() -> None:
    path = f"{cgroup_root()}/bpfkit-test-{os.getpid()}"
    os.mkdir(path)
    try:
        for spec in (path, os.path.basename(path)):
            done = run(PROGRAM, "--cgroup", spec, "--deny", "/dev/zero", "--", "cat", "/dev/zero")
            assert done.returncode == 1
            assert "Operation not permitted" in done.stderr
            assert os.path.isdir(path)
    finally:
        os.rmdir(path)


def test_cgroups_that_are_none_are_refused_in_a_line(tmp_path: Path) -> None:
    for path, why in (
        (str(tmp_path / "absent"), "ENOENT"),
        (str(tmp_path), "is not a cgroup of the v2 hierarchy"),
    ):
        done = run(PROGRAM, "--cgroup", path, "-c", "1")
        assert (done.returncode, done.stdout) == (2, "")
        assert why in done.stderr
        assert len(done.stderr.splitlines()) == 1
    with pytest.raises(InputError):
        Cgroup.open("/proc")


def test_a_program_above_that_forbids_others_is_named() -> None:
    """BPF_PROG_ATTACH without BPF_F_ALLOW_MULTI on an outer cgroup: EPERM below it."""
    from bpfkit.core.kernel import asm
    from bpfkit.core.program import Program

    outer = Cgroup.new("outer")
    inner = Cgroup.new("inner", parent=outer.path)
    allow = bytes(asm.assemble(asm.mov(asm.r0, 1), asm.exit_()))
    try:
        with Program.from_insns("cgroup_device", allow, expected_attach_type=6) as first:
            syscall.prog_attach(outer.fd, first.fd, 6)
            try:
                done = run(PROGRAM, "--cgroup", inner.path, "-c", "1")
            finally:
                syscall.prog_detach(outer.fd, first.fd, 6)
        assert done.returncode == 1
        assert "a program on a cgroup above forbids programs below it" in done.stderr
    finally:
        inner.close()
        outer.close()


def test_own_cgroup_is_what_the_kernel_says() -> None:
    with open(f"{own_cgroup()}/cgroup.procs") as procs:
        assert str(os.getpid()) in procs.read().split()


def test_an_empty_name_is_not_the_root() -> None:
    """``--cgroup "$UNSET"`` would put every process of the machine under the rules."""
    done = run(PROGRAM, "--cgroup", "", "--", "true")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "the name of the cgroup is empty" in done.stderr


@pytest.mark.parametrize("again", [False, True])
def test_a_cgroup_that_is_removed_ends_the_program_and_says_so(again: bool) -> None:
    path = Path(own_cgroup()) / f"removed-{os.getpid()}"
    path.mkdir()
    process = subprocess.Popen(
        command(PROGRAM, "--json", "--cgroup", str(path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        with Cgroup.open(str(path)) as group:
            deadline = time.monotonic() + 20
            while not select.select([process.stdout], [], [], 0.2)[0]:
                assert time.monotonic() < deadline
                group.run(["sh", "-c", ": </dev/null"])
        path.rmdir()
        if again:
            path.mkdir()  # another cgroup, which the program is not attached to
        said = process.communicate(timeout=20)[1]
    finally:
        process.kill()
        if path.exists():
            path.rmdir()
    assert process.returncode == 1
    assert said.splitlines() == [
        f"{PROGRAM}: the cgroup {path} was removed, and the program with it"
    ]


@pytest.mark.parametrize(
    ("program", "words", "says"),
    [
        ("cgroup_sockopt", [f"--deny=1000:{n}" for n in range(257)], "257 options with rules"),
        (
            "cgroup_sock",
            [f"--deny-type=raw/{n}" for n in range(1, 256)]
            + ["--deny-type=raw", "--deny-type=/udp"],
            "257 types of sockets",
        ),
        ("cgroup_sysctl", [f"--set={name}=1" for name in PARAMETERS], "257 parameters with values"),
    ],
)
def test_rules_beyond_the_map_are_bad_input(program: str, words: list[str], says: str) -> None:
    done = run(program, *words, "--", "true")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert says in done.stderr


def test_a_command_that_does_not_end_is_an_error_that_names_it() -> None:
    with Cgroup.new("patience") as group:
        with pytest.raises(
            BpfkitError, match=r"sleep does not end in .*: still running after 0\.2"
        ):
            group.run(["sleep", "100"], timeout=0.2)
        assert group.pids() == []
