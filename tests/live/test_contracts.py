# SPDX-License-Identifier: Apache-2.0
"""The contracts of every program: the command line, the output, the exit status, what is left.

The programs are those of the catalog; no list of names is kept here.  The leak check of
conftest.py holds for every run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from running import ROOT, command, run_elsewhere

from bpfkit.commands.catalog import programs

PROGRAMS = {cls.name: cls for cls in programs()}
NAMES = sorted(PROGRAMS)
EVERY = ("--interval", "--count", "--no-demo", "--json", "--check", "--verbose")
each = pytest.mark.parametrize("name", NAMES)
#: Programs whose -i may be given for each interface.
SEVERAL_INTERFACES = {"sockex3", "xdp_redirect"}


def rows_of(text: str) -> list[dict[str, object]]:
    """Standard output as JSON rows; anything else on it is an error."""
    rows = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(row, dict) for row in rows)
    return rows


def test_the_catalog_is_what_the_package_holds() -> None:
    """A program is a file, or a folder with program.py; each is found."""
    support = {"app", "bpf_c", "commands", "core", "net", "show"}
    there = {
        path.stem
        for path in (ROOT / "bpfkit").iterdir()
        if not path.name.startswith("_")
        and (path.suffix == ".py" or (path / "program.py").exists())
    }
    assert set(NAMES) == there - support


@each
def test_help_names_the_options_that_all_programs_have(name: str, tmp_path: Path) -> None:
    done = run_elsewhere(command(name, "--help"), tmp_path, environ={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python3 -m bpfkit.{name}" in done.stdout
    missing = [option for option in EVERY if option not in done.stdout]
    assert missing == []
    assert max(map(len, done.stdout.splitlines())) <= 100


@each
def test_bad_usage_is_two_lines_and_status_2(name: str, tmp_path: Path) -> None:
    for words in (["--no-such-option"], ["--interval", "never"], ["--count", "0"]):
        done = run_elsewhere(command(name, *words), tmp_path, environ={"PYTHONPATH": str(ROOT)})
        assert (done.returncode, done.stdout) == (2, "")
        assert 1 <= len(done.stderr.splitlines()) <= 2
        assert "Traceback" not in done.stderr


@each
def test_without_root_the_missing_privilege_is_named(name: str, tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is missing")
    os.chmod(tmp_path, 0o755)
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    environ = {"PYTHONPATH": str(ROOT), "HOME": "/nonexistent"}
    done = run_elsewhere([*argv, *command(name)], Path("/"), environ=environ)
    assert (done.returncode, done.stdout) == (77, ""), done.stderr
    assert "root" in done.stderr or "CAP_" in done.stderr
    assert 1 <= len(done.stderr.splitlines()) <= 2


@each
def test_an_installed_program_verifies_itself_from_another_directory(
    name: str, installed: Path, tmp_path: Path
) -> None:
    """``--check --json``: JSON rows and nothing else on stdout, the verdicts on stderr."""
    argv = [installed, "-m", f"bpfkit.{name}", "--check", "--json"]
    done = run_elsewhere(argv, tmp_path, timeout=240)
    if done.returncode == 77:
        assert re.search(r"CONFIG_\w+|kernel|Linux \d|CAP_\w+|root|not installed", done.stderr)
        pytest.skip(done.stderr.strip().splitlines()[0])
    assert done.returncode == 0, done.stderr
    assert all({"ts", "round"} <= row.keys() for row in rows_of(done.stdout))
    last = done.stderr.splitlines()[-1]
    verified = re.fullmatch(rf"{name}: (\d+) of (\d+) verified", last)
    assert verified, done.stderr
    assert verified[1] == verified[2] != "0"
    assert os.listdir(tmp_path) == []


@each
def test_a_signal_ends_it_cleanly_with_the_last_figures(name: str, tmp_path: Path) -> None:
    number = (signal.SIGINT, signal.SIGTERM)[NAMES.index(name) % 2]
    argv = command(name, "--json", "-c", "1000", "-t", "0.3")
    notes = tmp_path / "stderr"
    with (
        open(notes, "w") as stderr,
        subprocess.Popen(
            argv,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        ) as process,
    ):
        assert process.stdout is not None
        first = process.stdout.readline()
        if first:
            process.send_signal(number)
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        # Not communicate(): readline() has read more than the line.
        out = process.stdout.read()
        process.wait()
        watchdog.cancel()
    said = notes.read_text()
    if process.returncode == 77:
        pytest.skip(said.strip().splitlines()[0])
    assert process.returncode == 0, said
    rows = rows_of(first + out)
    assert rows
    assert all({"ts", "round"} <= row.keys() for row in rows)
    assert "Traceback" not in said
    assert "internal error" not in said


@each
def test_a_second_interface_namespace_or_capture_is_refused(name: str, tmp_path: Path) -> None:
    """An option that takes one value does not silently forget the first."""
    text = run_elsewhere(
        command(name, "--help"), tmp_path, environ={"PYTHONPATH": str(ROOT)}
    ).stdout
    for option in ("-i", "--netns", "--pcap"):
        if not re.search(rf"(?:^| ){option}[ ,]", text, re.M):
            continue
        if option == "-i" and name in SEVERAL_INTERFACES:
            continue
        words = command(name, option, "a", option, "b")
        done = run_elsewhere(words, tmp_path, environ={"PYTHONPATH": str(ROOT)})
        assert (done.returncode, done.stdout) == (2, "")
        assert "was given twice" in done.stderr
