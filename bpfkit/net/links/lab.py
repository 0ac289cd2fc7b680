# SPDX-License-Identifier: Apache-2.0
"""Labs: network namespaces connected to each other, for the duration of a with-block.

::

    with pair_lab() as lab:
        print(lab.describe())
        print(ping("10.77.0.2", ns=lab["client"]))

A :class:`Lab` is built from namespaces, veth pairs, bridges, addresses and routes; five ready-made
ones are :func:`loopback_lab`, :func:`pair_lab`, :func:`router_lab`, :func:`bridge_lab` and
:func:`star_lab`.  The namespaces have no names in the system and are held by file descriptors, so
the kernel removes everything when the block ends or the process is killed.

Devices are written ``namespace:device``.  Making the first device imports pyroute2.
"""

from __future__ import annotations

import errno
import os
import time

from bpfkit.core.closing import Held
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError
from bpfkit.core.shown import Shown
from bpfkit.net.links.device import Device
from bpfkit.net.links.interfaces import IFF_RUNNING, IFF_UP, Interface
from bpfkit.net.links.netlink import with_iproute
from bpfkit.net.links.netns import NetNS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TypeVar

    T = TypeVar("T")

__all__ = ["Lab", "bridge_lab", "loopback_lab", "pair_lab", "router_lab", "star_lab"]

_IFA_F_NODAD = 0x02
_IFA_F_TENTATIVE = 0x40
_NUD_PERMANENT = 0x80
#: Kind of device -> the setting without which the kernel cannot make one.
_CONFIG = {"veth": "CONFIG_VETH", "bridge": "CONFIG_BRIDGE", "vlan": "CONFIG_VLAN_8021Q"}
_NO_OFFLOADS = dict.fromkeys(
    ("tx", "sg", "tso", "gso", "gso_tunnels", "gso_udp", "gso_list", "gro"), False
)


