# SPDX-License-Identifier: Apache-2.0
"""Several interfaces at once, and where a frame that passes more than one of them is counted.

::

    RTM_GETLINK ──▶ links ──▶ plan() ──▶ the map `interfaces` of the C source, and lines for people
                      ▲                        │
                      └── again every second ──┘  (``-i any``: new interfaces join)

- A bridge and its ports: a frame is counted on the port where it comes in, or on the bridge if the
  host sends it.
- An interface on top of others (VLAN, bond, team, macvlan, VRF) is not counted where what is below
  it is watched: there is every frame of it.
- Both ends of a veth pair in one namespace: each end counts what leaves it.

What a tunnel device carries is another frame than the one around it, and so is what a router sends
on: those are counted on each interface that they pass.
"""

from __future__ import annotations

import struct
import sys

from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError
from bpfkit.net.links.interfaces import Interface
from bpfkit.net.links.rtnetlink import attributes, dump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.packets.packet_socket import PacketSocket

__all__ = ["ANY", "MOST", "Interfaces", "Link", "Plan", "links", "plan"]

#: ``-i any``: all interfaces of the namespace.
ANY = "any"
#: Room in the map.
MOST = 4096
IN, OUT = 1, 2

_RTM_GETLINK, _IFINFOMSG = 18, struct.Struct("=BxHiII")
_IFNAME, _LINK, _MASTER, _LINKINFO, _LINK_NETNSID, _INFO_KIND = 3, 5, 10, 18, 37, 1
_LOOPBACK = 0x8
_LAST_NUMBER = 255  # all further interfaces share it: flow_key.interface has 8 bits
_OTHERS = "(others)"
# WATCHED_* of sockex3_flow.h
_PORT, _COUNTED_IN, _HOST = 1, 2, 4
_BRIDGES = ("bridge", "openvswitch")
_ABOVE_LINK = ("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap")
_ABOVE_SLAVES = ("bond", "team", "vrf")


class Link:
    """An interface as the kernel lists it.

    :ivar kind: ``bridge``, ``veth``, ``vlan``, …; "" for hardware.
    :ivar master: ifindex of the bridge, bond … that it belongs to; else 0.
    :ivar link: ifindex of what it is on top of, or of a veth's peer, in this namespace; else 0.
    """

    __slots__ = ("index", "is_loopback", "kind", "link", "master", "name")

    def __init__(
        self,
        index: int,
        name: str,
        kind: str = "",
        *,
        master: int = 0,
        link: int = 0,
        is_loopback: bool = False,
    ) -> None:
        self.index = index
        self.name = name
        self.kind = kind
        self.master = master
        self.link = link
        self.is_loopback = is_loopback

    def state(self) -> tuple[int, str, int, int]:
        """What a plan depends on."""
        return self.index, self.name, self.master, self.link


def links() -> list[Link]:
    """All interfaces of the calling thread's namespace, in the order of their indexes."""
    import os

    found = []
    for body in dump(_RTM_GETLINK, _IFINFOMSG.pack(0, 0, 0, 0, 0)):
        index, flags = _IFINFOMSG.unpack_from(body)[2:4]
        given = dict(attributes(body[_IFINFOMSG.size :]))
        about = dict(attributes(given.get(_LINKINFO, b"")))
        elsewhere = _LINK_NETNSID in given
        link = 0 if elsewhere else int.from_bytes(given.get(_LINK, b"")[:4], sys.byteorder)
        found.append(
            Link(
                index,
                os.fsdecode(given[_IFNAME].rstrip(b"\0")),
                about.get(_INFO_KIND, b"").rstrip(b"\0").decode(),
                master=int.from_bytes(given.get(_MASTER, b"")[:4], sys.byteorder),
                link=link,
                is_loopback=bool(flags & _LOOPBACK),
            )
        )
    return sorted(found, key=lambda link: link.index)


