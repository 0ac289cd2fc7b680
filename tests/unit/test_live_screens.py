# SPDX-License-Identifier: Apache-2.0
"""The live view of every program in windows of four sizes, laid out from rows of its demo.

``tests/data/live/NAME.jsonl`` holds the rows, ``tools/screens.py --rows tests/data/live`` records
them.  The screens in ``tests/data/live/*.txt`` are written anew by
``BPFKIT_UPDATE=1 python3 -m pytest tests/unit/test_live_screens.py``.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bpfkit.app.base import App
from bpfkit.app.live import LiveSink
from bpfkit.app.options import parser_of
from bpfkit.commands.catalog import programs
from bpfkit.show.encoding import encodable
from bpfkit.show.layout import lay_out
from bpfkit.show.live import Frame, LiveView, render
from bpfkit.show.text import width_of

DATA = Path(__file__).resolve().parents[1] / "data" / "live"
LIVE = {cls.name: cls for cls in programs() if cls.has_live_view}
SIZES = [(40, 12), (80, 24), (120, 40), (200, 50)]
#: Programs whose screens are kept as text.
KEPT = ["tc_classifier", "xdp_lb", "xdp_redirect", "sockex2", "sk_lookup"]
LONG6 = "2001:db8:1111:2222:3333:4444:5555:6666"
_ADDRESS = re.compile(r"\b\d+\.\d+\.\d+\.\d+\b|(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}\b")

each = pytest.mark.parametrize("name", sorted(LIVE))
every_size = pytest.mark.parametrize("size", SIZES, ids=["x".join(map(str, s)) for s in SIZES])


def recorded(name: str) -> list[dict[str, Any]]:
    """The rows of a program's demo."""
    text = (DATA / f"{name}.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if k not in ("ts", "round")} for row in found]


def widest(value: Any, field: str, counters: tuple[str, ...]) -> Any:
    """The value with every address an IPv6 address of full length, and a large figure."""
    if field in counters:
        return value + 10**15
    if isinstance(value, str):
        return _ADDRESS.sub(LONG6, value)
    return value


def frame_of(cls: type[App], rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Frame:
    """What the live view draws of the rows; a second round, in which nothing happened."""
    frames: list[Frame] = []
    monkeypatch.setattr(LiveView, "draw", lambda _, frame: frames.append(frame))
    monkeypatch.setattr(LiveView, "room", lambda _: (80, 50))
    app: Any = cls(parser_of(cls).parse_args([]))
    app.check_options()
    app.group, app._paths = SimpleNamespace(id=0), {0: "/"}  # cgroup_skb names cgroups from there
    monkeypatch.setattr(app, "title", lambda round_: app.name)
    monkeypatch.setattr(app, "notes", lambda rows: [])  # they need the loaded program
    sink = LiveSink(app)
    sink.round(0, rows)
    sink.round(1, rows)
    app.close()
    return frames[-1]


def screen(frame: Frame, size: tuple[int, int], encoding: str = "utf-8") -> list[str]:
    """The lines on a terminal."""
    width, height = size
    lines = render(frame, width, height - 1, encoding)
    return ["".join(piece.text for piece in line).rstrip() for line in lines]


def check_rule(frame: Frame, size: tuple[int, int], encoding: str = "utf-8") -> None:
    """No cell of an identity is cut while there is a figure; nothing leaves the window."""
    width, height = size
    lines = screen(frame, size, encoding)
    assert len(lines) < height
    assert max(map(width_of, lines)) <= width
    names = [column for column in frame.columns if column.rank < 0]
    figures = [column for column in frame.columns if column.rank >= 0]
    assert names, "a row says what it is about"
    text = "\n".join(lines)
    text.encode(encoding)
    more = re.search(r"^(?:…|\.\.\.) and (\d+) more$", text, re.M)
    shown = len(names[0].cells) - (int(more[1]) if more else 0)
    assert shown >= 1
    for column in names:
        for cell in column.cells[:shown]:
            cell = encodable(cell, encoding)
            if width_of(cell) <= width - 2:
                assert cell in text, f"{column.title}: {cell!r} was cut"
    assert any(column.title in text for column in figures), "no figure is left"


def test_every_program_with_a_live_view_has_rows_here() -> None:
    missing = [name for name in LIVE if not (DATA / f"{name}.jsonl").exists()]
    assert missing == []


@each
@every_size
def test_identities_are_whole_in_every_window(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, rows = LIVE[name], recorded(name)
    check_rule(frame_of(cls, rows, monkeypatch), size)
    wide = [
        {k: widest(v, k, cls.counters) for k, v in row.items()} if "summary" not in row else row
        for row in rows
    ]
    check_rule(frame_of(cls, wide, monkeypatch), size)


@each
@pytest.mark.parametrize("size", SIZES[:2], ids=["40x12", "80x24"])
def test_a_terminal_that_has_only_ascii_shows_whole_identities(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with names that people write: the forms of their characters are wider than they."""
    rows = [
        {
            k: f"é→{v}" if isinstance(v, str) and k in ("comm", "process", "cgroup", "name") else v
            for k, v in row.items()
        }
        for row in recorded(name)
    ]
    for some in (recorded(name), rows):
        check_rule(frame_of(LIVE[name], some, monkeypatch), size, "ascii")


@each
def test_a_wide_window_shows_everything_on_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = frame_of(LIVE[name], recorded(name), monkeypatch).columns
    assert lay_out(columns, 200) == [[*range(len(columns))]]


@pytest.mark.parametrize("name", KEPT)
def test_screens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As people see them."""
    frame = frame_of(LIVE[name], recorded(name), monkeypatch)
    text = ""
    for size in SIZES:
        text += f"---- {size[0]}x{size[1]}\n" + "".join(f"{line}\n" for line in screen(frame, size))
    path = DATA / f"{name}.txt"
    if os.environ.get("BPFKIT_UPDATE"):
        path.write_text(text)
    assert path.read_text() == text
