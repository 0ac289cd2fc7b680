# SPDX-License-Identifier: Apache-2.0
"""Base of the programs that are attached to a cgroup.

::

    python3 -m bpfkit.NAME                     a demo in a cgroup and a network namespace of its own
    python3 -m bpfkit.NAME -- COMMAND ARG …    on a command, in a cgroup of its own, until it ends
    python3 -m bpfkit.NAME --cgroup PATH       on the processes of a cgroup, until a signal

A program overrides ``setup`` (load, :meth:`CgroupApp.attach`), ``demo``, ``rows`` or ``events``,
and ``verify``.  What the demo does goes through :meth:`CgroupApp.run_inside`, or happens in this
process within ``self.group.entered()``: a socket belongs to the cgroup of the process that creates
it, for good.
"""

from __future__ import annotations

from bpfkit.app.base import App
from bpfkit.app.command import set_interval
from bpfkit.core.errors import BpfkitError, InputError, UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Sequence, Sized
    from subprocess import CompletedProcess
    from typing import Any

    from bpfkit.app.signals import Signals
    from bpfkit.core.attach.link import Link
    from bpfkit.core.cgroups import Cgroup
    from bpfkit.core.maps.base import Map
    from bpfkit.core.program import Program

__all__ = ["CgroupApp"]


class CgroupApp(App):
    """Attached to a cgroup: the demo's, a command's, or the one that ``--cgroup`` names."""

    needs: tuple[str, ...] = ("BPF", "NET_ADMIN", "SYS_ADMIN")
    demo_rounds = 2
    demo_in_background = False
    #: Does the demo need a network of its own?
    demo_namespace = True
    #: Options that are rules of the user's: without any of them the demo sets rules, which
    #: ``--check`` verifies.
    rule_options: tuple[str, ...] = ()

    #: The cgroup that the program is attached to.
    group: Cgroup

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        from bpfkit.app.command import add_command

        text = "a cgroup of the v2 hierarchy, a path (default: one of its own)"
        parser.add_argument("--cgroup", metavar="PATH", help=text)
        add_command(parser, "run this command in a cgroup of its own and end with it")

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
        given = any(getattr(options, name) not in ([], None) for name in self.rule_options)
        if options.check and given:
            raise UsageError("--check takes no rules", why="it verifies those of the demo")
        #: Does the demo set rules?
        self.demo_rules = not (given or options.cgroup is not None or options.command)
        set_interval(options)
        if options.command:
            self.has_live_view = False  # the terminal is the command's

    def enter(self) -> None:
        """Open the cgroup, or make one; the demo gets a network namespace, too."""
        from bpfkit.app.command import Command
        from bpfkit.core.cgroups import Cgroup

        options = self.options
        if options.cgroup is not None:
            self.group = self.keep(Cgroup.open(options.cgroup))
        else:
            self.group = self.keep(Cgroup.new(self.name.replace("_", "-")))
        if options.command:
            self.command = Command(options.command, self.group, json=options.json)
        elif options.cgroup is None and self.demo_namespace:
            self.enter_namespace(self.place.new_namespace(self.name))

    def attach(self, program: Program, attach_type: int | None = None) -> Link:
        """Attach ``program`` to the cgroup until the end."""
        return self.keep(program.attach_cgroup(self.group.path, attach_type=attach_type))

    @staticmethod
    def check_room(table: Map, entries: Sized, what: str) -> None:
        """See that the options say no more than the map can hold.

        :param what: the entries, for people.
        :raises InputError: they do.
        """
        if len(entries) > table.max_entries:
            raise InputError(
                f"{len(entries)} {what}", why=f"up to {table.max_entries} are possible"
            )

    def check_target(self) -> None:
        if hasattr(self, "group"):  # a demo may do without
            self.group.check_there()
        super().check_target()

    def wants_demo(self) -> bool:
        return super().wants_demo() and self.options.cgroup is None and not self.options.command

    def run_inside(self, argv: Sequence[str], **options: Any) -> CompletedProcess[str]:
        """:meth:`bpfkit.core.cgroups.Cgroup.run` in the program's cgroup."""
        return self.group.run(argv, **options)

    def python_inside(self, script: str) -> Any:
        """Run a Python script in the cgroup; returns what it prints as JSON.

        :raises BpfkitError: it failed.
        """
        import json
        import sys

        done = self.run_inside([sys.executable, "-I", "-S", "-c", script])
        if done.returncode:
            last = " ".join(done.stderr.split("\n")[-2:]).strip()
            raise BpfkitError("a process of the demo failed", why=last)
        return json.loads(done.stdout)

    def finish(self, signals: Signals) -> None:
        """End the command if it has not ended, and say what goes on without the program."""
        super().finish(signals)
        if self.command is None:
            return
        left = len(self.group.pids()) if self.group.is_own else 0
        if left:
            which = "a process of it goes" if left == 1 else f"{count_of(left, 'process')} of it go"
            self.note(f"{self.command.argv[0]} has ended; {which} on without the program")

    def describe_target(self) -> str:
        options = self.options
        if options.cgroup is not None:
            return f"cgroup {self.group.path}"
        return f"the cgroup of {options.command[0]}" if options.command else "a cgroup of its own"
