# SPDX-License-Identifier: Apache-2.0
"""Demos tell a story: a line before (what is sent, to expect), a line after (what was seen)."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from bpfkit.app.base import App
from bpfkit.commands.catalog import programs

PROGRAMS = {cls.name: cls for cls in programs()}

PROGRAM = '''
from bpfkit.app.base import App
from bpfkit.app.lifecycle import main

class Told(App):
    """A demo with a story."""
    name = "told"
    needs = ()
    expects = "two packets are sent: both are to be counted"

    def setup(self):
        pass

    def rows(self):
        return [{"packets": 2}]

    def conclusion(self, rows):
        return f"seen: {rows[0]['packets']} packets, as many as were sent"

    def verify(self):
        yield True, "two"

raise SystemExit(main(Told))
'''


def told(path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[2])
    argv = [sys.executable, str(path), "-t", "0.1", "-c", "1", *args]
    env = {"PYTHONPATH": root, "TERM": "dumb"}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "told.py"
    path.write_text(PROGRAM)
    return path


def test_the_lines_stand_before_and_after_the_demo_on_standard_error(path: Path) -> None:
    done = told(path)
    assert done.stderr.splitlines() == [
        "told: two packets are sent: both are to be counted",
        "told: seen: 2 packets, as many as were sent",
    ]
    assert done.stdout.split() == ["packets", "2"]


@pytest.mark.parametrize("option", ["--json", "--check", "--no-demo"])
def test_without_a_demo_for_people_there_is_no_story(path: Path, option: str) -> None:
    assert "seen" not in told(path, option).stderr


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_every_demo_says_what_it_sends_and_what_was_seen(name: str) -> None:
    cls = PROGRAMS[name]
    source = "".join(
        inspect.getsource(sys.modules[module])
        for module in sorted(sys.modules)
        if module.startswith(cls.__module__.removesuffix(".program"))
    )
    assert cls.expects or "note(" in source, "no line before the demo"
    assert cls.conclusion is not App.conclusion, "no line behind it"
