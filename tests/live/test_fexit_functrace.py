# SPDX-License-Identifier: Apache-2.0
"""fexit, functrace, fmod_ret, ext: what their options promise, and what bad input is answered with.

Kernels that refuse them answer 77; what works elsewhere is skipped there and runs in the VM.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from running import Row, run

from bpfkit.functrace import WAYS


def rows(name: str, *words: str, status: int = 0) -> list[Row]:
    """The JSON rows of a program; skips the test where the kernel cannot."""
    done = run(name, "--json", *words)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == status, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def script(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "work.py"
    path.write_text(text)
    return ["/usr/bin/python3", "-I", "-S", str(path)]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("fexit", "vfs_unlinkk"), "nearest: vfs_unlink"),
        (("fexit",), "name a FUNCTION"),
        (("functrace", "vfs_unlinkk"), "nearest: vfs_unlink"),
        (("functrace",), "name a PATTERN"),
        (("functrace", "*"), "functions are too many"),
        (("fmod_ret", "security_file_open"), "say for whom"),
        (("fmod_ret", "security_file_opem", "--pid", "1"), "nearest: security_file_open"),
        (("fmod_ret", "security_file_open", "--errno", "EFOO", "--pid", "1"), "no errno's name"),
        (("fmod_ret", "security_file_open", "--when", "x=1", "--pid", "1"), "has no argument x"),
        (("fmod_ret", "security_file_open", "--when", "file", "--pid", "1"), "is no ARG=N"),
        (("ext", "-i", "nonexistent0"), "nonexistent0"),
    ],
)
def test_bad_input_is_said_in_two_lines(words: tuple[str, ...], text: str) -> None:
    done = run(words[0], "--no-demo", *words[1:])
    assert done.returncode in (1, 2)
    assert text in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize("name", ["fexit", "functrace", "fmod_ret", "ext"])
def test_a_kernel_that_refuses_is_named_as_the_reason(name: str) -> None:
    done = run(name, "--check")
    assert done.returncode in (0, 77), done.stderr
    if done.returncode == 77:
        said = done.stderr.strip().splitlines()[-1]
        assert "policy" in said or "CONFIG_" in said


def test_fexit_shows_the_name_and_errno_of_each_failed_open(tmp_path: Path) -> None:
    text = "for i in range(20):\n    try: open(f'/nonexistent/{i}')\n    except OSError: pass\n"
    events = rows("fexit", "do_sys_openat2", "--failed", "--", *script(tmp_path, text))
    found = [row for row in events if row.get("event") == "call"]
    assert {row["ret"] for row in found} == {-2}
    names = [row["args"]["filename"] for row in found]
    assert [name for name in names if name.startswith("/nonexistent")] == [
        f"/nonexistent/{i}" for i in range(20)
    ]


@pytest.mark.parametrize("way", WAYS)
def test_functrace_counts_the_same_by_every_way_that_works_here(tmp_path: Path, way: str) -> None:
    text = "import socket\nfor i in range(20): socket.socket().bind(('127.0.0.1', 0))\n"
    seen = rows("functrace", "inet_bind", "--via", way, "--", *script(tmp_path, text))
    last = [row for row in seen if row.get("function") == "inet_bind"][-1]
    assert (last["calls"], last["open"]) == (20, 0)


def test_functrace_counts_the_calls_of_a_command(tmp_path: Path) -> None:
    text = (
        "import socket\n"
        "for i in range(50):\n"
        "    with socket.socket() as sock: sock.bind(('127.0.0.1', 0)); sock.listen()\n"
    )
    seen = rows("functrace", "inet_bind", "inet_list*", "--", *script(tmp_path, text))
    calls = {row["function"]: (row["calls"], row["open"]) for row in seen if "calls" in row}
    assert (calls["inet_bind"], calls["inet_listen"]) == ((50, 0), (50, 0))


def test_fmod_ret_fails_the_command_and_no_other_process(tmp_path: Path) -> None:
    for name in ("kept", "mine"):
        (tmp_path / name).touch()
    events = rows(
        "fmod_ret",
        "security_inode_unlink",
        "--errno",
        "EBUSY",
        "--",
        *script(
            tmp_path,
            "import os\n"
            f"try: os.unlink({str(tmp_path / 'kept')!r})\n"
            "except OSError as error: raise SystemExit(error.errno)\n",
        ),
        status=16,  # EBUSY
    )
    assert [row["ret"] for row in events if row.get("event") == "modified"] == ["EBUSY"]
    assert (tmp_path / "kept").exists()
    os.unlink(tmp_path / "mine")


def test_fmod_ret_says_which_functions_it_may_change(tmp_path: Path) -> None:
    done = run("fmod_ret", "vfs_unlink", "--", "true")
    if done.returncode == 77:
        pytest.skip(done.stderr)
    assert done.returncode == 2
    assert "cannot be modified" in done.stderr
