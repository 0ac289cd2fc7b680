# SPDX-License-Identifier: Apache-2.0
"""Watches interfaces while a program is attached: down, up again, removed, program detached."""

from __future__ import annotations

from bpfkit.core.errors import BpfkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bpfkit.core.attach.link import Link
    from bpfkit.core.cgroups import Cgroup
    from bpfkit.net.links.interfaces import Interface

__all__ = ["DeviceWatch", "InterfaceWatch", "check_cgroup", "check_link", "check_links"]


class InterfaceWatch:
    """Reports changes of one or several interfaces.

    :param note: prints a line for the user.
    :ivar links: ifindex -> the links; the program ends when another process detaches one.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.links: dict[int, list[Link]] = {}
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
            if all(link.is_attached() for link in self.links.get(index, ())):
                continue
            if not interface.still_there():  # it was removed since its flags were read
                self._report_removed(interface)
                continue
            for link in self.links[index]:
                check_link(link, interface.name)

    def _report_removed(self, interface: Interface) -> None:
        if self._removed is None:
            raise BpfkitError(f"interface {interface.name} was removed; stopping")
        del self._watched[interface.index]
        self._removed(interface)

    def _report_change(self, name: str, up: bool) -> None:
        wait = ", waiting for it to come back" if self._removed is None else ""
        self._note(f"{self._noun} {name} " + ("is up again" if up else f"went down{wait}"))


class DeviceWatch:
    """Keeps what a program knows of its interface current: the MAC address and the MTU.

    :param apply: writes both to where the program reads them; (MAC address, MTU in bytes).
    :param note: prints a line for the user.
    """

    def __init__(
        self,
        interface: Interface,
        apply: Callable[[bytes, int], None],
        note: Callable[[str], None],
    ) -> None:
        self._interface = interface
        self._apply = apply
        self._note = note
        self.lladdr, self.mtu = self._read()
        apply(self.lladdr, self.mtu)

    def _read(self) -> tuple[bytes, int]:
        mac = bytes.fromhex(self._interface.lladdr().replace(":", ""))
        return mac, self._interface.current_mtu()

    def check(self) -> None:
        """Apply a change, and report it; a missing interface is :class:`InterfaceWatch`'s."""
        try:
            mac, mtu = self._read()
        except OSError:
            return
        if (mac, mtu) == (self.lladdr, self.mtu):
            return
        name = self._interface.name
        if mac != self.lladdr:
            self._note(f"the MAC address of {name} is {mac.hex(':')} now")
        if mtu != self.mtu:
            self._note(f"the MTU of {name} is {mtu} now")
        self.lladdr, self.mtu = mac, mtu
        self._apply(mac, mtu)


def check_cgroup(group: Cgroup) -> None:
    """Raise BpfkitError if the cgroup was removed."""
    from os.path import isdir

    if not isdir(group.path):
        raise BpfkitError(f"cgroup {group.path} was removed; stopping")


def check_link(link: Link, target: str = "") -> None:
    """Raise BpfkitError if somebody else removed the attachment.

    :param target: where the program is attached, for people (default: as the link says).
    """
    if not link.is_attached():
        how = "its link" if link.fd >= 0 else f"the {_NOUNS.get(link.kind, link.kind)}"
        raise BpfkitError(
            f"the program was detached from {target or link.target}",
            why=f"another process {'detached' if link.fd >= 0 else 'removed'} {how}",
        )


def check_links(closables: Iterable[object]) -> None:
    """Raise BpfkitError if one of those that are links was removed.

    Links to an interface are :class:`InterfaceWatch`'s, which knows what became of the interface.
    """
    from bpfkit.core.attach.link import Link

    for one in closables:
        # A link that the program itself closed is none of the missing ones.
        if isinstance(one, Link) and not one.closed and one.kind not in _INTERFACE_KINDS:
            check_link(one)


_INTERFACE_KINDS = ("xdp", "tcx", "netkit", "clsact")
#: What an attachment without a link is.
_NOUNS = {"clsact": "clsact filter"}
