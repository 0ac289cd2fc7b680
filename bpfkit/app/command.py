# SPDX-License-Identifier: Apache-2.0
"""``-- COMMAND ARG …``: a command that a program runs, observes or restricts, and ends with.

The command is born in a cgroup, so that its children are known by it.  Its exit status becomes the
program's: 128 + N where signal N killed it, 126 where it cannot be executed, 127 where it is not
found.  It is killed if the program is (PR_SET_PDEATHSIG): a restriction never ends before it.

Standard output stays the command's; the program prints on standard error.  With ``--json`` the
program's rows have standard output to themselves, and the command's output goes to standard error.
"""

from __future__ import annotations

import os

from bpfkit.core.children import die_with_parent
from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Sequence

    from bpfkit.app.signals import Signals
    from bpfkit.core.cgroups import Cgroup

__all__ = ["Command", "add_command"]

_GRACE_S = 3.0


def add_command(parser: ArgumentParser, text: str) -> None:
    """Declare ``-- COMMAND``."""
    parser.add_argument("command", metavar="-- COMMAND", nargs="*", help=text)


class Command(Closing):
    """A command at work in a cgroup.

    :param argv: the command's words.
    :param group: the cgroup that it is born in.
    :param json: keep standard output for JSON rows.
    :ivar pidfd: readable once the command has ended.
    :raises CannotRun: it is not found, or cannot be executed.
    """

    def __init__(self, argv: Sequence[str], group: Cgroup, *, json: bool = False) -> None:
        import subprocess
        import sys
        from shutil import which

        # Looked up here: the child would try each directory of $PATH, which tracing programs show.
        path = which(argv[0])
        if path is None and "/" not in argv[0]:
            raise CannotRun(argv[0], OSError(2, ""))
        bind_life = die_with_parent()

        def prepare() -> None:
            os.write(procs, b"0")
            bind_life()

        self.argv = list(argv)
        self._group = group
        self._stdout = -1
        sys.stdout.flush()
        procs = group.open_procs()
        try:
            self._process = subprocess.Popen(
                self.argv, executable=path, stdout=2 if json else 1, preexec_fn=prepare
            )
        except OSError as error:
            raise CannotRun(self.argv[0], error) from None
        except subprocess.SubprocessError:
            raise BpfkitError(
                f"cannot start {self.argv[0]} in {group.path}",
                why="the kernel does not let a process into this cgroup",
                hint="a cgroup whose cgroup.subtree_control is not empty takes none",
            ) from None
        finally:
            os.close(procs)
        self.pidfd = os.pidfd_open(self._process.pid)
        if not json:
            self._stdout = os.dup(1)
            os.dup2(2, 1)  # from now on the program prints on standard error

    @property
    def pid(self) -> int:
        """The command's process id."""
        return self._process.pid

    @property
    def status(self) -> int:
        """The exit status, as a shell gives it; waits for the end."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def end(self, signals: Signals) -> None:
        """Pass on the signal that asked for the end, then wait; kills after three seconds."""
        import signal
        import subprocess

        if self._process.poll() is None:
            try:
                self._process.send_signal(signals.number or signal.SIGTERM)
                self._process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self._group.kill()
                self._process.wait()

    def close(self) -> None:
        """Kill the command if it runs, and give standard output back."""
        fd, self.pidfd = self.pidfd, -1
        if fd < 0:
            return
        os.close(fd)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._stdout >= 0:
            os.dup2(self._stdout, 1)
            os.close(self._stdout)


class CannotRun(BpfkitError):
    """The command was not started."""

    def __init__(self, name: str, error: OSError) -> None:
        missing = error.errno == 2
        super().__init__(
            f"cannot run {name}",
            why="there is no such command" if missing else errno_text(error.errno or 0),
        )
        self.exit_status = 127 if missing else 126