class Lab(Held, Shown):
    """Namespaces and the devices that connect them.

    :param title: title of the drawing.
    :param dad: keep IPv6 duplicate address detection (off: addresses work at once).
    """

    def __init__(self, title: str = "lab", *, dad: bool = False) -> None:
        self.title = title
        self.namespaces: dict[str, NetNS] = {}
        self.devices: dict[str, dict[str, Device]] = {}
        self.routes: dict[str, list[str]] = {}
        self._dad = dad
        # All ifindexes in a lab differ, so that a mix-up of namespaces does not go unnoticed.  The
        # kernel also reports a veth's carrier at once, and not within a second, if its ends'
        # indexes differ.
        self._next_index = 10

    # -- building ---------------------------------------------------------------------------------

    def namespace(self, name: str) -> NetNS:
        """Make a namespace with ``lo`` up; only this lab knows its ``name``.

        :raises InputError: the lab has a namespace of that name.
        """
        if name in self.namespaces or ":" in name or not name:
            raise InputError(f"not a new namespace name: {name!r}")
        self.namespaces[name] = NetNS.new(name, dad=self._dad)
        lo = Device("lo", "loopback")
        lo.addresses = ["127.0.0.1/8", "::1/128"]
        self.devices[name] = {"lo": lo}
        self.routes[name] = []
        return self.namespaces[name]

    def veth(
        self,
        a: str,
        b: str,
        *,
        addresses: tuple[Iterable[str], Iterable[str]] = ((), ()),
        mtu: int = 1500,
        offloads: bool = True,
    ) -> None:
        """A veth pair: ``lab.veth("client:eth0", "server:eth0", addresses=(["10.0.0.1/24"], []))``.

        :param addresses: of each end, ``address/prefix length``.
        :param mtu: MTU of both ends.
        :param offloads: False: no segmentation, merging or checksum offload on either end, so that
            every packet is one frame, as on a wire.
        """
        (ns_a, dev_a), (ns_b, dev_b) = self._new(a), self._new(b)
        # pyroute2's keyword for a peer cannot set its index; nested attributes can.
        peer = {
            "index": self._index(),
            "attrs": [
                ("IFLA_IFNAME", dev_b),
                ("IFLA_MTU", mtu),
                ("IFLA_NET_NS_FD", self[ns_b].fd),
            ],
        }
        info = [
            ("IFLA_INFO_KIND", "veth"),
            ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]}),
        ]
        self._make(ns_a, dev_a, "veth", mtu=mtu, IFLA_LINKINFO={"attrs": info})
        self.devices[ns_b][dev_b] = Device(dev_b, "veth")
        self.devices[ns_a][dev_a].peer = ns_b, dev_b
        self.devices[ns_b][dev_b].peer = ns_a, dev_a
        for end, its in ((a, addresses[0]), (b, addresses[1])):
            if not offloads:
                self.offloads(end, **_NO_OFFLOADS)
            for address in its:
                self.address(end, address)
            self.interface(end).set_up()

    def bridge(
        self, name: str, ports: Iterable[str] = (), *, addresses: Iterable[str] = ()
    ) -> None:
        """A bridge and its ports: ``lab.bridge("host:br0", ["host:c0"], addresses=[...])``.

        It has no spanning tree, multicast snooping or forward delay: it forwards at once and sends
        no frames of its own.
        """
        ns, dev = self._new(name)
        options = {"br_stp_state": 0, "br_forward_delay": 0, "br_mcast_snooping": 0}
        try:
            self._make(ns, dev, "bridge", kind="bridge", **options)
        except BpfkitError:
            if dev in self.devices[ns]:
                raise
            # A kernel without CONFIG_BRIDGE_IGMP_SNOOPING does not know the last option.
            del options["br_mcast_snooping"]
            self._make(ns, dev, "bridge", kind="bridge", **options)
        index = self.interface(name).index
        for port in ports:
            port_ns, port_dev = self._known(port)
            if port_ns != ns:
                raise InputError(f"{port} is not in the namespace of {name}")
            self._set(port, f"cannot make {port} a port of {name}", master=index)
            self.devices[ns][port_dev].master = dev
        for address in addresses:
            self.address(name, address)
        self.interface(name).set_up()

    def vlan(
        self, parent: str, vlan: int, *, addresses: Iterable[str] = (), protocol: int = 0x8100
    ) -> str:
        """A VLAN device on another device: ``lab.vlan("client:eth0", 10)`` is ``client:eth0.10``.

        :param protocol: ethertype of the tag: 0x8100, or 0x88a8 for 802.1ad.
        :raises UnsupportedError: the kernel has no CONFIG_VLAN_8021Q.
        """
        ns, dev = self._known(parent)
        name = f"{ns}:{dev}.{vlan}"
        self._new(name)
        self._make(
            ns,
            f"{dev}.{vlan}",
            "vlan",
            kind="vlan",
            link=self.interface(parent).index,
            vlan_id=vlan,
            vlan_protocol=protocol,
        )
        for address in addresses:
            self.address(name, address)
        self.interface(name).set_up()
        return name

    def address(self, device: str, address: str) -> None:
        """Give a device an address: ``10.0.0.1/24`` or ``fd00::1/64``."""
        ns, dev = self._known(device)
        from ipaddress import ip_interface

        host, _, length = address.partition("/")
        try:
            ip_interface(f"{host}/{length}")
        except ValueError as error:
            raise InputError(
                f"not an address with its prefix length: {address!r}", why=str(error)
            ) from error
        index = self.interface(device).index
        flags = {"flags": _IFA_F_NODAD} if ":" in host and not self._dad else {}
        with_iproute(
            self[ns],
            f"cannot give {device} the address {address}",
            lambda ipr: ipr.addr("add", index=index, address=host, prefixlen=int(length), **flags),
        )
        self.devices[ns][dev].addresses.append(address)

    def route(self, namespace: str, destination: str, *, via: str = "", device: str = "") -> None:
        """A route: ``lab.route("client", "default", via="10.0.0.2")``.

        :param destination: a prefix, ``default`` or ``default6``.
        :param via: the next hop.
        :param device: the name of the output device.
        """
        what = f"cannot route {destination} in {namespace}"
        six = destination == "default6" or ":" in destination
        request: dict[str, Any] = {"dst": destination}
        if destination in ("default", "default6"):
            request = {"dst": "::/0" if six else "0.0.0.0/0"}
        if via:
            request["gateway"] = via
        if device:
            request["oif"] = self.interface(f"{namespace}:{device}").index
        family = 10 if six else 2
        with_iproute(self[namespace], what, lambda ipr: ipr.route("add", family=family, **request))
        words = [destination, f"via {via}" if via else "", f"dev {device}" if device else ""]
        self.routes[namespace].append(" ".join(word for word in words if word))

    def neighbour(self, device: str, address: str, lladdr: str) -> None:
        """A permanent neighbour entry for ``address`` on ``device``."""
        ns, _ = self._known(device)
        index = self.interface(device).index
        with_iproute(
            self[ns],
            f"cannot set neighbour {address} on {device}",
            lambda ipr: ipr.neigh(
                "replace",
                dst=address,
                lladdr=lladdr,
                ifindex=index,
                state=_NUD_PERMANENT,
                family=10 if ":" in address else 2,
            ),
        )

    def neighbours(self, a: str, b: str) -> None:
        """Permanent neighbour entries at both ends of a veth pair: no ARP, no ND."""
        for one, other in ((a, b), (b, a)):
            ns, dev = self._known(other)
            for address in self.devices[ns][dev].addresses:
                self.neighbour(one, address.partition("/")[0], self.lladdr(other))

    def lladdr(self, device: str) -> str:
        """The MAC address of a device."""
        return self.interface(device).lladdr()

    def offloads(self, device: str, **wanted: bool) -> None:
        """``lab.offloads("client:eth0", tso=False, gso=False)``: see :mod:`.offloads`."""
        from bpfkit.net.links.offloads import set_offloads

        set_offloads(self.interface(device), **wanted)

    def mtu(self, device: str, mtu: int) -> None:
        """Set the MTU of a device; the other end of its veth pair keeps its own."""
        self._known(device)
        self._set(device, f"cannot set the MTU of {device} to {mtu}", mtu=mtu)

    def sysctl(self, namespace: str, name: str, value: str | int) -> str:
        """Set a ``net.…`` setting of a namespace; its new value."""
        return self[namespace].sysctl(name, value)

    def forward(self, namespace: str) -> None:
        """Make a namespace a router, IPv4 and IPv6."""
        self.sysctl(namespace, "net.ipv4.ip_forward", 1)
        self.sysctl(namespace, "net.ipv6.conf.all.forwarding", 1)

    def note(self, device: str, text: str) -> None:
        """Add ``text`` below a device in the drawing: which program is attached there."""
        ns, dev = self._known(device)
        self.devices[ns][dev].notes.append(text)

    # -- reading ----------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> NetNS:
        """The namespace of that name.

        :raises InputError: the lab has no such namespace.
        """
        try:
            return self.namespaces[name]
        except KeyError:
            raise InputError(
                f"no namespace named '{name}' in this lab",
                why="there are " + (", ".join(self.namespaces) or "none"),
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.namespaces)

    def interface(self, device: str) -> Interface:
        """``lab.interface("client:eth0")``: index, flags, MTU."""
        ns, _, dev = device.partition(":")
        return Interface.find(dev, self[ns])

    def ready(self, timeout: float = 5.0) -> Lab:
        """Wait until all links are running and no IPv6 address is tentative.

        :raises BpfkitError: not within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while missing := self._not_ready():
            if time.monotonic() > deadline:
                raise BpfkitError(f"the lab is not ready after {timeout} s", why=missing)
            time.sleep(0.002)
        # A device is "running" a moment before its queues are active and bridge ports forward.
        # Both changes hold the lock that setting a flag takes, so this waits for them.
        for ns in self:
            self.interface(f"{ns}:lo").set_up()
        return self

    def _not_ready(self) -> str:
        for ns, devices in self.devices.items():
            for dev, device in devices.items():
                ends = [self.interface(f"{ns}:{dev}")]
                if device.peer:
                    ends.append(self.interface(":".join(device.peer)))
                # An end that is down on purpose never gets to run.
                if all(end.flags & IFF_UP for end in ends) and not ends[0].flags & IFF_RUNNING:
                    return f"{ns}:{dev} is not running"
            for line in self[ns].run(_if_inet6):
                _, _, _, _, flags, dev = line.split()
                if int(flags, 16) & _IFA_F_TENTATIVE:
                    return f"an IPv6 address of {ns}:{dev} is tentative"
        return ""

    def describe(self, *, ascii: bool = False) -> str:
        """The lab as a drawing: namespaces, devices, addresses, cables, programs."""
        from bpfkit.net.links.drawing import draw

        return draw(self.title, self.devices, self.routes, ascii=ascii)

    def __repr__(self) -> str:
        return f"<Lab {self.title}: {', '.join(self.namespaces) or 'closed'}>"

    # -- closing ----------------------------------------------------------------------------------

    def _is_open(self) -> bool:
        return bool(self.namespaces)

    def close(self) -> None:
        """Close the namespaces; the kernel removes their devices.  Safe to call twice."""
        while self.namespaces:
            self.namespaces.popitem()[1].close()

    # -- internal ---------------------------------------------------------------------------------

    def _split(self, device: str) -> tuple[str, str]:
        ns, colon, dev = device.partition(":")
        if not colon or not dev:
            raise InputError(f"not a device: {device!r}", why="the form is namespace:device")
        self[ns]
        return ns, dev

    def _new(self, device: str) -> tuple[str, str]:
        ns, dev = self._split(device)
        if dev in self.devices[ns]:
            raise InputError(f"there already is a device {device}")
        if len(dev.encode()) > 15:
            raise InputError(f"a device name has at most 15 bytes: {dev!r}")
        return ns, dev

    def _known(self, device: str) -> tuple[str, str]:
        ns, dev = self._split(device)
        if dev not in self.devices[ns]:
            raise InputError(
                f"no device {device} in this lab", why="there are " + ", ".join(self.devices[ns])
            )
        return ns, dev

    def _make(self, ns: str, dev: str, family: str, **options: Any) -> None:
        what = f"cannot make a {family} device {ns}:{dev}"
        index = self._index()
        try:
            with_iproute(
                self[ns],
                what,
                lambda ipr: ipr.link("add", index=index, ifname=dev, **options),
            )
        except BpfkitError as error:
            if os.strerror(errno.EOPNOTSUPP) in error.why:
                raise UnsupportedError(
                    what, why=f"this kernel has no {_CONFIG[family]} (or its module is not loaded)"
                ) from error
            raise
        self.devices[ns][dev] = Device(dev, family)

    def _index(self) -> int:
        self._next_index += 1
        return self._next_index

    def _set(self, device: str, what: str, **options: Any) -> None:
        index = self.interface(device).index
        ns = device.partition(":")[0]
        with_iproute(self[ns], what, lambda ipr: ipr.link("set", index=index, **options))


def _if_inet6() -> list[str]:
    """The lines of /proc/net/if_inet6 of the calling thread's namespace."""
    try:
        with open("/proc/thread-self/net/if_inet6", errors="surrogateescape") as file:
            return file.read().splitlines()
    except FileNotFoundError:  # no IPv6 in this kernel
        return []


