# SPDX-License-Identifier: Apache-2.0
"""The live view's table: what stays of it in a window that is too narrow for all of it."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from bpfkit.app.base import App
from bpfkit.app.sinks import LiveSink
from bpfkit.show.live import Frame, LiveView

ROW: dict[str, Any] = {
    "rule": "udp/[2001:db8::53]:53",
    "to": "[::1]:5353",
    "pid": 12969,
    "connects": 1234,
    "datagrams": 99999,
}


class Steered(App):
    """Something with counters."""

    name = "steered"
    counters = ("connects", "datagrams")
    source = ""


def drawn(width: int, monkeypatch: pytest.MonkeyPatch) -> Frame:
    """The frame of one round in a window of ``width`` columns."""
    frames: list[Frame] = []
    monkeypatch.setattr(LiveView, "room", lambda _: (width, 24))
    monkeypatch.setattr(LiveView, "draw", lambda _, frame: frames.append(frame))
    app = Steered(Namespace(netns=None, count=None))
    LiveSink(app).round(0, [ROW])
    return frames[-1]


def test_a_wide_window_has_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = drawn(100, monkeypatch)
    rated = ["connects", "connects/s", "datagrams", "datagrams/s"]
    assert frame.titles == [*[*ROW][:3], *rated]
    assert frame.right == [False] * 3 + [True] * 4


def test_a_narrow_window_leaves_out_rates_not_names(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = drawn(80, monkeypatch)
    assert frame.titles == [*ROW]
    assert frame.rows == [["udp/[2001:db8::53]:53", "[::1]:5353", "12969", "1 234", "99 999"]]
    assert frame.right == [False] * 3 + [True] * 2
