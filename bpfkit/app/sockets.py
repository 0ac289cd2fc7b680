# SPDX-License-Identifier: Apache-2.0
"""Base of the programs that are attached to sockets, or to maps of sockets.

Without options such a program makes its sockets in a network namespace of its own, on loopback.
With ``--netns``, or with an option of its own that names real sockets (``--listen``, ``--pid``), it
works in that namespace or in the caller's, until a signal.
"""

from __future__ import annotations

from bpfkit.app.base import App
from bpfkit.app.place import add_netns
from bpfkit.core.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser

__all__ = ["SocketsApp"]


class SocketsApp(App):
    """Attached to sockets: the demo's, or the user's."""

    needs: tuple[str, ...] = ("BPF", "NET_ADMIN", "SYS_ADMIN")
    demo_rounds = 2
    takes_netns = True

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        add_netns(parser, "work in this network namespace")

    def has_target(self) -> bool:
        """Whether the options name sockets of the user's; a program with such options overrides
        this."""
        return self.options.netns is not None

    def check_options(self) -> None:
        options = self.options
        if self.has_target() and options.check:
            raise UsageError(
                "--check takes no target", why="--check makes a network namespace of its own"
            )
        if options.no_demo and not self.has_target():
            raise UsageError("--no-demo needs a target", why="a new namespace has no sockets")

    def enter(self) -> None:
        """Enter the namespace of ``--netns``, or a private one for the demo."""
        namespace = self.place.open_namespace()
        if namespace is None and not self.has_target():
            namespace = self.place.new_namespace(self.name)
        if namespace is not None:
            self.enter_namespace(namespace)

    def wants_demo(self) -> bool:
        return super().wants_demo() and not self.has_target()

    def describe_target(self) -> str:
        if self.place.is_private:
            return "a network namespace of its own"
        return f"namespace {self.options.netns}" if self.options.netns else "this namespace"
