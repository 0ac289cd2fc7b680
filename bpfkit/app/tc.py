# SPDX-License-Identifier: Apache-2.0
"""Base of the programs that are attached to an interface by tc: clsact or tcx."""

from __future__ import annotations

from bpfkit.app.interface import InterfaceApp
from bpfkit.core.errors import UsageError
from bpfkit.core.kernel.verdicts import TC_ACTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from typing import ClassVar

    from bpfkit.core.attach.link import Link
    from bpfkit.core.program import Program
    from bpfkit.net.links.interfaces import Interface

__all__ = ["TcApp"]


class TcApp(InterfaceApp):
    """Attached by tc: verdicts on the packets that an interface sends or receives."""

    actions: ClassVar[dict[int, str]] = TC_ACTIONS
    runs_cut_ip = False
    #: What ``--direction`` is by default.
    direction = "egress"

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        """Way of attaching, and direction."""
        super().add_options(parser)
        add = parser.add_argument
        add(
            "--attach",
            choices=("auto", "clsact", "tcx"),
            default="auto",
            help="attach as a clsact filter or by tcx (default: tcx where the kernel has it, 6.6)",
        )
        add(
            "--direction",
            choices=("ingress", "egress"),
            default=cls.direction,
            help=f"packets that the program gets (default: {cls.direction})",
        )
        add(
            "--priority",
            metavar="N",
            type=_priority,
            default=0,
            help="clsact: the filter's priority (default: behind the existing filters)",
        )

    def check_options(self) -> None:
        """Priorities exist in clsact only."""
        super().check_options()
        if self.options.priority and self.options.attach != "clsact":
            raise UsageError("--priority needs --attach clsact", why="tcx has no priorities")

    def attach_mode(self) -> str:
        kind = self.links[0].kind if self.links else self.options.attach
        return f"tc {self.options.direction} by {kind}"

    def attach_program(self, program: Program) -> list[tuple[Interface, Link]]:
        return [(self.interface, self.attach_direction(program, self.options.direction))]

    def attach_direction(self, program: Program, direction: str) -> Link:
        """Attach at ``ingress`` or ``egress`` in the way of ``--attach``."""
        options = self.options
        more = {"priority": options.priority} if options.attach == "clsact" else {}
        return program.attach_tc(self.interface.index, direction, options.attach, **more)


def _priority(text: str) -> int:
    from argparse import ArgumentTypeError

    if text.isascii() and text.isdigit() and 0 < int(text) < 65536:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a priority (1 to 65535)")