# -- ready-made labs ------------------------------------------------------------------------------


def _built(lab: Lab, build: Callable[[Lab], object]) -> Lab:
    try:
        build(lab)
        return lab.ready()
    except BaseException:
        lab.close()
        raise


def loopback_lab() -> Lab:
    """One namespace, ``host``, with ``lo`` only; pyroute2 is not needed."""
    lab = Lab("loopback")
    return _built(lab, lambda lab: lab.namespace("host"))


def pair_lab(*, mtu: int = 1500, offloads: bool = True) -> Lab:
    """``client`` (10.77.0.1, fd77::1) and ``server`` (.2, ::2), connected by their ``eth0``."""

    def build(lab: Lab) -> None:
        lab.namespace("client")
        lab.namespace("server")
        lab.veth(
            "client:eth0",
            "server:eth0",
            addresses=(["10.77.0.1/24", "fd77::1/64"], ["10.77.0.2/24", "fd77::2/64"]),
            mtu=mtu,
            offloads=offloads,
        )

    return _built(Lab("pair"), build)


def router_lab(*, mtu: int = 1500, offloads: bool = True) -> Lab:
    """``client`` – ``router`` – ``server``.

    client eth0 10.77.1.1 fd77:1::1 | router left 10.77.1.254 fd77:1::fe, right 10.77.2.254
    fd77:2::fe | server eth0 10.77.2.1 fd77:2::1
    """

    def build(lab: Lab) -> None:
        for name in ("client", "router", "server"):
            lab.namespace(name)
        lab.forward("router")
        for number, name, port in ((1, "client", "left"), (2, "server", "right")):
            lab.veth(
                f"{name}:eth0",
                f"router:{port}",
                addresses=(
                    [f"10.77.{number}.1/24", f"fd77:{number}::1/64"],
                    [f"10.77.{number}.254/24", f"fd77:{number}::fe/64"],
                ),
                mtu=mtu,
                offloads=offloads,
            )
            lab.route(name, "default", via=f"10.77.{number}.254")
            lab.route(name, "default6", via=f"fd77:{number}::fe")

    return _built(Lab("router"), build)


