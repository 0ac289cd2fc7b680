# SPDX-License-Identifier: Apache-2.0
"""An AF_XDP socket answers for addresses that the kernel does not have."""

from __future__ import annotations

import os

import pytest
from running import run

from bpfkit.core.errors import UnsupportedError
from bpfkit.net.links.lab import router_lab
from bpfkit.net.sockets import xsk


def test_check_verifies_the_answers_with_the_kernels_own_ping_and_neighbour_table():
    done = run("xdp_afxdp", "--check", "-c", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 of 20 verified" in done.stdout


def test_a_kernel_that_dies_of_a_sent_frame_is_not_asked_to_send_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """6.16: xsk_destruct_skb(), by the matrix of stock kernels."""
    monkeypatch.setattr(xsk, "release", lambda: (6, 16))
    with router_lab() as lab, lab["router"].entered():
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(UnsupportedError, match="cannot send from it without dying"):
            xsk.XskSocket(lab.interface("router:left"))
        assert set(os.listdir("/proc/self/fd")) == before
