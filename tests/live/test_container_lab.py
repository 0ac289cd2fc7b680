# SPDX-License-Identifier: Apache-2.0
"""The container lab: the matrix as users run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bpfkit.container_lab", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_check_passes() -> None:
    done = run("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_rows_of_the_matrix() -> None:
    done = run("--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 35
    fields = ["ts", "round", "state", "probe", "expected", "answered", "captured"]
    assert all(list(row) == fields for row in rows)
    states = list(dict.fromkeys(row["state"] for row in rows))
    assert states == ["none", "xdp", "xdp+tc", "tc", "none-again"]
    assert all(row["expected"] == row["answered"] for row in rows)
    captured = {(row["state"], row["probe"]): row["captured"] for row in rows}
    # XDP drops before the tap on the way in, tc before the tap on the way out
    assert captured["none", "container-outside-tcp"] and captured["none", "host-container-http"]
    assert not captured["xdp", "container-outside-tcp"] and captured["xdp", "host-container-http"]
    assert captured["tc", "container-outside-tcp"] and not captured["tc", "host-container-http"]
    assert not captured["xdp+tc", "container-bridge-tcp"]
    assert not captured["xdp+tc", "host-container-syn"]


def test_ipv6() -> None:
    done = run("--json", "--ipv6")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 35 and all(row["expected"] == row["answered"] for row in rows)
