#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The README's picture: a program in a real terminal, its screen written as SVG.

    sudo python3 tools/picture.py tools/picture.svg sockex3 -c 4

Needs tmux and rich.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time

COLUMNS, ROWS = 100, 24
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main() -> int:
    """Run, wait for the third round, take the screen."""
    from rich.console import Console
    from rich.text import Text

    path, program, *options = sys.argv[1:]
    command = f"{shlex.quote(sys.executable)} -m bpfkit.{program} {shlex.join(options)}"
    with tempfile.TemporaryDirectory() as work:
        tmux = ["tmux", "-S", f"{work}/socket"]
        size = ["-x", str(COLUMNS), "-y", str(ROWS)]
        subprocess.run([*tmux, "-f/dev/null", "new", "-d", *size, "-c", ROOT, command], check=True)
        try:
            time.sleep(3.5)
            screen = subprocess.run(
                [*tmux, "capture-pane", "-e", "-p"], stdout=subprocess.PIPE, text=True, check=True
            ).stdout
        finally:
            subprocess.run([*tmux, "kill-server"], check=False)
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
    # The narrow space between thousands is not one cell wide in every font of a browser.
    console.print(Text.from_ansi(screen.rstrip().replace("\u202f", " ")))
    title = f"sudo python3 -m bpfkit.{program}"
    console.save_svg(path, title=title, font_aspect_ratio=0.61)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
