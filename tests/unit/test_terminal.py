# SPDX-License-Identifier: Apache-2.0
"""The live view in a terminal: its keys, and the terminal after every end.

The observable is the terminal itself: its settings (tcgetattr) and the bytes that arrive at it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import Terminal

PROGRAM = """
import os, sys
from bpfkit.app.base import App
from bpfkit.app.lifecycle import main

class Rounds(App):
    \"\"\"Rounds.\"\"\"
    name = "rounds"
    counters = ("bytes",)
    needs = ()
    n = 0
    by = 0

    def setup(self):
        pass

    def wants_demo(self):
        return False

    def rows(self):
        self.n += 1
        if os.path.exists(sys.argv[0] + ".fail"):
            raise ValueError("on purpose")
        if self.by:
            return [{"port": 443, "bytes": 5}]
        return [
            {"host": "host-a", "what": "…", "bytes": 1},
            {"host": "host-b", "what": "µ → é", "bytes": 5},
            {"host": "round-%d" % self.n, "what": "", "bytes": 0},
        ]

    def cycle_by(self):
        self.by = 1 - self.by
        return "port"

raise SystemExit(main(Rounds))
"""


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    path = tmp_path / "rounds.py"
    path.write_text(PROGRAM)
    return [sys.executable, str(path), "-t", "0.2"]


def test_q_ends_it_with_the_terminal_as_it_was(argv: list[str]) -> None:
    with Terminal(argv) as terminal:
        terminal.shows("round-2")
        assert terminal.reads_keys()
        terminal.press("q")
        assert terminal.ends() == 0
        assert terminal.settings() == terminal.before
        assert "? keys" not in terminal.seen.rpartition("\x1b[J")[2], "the last frame"


def _exception(terminal: Terminal, argv: list[str]) -> None:
    Path(argv[1] + ".fail").touch()


def _signal(number: int) -> Callable[[Terminal, list[str]], None]:
    return lambda terminal, argv: terminal.process.send_signal(number)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        pytest.param(lambda terminal, argv: terminal.press("\x03"), 0, id="Ctrl-C"),
        pytest.param(_signal(signal.SIGTERM), 0, id="SIGTERM"),
        pytest.param(_signal(signal.SIGHUP), 0, id="SIGHUP"),
        pytest.param(_exception, 1, id="exception"),
    ],
)
def test_the_terminal_is_as_it_was_after_every_end(
    argv: list[str], end: Callable[[Terminal, list[str]], None], status: int
) -> None:
    with Terminal(argv) as terminal:
        terminal.shows("round-2")
        assert terminal.reads_keys()
        end(terminal, argv)
        assert terminal.ends() == status
        assert terminal.settings() == terminal.before


def test_a_stopped_program_gives_the_terminal_back_and_takes_it_again(argv: list[str]) -> None:
    with Terminal(argv, job_control=True) as terminal:
        at = terminal.shows("round-2")
        assert terminal.reads_keys()
        terminal.press("\x1a")
        at = terminal.shows("stopped", at)
        assert terminal.settings() == terminal.before
        terminal.press("\n")
        terminal.until(terminal.reads_keys, "keys are read again")
        at = terminal.shows("round-", at)
        terminal.press("/host-a\r")
        terminal.shows("1 of 3", at)
        terminal.press("q")
        assert terminal.ends() == 0
        assert terminal.settings() == terminal.before


def test_keys_act_at_once_and_rounds_go_on_meanwhile(argv: list[str]) -> None:
    with Terminal(argv) as terminal:
        at = terminal.shows("round-2")
        terminal.press("/ho")
        at = terminal.shows("show rows with: ho_", at)
        at = terminal.shows("show rows with: ho_", at)  # the next round
        terminal.press("st-b\r")
        at = terminal.shows("1 of 3", at)
        terminal.press("\x1b")
        terminal.press("s")
        at = terminal.shows("sorted by bytes, falling", at)
        terminal.press("\x1b[D")
        at = terminal.shows("sorted by what, rising", at)
        terminal.press("?")
        at = terminal.shows("any key goes back", at)
        terminal.press("xb")
        at = terminal.shows("443", at)
        terminal.press("p")
        at = terminal.shows("paused", at)
        terminal.press("q")
        assert terminal.ends() == 0
        assert "paused" not in terminal.seen.rpartition("\x1b[J")[2]


def test_another_size_is_drawn_at_once(argv: list[str]) -> None:
    with Terminal([*argv[:2], "-t", "600"], size=(80, 24)) as terminal:
        at = terminal.shows("round-1")
        terminal.resize(14, 24)
        terminal.shows("\x1b[J", at)
        terminal.shows("round-1", at)
        assert "bytes" in terminal.seen[at:]
        assert "bytes/s" not in terminal.seen[at:]
        terminal.press("q")
        assert terminal.ends() == 0


def test_without_a_terminal_to_read_from_there_are_no_keys(argv: list[str]) -> None:
    with open(os.devnull) as null, Terminal(argv, stdin=null.fileno()) as terminal:
        terminal.shows("round-3")
        assert terminal.settings() == terminal.before
        assert "? keys" not in terminal.seen
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ends() == 0


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_dumb_terminal_gets_no_escape_sequence(argv: list[str], term: str) -> None:
    with Terminal([*argv, "-c", "2"], environ={"TERM": term}) as terminal:
        assert terminal.ends() == 0
        assert "round-2" in terminal.seen
        assert "\x1b" not in terminal.seen
        assert terminal.settings() == terminal.before


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "u -> \\xe9"),
        ({"PYTHONIOENCODING": "latin-1"}, "-> "),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "u -> \\xe9"),
    ],
    ids=["ascii", "latin-1", "C"],
)
@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_characters_that_the_encoding_lacks_are_written_in_ascii(
    argv: list[str], environ: dict[str, str], wanted: str, term: str
) -> None:
    with Terminal([*argv, "-c", "2"], environ={**environ, "TERM": term}) as terminal:
        assert terminal.ends() == 0, terminal.seen
        assert wanted in terminal.seen
        assert "..." in terminal.seen
