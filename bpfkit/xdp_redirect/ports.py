# SPDX-License-Identifier: Apache-2.0
"""The ports of xdp_redirect: which interfaces, and the frames redirected to them that were lost.

::

    port A ─▶ [XDP program] ─XDP_REDIRECT─▶ device map's entry ─▶ [program on it] ─▶ port B
                  │                              │                      │
               results                lost (raw tracepoints)        departed
"""

from __future__ import annotations

import errno

from bpfkit.core.errors import InputError, UnsupportedError, UsageError, errno_text
from bpfkit.core.words import count_of, thousands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator
    from typing import Any

    from bpfkit.core.object import Object
    from bpfkit.net.links.interfaces import Interface

__all__ = ["SKIPPED", "Losses", "Ports", "check_ports", "tracepoint_consts"]

MAX_PORTS = 64
#: The kernel's errno -> why frames to a port are lost, and the remedy.
_VETH = (
    "the other end of a veth must run an XDP program, XDP_PASS will do; --mode generic needs none"
)
_HINTS = {
    errno.ENXIO: f"it accepts no native redirects ({_VETH})",
    errno.EOPNOTSUPP: f"it accepts no native redirects ({_VETH})",
    errno.EMSGSIZE: "they are longer than its MTU (segmentation offload at the sender? "
    "ethtool -K DEV tso off gso off gro off)",
    errno.ENETDOWN: "it is down",
    errno.ENOSPC: "its queue is full",
    0: "its driver had no room for them",
}
#: No errno: a broadcast leaves out ports that cannot take the frame, without an error.
SKIPPED = -1
_HINTS[SKIPPED] = f"broadcasts leave it out: it is down, or accepts no native redirects ({_VETH})"


def check_ports(options: Namespace) -> None:
    """Check ``--interface`` and ``--to``.

    :raises UsageError: one is missing, a port is given twice, or there are too many.
    """
    if options.interface is not None and not options.to:
        raise UsageError("--interface needs --to", why="a port to redirect to is required")
    if options.interface is None and options.to:
        raise UsageError("--to needs --interface", why="a port that receives frames is required")
    names = [options.interface, *options.to]
    twice = [name for name in options.to if names.count(name) > 1]
    if twice:
        raise UsageError(f"port {twice[0]} is given twice")
    if len(names) > MAX_PORTS:
        raise UsageError(f"{count_of(len(names), 'port')}", why=f"there is room for {MAX_PORTS}")


class Ports:
    """The interfaces that frames are redirected between.

    :param paired: each two of them are a wire.
    :ivar names: ifindex -> name, of removed ports too.
    """

    def __init__(self, paired: bool) -> None:
        self.names: dict[int, str] = {}
        self._paired = paired
        self._ports: list[Interface] = []

    def __iter__(self) -> Iterator[Interface]:
        return iter(self._ports)

    def __len__(self) -> int:
        return len(self._ports)

    def __getitem__(self, slot: int) -> Interface:
        return self._ports[slot]

    def __str__(self) -> str:
        return ", ".join(port.name for port in self._ports)

    def add(self, name: str) -> Interface:
        """Add the interface ``name`` of the calling thread's namespace."""
        from bpfkit.net.links.interfaces import Interface

        port = Interface.find(name)
        if port.index in self.names:  # by another of its names
            raise InputError(
                f"port {name} is given twice", why=f"it is {self.names[port.index]} as well"
            )
        self._ports.append(port)
        self.names[port.index] = port.name
        return port

    def add_checked(self, name: str) -> None:
        """Add an interface of the user's.

        :raises InputError: it is a loopback or not Ethernet.
        """
        port = self.add(name)
        if port.l2_len != 14 or port.is_loopback:
            raise InputError(
                f"{name} cannot be a port",
                why="it is a loopback interface" if port.is_loopback else "it is not Ethernet",
            )

    def veths(self) -> list[str]:
        """Names of the ports that are veths."""
        from bpfkit.net.links.offloads import driver

        return [port.name for port in self._ports if driver(port) == "veth"]

    def find(self, name: str) -> Interface:
        """The port that has ``name`` among its names.

        :raises InputError: there is none.
        """
        from bpfkit.net.links.interfaces import Interface

        try:
            wanted = Interface.find(name).index
        except InputError:
            wanted = 0
        for port in self._ports:
            if port.index == wanted:
                return port
        raise InputError(f"--vlan: no port {name!r}", why=f"there are {self}")

    def peer(self, slot: int) -> Interface:
        """The other end of the wire at the port number ``slot``; an only port is its own."""
        return self._ports[slot ^ 1 if len(self._ports) > 1 else 0]

    def remove(self, port: Interface) -> list[str]:
        """Remove a port; returns the names of those that still have another to redirect to."""
        self._ports.remove(port)
        names = [one.name for one in self._ports]
        if not self._paired:
            return names if len(names) > 1 else []
        order = list(self.names.values())
        return [name for name in names if order[order.index(name) ^ 1] in names]


