# SPDX-License-Identifier: Apache-2.0
"""Base of the programs that are attached in a network namespace, not to one of its interfaces.

Without ``--netns`` such a program builds a lab, attaches there and makes traffic.  With ``--netns``
it attaches in that namespace until it ends, and only observes.
"""

from __future__ import annotations

from bpfkit.app.base import App
from bpfkit.app.place import add_netns
from bpfkit.core.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser

    from bpfkit.net.links.lab import Lab
    from bpfkit.net.links.netns import NetNS

__all__ = ["NamespaceApp"]


class NamespaceApp(App):
    """Attached in a namespace: one of a lab, or the one that ``--netns`` names."""

    needs = ("BPF", "NET_ADMIN", "NET_RAW", "SYS_ADMIN")
    demo_rounds = 2
    takes_netns = True
    #: The lab's namespace that the program is attached in.
    lab_namespace = "server"

    #: The namespace that the program is attached in.
    namespace: NetNS

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        add_netns(parser, "attach in this network namespace", default="a lab")

    def check_options(self) -> None:
        options = self.options
        if options.netns is not None and options.check:
            raise UsageError("--netns and --check do not go together", why="--check builds a lab")
        if options.netns is None and options.no_demo:
            raise UsageError("--no-demo needs --netns", why="a lab has no other traffic")

    def build_lab(self) -> Lab:
        """The lab of the demo."""
        from bpfkit.net.links.lab import pair_lab

        return pair_lab()

    def enter(self) -> None:
        """Build the lab, or open the namespace."""
        namespace = self.place.open_namespace()
        if namespace is not None:
            self.namespace = self.keep(namespace)
            return
        self.place.use_lab(self.keep(self.build_lab()))
        self.namespace = self.lab[self.lab_namespace]

    def wants_demo(self) -> bool:
        return super().wants_demo() and self.place.has_lab

    def describe_target(self) -> str:
        if not self.place.has_lab:
            return f"namespace {self.options.netns}"
        return f"{self.lab_namespace} of the lab {' – '.join(self.lab.namespaces)}"