class Plan:
    """What is counted where.

    :ivar rules: ifindex -> (bridge, directions, flags), as in struct watched.
    :ivar remarks: lines for people, each about frames that pass several interfaces.
    """

    def __init__(self) -> None:
        self.rules: dict[int, tuple[int, int, int]] = {}
        self.remarks: list[str] = []


def plan(found: Iterable[Link], watched: Iterable[int], wanted: int = IN | OUT) -> Plan:
    """Decide where frames are counted, so that none is counted twice.

    :param found: all interfaces.
    :param watched: the indexes of those to watch.
    :param wanted: the directions to count.
    """
    by_index = {link.index: link for link in found}
    chosen = {index for index in watched if index in by_index}
    made = Plan()

    def slaves(index: int) -> list[int]:
        return [link.index for link in by_index.values() if link.master == index]

    def below(index: int) -> list[int]:
        """What carries all frames of the interface."""
        link = by_index[index]
        if link.kind in _ABOVE_LINK and link.link in by_index and link.link != index:
            return [link.link]
        return slaves(index) if link.kind in _ABOVE_SLAVES else []

    def carriers(index: int, depth: int = 8) -> list[int]:
        """The watched interfaces below it."""
        lower = below(index) if depth else []
        return [i for one in lower for i in ([one] if one in chosen else carriers(one, depth - 1))]

    def names(indexes: Iterable[int]) -> str:
        return ", ".join(by_index[index].name for index in indexes)

    stacked = {index: carriers(index) for index in by_index}
    counted = {index for index in chosen if not stacked[index]}
    above = sorted(chosen - counted)
    if above:
        under = sorted({i for index in above for i in stacked[index]})
        verb = "is" if len(above) == 1 else "are"
        made.remarks.append(
            f"{names(above)} {verb} not counted: the frames pass {names(under)}, counted there"
        )
    directions = {}
    inward = {index for index in by_index if index in counted or stacked[index]}
    for index in counted:
        link = by_index[index]
        twin = link.kind == "veth" and link.link in counted and by_index[link.link].kind == "veth"
        only_out = twin or (link.is_loopback and wanted & OUT)
        directions[index] = OUT if only_out else IN | OUT
    group: dict[int, int] = {}
    flags: dict[int, int] = {}
    for bridge in [index for index, link in by_index.items() if link.kind in _BRIDGES]:
        ports = slaves(bridge)
        seen = [port for port in ports if port in inward]
        if not ports or not (seen or bridge in chosen):
            continue
        on_top = any(stacked[port] for port in ports)
        host = bridge in counted and not on_top
        for port in ports:
            its = _PORT | (_COUNTED_IN if port in inward else 0) | (_HOST if host else 0)
            for index in (port, *stacked[port]):
                group[index], flags[index] = bridge, its
        if bridge in counted and seen:
            group[bridge] = bridge
            directions[bridge] = 0 if on_top else OUT
        _tell(made, by_index[bridge].name, names(seen), len(seen), bridge in counted, host)
        missing = [port for port in ports if port not in inward]
        if bridge in counted and seen and missing:
            made.remarks.append(
                f"frames that come in on {names(missing)} for the host are not counted: "
                f"watch all ports of {by_index[bridge].name}, or -i {ANY}"
            )
    for index in {*counted, *group}:
        made.rules[index] = (
            group.get(index, 0),
            directions.get(index, 0) & wanted,
            flags.get(index, 0),
        )
    return made


def _tell(made: Plan, bridge: str, ports: str, count: int, with_bridge: bool, host: bool) -> None:
    """Say what happens at a bridge, where a frame passes more than one watched interface."""
    if not ports:
        return
    if with_bridge and host:
        made.remarks.append(
            f"a frame on bridge {bridge} and its {'ports' if count > 1 else 'port'} {ports} is "
            f"counted once: where it comes in, or on {bridge} if this host sends it"
        )
    elif with_bridge:
        made.remarks.append(f"bridge {bridge} is not counted: its frames pass {ports}")
    elif count > 1:
        made.remarks.append(
            f"a frame that bridge {bridge} forwards between {ports} is counted once: where it "
            f"comes in"
        )


