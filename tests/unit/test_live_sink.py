# SPDX-License-Identifier: Apache-2.0
"""The live view of a program: what a narrow window keeps of its table, and its keys."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from bpfkit.app.base import App
from bpfkit.app.live import LiveSink
from bpfkit.show.keys import keys_of
from bpfkit.show.live import Frame, LiveView, render

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


def drawn(width: int, monkeypatch: pytest.MonkeyPatch, app: App | None = None) -> list[str]:
    """The lines of one round's table in a window of ``width`` columns."""
    frames: list[Frame] = []
    monkeypatch.setattr(LiveView, "room", lambda _: (width, 24))
    monkeypatch.setattr(LiveView, "draw", lambda _, frame: frames.append(frame))
    LiveSink(app or Steered(Namespace(netns=None, count=None))).round(0, [ROW])
    lines = render(frames[-1], width, 23)[1:]
    return ["".join(piece.text for piece in line).rstrip() for line in lines]


def test_a_wide_window_has_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    titles, row = drawn(100, monkeypatch)
    assert titles.split() == [*[*ROW][:3], "connects", "connects/s", "datagrams", "datagrams/s"]
    assert row.startswith("udp/[2001:db8::53]:53  [::1]:5353  12969    1.23 k")


def test_a_narrow_window_leaves_out_rates_not_names(monkeypatch: pytest.MonkeyPatch) -> None:
    titles, row = drawn(80, monkeypatch)
    assert titles.split() == [*[*ROW][:3], "connects", "connects/s", "datagrams"]
    assert row.split()[:3] == ["udp/[2001:db8::53]:53", "[::1]:5353", "12969"]
    titles, row = drawn(60, monkeypatch)
    assert titles.split() == [*[*ROW][:3], "connects"]
    assert row.split()[:3] == ["udp/[2001:db8::53]:53", "[::1]:5353", "12969"]