def bridge_lab(*, mtu: int = 1500, offloads: bool = True) -> Lab:
    """A container behind a host's bridge, and an outside network behind a route.

    ``container`` eth0 10.77.3.2 fd77:3::2 – ``host`` port ``c0`` of bridge ``br0`` 10.77.3.1
    fd77:3::1, uplink ``up0`` 10.77.4.1 fd77:4::1 – ``outside`` eth0 10.77.4.2 fd77:4::2.
    Programs for the container's traffic attach to ``host:c0``.
    """

    def build(lab: Lab) -> None:
        for name in ("container", "host", "outside"):
            lab.namespace(name)
        lab.forward("host")
        lab.veth(
            "container:eth0",
            "host:c0",
            addresses=(["10.77.3.2/24", "fd77:3::2/64"], []),
            mtu=mtu,
            offloads=offloads,
        )
        lab.bridge("host:br0", ["host:c0"], addresses=["10.77.3.1/24", "fd77:3::1/64"])
        lab.veth(
            "host:up0",
            "outside:eth0",
            addresses=(["10.77.4.1/24", "fd77:4::1/64"], ["10.77.4.2/24", "fd77:4::2/64"]),
            mtu=mtu,
            offloads=offloads,
        )
        lab.route("container", "default", via="10.77.3.1")
        lab.route("container", "default6", via="fd77:3::1")
        lab.route("outside", "10.77.3.0/24", via="10.77.4.1")
        lab.route("outside", "fd77:3::/64", via="fd77:4::1")

    return _built(Lab("bridge"), build)


