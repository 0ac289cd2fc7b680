# SPDX-License-Identifier: Apache-2.0
"""A terminal of a test's own, with a program in its foreground."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0

#: A shell's job control: the program in a process group of its own, in the foreground; stopped
#: until a line comes from standard input.
_SHELL = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
pid = os.fork()
if not pid:
    os.setpgid(0, 0)
    os.tcsetpgrp(2, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    status = os.waitpid(pid, os.WUNTRACED)[1]
    if not os.WIFSTOPPED(status):
        break
    os.tcsetpgrp(2, os.getpgrp())
    print("stopped", flush=True)
    sys.stdin.readline()
    os.tcsetpgrp(2, pid)
    os.kill(-pid, signal.SIGCONT)
os.tcsetpgrp(2, os.getpgrp())
sys.exit(os.waitstatus_to_exitcode(status) % 256)
"""


class Terminal:
    """A pseudo-terminal, and a program that has it as its controlling terminal.

    :ivar seen: what the program wrote so far.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        size: tuple[int, int] = (80, 24),
        job_control: bool = False,
        stdin: int | None = None,
    ) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(*size)
        self.before = termios.tcgetattr(self.slave)
        self.seen = ""
        if job_control:
            argv = [sys.executable, "-c", _SHELL, *argv]

        def take() -> None:
            fcntl.ioctl(2, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            argv,
            stdin=self.slave if stdin is None else stdin,
            stdout=self.slave,
            stderr=self.slave,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **(environ or {})},
            start_new_session=True,
            preexec_fn=take,
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            try:
                os.killpg(os.tcgetpgrp(self.slave), signal.SIGKILL)
            except (OSError, termios.error):
                pass
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def resize(self, columns: int, lines: int) -> None:
        """Another size of the window, with SIGWINCH as a terminal sends it."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def settings(self) -> list[Any]:
        """The terminal's settings, as tcgetattr(3) has them."""
        return termios.tcgetattr(self.slave)

    def reads_keys(self) -> bool:
        """Whether characters come one by one, without an echo."""
        return not self.settings()[3] & (termios.ICANON | termios.ECHO)

    def press(self, keys: str) -> None:
        """What a user types."""
        os.write(self.master, keys.encode())

    def pump(self, seconds: float) -> None:
        """Read what the program writes, for at most so long."""
        if select.select([self.master], [], [], seconds)[0]:
            self.seen += os.read(self.master, 65536).decode(errors="replace")

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Read until the condition holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"never: {what}; the terminal has {self.seen!r}"
            self.pump(0.05)

    def shows(self, text: str, since: int = 0) -> int:
        """Wait until ``text`` was written behind position ``since``; returns the end so far."""
        self.until(lambda: text in self.seen[since:], text)
        return len(self.seen)

    def ends(self) -> int:
        """Wait for the end; the exit status."""
        self.until(lambda: self.process.poll() is not None, "the program's end")
        while select.select([self.master], [], [], 0)[0]:
            self.pump(0)
        return self.process.returncode
