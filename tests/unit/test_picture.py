# SPDX-License-Identifier: Apache-2.0
"""tools/picture.py: an SVG of a command in a terminal that plays without a script."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

pytest.importorskip("rich")
from picture import CELL, LINE  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"

#: Three screens: a line; the line changed, and another; what tmux itself has on the screen then.
SCRIPT = r"""
printf 'one  \033[31mred\033[0m │ a & <b> │ 1\n'
sleep 1
printf '\033[Auno  \033[1;7mrot\033[0m\n\n  └──● 1 234 B\n'
sleep 1
tmux capture-pane -p >"$SEEN"
"""


def screen(root: ElementTree.Element, percent: float | None = None) -> list[str]:
    """The picture's text at that time of its round; None: without animations."""
    style = root.findtext(f"{SVG}style") or ""
    groups = {group.get("id"): group for group in root.iter(f"{SVG}g")}
    lines: dict[int, str] = {}
    for use in root.iter(f"{SVG}use"):
        visibility = use.get("visibility", "visible")
        if percent is not None and (name := use.get("class")):
            rule = re.search(rf"@keyframes {name}\{{((?:[\d.]+%{{\S+?}})+)}}", style)
            assert rule is not None, name
            for start, state in re.findall(r"([\d.]+)%{visibility:(\w+)}", rule[1]):
                if float(start) <= percent:
                    visibility = state
        if visibility == "visible":
            row = int(use.attrib["y"]) // LINE
            assert row not in lines, "two lines in one place"
            line = ""
            for text in groups[use.attrib["href"].removeprefix("#")]:
                if text.tag == f"{SVG}text" and text.text:
                    assert int(text.attrib["textLength"]) == CELL * len(text.text)
                    line = line.ljust(int(text.attrib["x"]) // CELL) + text.text
            lines[row] = line
    return [lines.get(row, "") for row in range(max(lines, default=-1) + 1)]


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_the_picture_ends_with_what_tmux_had_and_shows_each_screen_before(tmp_path: Path) -> None:
    script, seen, file = tmp_path / "script", tmp_path / "seen", tmp_path / "picture.svg"
    script.write_text(SCRIPT)
    command = 'sh "$SCRIPT"'
    argv = [sys.executable, TOOLS / "picture.py", "--size", "40x10", file, command]
    environ = {**os.environ, "SCRIPT": str(script), "SEEN": str(seen)}
    subprocess.run(argv, check=True, timeout=60, env=environ)
    root = ElementTree.parse(file).getroot()
    assert not list(root.iter(f"{SVG}script"))
    last = [*seen.read_text().rstrip().splitlines(), "$"]
    assert last[1:4] == ["uno  rot │ a & <b> │ 1", "", "  └──● 1 234 B"]
    assert screen(root) == screen(root, 99.9) == last
    style = root.findtext(f"{SVG}style") or ""
    starts = sorted(set(map(float, re.findall(r"([\d.]+)%{", style))))
    screens = [[f"$ {command}"], [f"$ {command}", "one  red │ a & <b> │ 1"], last[:-1], last]
    assert [screen(root, start) for start in starts] == screens
    assert style.index("(prefers-reduced-motion: no-preference)") < style.index("@keyframes")
