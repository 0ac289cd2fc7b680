#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The README's pictures: a command in a real terminal, recorded as an animated SVG.

    sudo python3 tools/picture.py tools/sockex3.svg 'sudo python3 -m bpfkit.sockex3 -c 4'

The SVG has no script: CSS shows every line in the frames that have it, so it also plays as an image
in a page.  Where CSS animations are unknown or not wanted (prefers-reduced-motion), the last frame
is shown.  Needs tmux and rich.
"""

from __future__ import annotations

import argparse
import io
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from rich.ansi import AnsiDecoder
from rich.cells import cell_len
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text
from screens import PATIENCE, ROOT, terminal

#: Seconds: between two looks at the screen, before Enter, and for the last frame.
INTERVAL, TYPED, PAUSE = 0.1, 1.0, 5.0
#: Pixels: a cell, so high that box-drawing characters of consecutive lines touch; the margin.
CELL, LINE, MARGIN = 12, 23, 14
#: The picture shows what a user types; it is recorded as root, by this Python.
PROFILE = f"""PS1='$ '
sudo() {{ "$@"; }}
python3() {{ {shlex.quote(sys.executable)} "$@"; }}
"""
#: What rich draws, to be taken apart into lines again.
PARTS = '<svg pitch="{line_height}"><style>{styles}</style>{backgrounds}{matrix}</svg>'


def record(command: str, columns: int, rows: int) -> dict[float, str]:
    """Type the command into a shell; the screens until the prompt is back, by their seconds."""
    with tempfile.NamedTemporaryFile("w") as profile:
        profile.write(PROFILE)
        profile.flush()
        with terminal(["env", f"ENV={profile.name}", "sh"], ROOT, columns, rows) as tmux:
            while tmux("capture-pane", "-p").strip() != "$":
                time.sleep(INTERVAL)
            tmux("send-keys", "-l", command)
            time.sleep(INTERVAL)
            last, began = tmux("capture-pane", "-e", "-p"), time.monotonic()
            screens = {0.0: last}
            time.sleep(TYPED)
            tmux("send-keys", "Enter")
            while not last.rstrip().endswith("\n$"):
                time.sleep(INTERVAL)
                now, screen = time.monotonic() - began, tmux("capture-pane", "-e", "-p")
                if screen != last:
                    screens[now] = last = screen
                if now > PATIENCE:
                    raise TimeoutError(f"no end within {PATIENCE:g} s: {command}")
    return screens


def draw(lines: Collection[Text], columns: int) -> tuple[str, list[str]]:
    """The lines by rich: the CSS of their styles, and each as SVG with its top left at 0, 0."""
    console = Console(record=True, width=columns, file=io.StringIO())
    for line in lines:
        console.print(line, soft_wrap=True)
    whole = console.export_svg(code_format=PARTS, unique_id="s", font_aspect_ratio=CELL / 20)
    root = ElementTree.fromstring(whole)
    drawn = [""] * len(lines)
    for element in root.iterfind("*[@y]"):
        has = element.attrib
        number = int(float(has["y"]) / float(root.attrib["pitch"]))
        if element.tag == "rect":
            place = f'x="{has["x"]}" width="{has["width"]}" height="{LINE}"'
            drawn[number] += f'<rect fill="{has["fill"]}" {place}/>'
        # Words keep their columns in a font whose blanks or symbols have another width.
        text = (element.text or "").replace("\xa0", " ")
        for word in re.finditer(r"\S+(?: \S+)*", text):
            x = float(has["x"]) + CELL * cell_len(text[: word.start()])
            place = f'x="{x:g}" y="18" textLength="{CELL * cell_len(word[0])}"'
            drawn[number] += f'<text class="{has["class"]}" {place}>{escape(word[0])}</text>'
    return re.sub("^ +", "", root.findtext("style", ""), flags=re.M), drawn


def animation(screens: Mapping[float, str], columns: int, rows: int, title: str) -> str:
    """The SVG: each different line once, and a ``use`` of it per row that shows it at some time."""
    lines: dict[str, Text] = {}
    shown: dict[tuple[int, str], set[float]] = {}
    for second, screen in screens.items():
        # The narrow space between thousands is not one cell wide in every font of a browser.
        for row, line in enumerate(AnsiDecoder().decode(screen.replace("\u202f", " "))):
            if line.plain.strip():
                lines[line.markup] = line
                shown.setdefault((row, line.markup), set()).add(second)
    styles, drawn = draw(lines.values(), columns)
    ids = {markup: f"l{number}" for number, markup in enumerate(lines)}
    last = max(screens)
    classes: dict[str, str] = {}  # by their keyframes
    uses = ""
    for (row, markup), when in sorted(shown.items()):
        uses += f'<use href="#{ids[markup]}" y="{row * LINE}"'
        if len(when) < len(screens):
            steps = "".join(
                f"{100 * now / (last + PAUSE):.2f}%"
                f"{{visibility:{'visible' if now in when else 'hidden'}}}"
                for before, now in pairwise([0.0, *screens])
                if now == 0 or (now in when) != (before in when)
            )
            uses += f' class="{classes.setdefault(steps, f"f{len(classes)}")}"'
        uses += "/>\n" if last in when else ' visibility="hidden"/>\n'
    play = f"{last + PAUSE:.2f}s step-end infinite"
    keyframes = "".join(
        f"@keyframes {name}{{{steps}}}.{name}{{animation:{name} {play}}}\n"
        for steps, name in classes.items()
    )
    width, height = columns * CELL + 2 * MARGIN, rows * LINE + 2 * MARGIN
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<!-- SPDX-License-Identifier: Apache-2.0; tools/picture.py wrote this -->
<title>{escape(title)}</title>
<style>
text {{ font: 20px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }}
{styles}
@media (prefers-reduced-motion: no-preference) {{
{keyframes}}}
</style>
<defs>
{"".join(map('<g id="{}">{}</g>'.format, ids.values(), drawn))}
</defs>
<rect width="{width}" height="{height}" rx="8" fill="{SVG_EXPORT_THEME.background_color.hex}"/>
<g transform="translate({MARGIN} {MARGIN})">
{uses}</g>
</svg>
"""


def main() -> int:
    """Record, and write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="the SVG to write")
    parser.add_argument("command", help="as a user types it, from the top of the checkout")
    parser.add_argument("--size", default="100x24", help="columns x lines (default: 100x24)")
    options = parser.parse_args()
    columns, rows = map(int, options.size.split("x"))
    screens = record(options.command, columns, rows)
    options.file.write_text(animation(screens, columns, rows, options.command))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
