# SPDX-License-Identifier: Apache-2.0
"""Names that others chose, on their way to a terminal, a file and a JSON reader."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpfkit.show.jsonl import json_lines

ROOT = Path(__file__).resolve().parents[2]
NAME = os.fsdecode(b"f\xe9w\x1b]0;x\x07")

SCRIPT = """
import os, sys
from bpfkit.app.signals import output, say
name = os.fsdecode(bytes.fromhex(sys.argv[1]))
{}
"""


def run(code: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(code), os.fsencode(NAME).hex()],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environ,
        capture_output=True,
        check=True,
    )


def test_json_is_read_by_strict_readers() -> None:
    text = json_lines([{"name": NAME, "list": [NAME], "face": "\U0001f600"}])
    row = json.loads(text)
    assert row == {
        "name": "f\\xe9w\x1b]0;x\x07",
        "list": ["f\\xe9w\x1b]0;x\x07"],
        "face": "\U0001f600",
    }
    assert "\x1b" not in text  # JSON's own escapes


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_notes_drive_no_terminal(encoding: str) -> None:
    done = run("say(name)", PYTHONIOENCODING=encoding)
    assert done.stderr == b"f\\xe9w\\x1b]0;x\\x07\n"


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1"])
def test_an_encoding_that_lacks_a_character_is_no_error(encoding: str) -> None:
    done = run("output('a \u2026 \u4e00 b\\n')", PYTHONIOENCODING=encoding)
    assert done.stdout == b"a ... \\u4e00 b\n"


def test_a_slow_reader_and_a_signal_lose_nothing() -> None:
    """Unbuffered output to a full pipe, and signals that cut the writing short."""
    code = (
        "import signal; signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "say('ready')\n"
        "for n in range(40): output('x' * 49_999 + '\\n')"
    )
    argv = [sys.executable, "-c", SCRIPT.format(code), "61"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == b"ready\n"
        got = b""
        for _ in range(60):
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.002)
            part = os.read(process.stdout.fileno(), 10_000)
            got += part
        got += process.stdout.read()
    assert process.returncode == 0
    assert got == (b"x" * 49_999 + b"\n") * 40