class Interfaces:
    """The interfaces that are watched; :meth:`check` keeps up with what becomes of them.

    :param given: names, or :data:`ANY` alone.
    :param wanted: the directions to count.
    :param note: prints a line for people.
    :raises InputError: there is no such interface.
    :ivar names: number in a flow's key -> the interface's name.
    """

    def __init__(self, given: list[str], wanted: int, note: Callable[[str], None]) -> None:
        self.any = ANY in given
        self.names: dict[int, str] = {}
        self._wanted = wanted
        self._note = note
        self._known: dict[int, Interface] = {}
        self._numbers: dict[int, int] = {}
        self._unread: set[int] = set()
        self._said: set[str] = set()
        self._state: list[tuple[int, str, int, int]] = []
        self._loaded: Object | None = None
        self._sockets: list[PacketSocket] = []
        if not self.any:
            for name in given:
                interface = Interface.find(name)
                if interface.index in self._known:
                    raise InputError(f"interface {interface.name} was given twice")
                self._add(interface)

    def __str__(self) -> str:
        return "all interfaces" if self.any else ", ".join(i.name for i in self._known.values())

    def _add(self, interface: Interface) -> None:
        self._known[interface.index] = interface
        number = self._numbers.setdefault(
            interface.index, min(len(self._numbers) + 1, _LAST_NUMBER)
        )
        shared = number == _LAST_NUMBER and len(self._numbers) > _LAST_NUMBER
        self.names[number] = _OTHERS if shared else interface.name

    def attach(self, loaded: Object, program: Program) -> list[PacketSocket]:
        """Fill the map, then open the sockets: one for all, or one for each interface."""
        from bpfkit.net.packets.packet_socket import PacketSocket

        self._loaded = loaded
        self._apply(links(), first=True)
        chosen = [None] if self.any else list(self._known.values())
        for interface in chosen:
            self._sockets.append(PacketSocket(interface, program, counting=True))
        return self._sockets

    def check(self) -> None:
        """Follow new, renamed, removed and moved interfaces.

        :raises BpfkitError: all that were named were removed.
        """
        found = links()
        if [link.state() for link in found] != self._state:
            self._apply(found, first=False)

    def _apply(self, found: list[Link], *, first: bool) -> None:
        assert self._loaded is not None
        self._state = [link.state() for link in found]
        there = {link.index: link for link in found}
        for index, interface in list(self._known.items()):
            if index not in there:
                del self._known[index]
                self._note(f"interface {interface.name} was removed; its figures stay")
            elif there[index].name != interface.name:
                interface.name = there[index].name
                self._add(interface)
        joined: list[str] = []
        if self.any:
            joined = [link.name for link in found if self._join(link)]
        elif not self._known:
            raise BpfkitError("all interfaces were removed; stopping")
        made = plan(found, self._known, self._wanted)
        for remark in made.remarks:
            if remark not in self._said:
                self._said.add(remark)
                self._note(remark)
        table = self._loaded["interfaces"]
        for index in [key for key, _ in table.items() if key not in made.rules]:
            table.pop(index, None)
        for index, (bridge, directions, flags) in made.rules.items():
            known = self._known.get(index)
            table[index] = {
                "bridge": bridge,
                "l2_len": known.l2_len if known else 0,
                "number": self._numbers.get(index, 0),
                "directions": directions if known else 0,
                "flags": flags,
            }
        for name in () if first else joined:  # only now it is true
            self._note(f"interface {name} appeared and is counted from now on")

    def _join(self, link: Link) -> bool:
        """``-i any``: take in a new interface; whether it is one."""
        if link.index in self._known or link.index in self._unread:
            return False
        try:
            interface = Interface.find(link.name)
        except (InputError, UnsupportedError) as error:
            self._unread.add(link.index)
            self._note(f"interface {link.name} is not counted: {error}")
            return False
        self._add(interface)
        return True
