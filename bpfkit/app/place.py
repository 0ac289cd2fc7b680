# SPDX-License-Identifier: Apache-2.0
"""Where a program works: in the lab of its demo, or in a network namespace that the user names.

The options ``-i``, ``--netns`` and ``--pcap`` are declared and resolved here only.
"""

from __future__ import annotations

from bpfkit.core.errors import BpfkitError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import Any

    from bpfkit.net.links.lab import Lab
    from bpfkit.net.links.netns import NetNS

__all__ = ["Place", "add_interface", "add_netns", "add_once", "add_pcap", "check_pcap"]

_SPEC = "a name, a process id or a path"


def add_once(parser: ArgumentParser, *names: str, metavar: str, help: str) -> None:
    """Declare an option with a value that may be given once: a second value would replace the
    first without a word."""
    from argparse import Action

    class Once(Action):
        def __call__(
            self,
            parser: ArgumentParser,
            namespace: Namespace,
            values: Any,
            option_string: str | None = None,
        ) -> None:
            if getattr(namespace, self.dest) is not None:
                parser.error(f"{option_string} was given twice; the program takes one")
            setattr(namespace, self.dest, values)

    parser.add_argument(*names, metavar=metavar, help=help, action=Once)


def add_interface(parser: ArgumentParser, text: str, *, several: bool = False) -> None:
    """Declare ``-i``.

    :param several: it may be given again; the value is a list.
    """
    if several:
        parser.add_argument("-i", "--interface", metavar="IF", help=text, action="append")
    else:
        add_once(parser, "-i", "--interface", metavar="IF", help=text)


def add_netns(
    parser: ArgumentParser, text: str = "network namespace", *, default: str = ""
) -> None:
    """Declare ``--netns``.

    :param default: the namespace without the option; "": the caller's.
    """
    end = f" (default: {default})" if default else ""
    add_once(parser, "--netns", metavar="NS", help=f"{text}: {_SPEC}{end}")


def add_pcap(parser: ArgumentParser, text: str) -> None:
    """Declare ``--pcap``."""
    add_once(parser, "--pcap", metavar="FILE", help=text)


def check_pcap(options: Namespace) -> None:
    """Refuse ``--pcap`` together with an option for live traffic.

    :raises UsageError: it stands beside ``--interface``, ``--netns`` or ``--check``.
    """
    for name in ("interface", "netns", "check"):
        if getattr(options, name) not in (None, False):
            raise UsageError(f"--pcap and --{name} do not go together", why="a capture is not live")


class Place:
    """The lab of the demo, or the namespace of ``--netns``.

    :ivar netns: the value of ``--netns``; None: the caller's namespace.
    :ivar is_private: the namespace is one that bpfkit made.
    """

    def __init__(self, netns: str | None = None) -> None:
        self.netns = netns
        self.is_private = False
        self._lab: Lab | None = None

    @property
    def has_lab(self) -> bool:
        """Whether a lab was built."""
        return self._lab is not None

    @property
    def lab(self) -> Lab:
        """The lab.

        :raises BpfkitError: the program works on an interface of the user's instead.
        """
        if self._lab is None:
            raise BpfkitError("there is no lab", why="only the demo and --check build one")
        return self._lab

    def use_lab(self, lab: Lab) -> None:
        """Work in ``lab`` from now on."""
        self._lab = lab
        self.is_private = True

    def new_namespace(self, name: str) -> NetNS:
        """A private namespace; the caller closes it."""
        from bpfkit.net.links.netns import NetNS

        namespace = NetNS.new(name)
        self.is_private = True
        return namespace

    def open_namespace(self) -> NetNS | None:
        """The namespace of ``--netns``, which the caller closes; None without the option.

        :raises InputError: there is no such namespace.
        """
        if self.netns is None:
            return None
        from bpfkit.net.links.netns import NetNS

        return NetNS.open(self.netns)

    def describe(self, interface: str) -> str:
        """``interface`` and the namespace that it is in, for people."""
        if self.is_private:
            return f"{interface} of a namespace of its own"
        return interface if self.netns is None else f"{interface} of namespace {self.netns}"
