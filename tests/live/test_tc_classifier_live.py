# SPDX-License-Identifier: Apache-2.0
"""tc_classifier on a veth pair: its own check, by both ways to attach."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("attach", ["auto", "clsact"])
def test_check(attach: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bpfkit.tc_classifier", "--check", "--attach", attach],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 verified" in done.stdout
