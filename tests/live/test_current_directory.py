# SPDX-License-Identifier: Apache-2.0
"""Started by root in somebody else's directory, no file of theirs is run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bpfkit

HOME = str(Path(bpfkit.__file__).parent.parent)
NOBODY = 65534
SHADOWS = (
    "argparse select json bcc struct __future__ os stat re socket signal typing dataclasses rich "
    "pyroute2 ctypes marshal difflib tempfile shutil subprocess runpy enum errno pyexpat"
).split()

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def plant(directory: Path) -> Path:
    """Modules that say that they ran, under names that programs import; the file they write."""
    mark = directory / "ran"
    for name in SHADOWS:
        (directory / f"{name}.py").write_text(
            f"open({str(mark)!r}, 'a').write({name!r} + '\\n')\nraise SystemExit(99)\n"
        )
    return mark


def run(directory: Path, *words: str, python: str = "/usr/bin/python3") -> str:
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": HOME, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [python, "-m", *words],
        cwd=directory,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    directory = tmp_path / "theirs"
    directory.mkdir()
    return directory


@pytest.mark.parametrize(
    ("owner", "mode"),
    [(NOBODY, 0o755), (0, 0o777), (0, 0o1777), (0, 0o775)],
    ids=["owned by another", "writable by all", "as /tmp is", "writable by a group"],
)
def test_nothing_of_theirs_is_imported(theirs: Path, owner: int, mode: int) -> None:
    mark = plant(theirs)
    os.chown(theirs, owner, NOBODY)
    os.chmod(theirs, mode)
    run(theirs, "bpfkit", "list", "--json")
    run(theirs, "bpfkit.sock_example", "-c", "1", "-t", "0.1", "--json")
    assert not mark.exists(), mark.read_text()


def test_below_a_directory_of_theirs(tmp_path: Path) -> None:
    """Who may rename the directory above decides what is in ours."""
    (tmp_path / "theirs/ours").mkdir(parents=True)
    mark = plant(tmp_path / "theirs/ours")
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    run(tmp_path / "theirs/ours", "bpfkit", "list", "--json")
    assert not mark.exists(), mark.read_text()


def test_a_bcc_of_theirs_is_not_bcc(theirs: Path) -> None:
    mark = plant(theirs)
    os.chown(theirs, NOBODY, NOBODY)
    rows = run(theirs, "bpfkit", "doctor", "--json")
    assert str(theirs) not in rows
    assert not mark.exists(), mark.read_text()


def test_the_own_directory_stays(tmp_path: Path) -> None:
    """A directory of root's alone is not taken away, nor the one that has the package."""
    (tmp_path / "own.py").write_text("found = 1\n")
    ask = "import sys; sys.argv = ['-m']; sys.path[0] = {!r}; import bpfkit; print(sys.path[0])"
    for directory in (str(tmp_path), HOME):
        done = subprocess.run(
            [sys.executable, "-c", ask.format(directory)],
            cwd=HOME,
            env={**os.environ, "PYTHONPATH": HOME},
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == directory, done.stderr
    os.chmod(tmp_path, 0o777)
    done = subprocess.run(
        [sys.executable, "-c", ask.format(str(tmp_path))],
        cwd=HOME,
        env={**os.environ, "PYTHONPATH": HOME},
        capture_output=True,
        text=True,
    )
    assert str(tmp_path) not in done.stdout


def test_children_do_not_believe_the_environment(theirs: Path) -> None:
    """PYTHONPATH and the like of the caller reach no child interpreter."""
    from bpfkit.core.compile.compiler import ask_interpreter

    mark = plant(theirs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(theirs))
        patch.setenv("PYTHONSTARTUP", str(theirs / "os.py"))
        patch.chdir(theirs)
        assert ask_interpreter("/usr/bin/python3", "import json; print(json.dumps(7))") == "7"
    assert not mark.exists()
