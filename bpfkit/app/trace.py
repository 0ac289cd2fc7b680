# SPDX-License-Identifier: Apache-2.0
"""Base of the programs that trace processes: tracepoints, kprobes, uprobes, fentry.

::

    python3 -m bpfkit.NAME                     a demo: processes in a cgroup of their own
    python3 -m bpfkit.NAME -- COMMAND ARG …    a command and its children, until it ends
    python3 -m bpfkit.NAME --pid PID           one process, until it ends
    python3 -m bpfkit.NAME --cgroup PATH       the processes of a cgroup, until it is removed
    python3 -m bpfkit.NAME --no-demo           all processes, until a signal

The C side includes ``bpf_c/trace/traced.h``, whose is_traced() tells whom an event is about.

A program sets ``source``, overrides ``setup`` (:meth:`TraceApp.load_traced`, then attach and
``keep``), ``events`` (:meth:`TraceApp.source_of`), ``demo`` and ``verify``.  Everything that was
lost is said: records that found no room, and runs that the kernel left out (:meth:`missed`).
"""

from __future__ import annotations

import os

from bpfkit.app.base import App
from bpfkit.app.command import set_interval
from bpfkit.core.errors import InputError, UnsupportedError, UsageError, VerifierError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Sequence
    from subprocess import CompletedProcess
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.core.cgroups import Cgroup
    from bpfkit.core.object import Object
    from bpfkit.show.rows import Event

__all__ = ["TraceApp", "listed_refusals"]

#: Inode of the namespace that bpf_get_current_pid_tgid() is about: include/linux/proc_ns.h.
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC


def listed_refusals(refusals: dict[str, str]) -> str:
    """Why each way was refused, in one line; ways with the same reason stand together.

    :param refusals: way -> reason.
    """
    ways: dict[str, list[str]] = {}
    for way, why in refusals.items():
        ways.setdefault(why, []).append(way)
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in ways.items())


class TraceApp(App):
    """Traces the demo's processes, a command's, one process, or all."""

    needs: tuple[str, ...] = ("BPF", "PERFMON")
    demo_rounds = 2
    demo_in_background = False
    has_live_view = False
    #: Do words of the command line name what is traced?  A command then needs ``--`` before it.
    takes_targets = False

    #: The cgroup of the demo, of the command or of ``--cgroup``; None: others are traced.
    group: Cgroup | None = None
    _pidfd = -1

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        from bpfkit.app.command import add_command
        from bpfkit.app.options import positive

        add = parser.add_argument
        add("--pid", metavar="PID", type=positive, help="trace this process until it ends")
        add(
            "--cgroup", metavar="PATH", help="trace the processes of this cgroup and those below it"
        )
        if cls.takes_targets:
            parser.set_defaults(command=[], interval=None)
            parser.command_behind_dashes = True  # type: ignore[attr-defined]
        else:
            add_command(parser, "run this command, trace it and its children, and end with it")

    def check_options(self) -> None:
        options = self.options
        given = {
            "--pid": options.pid is not None,
            "--cgroup": options.cgroup is not None,
            "COMMAND": bool(options.command),
        }
        chosen = " and ".join(name for name, is_there in given.items() if is_there)
        if sum(given.values()) > 1:
            raise UsageError(f"{chosen} do not go together")
        if options.check and chosen:
            raise UsageError(
                f"{chosen} and --check do not go together", why="--check traces its own demo"
            )
        set_interval(options)

    def wants_demo(self) -> bool:
        return super().wants_demo() and not self.traces_one()

    def traces_one(self) -> bool:
        """Does the command line say whose calls are traced: a process, a cgroup or a command?"""
        options = self.options
        return bool(options.command) or options.pid is not None or options.cgroup is not None

    def enter(self) -> None:
        """Make the cgroup of the demo or of the command, or find the process."""
        options = self.options
        if options.pid is not None:
            try:
                self._pidfd = os.pidfd_open(options.pid)
            except OSError as error:
                raise InputError(f"no process {options.pid}", why=str(error.strerror)) from None
            self.keep(_Descriptor(self._pidfd))
            if os.stat("/proc/self/ns/pid").st_ino != _INITIAL_PID_NAMESPACE:
                raise UnsupportedError(
                    "cannot trace by --pid",
                    why="in a PID namespace (a container) processes have other ids than the kernel "
                    "compares",
                    hint="--cgroup PATH or -- COMMAND work here",
                )
        elif options.cgroup is not None:
            from bpfkit.core.cgroups import Cgroup

            group = self.group = self.keep(Cgroup.open(options.cgroup))
            self.check_regularly(group.check_there)
        elif options.command or self.wants_demo():
            from bpfkit.core.cgroups import Cgroup

            self.group = self.keep(Cgroup.new(self.name.replace("_", "-")))
            if options.command:
                from bpfkit.app.command import Command

                rows = self.prints_for_machines()
                self.command = Command(options.command, self.group, json=rows)

    def prints_for_machines(self) -> bool:
        """Is standard output for a machine?  A command's output then goes to standard error."""
        return bool(self.options.json)

    def load_traced(self, **consts: int) -> Object:
        """The program's object, which is also ``self.object``; traces whom the options name.

        Where the kernel does not tell a tracing program a cgroup's ancestors (5.10), processes in
        cgroups below the traced one are left out, which is said; a program that protects needs
        them.
        """
        whom = {"only_pid": self.options.pid or 0}
        if self.group is not None:
            from bpfkit.core.cgroups import cgroup_root

            below = self.group.path.removeprefix(cgroup_root()).strip("/")
            whom["only_cgroup"] = self.group.id
            whom["cgroup_level"] = below.count("/") + 1
        try:
            self.object = self.load(**whom, **consts)
        except VerifierError as error:
            if self.protects or error.refused != "bpf_get_current_ancestor_cgroup_id()":
                raise
            self.note(f"this kernel has no {error.refused} here: cgroups below are not traced")
            self.object = self.load(**{**whom, "cgroup_level": 0}, **consts)
        return self.object

    def run_traced(self, argv: Sequence[str], **options: Any) -> CompletedProcess[str]:
        """Run a command of the demo to its end; returns what it printed.

        :param options: for :func:`subprocess.run`.
        """
        assert self.group is not None
        return self.group.run(argv, **options)

    def source_of(
        self,
        buffer: str,
        decode: Callable[[Any], Event | None],
        lost: Callable[[], int],
    ) -> EventSource:
        """The events of a ring buffer.

        :param buffer: the map's name.
        :param lost: records that the program in the kernel could not send; :meth:`missed` is added.
        """
        from bpfkit.app.events import from_buffer

        opened = self.keep(self.object[buffer].open())
        return from_buffer(opened, decode, lost=lambda: lost() + self.missed())

    def missed(self) -> int:
        """Runs that the kernel left out because the program was running already on that CPU
        (``recursion_misses`` of the programs, kernel 5.12) or had no room (``missed`` of links)."""
        programs = self.object.programs.values()
        runs = sum(program.recursion_misses() for program in programs)
        return runs + sum(link.missed() for program in programs for link in program.links)

    def end_filenos(self) -> list[int]:
        return [*super().end_filenos(), *([self._pidfd] if self._pidfd >= 0 else [])]

    def describe_target(self) -> str:
        options = self.options
        if options.command:
            return f"{options.command[0]} and its children"
        if options.pid is not None:
            return f"process {options.pid}"
        if options.cgroup is not None and self.group is not None:
            return f"the processes of cgroup {self.group.path}"
        return "the demo's processes" if self.group is not None else "all processes"


class _Descriptor:
    """A descriptor that is closed at the end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)