def star_lab(hosts: int = 3, *, routed: bool = False) -> Lab:
    """Hosts connected to ``middle``, without offloads: ``h1`` eth0 – ``p1`` of middle, ….

    Middle has no addresses and forwards nothing: the hosts, all in one network (h1 10.77.0.1
    fd77::1, h2 .2 ::2, …), reach each other only through a program in middle.

    :param routed: middle is a router; each host is in its own network (h1 10.77.1.1 fd77:1::1),
        with middle's port (p1 10.77.1.254 fd77:1::fe) as its default gateway.
    """

    def build(lab: Lab) -> None:
        for number in range(1, hosts + 1):
            lab.namespace(f"h{number}")
        lab.namespace("middle")
        if routed:
            lab.forward("middle")
        else:
            # no link-local addresses, so it sends nothing
            lab.sysctl("middle", "net.ipv6.conf.default.disable_ipv6", 1)
        for n in range(1, hosts + 1):
            own = [f"10.77.{n}.1/24", f"fd77:{n}::1/64"] if routed else []
            own = own or [f"10.77.0.{n}/24", f"fd77::{n}/64"]
            port = [f"10.77.{n}.254/24", f"fd77:{n}::fe/64"] if routed else []
            lab.veth(f"h{n}:eth0", f"middle:p{n}", addresses=(own, port), offloads=False)
            if routed:
                lab.route(f"h{n}", "default", via=f"10.77.{n}.254")
                lab.route(f"h{n}", "default6", via=f"fd77:{n}::fe")

    return _built(Lab("star"), build)
