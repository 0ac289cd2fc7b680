# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` at any moment of a program on sockets or cgroups: ``bpfkit clean`` leaves nothing.

The programs are found by their types, so a new one is tested by being there.  What is left is
looked for from outside: cgroup directories by the killed process's pid, ids of programs, links and
maps from the kernel, congestion controls in /proc.  Programs of a removed cgroup are released by
a work item, some seconds later at times: everything is polled.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfkit.app.base import App
from bpfkit.app.cgroup import CgroupApp
from bpfkit.commands.catalog import programs
from bpfkit.core.cgroups import cgroup_root
from bpfkit.core.errors import UnsupportedError
from bpfkit.core.kernel import syscall

ROOT = Path(__file__).resolve().parents[2]
TYPES = re.compile(
    "BPF_PROG_TYPE_(SOCK_OPS|SK_SKB|SK_MSG|SK_LOOKUP|SK_REUSEPORT|STRUCT_OPS|CGROUP_)"
)
PROGRAMS = [app for app in programs() if any(map(TYPES.match, app.types()))]
ALGORITHMS = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
#: Kills of each program, and the longest that one lives (a warm start takes about 0.1 s).
KILLS, LONGEST = 4, 1.2


def _run(*argv: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def _objects() -> set[tuple[int, int]]:
    """Every program, map and link of the kernel, by its id; none is opened."""
    found = set()
    for cmd in (syscall.PROG_GET_NEXT_ID, syscall.MAP_GET_NEXT_ID, syscall.LINK_GET_NEXT_ID):
        number: int | None = 0
        while (number := syscall.next_id(cmd, number)) is not None:
            found.add((cmd, number))
    return found


def _algorithms() -> set[str]:
    return set(ALGORITHMS.read_text().split())


def _cgroups(pids: set[int]) -> set[str]:
    """The cgroup directories whose name has the pid of one of these processes."""
    try:
        root = Path(cgroup_root())
    except UnsupportedError:
        return set()
    found = set()
    for path in root.rglob("bpfkit-*"):
        if pids & {int(number) for number in re.findall(r"\d+", path.name)}:
            found.add(str(path))
    return found


def _polled(look: Callable[[], set], seconds: float = 30) -> set:
    """What ``look()`` still returns when nothing changes any more, or the time is over."""
    end = time.monotonic() + seconds
    while (left := look()) and time.monotonic() < end:
        time.sleep(0.2)
    return left


def _kill_at(argv: list[str], moment: float) -> tuple[int, bool]:
    """Start a program, kill it after ``moment`` seconds; (its pid, whether it was alive)."""
    child = subprocess.Popen(
        [sys.executable, "-m", *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(moment)
    alive = child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    return child.pid, alive


@pytest.mark.parametrize("app", PROGRAMS, ids=lambda app: app.name)
def test_clean_removes_everything_that_kills_left(app: type[App]) -> None:
    module = f"bpfkit.{app.name}"
    ways = [[module], [module, "--check"]]
    if issubclass(app, CgroupApp):
        ways.append([module, "--json", "--", "sleep", "5"])
    warm = _run(module, "-c", "1", "-t", "0.1")  # compiles, so that the moments spread over the run
    if warm.returncode == 77:
        pytest.skip(warm.stderr.strip())
    _run("bpfkit", "clean")
    objects, algorithms = _objects(), _algorithms()
    rng = random.Random(app.name)
    killed = [_kill_at(ways[n % len(ways)], rng.uniform(0.0, LONGEST)) for n in range(KILLS)]
    assert any(alive for _, alive in killed)
    pids = {pid for pid, _ in killed}

    cleaned = _run("bpfkit", "clean")
    assert cleaned.returncode == 0, cleaned.stderr
    assert _polled(lambda: _cgroups(pids)) == set()
    assert _polled(lambda: _algorithms() - algorithms) == set()
    # Only what was there now can be left from the kills: others start programs meanwhile.
    left = _objects() - objects
    assert _polled(lambda: left & _objects()) == set()


def test_programs_are_found_by_their_types() -> None:
    assert "cgroup_device" in {app.name for app in PROGRAMS}
    assert "sockex1" not in {app.name for app in PROGRAMS}
