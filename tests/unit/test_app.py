# SPDX-License-Identifier: Apache-2.0
"""The life cycle, with a program that needs neither a kernel nor privileges."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpfkit.app import lifecycle
from bpfkit.app.base import App

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = '''
import os, sys, time
from bpfkit.app.base import App
from bpfkit.app.lifecycle import main
from bpfkit.app.options import positive
from bpfkit.core.errors import *

WHAT = os.environ.get("WHAT", "")

class Closer:
    def __init__(self, name):
        self.name = name
    def close(self):
        sys.stderr.write(f"closed {self.name}\\n")
        if WHAT == "close-fails":
            raise BpfkitError(f"cannot close {self.name}")

class Fake(App):
    """Counts the demo's rounds.

    More about it.
    """

    name = "fake"
    counters = ("bytes", "packets")
    needs = ("NET_RAW",) if WHAT == "needs" else ()
    calls = 0

    @classmethod
    def add_options(cls, parser):
        parser.add_argument("--size", type=positive, default=3)

    def check_options(self):
        if self.options.size == 13:
            raise UsageError("--size 13", why="brings bad luck")

    def setup(self):
        self.keep(Closer("first"))
        self.keep(Closer("second"))
        if WHAT == "slow":
            sys.stderr.write("setting up\\n"); sys.stderr.flush()
            time.sleep(20)
        if WHAT == "unsupported":
            raise UnsupportedError("no such thing here", why="CONFIG_X is off", hint="switch it on")
        if WHAT == "bug":
            raise KeyError("lost")
        if WHAT == "log":
            raise VerifierError("rejected", why="because", log="line 1\\nline 2")
        if WHAT == "refused":
            error = VerifierError("rejected", why="because")
            error.refused = "bpf_new()"
            raise error

    def describe_target(self):
        return "nowhere"

    def demo(self):
        self.calls += 1
        if WHAT == "demo-fails" and self.calls == 2:
            raise BpfkitError("no answer to the ping")

    def check_target(self):
        if WHAT == "vanishes" and self.calls >= 1:
            raise BpfkitError("interface x0 was removed")

    def rows(self):
        return [{"proto": p, "bytes": n * self.calls, "packets": self.calls}
                for n, p in enumerate(("tcp", "udp"), 1)]

    def lines(self, rows):
        return ["TCP {bytes}".format(**rows[0])]

    def verify(self):
        yield self.calls == self.options.size, f"{self.calls} of {self.options.size} calls"

raise SystemExit(main(Fake))
'''


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("app") / "fake.py"
    path.write_text(PROGRAM)
    return path


def _env(what: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "WHAT": what}


def run(program: Path, *args: str, what: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(program), *args],
        env=_env(what),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def start(program: Path, *args: str, what: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(program), *args],
        env=_env(what),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a test run under nohup hands "ignored" down
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def test_rounds_end_by_count(program: Path) -> None:
    done = run(program, "-c", "3", "-t", "0.02", "--no-demo")
    assert (done.returncode, done.stdout) == (0, "TCP 0\n" * 3)
    assert done.stderr == "closed second\nclosed first\n"


def test_the_demo_lasts_five_rounds(program: Path) -> None:
    done = run(program, "-t", "0.02")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 5
    assert done.stdout.splitlines()[-1] != "TCP 0"


def test_json_rows_carry_time_and_round(program: Path) -> None:
    before = time.time()
    done = run(program, "--json", "-c", "2", "-t", "0.05")
    assert done.returncode == 0
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["round"], row["proto"]) for row in rows] == [
        (0, "tcp"),
        (0, "udp"),
        (1, "tcp"),
        (1, "udp"),
    ]
    assert list(rows[0]) == ["ts", "round", "proto", "bytes", "packets"]
    assert before <= rows[0]["ts"] <= rows[-1]["ts"] <= time.time()


def test_json_is_flushed_every_round(program: Path) -> None:
    child = start(program, "--json", "-t", "0.05", "--no-demo")
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["round"] == 0
    child.terminate()
    rest, errors = child.communicate(timeout=10)
    assert child.returncode == 0
    assert [json.loads(line) for line in rest.splitlines()]
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_with_the_last_figures(program: Path, number: signal.Signals) -> None:
    child = start(program, "-t", "30", "-v", "--no-demo")
    assert child.stderr is not None
    assert "attached to nowhere" in child.stderr.readline()
    child.send_signal(number)
    out, errors = child.communicate(timeout=10)
    assert (child.returncode, out) == (0, "TCP 0\n")
    assert errors == "closed second\nclosed first\n"


def test_a_signal_during_set_up_ends_at_once(program: Path) -> None:
    child = start(program, what="slow")
    assert child.stderr is not None
    child.stderr.readline()
    child.send_signal(signal.SIGINT)
    out, errors = child.communicate(timeout=10)
    assert (child.returncode, out) == (0, "")
    assert errors == "closed second\nclosed first\n"


def test_a_second_signal_breaks_off_output_that_nobody_reads(program: Path) -> None:
    child = start(program, "--json", "-t", "0.0001", "--no-demo")
    blocked = Path(f"/proc/{child.pid}/wchan")
    for _ in range(600):  # until the pipe is full
        if "pipe_write" in blocked.read_text():
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=10) == 0
    child.communicate()


def test_nohup_is_respected(program: Path) -> None:
    child = subprocess.Popen(
        ["nohup", sys.executable, str(program), "-t", "30", "-v", "--no-demo"],
        env=_env(""),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert child.stderr is not None
    while "attached" not in child.stderr.readline():
        pass
    child.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert child.poll() is None
    child.terminate()
    child.communicate(timeout=10)
    assert child.returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--count", "0"],
        ["--count", "-3"],
        ["--count", "many"],
        ["--count", "1.5"],
        ["--interval", "0"],
        ["--interval", "-1"],
        ["--interval", "nan"],
        ["--interval", "inf"],
        ["--interval", "soon"],
        ["--size", "0"],
        ["--nonsense"],
        ["--jso"],
        ["surplus"],
    ],
)
def test_bad_usage_is_two_lines_and_exit_2(program: Path, arguments: list[str]) -> None:
    done = run(program, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("usage: python3 -m bpfkit.fake")
    assert lines[1].startswith("fake: ")


def test_options_that_do_not_go_together(program: Path) -> None:
    done = run(program, "--size", "13")
    assert (done.returncode, done.stderr) == (2, "fake: --size 13: brings bad luck\n")


def test_help(program: Path) -> None:
    done = run(program, "--help")
    assert done.returncode == 0
    assert "Counts the demo's rounds." in done.stdout
    assert "--size" in done.stdout


def test_check_says_what_was_verified(program: Path) -> None:
    good = run(program, "--check", "--size", "2")
    assert good.returncode == 0
    assert good.stdout == "TCP 2\nok      2 of 2 calls\nfake: 1 of 1 verified\n"
    bad = run(program, "--check")
    assert bad.returncode == 1
    assert "FAILED  2 of 3 calls" in bad.stdout


def test_check_with_json_keeps_standard_output_for_rows(program: Path) -> None:
    done = run(program, "--check", "--json", "--size", "2")
    assert done.returncode == 0
    assert [json.loads(line)["proto"] for line in done.stdout.splitlines()] == ["tcp", "udp"]
    assert "1 of 1 verified" in done.stderr


def test_errors_of_the_family_are_told_without_a_traceback(program: Path) -> None:
    done = run(program, what="unsupported")
    assert done.returncode == 77
    assert done.stderr.splitlines()[-2:] == [
        "fake: no such thing here: CONFIG_X is off",
        "switch it on",
    ]


def test_a_function_that_the_kernel_does_not_have_is_77_and_named(program: Path) -> None:
    done = run(program, what="refused")
    assert done.returncode == 77
    assert done.stderr.splitlines()[-1] == "fake: rejected: this kernel has no bpf_new() for it"


def test_the_full_log_only_with_v(program: Path) -> None:
    assert "line 2" not in run(program, what="log").stderr
    assert "line 2" in run(program, "-v", what="log").stderr


def test_a_bug_is_told_in_two_lines(program: Path) -> None:
    done = run(program, what="bug")
    assert done.returncode == 1
    assert "internal error: KeyError: 'lost'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in run(program, "-v", what="bug").stderr


def test_a_failing_demo_is_noticed(program: Path) -> None:
    done = run(program, "-t", "0.05", what="demo-fails")
    assert done.returncode == 1
    assert "no answer to the ping" in done.stderr
    assert done.stdout.endswith("TCP 2\n")


def test_what_vanishes_ends_with_the_last_figures(program: Path) -> None:
    done = run(program, "-t", "0.05", what="vanishes")
    assert done.returncode == 1
    assert "interface x0 was removed" in done.stderr
    assert done.stdout.startswith("TCP ")


def test_a_reader_that_goes_away_ends_it_quietly(program: Path) -> None:
    command = f"{sys.executable} {program} -t 0.02 --no-demo | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        env=_env(""),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout == "TCP 0\n0\n"
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_reader_that_goes_away_is_noticed_before_the_next_round(program: Path) -> None:
    child = start(program, "-t", "60", "-v", "--no-demo")
    assert child.stderr is not None
    assert child.stdout is not None
    child.stderr.readline()
    child.stdout.close()
    assert child.wait(timeout=10) == 0
    child.stderr.close()


def test_closed_standard_streams(program: Path) -> None:
    command = f"{sys.executable} {program} -t 0.02 -c 1 --no-demo >&- 2>&- <&-; echo $?"
    done = subprocess.run(
        ["bash", "-c", command],
        env=_env(""),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_full_disk_under_standard_output_is_an_error(program: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, str(program), "-t", "0.02", "-c", "1"],
            env=_env(""),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            check=False,
        )
    assert done.returncode == 1
    assert "cannot write to standard output: No space left on device" in done.stderr


def test_missing_privilege_is_77_and_named(program: Path) -> None:
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
    else:
        command = []
    # The interpreter and the checkout may lie where another user cannot read.
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); exec(open({str(program)!r}).read())"
    probe = subprocess.run([*command, "cat", str(program)], capture_output=True, check=False)
    if probe.returncode:
        script = (
            "import os, sys\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            f"text = open({str(program)!r}).read()\n"
            "import bpfkit.app.base, bpfkit.app.lifecycle, gettext\n"
            "os.setresuid(65534, 65534, 65534)\n"
            "exec(text)\n"
        )
        command = []
    done = subprocess.run(
        [*command, sys.executable, "-c", script],
        env=_env("needs"),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 77
    assert done.stderr == "fake: needs root: run it with sudo (missing CAP_NET_RAW)\n"


def test_start_up_imports_nothing_heavy() -> None:
    heavy = "dataclasses typing pathlib subprocess hashlib json socket ipaddress inspect logging"
    heavy += " tempfile shutil numpy rich pyroute2 bcc"
    script = (
        "import sys; import bpfkit.app.base, bpfkit.app.lifecycle, bpfkit.app.tap\n"
        "from bpfkit.app.options import parser_of\n"
        "from bpfkit.app.tap import TapApp; parser_of(TapApp).parse_args([])\n"
        f"print(*[name for name in {heavy.split()!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env=_env(""),
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout.strip() == ""


class Remembers(App):
    """A demo that keeps what verify() reads."""

    name = "remembers"
    demo_rounds = 4

    def setup(self) -> None:
        self.made: list[int] = self.for_check([])
        self.most = 0

    def demo(self) -> None:
        self.made.append(1)
        self.most = max(self.most, len(self.made))

    def verify(self) -> list[tuple[bool, str]]:
        return [(len(self.made) == 2, f"{len(self.made)} rounds are remembered")]

    def close(self) -> None:
        super().close()
        print("most", self.most)


def test_a_demo_forgets_each_round_unless_it_is_checked(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A demo that runs for days must not grow."""
    monkeypatch.setattr(lifecycle, "_require", lambda names: None)
    assert lifecycle.main(Remembers, ["-c", "4", "-t", "0.05"]) == 0
    assert "most 1\n" in capfd.readouterr().out
    assert lifecycle.main(Remembers, ["--check"]) == 0
    assert "most 2\n" in capfd.readouterr().out


def test_what_cannot_be_closed_does_not_keep_the_rest_open(program: Path) -> None:
    done = run(program, "-c", "1", what="close-fails")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-3:] == ["closed second", "closed first", "fake: cannot close second"]
