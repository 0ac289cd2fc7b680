# SPDX-License-Identifier: Apache-2.0
"""Watches interfaces while a program is attached: down, up again, removed, program detached."""

from __future__ import annotations

from bpfkit.core.errors import BpfkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bpfkit.core.attach.link import Link
    from bpfkit.net.links.interfaces import Interface

__all__ = ["InterfaceWatch"]


class InterfaceWatch:
    """Reports changes of one or several interfaces.

    :param note: prints a line for the user.
    :ivar links: ifindex -> the link whose detachment by another process ends the program.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.links: dict[int, Link] = {}
        self._note = note
        self._noun = "interface"
        self._removed: Callable[[Interface], None] | None = None
        self._watched: dict[int, Interface] = {}
        self._down: set[int] = set()

    def report_as(self, noun: str, removed: Callable[[Interface], None]) -> None:
        """Watch several interfaces for a program that goes on when one is down or removed.

        :param noun: what lines for the user call an interface.
        :param removed: called for an interface that was removed.
        """
        self._noun = noun
        self._removed = removed

    def add(self, interface: Interface) -> None:
        """Watch ``interface``; the only one is reported at once if it is down."""
        self._watched[interface.index] = interface
        if self._removed is None and not interface.is_up():
            self._down.add(interface.index)
            self._note(f"{self._noun} {interface.name} is down, waiting for it to come up")

    def check(self) -> None:
        """Look at all interfaces.

        :raises BpfkitError: one was removed, or its program was detached.
        """
        for index, interface in list(self._watched.items()):
            flags = interface.current_flags()
            if flags is None:
                self._report_removed(interface)
                continue
            up = bool(flags & 1)
            if up == (index in self._down):
                self._down ^= {index}
                self._report_change(interface.name, up)
            link = self.links.get(index)
            if link is not None and link.fd >= 0 and not _is_attached(link.fd):
                raise BpfkitError(
                    f"the program was detached from {interface.name}",
                    why="another process detached its link",
                )

    def _report_removed(self, interface: Interface) -> None:
        if self._removed is None:
            raise BpfkitError(f"interface {interface.name} was removed; stopping")
        del self._watched[interface.index]
        self._removed(interface)

    def _report_change(self, name: str, up: bool) -> None:
        wait = ", waiting for it to come back" if self._removed is None else ""
        self._note(f"{self._noun} {name} " + ("is up again" if up else f"went down{wait}"))


def _is_attached(fd: int) -> bool:
    """Whether the XDP or tcx link is attached; the kernel reports interface 0 for one that is not
    (struct bpf_link_info, 5.9)."""
    from bpfkit.core.kernel.syscall import obj_info

    return obj_info(fd, 24)[16:20] != bytes(4)
