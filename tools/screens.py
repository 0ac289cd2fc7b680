#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The last screen of every program's demo, in a real terminal of a given size, as text.

    sudo python3 tools/screens.py                      every program, 80x24, on standard output
    sudo python3 tools/screens.py --into DIR xdp_lb    into DIR/xdp_lb.txt
    sudo python3 tools/screens.py --tree OLD --size 120x40

    sudo python3 tools/screens.py --rows tests/data/live

Two trees, or a tree before and after a change, are compared with ``diff -r``.  Needs tmux.
``--rows`` writes the rows of the demos' last round instead, DIR/NAME.jsonl, which the tests of the
live view lay out for windows of several sizes; a program that this kernel refuses keeps its file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Seconds after which a demo is given up.
PATIENCE = 120.0


@contextlib.contextmanager
def terminal(
    argv: Sequence[str], tree: Path, columns: int, lines: int
) -> Iterator[Callable[..., str]]:
    """A tmux of its own that runs ``argv`` in ``tree``; yields what asks it, like tmux(1)."""
    with tempfile.TemporaryDirectory() as work:
        config = Path(work, "conf")
        config.write_text("set -g status off\n")

        def tmux(*words: str, timeout: float | None = None) -> str:
            whole = ["tmux", "-u", "-S", f"{work}/socket", "-f", str(config), *words]
            done = subprocess.run(
                whole, stdout=subprocess.PIPE, text=True, check=True, timeout=timeout
            )
            return done.stdout

        size = ["-x", str(columns), "-y", str(lines)]
        tmux("new", "-d", *size, "-c", str(tree), *argv)
        try:
            yield tmux
        finally:
            tmux("kill-server")


def screen(command: str, tree: Path, columns: int, lines: int) -> str:
    """What is on the terminal when ``command``, started in ``tree``, has ended."""
    # The shell stays: what is printed at a pane's end would scroll its screen.
    script = f"{command}; tmux wait -S ended; exec sleep 600"
    with terminal(["sh", "-c", script], tree, columns, lines) as tmux:
        try:
            tmux("wait", "ended", timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            pass  # its screen tells
        shown = tmux("capture-pane", "-p")
    return "\n".join(line.rstrip() for line in shown.splitlines()).strip("\n") + "\n"


def rows(name: str, tree: Path) -> list[str]:
    """The rows (not the events) of the last round of the program's demo, as JSON."""
    argv = [sys.executable, "-m", f"bpfkit.{name}", "--json"]
    done = subprocess.run(argv, cwd=tree, stdout=subprocess.PIPE, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    found = [row for row in found if "event" not in row and "change" not in row]
    last = max((row["round"] for row in found), default=0)
    return [json.dumps(row) for row in found if row["round"] == last]


def main() -> int:
    """Take the screens."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("program", nargs="*", help="default: all")
    parser.add_argument("--size", default="80x24", help="columns x lines (default: 80x24)")
    parser.add_argument("--tree", type=Path, default=ROOT, help="another checkout")
    parser.add_argument("--into", type=Path, help="a directory for a file per program")
    parser.add_argument("--rows", metavar="DIR", type=Path, help="write the last rows there")
    options = parser.parse_args()
    columns, lines = map(int, options.size.split("x"))
    sys.path.insert(0, str(options.tree))
    from bpfkit.commands.catalog import programs

    names = options.program or [cls.name for cls in programs()]
    if options.into:
        options.into.mkdir(parents=True, exist_ok=True)
    if options.rows:
        live = {cls.name for cls in programs() if cls.has_live_view}
        for name in live.intersection(names):
            found = rows(name, options.tree)
            if found:
                Path(options.rows, f"{name}.jsonl").write_text("\n".join(found[:12]) + "\n")
        return 0
    for name in names:
        command = f"{shlex.quote(sys.executable)} -m bpfkit.{name}"
        shown = screen(command, options.tree, columns, lines)
        if options.into:
            Path(options.into, f"{name}.txt").write_text(shown)
        else:
            print(f"---- {name} {'-' * (columns - len(name) - 6)}\n{shown}", end="", flush=True)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TERM", "xterm-256color")
    raise SystemExit(main())
