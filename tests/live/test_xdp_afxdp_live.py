# SPDX-License-Identifier: Apache-2.0
"""An AF_XDP socket answers for addresses that the kernel does not have."""

from __future__ import annotations

from running import run


def test_check_verifies_the_answers_with_the_kernels_own_ping_and_neighbour_table():
    done = run("xdp_afxdp", "--check", "-c", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 of 20 verified" in done.stdout
