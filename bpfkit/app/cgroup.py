# SPDX-License-Identifier: Apache-2.0
"""Base of the programs that are attached to a cgroup.

::

    python -m bpfkit.NAME                     a demo in a cgroup and a network namespace of its own
    python -m bpfkit.NAME -- COMMAND ARG …    on a command, in a cgroup of its own, until it ends
    python -m bpfkit.NAME --cgroup PATH       on the processes of a cgroup, until a signal

A program overrides ``setup`` (load, :meth:`CgroupApp.attach`), ``demo``, ``rows`` or ``events``,
and ``verify``.  What the demo does goes through :meth:`CgroupApp.run_inside`, or happens in this
process within ``self.group.entered()``: a socket belongs to the cgroup of the process that creates
it, for good.
"""

from __future__ import annotations

from bpfkit.app.base import App
from bpfkit.core.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Sequence
    from subprocess import CompletedProcess
    from typing import Any

    from bpfkit.app.command import Command
    from bpfkit.app.signals import Signals
    from bpfkit.core.attach.link import Link
    from bpfkit.core.cgroups import Cgroup
    from bpfkit.core.program import Program

__all__ = ["CgroupApp"]

#: Seconds of a round that lasts until the command ends.
_WHOLE_RUN = 1e6


class CgroupApp(App):
    """Attached to a cgroup: the demo's, a command's, or the one that ``--cgroup`` names."""

    needs: tuple[str, ...] = ("BPF", "NET_ADMIN", "SYS_ADMIN")
    demo_rounds = 2
    demo_in_background = False
    #: Does the demo need a network of its own?
    demo_namespace = True

    #: The cgroup that the program is attached to.
    group: Cgroup

    #: The command of ``-- COMMAND``, once it was started.
    command: Command | None = None

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        from bpfkit.app.command import add_command

        text = "a cgroup of the v2 hierarchy, a path (default: one of its own)"
        parser.add_argument("--cgroup", metavar="PATH", help=text)
        add_command(parser, "run this command in a cgroup of its own and end with it")
        # A command's figures come once, when it has ended, unless -t asks for more.
        parser.set_defaults(interval=None)

    def check_options(self) -> None:
        options = self.options
        chosen = "--cgroup" if options.cgroup is not None else "COMMAND"
        if options.check and (options.cgroup is not None or options.command):
            raise UsageError(
                f"{chosen} and --check do not go together", why="--check makes a cgroup of its own"
            )
        if options.no_demo and options.cgroup is None and not options.command:
            raise UsageError(
                "--no-demo needs --cgroup or a command", why="a new cgroup has no processes"
            )
        if options.interval is None:
            options.interval = _WHOLE_RUN if options.command else 1.0
        if options.command:
            self.has_live_view = False  # the terminal is the command's

    def enter(self) -> None:
        """Open the cgroup, or make one; the demo gets a network namespace, too."""
        from bpfkit.core.cgroups import Cgroup

        options = self.options
        if options.cgroup is not None:
            from bpfkit.app.watch import check_cgroup

            self.group = self.keep(Cgroup.open(options.cgroup))
            self.check_regularly(lambda: check_cgroup(self.group))
            return
        self.group = self.keep(Cgroup.new(self.name.replace("_", "-")))
        if not options.command and self.demo_namespace:
            self.enter_namespace(self.place.new_namespace(self.name))

    def attach(self, program: Program, attach_type: int | None = None) -> Link:
        """Attach ``program`` to the cgroup until the end."""
        return self.keep(program.attach_cgroup(self.group.path, attach_type=attach_type))

    def wants_demo(self) -> bool:
        return super().wants_demo() and self.options.cgroup is None and not self.options.command

    def run_inside(self, argv: Sequence[str], **options: Any) -> CompletedProcess[str]:
        """:meth:`bpfkit.core.cgroups.Cgroup.run` in the program's cgroup."""
        return self.group.run(argv, **options)

    def begin(self) -> None:
        """Start the command."""
        if self.options.command:
            from bpfkit.app.command import Command

            json = bool(self.options.json)
            self.command = self.keep(Command(self.options.command, self.group, json=json))

    def end_filenos(self) -> list[int]:
        return [self.command.pidfd] if self.command is not None else []

    def finish(self, signals: Signals) -> None:
        """End the command if it has not ended, and say what goes on without the program."""
        if self.command is None:
            return
        self.command.end(signals)
        left = len(self.group.pids()) if self.group.is_own else 0
        if left:
            which = "a process of it goes" if left == 1 else f"{left} processes of it go"
            self.note(f"{self.command.argv[0]} has ended; {which} on without the program")

    def exit_status(self) -> int:
        """The command's status; else 0."""
        return self.command.status if self.command is not None else 0

    def describe_target(self) -> str:
        options = self.options
        if options.cgroup is not None:
            return f"cgroup {self.group.path}"
        return f"the cgroup of {options.command[0]}" if options.command else "a cgroup of its own"
