# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` at any moment leaves nothing behind.

The machine is asked before and after: programs, maps and links (bpftool), namespaces, interfaces,
qdiscs and cgroups.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpfkit.core.kernel import syscall

ROOT = Path(__file__).resolve().parents[2]
SOCKETS = ["sock_example", "sockex1", "sockex2", "sockex3", "truncate", "fanout"]
#: In labs of their own: XDP, tc, routes, netfilter, a web server, AF_XDP, a second process.
PATH = (
    "xdp_drop_tcp tc_drop_tcp xdp_firewall xdp_redirect xdp_cpumap xdp_lb xdp_decap xdp_afxdp "
    "tc_classifier lwt_out netfilter hooks container_lab"
).split()


def _ids(kind: str) -> set[int]:
    out = subprocess.run(["bpftool", "-j", kind, "show"], stdout=subprocess.PIPE, check=True)
    return {row["id"] for row in json.loads(out.stdout or b"[]")}


def _lines(*argv: str) -> set[str]:
    out = subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True).stdout
    return set(out.splitlines())


def _namespaces() -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(entry.stat().st_ino)
        except OSError:
            continue
    return found


def _cgroups() -> set[str]:
    root = Path("/sys/fs/cgroup")
    return {str(path) for path in root.rglob("*bpfkit*")}


def machine() -> dict[str, set[int] | set[str]]:
    """Everything a program could have left."""
    return {
        "programs": _ids("prog"),
        "maps": _ids("map"),
        "links": _ids("link"),
        "named namespaces": _lines("ip", "netns"),
        "namespaces": _namespaces(),
        "interfaces": _lines("ip", "-br", "link"),
        "qdiscs": _lines("tc", "qdisc", "show"),
        "cgroups": _cgroups(),
    }


def _numbers() -> set[tuple[int, int]]:
    """Ids of all programs, maps and links, without opening one.

    Opening a PROG_ARRAY while the kernel clears it after its last owner's end makes the kernel keep
    it for good, so bpftool (which opens) is asked only when everything has settled.
    """
    found = set()
    for cmd in (syscall.PROG_GET_NEXT_ID, syscall.MAP_GET_NEXT_ID, syscall.LINK_GET_NEXT_ID):
        number: int | None = 0
        while (number := syscall.next_id(cmd, number)) is not None:
            found.add((cmd, number))
    return found


def _settled(numbers: set[tuple[int, int]], seconds: float = 20) -> dict[str, set[int] | set[str]]:
    """The kernel frees programs and namespaces a moment later than it closes them."""
    time.sleep(1)
    end = time.monotonic() + seconds
    while _numbers() - numbers and time.monotonic() < end:
        time.sleep(0.2)
    return machine()


@pytest.mark.skipif(not shutil.which("bpftool"), reason="bpftool is not installed")
@pytest.mark.parametrize(
    "programs, kills, longest", [(SOCKETS, 100, 0.45), (PATH, 39, 1.2)], ids=["sockets", "path"]
)
def test_nothing_is_left_after_kills_at_random_moments(programs, kills, longest):
    rng = random.Random(20)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for name in programs:  # the cache is warm, so that the moments spread over the run
        subprocess.run(
            [sys.executable, "-m", f"bpfkit.{name}", "-c", "1", "-t", "0.1"],
            env=env,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
    time.sleep(2)
    numbers = _numbers()
    before = machine()
    alive = 0
    for n in range(kills):
        argv = [sys.executable, "-m", f"bpfkit.{programs[n % len(programs)]}", "--json"]
        if n % 3 == 0:
            argv.append("--check")
        if n % 10 == 9:
            argv.append("--no-cache")
        child = subprocess.Popen(
            argv,
            env=env,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(0.0, longest))
        alive += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert alive > kills / 2  # else the moments were not what the name says
    after = _settled(numbers)
    # What others on the machine take away meanwhile is their affair.
    assert {kind: more for kind in after if (more := after[kind] - before[kind])} == {}
