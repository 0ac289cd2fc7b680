# SPDX-License-Identifier: Apache-2.0
"""Base of the programs that forward frames between interfaces, their ports.

::

    port A ─▶ [XDP program] ─XDP_REDIRECT─▶ device map's entry ─▶ [program on it] ─▶ port B
                  │                              │                      │
               results                lost (raw tracepoints)        departed

What they share: which ports, the programs on all of them, what becomes of a port meanwhile, and
what was redirected and never sent, with the reason.
"""

from __future__ import annotations

import errno

from bpfkit.app.interface import XdpApp
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, UsageError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable
    from typing import Any

    from bpfkit.core.attach.link import Link
    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.links.interfaces import Interface

__all__ = ["PortApp"]

MAX_PORTS = 64
_LO = 1  # ifindex of lo, in every namespace
#: Why a frame is lost, by the kernel's errno -> what to do.
_VETH = (
    "the other end of a veth must run an XDP program, XDP_PASS will do; --mode generic needs none"
)
_HINTS = {
    errno.ENXIO: f"it takes no native redirects ({_VETH})",
    errno.EOPNOTSUPP: f"it takes no native redirects ({_VETH})",
    errno.EMSGSIZE: "they are longer than its MTU (segmentation offload where they come from? "
    "ethtool -K DEV tso off gso off gro off)",
    errno.ENETDOWN: "it is down",
    errno.ENOSPC: "its queue is full",
    0: "its driver had no room for them",
}
#: Not the kernel's: a broadcast leaves out what cannot take it, and says nothing.
SKIPPED = -1
_HINTS[SKIPPED] = f"broadcasts leave it out: it is down, or takes no native redirects ({_VETH})"