def test_a_detail_goes_before_an_identity_and_a_figure_may_be_more_important(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = Steered(Namespace(netns=None, count=None))
    app.details, app.importance = ("pid",), ("datagrams",)
    titles, row = drawn(46, monkeypatch, app)
    assert titles.split() == ["rule", "to", "datagrams"]
    assert row.split() == ["udp/[2001:db8::53]:53", "[::1]:5353", "100", "k"]


def test_a_window_too_narrow_for_the_names_folds_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn(40, monkeypatch)
    assert [line.split() for line in lines[:2]] == [
        ["rule", "to", "pid"],
        ["connects", "connects/s", "datagrams"],
    ]
    assert lines[2] == "udp/[2001:db8::53]:53  [::1]:5353  12969"
    assert lines[3].startswith("    1.23 k")
    assert lines[3].endswith("    100 k")


# ---------------------------------------------------------------- keys


class Screen:
    """A live view without a terminal: what it shows, as text."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, app: App, rows: list[dict[str, Any]]):
        self.frames: list[Frame] = []
        monkeypatch.setattr(LiveView, "room", lambda _: (80, 24))
        monkeypatch.setattr(LiveView, "draw", lambda _, frame: self.frames.append(frame))
        self.sink = LiveSink(app)
        self.round(rows)

    def round(self, rows: list[dict[str, Any]]) -> None:
        self.sink.round(0, rows)

    def press(self, *keys: str) -> bool:
        return self.sink.press(keys)

    def column(self, title: str) -> list[str]:
        return next(one.cells for one in self.frames[-1].columns if one.title == title)

    @property
    def status(self) -> str:
        return self.frames[-1].status


class Hosts(App):
    """Bytes of hosts, by one of two keys."""

    name = "hosts"
    counters = ("bytes",)
    by = 0

    def rows(self) -> list[dict[str, Any]]:
        return [{"port": 80, "bytes": 7}] if self.by else _hosts()

    def cycle_by(self) -> str:
        self.by = 1 - self.by
        return ("host", "port")[self.by]


def _hosts(more: int = 0) -> list[dict[str, Any]]:
    sizes = {"10.0.0.10": 5, "10.0.0.9": 900, "::1": 70}
    return [{"host": host, "bytes": size + more} for host, size in sizes.items()]


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Screen:
    return Screen(monkeypatch, Hosts(Namespace(netns=None, count=None)), _hosts())


def test_q_asks_for_the_end(hosts: Screen) -> None:
    assert not hosts.press("p", "x", "escape")
    assert hosts.press("q")


def test_s_and_the_arrows_sort(hosts: Screen) -> None:
    assert hosts.column("host") == ["10.0.0.10", "10.0.0.9", "::1"]
    hosts.press("s")
    assert hosts.status == "sorted by bytes, falling"
    assert hosts.column("host") == ["10.0.0.9", "::1", "10.0.0.10"]
    hosts.press("up")
    assert hosts.column("host") == ["10.0.0.10", "::1", "10.0.0.9"]
    hosts.press("left")
    assert hosts.status == "sorted by host, rising"
    assert hosts.column("host") == ["10.0.0.9", "10.0.0.10", "::1"]
    hosts.press("left")
    assert hosts.status == ""
    assert hosts.column("host") == ["10.0.0.10", "10.0.0.9", "::1"]
    hosts.press("right", "right", "right", "escape")
    assert hosts.status == ""


def test_a_filter_is_typed_and_taken_back(hosts: Screen) -> None:
    hosts.press("/", *"10.0.0.9q", "backspace")
    assert hosts.status == "show rows with: 10.0.0.9_"
    assert hosts.column("host") == ["10.0.0.9"]
    hosts.press("enter")
    assert hosts.status == "rows with '10.0.0.9': 1 of 3"
    hosts.press("/", "escape")
    assert len(hosts.column("host")) == 3
    hosts.press("/", *"no such", "enter")
    assert hosts.status == "rows with 'no such': 0 of 3"
    assert hosts.frames[-1].columns == []


def test_a_pause_keeps_the_figures_and_its_end_has_the_latest(hosts: Screen) -> None:
    hosts.press("p")
    frames = len(hosts.frames)
    hosts.round(_hosts(more=1))
    assert len(hosts.frames) == frames
    assert hosts.status == "paused"
    assert hosts.column("bytes")[0] == "5 B"
    hosts.press("p")
    assert hosts.column("bytes")[0] == "6 B"
    hosts.press("p")
    hosts.round(_hosts(more=2))
    hosts.sink.end()
    assert hosts.column("bytes")[0] == "7 B"
    assert hosts.status == ""


def test_b_groups_by_something_else_with_rates_only_when_they_are_known(hosts: Screen) -> None:
    hosts.press("b")
    assert hosts.column("port") == ["80"]
    assert hosts.column("bytes/s") == [""]
    hosts.round([{"port": 80, "bytes": 7}])
    assert hosts.column("bytes/s") == ["0 B"]
    hosts.press("b")
    assert len(hosts.column("host")) == 3


def test_the_question_mark_shows_the_keys_until_the_next_one(hosts: Screen) -> None:
    hosts.press("?")
    assert {"q", "p", "s", "/", "b", "?"} <= {*hosts.column("key")}
    hosts.press("s")
    assert hosts.column("host")
    assert hosts.status == ""


def test_rates_that_a_program_has_itself_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"host": "::1", "bytes": 5000, "bytes_per_s": 125.0}]
    screen = Screen(monkeypatch, Hosts(Namespace(netns=None, count=None)), rows)
    assert [one.title for one in screen.frames[-1].columns] == ["host", "bytes", "bytes/s"]
    assert screen.column("bytes/s") == ["125 B"]


@pytest.mark.parametrize(
    ("sent", "keys", "rest"),
    [
        ("q", ["q"], ""),
        ("\x1b[A\x1bOD", ["up", "left"], ""),
        ("\x1b", ["escape"], ""),
        ("\x1bq", ["escape", "q"], ""),
        ("a\x1b[1;5C\x1b[3~b\r\x7f\x00", ["a", "b", "enter", "backspace"], ""),
        ("x\x1b[", ["x"], "\x1b["),
        ("\x1b[1", [], "\x1b[1"),
        ("é", ["é"], ""),
    ],
)
def test_keys_are_told_apart(sent: str, keys: list[str], rest: str) -> None:
    assert keys_of(sent) == (keys, rest)
