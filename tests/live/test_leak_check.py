# SPDX-License-Identifier: Apache-2.0
"""The leak check of conftest.py fails what leaks, says what, and leaves the rest alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
MARKERS = "[pytest]\nmarkers =\n    unit\n    packet\n    live\n    vm\n"

LEAKS = {
    "descriptor": ("import os\nkeep = os.open('/etc/passwd', os.O_RDONLY)", "/etc/passwd"),
    "socket": ("import socket\nKEPT.append(socket.socket())", "socket:["),
    "namespace": (
        "from bpfkit.net.links.netns import NetNS\nKEPT.append(NetNS.new())",
        "descriptor of net:[",
    ),
    "zz_entered": (
        "from bpfkit.net.links.netns import NetNS\nns = NetNS.new(); KEPT.append(ns)\n"
        "ns.entered().__enter__()",
        "the thread is in another network namespace",
    ),
    "program": (
        "from bpfkit.core.kernel import syscall\n"
        "syscall.prog_load(1, bytes([0xb7]+[0]*7+[0x95]+[0]*7), b'GPL')",
        "BPF prog",
    ),
    "map_of_a_child": (
        "import subprocess, sys\n"
        "code = 'from bpfkit.core.kernel import syscall; import time; '"
        "'syscall.map_create(2, 4, 4, 1); print(1, flush=True); time.sleep(8)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); KEPT.append(child)",
        "BPF map",
    ),
    "child": (
        "import subprocess\nKEPT.append(subprocess.Popen(['sleep', '8']))",
        "sleep 8",
    ),
    "interface": (
        "import subprocess\n"
        "subprocess.run(['ip', 'link', 'add', 'bpfkit-t0', 'type', 'bridge'], check=True)",
        "interface bpfkit-t0",
    ),
}


CLEAN = """\
from bpfkit.net.links.lab import pair_lab
from bpfkit.core.kernel import syscall
import os
os.close(syscall.prog_load(1, bytes([0xb7]+[0]*7+[0x95]+[0]*7), b'GPL'))
with pair_lab() as lab:
    pass
"""
SKIP = "import pytest\npytest.skip('no such kernel')"


def function(name: str, code: str) -> str:
    body = "\n".join("    " + line for line in code.splitlines())
    return f"def test_{name}():\n{body}\n\n"


def pytest_says(folder: Path, tests: str, *options: str) -> str:
    """The report of a run that fails."""
    (folder / "live").mkdir()
    shutil.copy(CONFTEST, folder / "conftest.py")
    (folder / "pytest.ini").write_text(MARKERS)
    (folder / "live" / "test_it.py").write_text("KEPT = []\n\n" + tests)
    # In a namespace of its own: the interface that is left behind is left behind there.
    unshare = "import ctypes, os, sys; ctypes.CDLL(None).unshare(0x40000000); "
    unshare += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    done = subprocess.run(
        [sys.executable, "-c", unshare, *"-m pytest -v -rA -p no:cacheprovider".split(), *options],
        cwd=folder,
        env={**os.environ, "BPFKIT_TEST_SETTLE_S": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    return done.stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of a file of tests that leak, one that does not, and one that skips."""
    tests = [function("clean", CLEAN), function("skipped", SKIP)]
    tests += [function(kind, code) for kind, (code, _) in LEAKS.items()]
    return pytest_says(tmp_path_factory.mktemp("leaks"), "".join(tests))


@pytest.mark.parametrize("kind", LEAKS)
def test_a_leak_fails_the_test(report: str, kind: str) -> None:
    _, _, rest = report.partition(f" ERROR at teardown of test_{kind} ")
    said = rest.splitlines()[1]
    assert said.startswith("the test left behind: ")
    assert LEAKS[kind][1] in said


def test_what_is_cleaned_up_is_no_leak(report: str) -> None:
    assert "ERROR at teardown of test_clean" not in report
    assert "PASSED live/test_it.py::test_clean" in report


def test_skips_are_listed_with_their_reasons(report: str) -> None:
    assert "no such kernel:\n    live/test_it.py::test_skipped" in report


def test_side_by_side_what_stays_in_the_kernel_fails_the_run(tmp_path: Path) -> None:
    """One worker cannot tell what is the other's; at the end the leak is said, with its test."""
    pytest.importorskip("xdist", reason="no pytest-xdist: apt-get install python3-pytest-xdist")
    tests = function("interface", LEAKS["interface"][0]) + function("clean", CLEAN)
    report = pytest_says(tmp_path, tests, "-n", "2")
    _, _, rest = report.partition("ERROR at teardown of the whole run")
    assert "left behind: interface bpfkit-t0" in rest
    assert "(after live/test_it.py::test_interface)" in rest
    assert "2 passed, 1 error in" in rest
