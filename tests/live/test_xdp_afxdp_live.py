# SPDX-License-Identifier: Apache-2.0
"""An AF_XDP socket answers for addresses that the kernel does not have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_check_verifies_the_answers_with_the_kernels_own_ping_and_neighbour_table():
    done = subprocess.run(
        [sys.executable, "-m", "bpfkit.xdp_afxdp", "--check", "-c", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 of 12 verified" in done.stdout