class PortApp(XdpApp):
    """Forwards frames between ports."""

    knows_l2_len = False
    #: Name of the device map that frames are redirected through.
    device_map = "out"
    #: Are its keys the entries' ifindexes?
    keys_are_ports = True

    def __init__(self, options: Namespace) -> None:
        super().__init__(options)
        self.ports: list[Interface] = []
        #: ifindex -> name, of ports that are gone too.
        self.names: dict[int, str] = {}
        self.links: dict[int, Link] = {}
        self.egress: Object
        self.losses: Object | None = None
        self._downs: set[int] = set()
        #: ifindex -> frames that came in there and were flooded, some time ago.
        self._flooded: dict[int, int] = {}
        self._told: set[tuple[int, int]] = set()

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        text = "another port; again for more"
        parser.add_argument("--to", metavar="IF", action="append", default=[], help=text)

    def check_options(self) -> None:
        super().check_options()
        options = self.options
        if options.interface is not None and not options.to:
            raise UsageError("--interface needs --to", why="where are frames redirected to?")
        if options.interface is None and options.to:
            raise UsageError("--to needs --interface", why="where do frames come in?")
        names = [options.interface, *options.to]
        twice = [name for name in options.to if names.count(name) > 1]
        if twice:
            raise UsageError(f"port {twice[0]} is given twice")
        if len(names) > MAX_PORTS:
            raise UsageError(f"{len(names)} ports", why=f"there is room for {MAX_PORTS}")

    # -- where

    def enter(self) -> None:
        """Find the ports: the given ones, or those of a lab's middle."""
        from bpfkit.net.links.interfaces import Interface
        from bpfkit.net.links.netns import NetNS
        from bpfkit.net.links.offloads import driver

        options = self.options
        if options.interface is None:
            self.enter_lab()
            return
        if options.netns is not None:
            self.enter_namespace(NetNS.open(options.netns))
        for name in (options.interface, *options.to):
            port = Interface.find(name)
            if port.l2_len != 14 or port.is_loopback:
                raise InputError(
                    f"{name} cannot be a port",
                    why="it is the loopback" if port.is_loopback else "it is no Ethernet",
                )
            self._add(port)
        veths = [port.name for port in self.ports if driver(port) == "veth"]
        if options.mode == "auto" and veths:
            options.mode = "generic"
            self.note(
                f"{', '.join(veths)}: veth, so generic XDP; --mode native needs an XDP program on "
                "the other ends, and `ethtool -K DEV tx off` there"
            )

    def enter_lab(self) -> None:
        """Into the middle of a star, whose cables' ends are the ports."""
        from bpfkit.net.links.interfaces import Interface
        from bpfkit.xdp_redirect.star import peers_pass

        lab = self.lab = self.keep(self.make_lab())
        if self.options.pcap is None:
            self.keep(peers_pass(lab))
        self.enter_namespace(lab["middle"].dup())
        for name in lab.devices["middle"]:
            if name != "lo":
                self._add(Interface.find(name))

    def _add(self, port: Interface) -> None:
        self.ports.append(port)
        self.names[port.index] = port.name
        self.interface = self.ports[0]

    def where(self) -> str:
        names = ", ".join(port.name for port in self.ports)
        if self.lab is not None:
            return f"{names} of a namespace of its own"
        return f"{names} of namespace {self.options.netns}" if self.options.netns else names

    # -- programs

    def prepare(self, loaded: Object) -> None:
        """Tell the programs about the ports."""
        from bpfkit import load

        cache = not self.options.no_cache
        self.egress = self.keep(load("xdp/xdp_redirect_egress.bpf.c", cache=cache))
        behind = self.egress.programs["xdp_redirect_egress"]
        self.fill(loaded, behind)
        for slot, port in enumerate(self.ports):
            mac = bytes.fromhex(port.lladdr().replace(":", ""))
            loaded["ports"][port.index] = {"slot": slot, "mac": {"byte": mac}, "any_mac": 0}

    def fill(self, loaded: Object, behind: Program) -> None:
        """Fill the device map; ``behind`` is the program on each entry."""
        for port in self.ports:
            loaded[self.device_map][port.index] = (port.index, behind)

    def runner(self) -> Callable[[bytes, int], int]:
        """As if the frames came in by lo of a namespace of its own; nothing is sent."""
        self.enter_capture()
        run = super().runner()
        self.names[_LO] = "capture"
        self.object["ports"][_LO] = {"slot": 0, "mac": {}, "any_mac": 1}
        return run

    def enter_capture(self) -> None:
        """Go where frames of a capture are judged: a packet run without a context is lo's."""
        from bpfkit.net.links.interfaces import Interface
        from bpfkit.net.links.netns import NetNS

        self.enter_namespace(NetNS.new("capture"))
        self._add(Interface.find("lo"))

    def attach(self, program: Program) -> None:
        """The tracepoints first, then all ports."""
        self.losses = self.count_losses("xdp/xdp_redirect_lost.bpf.c", self._whose)
        super().attach(program)

    def _whose(self) -> dict[str, int]:
        """What tells our frames from others', and where the kernel has that."""
        import os

        from bpfkit.core.types.btf import vmlinux

        btf = vmlinux()
        if btf is None:
            raise UnsupportedError("", why="the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")
        try:
            offsets = {
                "dev_ifindex": btf.offset("net_device", "ifindex"),
                "dev_net": btf.offset("net_device", "nd_net", "net"),
                "net_inum": btf.offset("net", "ns", "inum"),
            }
        except KeyError as error:
            raise UnsupportedError("", why=str(error.args[0])) from None
        return {
            **offsets,
            "netns": os.stat("/proc/thread-self/ns/net").st_ino,
            "map_id": self.object[self.device_map].id,
            "keys_are_ports": int(self.keys_are_ports),
        }

    def hook(self, program: Program) -> Link:
        modes = []
        for port in self.ports:
            self.interface = port
            link = super().hook(program)
            modes.append(self.mode)
            self.links[port.index] = link
            if port is not self.ports[0]:
                self.keep(link)
        self.interface = self.ports[0]
        self.mode = " and ".join(dict.fromkeys(modes))
        return self.links[self.interface.index]

    def detach(self) -> None:
        for link in self.links.values():
            if link in self._keep:
                self._keep.remove(link)
            link.close()
        self.links.clear()
        self.link = None

    # -- meanwhile

    def look(self) -> None:
        """Ports go down, come back, are removed; frames are lost."""
        for port in list(self.ports):
            flags = port.current_flags()
            if flags is None:
                self._gone(port)
                continue
            down = not flags & 1
            if down != (port.index in self._downs):
                self._downs ^= {port.index}
                state = "went down" if down else "is up again"
                self.note(f"port {port.name} {state}")
            link = self.links.get(port.index)
            if link is not None and not self._holds(link.fd):
                raise BpfkitError(
                    f"the program was taken off {port.name}",
                    why="somebody else has detached its link",
                )
        self._tell_losses()
        self._flooded = self.flooded()

    def flooded(self) -> dict[int, int]:
        """ifindex -> frames that came in there and must have left by all other ports."""
        return {}

    def _gone(self, port: Interface) -> None:
        self.ports.remove(port)
        # The kernel has taken it out of the device map; the rest is ours.
        self.object["ports"].pop(port.index, None)
        rest = self.left()
        if not rest:
            raise BpfkitError(
                f"interface {port.name} was removed",
                why="no two ports are left to redirect between",
            )
        self.note(f"interface {port.name} was removed, going on with {', '.join(rest)}")

    def left(self) -> list[str]:
        """The ports that still have another one to redirect to."""
        names = [port.name for port in self.ports]
        return names if len(names) > 1 else []

    def lost(self) -> list[tuple[int, bool, int, int]]:
        """(ifindex, is it where they came in, errno, frames) of what was redirected in vain."""
        found = self._skipped()
        if self.losses is None:
            return found
        # The tracepoint calls a drop what the program on the entry did not let leave, too.
        dropped = {key.ifindex: sums.packets for key, sums in self.departed() if key.what}
        for key, frames in self.losses["lost"].items():
            if not key.error and not key.is_ingress:
                frames -= dropped.get(key.ifindex, 0)
            if frames > 0 and key.ifindex in self.names:
                found.append((key.ifindex, bool(key.is_ingress), key.error, frames))
        return sorted(found)

    def _skipped(self) -> list[tuple[int, bool, int, int]]:
        """Ports that fewer frames have left by than were flooded before the last look: at least
        so many were left out."""
        met: dict[int, int] = {}
        for key, sums in self.departed():
            met[key.ifindex] = met.get(key.ifindex, 0) + sums.packets
        found = []
        for port in self.ports:
            floods = sum(n for index, n in self._flooded.items() if index != port.index)
            missing = floods - met.get(port.index, 0)
            if missing > 0:
                found.append((port.index, False, SKIPPED, missing))
        return found

    def departed(self) -> list[tuple[Any, Any]]:
        """What the program on the entries counted: (ifindex and what became of it, traffic)."""
        return list(self.egress["departed"].sums())

    def _tell_losses(self) -> None:
        for index, came_in, error, frames in self.lost():
            if (index, error) in self._told:
                continue
            self._told.add((index, error))
            why = _HINTS.get(error) or errno_text(error)
            way = "from" if came_in else "to"
            whose = "the port they go to: " if came_in else ""
            self.note(f"frames {way} {self.names[index]} are lost ({frames}): {whose}{why}")