class Losses:
    """Frames that were redirected and never sent.

    :param lost: the object with the tracepoints' map ``lost``; None: the kernel cannot count.
    :param egress: the object of the program on the device map's entries.
    :param flooded: returns ifindex -> frames that came in there and were sent to all other ports.
    """

    def __init__(
        self,
        ports: Ports,
        egress: Object,
        lost: Object | None,
        flooded: Callable[[], dict[int, int]],
        note: Callable[[str], None],
    ) -> None:
        self._ports = ports
        self._egress = egress
        self._lost = lost
        self._count_flooded = flooded
        self._note = note
        #: As it was at the last :meth:`check`, so that frames under way are not taken for lost.
        self._flooded: dict[int, int] = {}
        self._reported: set[tuple[int, int]] = set()

    def departed(self) -> list[tuple[Any, Any]]:
        """The counts of the program on the entries: (ifindex and result, traffic)."""
        return list(self._egress["departed"].sums())

    def counts(self) -> list[tuple[int, bool, int, int]]:
        """(ifindex, whether frames came in there, errno, frames)."""
        found = self._skipped()
        if self._lost is None:
            return found
        # The tracepoint also fires for frames that the program on the entry dropped.
        dropped = {key.ifindex: sums.packets for key, sums in self.departed() if key.what}
        for key, frames in self._lost["lost"].items():
            if not key.error and not key.is_ingress:
                frames -= dropped.get(key.ifindex, 0)
            if frames > 0 and key.ifindex in self._ports.names:
                found.append((key.ifindex, bool(key.is_ingress), key.error, frames))
        return sorted(found)

    def _skipped(self) -> list[tuple[int, bool, int, int]]:
        """Ports that fewer frames have left by than were flooded before the last check: at least
        the difference was left out."""
        left: dict[int, int] = {}
        for key, sums in self.departed():
            left[key.ifindex] = left.get(key.ifindex, 0) + sums.packets
        found = []
        for port in self._ports:
            floods = sum(n for index, n in self._flooded.items() if index != port.index)
            missing = floods - left.get(port.index, 0)
            if missing > 0:
                found.append((port.index, False, SKIPPED, missing))
        return found

    def check(self) -> None:
        """Report each kind of loss once."""
        for index, came_in, error, frames in self.counts():
            if (index, error) in self._reported:
                continue
            self._reported.add((index, error))
            why = _HINTS.get(error) or errno_text(error)
            way = "from" if came_in else "to"
            whose = "the port they go to: " if came_in else ""
            name = self._ports.names[index]
            self._note(f"frames {way} {name} are lost ({thousands(frames)}): {whose}{why}")
        self._flooded = self._count_flooded()


def tracepoint_consts(map_id: int, *, keys_are_ports: bool) -> dict[str, int]:
    """LOAD_CONSTs by which the tracepoints know frames of the device map ``map_id``.

    :param keys_are_ports: the map's keys are the entries' ifindexes.
    :raises UnsupportedError: the kernel has no BTF, or lacks a field.
    """
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
        "map_id": map_id,
        "keys_are_ports": int(keys_are_ports),
    }
