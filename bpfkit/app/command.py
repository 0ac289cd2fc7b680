# SPDX-License-Identifier: Apache-2.0
"""``-- COMMAND ARG …``: a command that a program runs, observes or restricts, and ends with.

The command is born in a cgroup, so that its children are known by it.  Its exit status becomes the
program's: 128 + N where signal N killed it, 126 where it cannot be executed, 127 where it is not
found.  It is killed if the program is (PR_SET_PDEATHSIG): a restriction never ends before it.

Standard output stays the command's; the program prints on standard error.  With ``--json``, or in
another form that is read by a machine (``profile --folded``), the program has standard output to
itself, and the command's output goes to standard error.
"""

from __future__ import annotations

import os

from bpfkit.core.children import die_with_parent
from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

    from bpfkit.app.signals import Signals
    from bpfkit.core.cgroups import Cgroup

__all__ = ["Command", "add_command", "set_interval"]

_GRACE_S = 3.0
#: Seconds of a round that lasts until the command ends.
_WHOLE_RUN = 1e6


def add_command(parser: ArgumentParser, text: str) -> None:
    """Declare ``-- COMMAND``.

    With a command ``-t`` has no default: figures come once, when it has ended.
    """
    parser.add_argument("command", metavar="-- COMMAND", nargs="*", help=text)
    parser.set_defaults(interval=None)


def set_interval(options: Namespace) -> None:
    """The interval where ``-t`` does not give it: a second, or until the command ends."""
    if options.interval is None:
        options.interval = _WHOLE_RUN if options.command else 1.0


class Command(Closing):
    """A command in a cgroup.

    :param argv: the command's words.
    :param group: the cgroup that it is born in.
    :param json: keep standard output for the program's rows.
    :ivar pidfd: readable once the command has ended; -1: it was not started.
    """

    def __init__(self, argv: Sequence[str], group: Cgroup, *, json: bool = False) -> None:
        self.argv = list(argv)
        self.pidfd = -1
        self._group = group
        self._json = json
        self._stdout = -1
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the command.

        :raises CannotRun: it is not found, or cannot be executed.
        """
        import subprocess
        import sys
        from shutil import which

        # Looked up here: the child would try each directory of $PATH, which tracing programs show.
        path = which(self.argv[0])
        if path is None and "/" not in self.argv[0]:
            raise CannotRun(self.argv[0], OSError(2, ""))
        bind_life = die_with_parent()

        def prepare() -> None:
            os.write(procs, b"0")
            bind_life()

        sys.stdout.flush()
        procs = self._group.open_procs()
        try:
            self._process = subprocess.Popen(
                self.argv, executable=path, stdout=2 if self._json else 1, preexec_fn=prepare
            )
        except OSError as error:
            raise CannotRun(self.argv[0], error) from None
        except subprocess.SubprocessError:
            raise BpfkitError(
                f"cannot start {self.argv[0]} in {self._group.path}",
                why="the kernel does not let a process into this cgroup",
                hint="a cgroup whose cgroup.subtree_control is not empty takes none",
            ) from None
        finally:
            os.close(procs)
        self.pidfd = os.pidfd_open(self._process.pid)
        if not self._json:
            self._stdout = os.dup(1)
            os.dup2(2, 1)  # from now on the program prints on standard error

    @property
    def pid(self) -> int:
        """The command's process id; 0: it was not started."""
        return self._process.pid if self._process is not None else 0

    @property
    def status(self) -> int:
        """The exit status, as a shell gives it; waits for the end."""
        code = self._process.wait() if self._process is not None else 0
        return code if code >= 0 else 128 - code

    def end(self, signals: Signals) -> None:
        """Pass on the signal that asked for the end, then wait; kills after three seconds."""
        import signal
        import subprocess

        process = self._process
        if process is not None and process.poll() is None:
            try:
                process.send_signal(signals.number or signal.SIGTERM)
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self._group.kill()
                process.wait()

    def close(self) -> None:
        """Kill the command if it runs, and give standard output back."""
        fd, self.pidfd = self.pidfd, -1
        process = self._process
        if fd < 0 or process is None:
            return
        os.close(fd)
        if process.poll() is None:
            process.kill()
            process.wait()
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
