# SPDX-License-Identifier: Apache-2.0
"""``python3 -m bpfkit.maps`` beside another copy, killed, and without what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from running import ROOT, command

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make maps")
ENV = os.environ | {"PYTHONPATH": str(ROOT)}
AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("maps", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
    )


def test_two_tours_at_once_do_not_meet() -> None:
    copies = [start("--check", "--json") for _ in range(2)]
    for copy in copies:
        out, err = copy.communicate(timeout=120)
        assert copy.returncode == 0, err
        assert {json.loads(line)["status"] for line in out.splitlines()} <= {
            "verified",
            "unsupported",
        }


def test_killed_with_a_congestion_control_registered_it_leaves_nothing() -> None:
    """Whatever it was doing: the kernel lists no algorithm of it, and no cgroup is left."""
    process = start("--json", "-c", "1000", "-t", "0.01", "--type", "struct_ops")
    assert process.stdout is not None
    row = json.loads(process.stdout.readline())
    if row["status"] == "unsupported":
        process.kill()
        process.communicate()
        pytest.skip(row["why"])
    process.kill()
    process.communicate()
    done = subprocess.run(
        command("maps", "--type", "cgroup_array"), capture_output=True, check=False, env=ENV
    )
    assert done.returncode == 0  # the next start removes what the killed one could not
    deadline = time.monotonic() + 10
    name = f"bpfkit_{process.pid}"
    while name in AVAILABLE.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert name not in AVAILABLE.read_text()
    own = f"bpfkit-maps-{process.pid}-"
    assert not [path for path in Path("/sys/fs/cgroup").rglob("bpfkit-maps-*") if own in path.name]


def test_no_demo_is_bad_usage() -> None:
    process = start("--no-demo")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert len(err.splitlines()) <= 2
