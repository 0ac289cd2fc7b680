# SPDX-License-Identifier: Apache-2.0
"""Programs as their users run them: whole processes, to the end or while they are at work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bpfkit.net.links.lab import Lab
from bpfkit.net.links.netns import NetNS

ROOT = Path(__file__).resolve().parents[1]

Row = dict[str, Any]


def command(name: str, *args: str) -> list[str]:
    """``python3 -m bpfkit.NAME …``"""
    return [sys.executable, "-m", f"bpfkit.{name}", *args]


def run(name: str, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """A program from its start to its end."""
    return subprocess.run(
        command(name, *args),
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 240, **more},
    )


def run_script(ns: NetNS, name: str, script: str, *args: str) -> tuple[str, list[Row]]:
    """A Python script as a program's command: what it says on stderr, and the program's rows."""
    child = ["/usr/bin/python3", "-c", script]
    with ns.popen(
        command(name, "--json", *args, "--", *child),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return said, [json.loads(line) for line in out.splitlines()]


def run_elsewhere(
    argv: Sequence[str | os.PathLike[str]],
    where: Path,
    timeout: float = 60,
    environ: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """A command in another directory, which does not find the checkout by PYTHONPATH."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        argv,
        cwd=where,
        env=env | dict(environ or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def path_of(ns: NetNS) -> str:
    """A path for --netns that needs no name in the file system."""
    return f"/proc/{os.getpid()}/fd/{ns.fd}"


class Running:
    """A program at work, and what comes of it, read all the time.

    :param ready: when it is: a text that it says on stderr, or a test of a row of its --json.
    :param may_end: it may end before it is ready; else that is an error.
    :param ns: the namespace that the process itself is in.
    :ivar said: its stderr so far.
    """

    def __init__(
        self,
        name: str,
        *args: str,
        ready: str | Callable[[Row], bool] = "(program ",
        may_end: bool = False,
        ns: NetNS | None = None,
    ) -> None:
        start = subprocess.Popen if ns is None else ns.popen
        self.process: subprocess.Popen[str] = start(
            command(name, *args),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = ""
        self._lines: list[str] = []
        self._seen = 0
        self._readers = [
            threading.Thread(target=self._read_rows, daemon=True),
            threading.Thread(target=self._read_notes, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        try:
            if isinstance(ready, str):
                assert self.wait_for(ready) or may_end, f"it ended: {self.said}"
            else:
                self.row(ready)
        except BaseException:
            self.__exit__()
            raise

    def _read_rows(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

    def _read_notes(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line

    @property
    def out(self) -> str:
        """Its stdout so far."""
        return "".join(self._lines)

    def wait_for(self, text: str, timeout: float = 30) -> bool:
        """Until it says so, or has ended."""
        deadline = time.monotonic() + timeout
        while text not in self.said and self._readers[1].is_alive():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)
        return text in self.said

    def row(self, which: Callable[[Row], bool], timeout: float = 30) -> Row:
        """The next row of --json that is one of those; others are passed over."""
        deadline = time.monotonic() + timeout
        while True:
            alive = self._readers[0].is_alive()
            while self._seen < len(self._lines):
                row: Row = json.loads(self._lines[self._seen])
                self._seen += 1
                if which(row):
                    return row
            assert alive, f"it ended: {self.said}"
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
        """End it by a signal; see :meth:`wait`."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self, timeout: float = 60) -> tuple[int, str, str]:
        """Its exit status, stdout and stderr, once it has ended."""
        status = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(10)
        return status, self.out, self.said

    def rows(self) -> list[Row]:
        """End it; the last round of --json."""
        status, out, said = self.end()
        assert status == 0, said
        found = [json.loads(line) for line in out.splitlines()]
        return [row for row in found if row["round"] == found[-1]["round"]]

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def on_server(name: str, lab: Lab, *args: str, may_end: bool = False) -> Running:
    """A program on the server's interface of a pair_lab."""
    where = ["-i", "eth0", "--netns", path_of(lab["server"])]
    return Running(name, *where, *args, may_end=may_end)
