# SPDX-License-Identifier: Apache-2.0
"""What the programs share that are shown in a lab: theirs in a demo, or a namespace of the user's.

Without ``--netns`` such a program builds a lab, attaches there and makes traffic.  With it, it
attaches in that namespace (and only observes), until it ends.
"""

from __future__ import annotations

from bpfkit.app.base import App
from bpfkit.core.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser

    from bpfkit.core.object import Object
    from bpfkit.net.links.lab import Lab
    from bpfkit.net.links.netns import NetNS

__all__ = ["LabApp"]


class LabApp(App):
    """Attaches in a namespace: of a lab, or the one that ``--netns`` names."""

    needs = ("BPF", "NET_ADMIN", "NET_RAW", "SYS_ADMIN")
    demo_rounds = 2
    takes_netns = True
    #: The lab, while there is one.
    lab: Lab | None = None
    object: Object
    #: Where the program is attached.
    namespace: NetNS
    #: Which of the lab's namespaces that is.
    place = "server"

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        text = "attach in this network namespace: a name, a process id or a path (default: a lab)"
        parser.add_argument("--netns", metavar="NS", help=text)

    def check_options(self) -> None:
        options = self.options
        if options.netns is not None and options.check:
            raise UsageError("--netns and --check do not go together", why="--check builds a lab")
        if options.netns is None and options.no_demo:
            raise UsageError("--no-demo needs --netns", why="nothing happens in a lab by itself")

    def build(self) -> Lab:
        """The lab of the demo."""
        from bpfkit.net.links.lab import pair_lab

        return pair_lab()

    def enter(self) -> None:
        """Build the lab, or open the namespace."""
        if self.options.netns is not None:
            from bpfkit.net.links.netns import NetNS

            self.namespace = self.keep(NetNS.open(self.options.netns))
            return
        self.lab = self.keep(self.build())
        self.namespace = self.lab[self.place]

    def wants_demo(self) -> bool:
        return super().wants_demo() and self.lab is not None

    def where(self) -> str:
        if self.lab is None:
            return f"namespace {self.options.netns}"
        return f"{self.place} of the lab {' – '.join(self.lab.namespaces)}"
