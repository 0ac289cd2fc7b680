# SPDX-License-Identifier: Apache-2.0
"""cgroup_device on commands and on cgroups that others use as well; errnos seen from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfkit.cgroup_device import make_rules, parse_rule
from bpfkit.core.cgroups import Cgroup
from bpfkit.core.errors import InputError
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.asm import assemble, exit_, mov, r0
from bpfkit.core.program import Program
from tests.running import Running, run

NAME = "cgroup_device"
_DEVICE = 6  # BPF_CGROUP_DEVICE


@contextlib.contextmanager
def neighbour(verdict: int = 1) -> Iterator[Program]:
    """A program of somebody else's, which allows everything or nothing."""
    code = assemble(mov(r0, verdict), exit_())
    with Program.from_insns(
        "CGROUP_DEVICE", code, name="neighbour", expected_attach_type=_DEVICE
    ) as program:
        yield program


def attached(group: Cgroup) -> list[str]:
    """The names that bpftool lists."""
    argv = ["bpftool", "-j", "cgroup", "show", group.path]
    out = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    return [row["name"] for row in json.loads(out.strip() or "[]")]


def settled(group: Cgroup, names: list[str]) -> None:
    """Programs on cgroups are released late."""
    deadline = time.monotonic() + 5
    while attached(group) != names:
        assert time.monotonic() < deadline, attached(group)
        time.sleep(0.02)


@contextlib.contextmanager
def at_work(group: Cgroup, *args: str, copies: int = 1) -> Iterator[Running]:
    """The program on a cgroup, once bpftool sees that many copies of it there."""
    with Running(NAME, "--cgroup", group.path, "--no-demo", *args, ready="") as running:
        deadline = time.monotonic() + 30
        while attached(group).count("cgroup_device") < copies:
            assert running.process.poll() is None, running.said
            assert time.monotonic() < deadline, running.said
            time.sleep(0.02)
        yield running


def open_in(group: Cgroup, path: str) -> str:
    """What opening a device in a cgroup fails with; "" if it does not."""
    procs = group.open_procs()
    done = subprocess.run(
        ["head", "-c", "0", path],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.write(procs, b"0"),
        check=False,
    )
    os.close(procs)
    return done.stderr.strip().rpartition(": ")[2]


def test_the_command_gets_eperm_and_its_status_is_the_programs() -> None:
    done = run(NAME, "--json", "--deny", "/dev/zero:r", "--", "head", "-c", "1", "/dev/zero")
    assert done.returncode == 1
    assert "Operation not permitted" in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    (event,) = [row for row in rows if row.get("event")]
    assert (event["event"], event["path"], event["access"], event["comm"]) == (
        "denied",
        "/dev/zero",
        "r",
        "head",
    )
    assert (rows[-1]["path"], rows[-1]["allowed"], rows[-1]["denied"]) == ("/dev/zero", 0, 1)


def test_an_allow_list_takes_symbolic_links_and_denies_the_rest(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    script = f"head -c0 {link} && head -c0 /dev/null && ! head -c0 /dev/zero"
    done = run(NAME, "--allow", str(link), "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Operation not permitted") == 1


def test_a_path_may_have_colons(tmp_path: Path) -> None:
    for name in ("a:b", "c:rw"):
        path = tmp_path / name
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        assert parse_rule(str(path)) == ((2, 1, 5), 7)
        assert parse_rule(f"{path}:w") == ((2, 1, 5), 4)


def test_block_devices_have_rules_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    argv = [sys.executable, "-c", f"import os; os.mknod({str(path)!r}, 0o60600, os.makedev(7, 99))"]
    assert run(NAME, "--deny", "char 7:*", "--", *argv).returncode == 0
    assert stat.S_ISBLK(path.stat().st_mode)
    path.unlink()
    done = run(NAME, "--deny", "block 7:*:m", "--", *argv)
    assert "Operation not permitted" in done.stderr
    assert not path.exists()


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("/dev", "neither a block nor a char device"),
        ("/etc/passwd", "neither a block nor a char device"),
        ("/dev/nothing", "No such file"),
        ("/dev/zero:x", "letters of rwm"),
        ("char 1", "MAJOR:MINOR"),
        ("char *:5", "needs its major"),
        ("char -1:5", "MAJOR:MINOR"),
    ],
)
def test_what_is_no_rule_is_said_in_two_lines(rule: str, why: str) -> None:
    done = run(NAME, "--deny", rule, "--", "true")
    assert done.returncode == 2
    assert why in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_more_rules_than_the_map_holds_are_refused() -> None:
    assert len(make_rules([f"char 9:{n}" for n in range(1024)], (), 7)) == 1024
    with pytest.raises(InputError, match="room for 1024"):
        make_rules([f"char 9:{n}" for n in range(1025)], (), 7)


def test_a_neighbours_program_stays_and_both_are_asked() -> None:
    with Cgroup.new("device-test") as group, neighbour() as other:
        with (
            other.attach_cgroup(group.path),
            at_work(group, "--deny", "/dev/zero") as running,
        ):
            assert sorted(attached(group)) == ["cgroup_device", "neighbour"]
            assert open_in(group, "/dev/zero") == "Operation not permitted"
            assert open_in(group, "/dev/null") == ""
            status, out, _ = running.end()
            assert status == 0
            assert "/dev/zero" in out
            settled(group, ["neighbour"])
            assert open_in(group, "/dev/zero") == ""


def test_a_second_copy_adds_its_rules() -> None:
    with (
        Cgroup.new("device-test") as group,
        at_work(group, "--deny", "/dev/zero"),
        at_work(group, "--deny", "/dev/full", copies=2),
    ):
        assert attached(group) == ["cgroup_device"] * 2
        denied = [open_in(group, f"/dev/{name}") != "" for name in ("zero", "full", "null")]
        assert denied == [True, True, False]


@pytest.mark.parametrize("where", ["above", "here"])
def test_a_program_that_forbids_others_is_named_as_the_reason(where: str) -> None:
    with Cgroup.new("device-test") as outer, Cgroup.new("inner", parent=outer.path) as inner:
        group = outer if where == "above" else inner
        with neighbour() as other:
            syscall.prog_attach(group.fd, other.fd, _DEVICE)  # without BPF_F_ALLOW_MULTI
            done = run(NAME, "--cgroup", inner.path, "--no-demo", "-c", "1")
            syscall.prog_detach(group.fd, other.fd, _DEVICE)
        assert done.returncode == 1
        assert "EPERM" in done.stderr
        assert "bpftool cgroup tree" in done.stderr


def test_what_an_outer_program_refuses_stays_refused() -> None:
    with Cgroup.new("device-test") as outer, Cgroup.new("inner", parent=outer.path) as inner:
        with neighbour(0) as other, other.attach_cgroup(outer.path):
            with at_work(inner, "--allow", "/dev/null"):
                assert open_in(inner, "/dev/null") == "Operation not permitted"


def test_kill_minus_nine_leaves_no_program_and_no_command() -> None:
    with Cgroup.new("device-test") as group:
        with at_work(group, "--deny", "/dev/zero") as running:
            assert attached(group) == ["cgroup_device"]
            running.end(signal.SIGKILL)
            settled(group, [])
        assert open_in(group, "/dev/zero") == ""
