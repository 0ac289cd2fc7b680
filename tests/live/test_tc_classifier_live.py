# SPDX-License-Identifier: Apache-2.0
"""tc_classifier on a veth pair: its own check, by both ways to attach."""

from __future__ import annotations

import pytest
from running import run


@pytest.mark.parametrize("attach", ["auto", "clsact"])
def test_check(attach: str) -> None:
    done = run("tc_classifier", "--check", "--attach", attach)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 of 8 verified" in done.stdout
