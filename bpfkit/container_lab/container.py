# SPDX-License-Identifier: Apache-2.0
"""Finds the host's veth of a container, and the addresses by which both reach each other.

::

    container eth0 ─── veth1234 [docker0] host

A container is a network namespace, given by a process, a name or a path.  Its veth is the output
device of its default route.  For each end of a veth pair the kernel reports the other end's index
(IFLA_LINK) and namespace (IFLA_LINK_NETNSID).  Nothing is changed.
"""

from __future__ import annotations

import _socket

from bpfkit.core.closing import Closing
from bpfkit.core.errors import InputError
from bpfkit.net.links.interfaces import Interface
from bpfkit.net.links.netns import NetNS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Container"]

_MAIN_TABLE = 254
_UNICAST = 1
_GLOBAL = 0
_UNUSABLE = 0x08 | 0x20 | 0x40  # IFA_F_DADFAILED, DEPRECATED, TENTATIVE


class Container(Closing):
    """A container and its veth pair.

    :param spec: process id, name or path of its network namespace.
    :param host: the namespace of the other end, which the caller closes.
    :ivar ns: the container's namespace.
    :ivar inside: name of the end in the container.
    :ivar device: the other end, in ``host``.
    :ivar bridge: the device that :attr:`device` is a port of; "": none.
    :ivar addresses: IP version -> the container's address.
    :raises InputError: no such namespace, the host's own, or one without a veth to ``host``.
    """

    def __init__(self, spec: str, host: NetNS) -> None:
        self.ns = NetNS.open(spec)
        self.host = host
        try:
            self._find(spec)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the namespace's descriptor."""
        self.ns.close()

    def _find(self, spec: str) -> None:
        from bpfkit.net.links.netlink import with_iproute

        if self.ns.same_as(self.host):
            raise InputError(
                f"{spec} is not a container: it is in the host's network namespace",
                hint="give the id of a process inside the container (docker inspect, lsns -t net)",
            )
        what = f"cannot read the devices of container {spec}"
        links, routes, addresses = with_iproute(self.ns, what, _inventory)
        link = _uplink(links, routes, spec)
        self.inside = str(link.get_attr("IFLA_IFNAME"))
        kind = _kind(link)
        if kind != "veth":
            raise InputError(
                f"{self.inside} of the container {spec} is not a veth",
                why=f"it is {f'a {kind}' if kind else 'a device without a kind'}",
                hint="only a veth has an end on the host that programs can attach to",
            )
        peer = link.get_attr("IFLA_LINK")

        def other_end(ipr: Any) -> tuple[str, str] | None:
            known = {each["index"]: each for each in ipr.get_links()}
            end = known.get(peer)
            if end is None or _kind(end) != "veth" or end.get_attr("IFLA_LINK") != link["index"]:
                return None
            if end.get_attr("IFLA_LINK_NETNSID") != _nsid(ipr, self.ns.fd):
                return None
            master = known.get(end.get_attr("IFLA_MASTER"))
            name = str(end.get_attr("IFLA_IFNAME"))
            return name, str(master.get_attr("IFLA_IFNAME")) if master else ""

        found = with_iproute(self.host, what, other_end)
        if found is None:
            raise InputError(
                f"the other end of {self.inside} of the container {spec} is not here",
                why="it is in another network namespace",
                hint="give that namespace: --netns NAME|PID|PATH",
            )
        name, self.bridge = found
        self.device = Interface.find(name, self.host)
        self.addresses: dict[int, str] = {}
        for address in addresses:
            flags = address.get_attr("IFA_FLAGS") or address["flags"]
            usable = address["scope"] == _GLOBAL and not flags & _UNUSABLE
            if address["index"] == link["index"] and usable:
                version = 6 if address["family"] == _socket.AF_INET6 else 4
                text = address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
                self.addresses.setdefault(version, str(text))

    def host_address(self, version: int) -> str | None:
        """The host's source address towards the container; None if there is no route."""
        if version not in self.addresses:
            return None
        family = _socket.AF_INET6 if version == 6 else _socket.AF_INET
        sock = self.host.socket(family, _socket.SOCK_DGRAM)
        try:
            sock.connect((self.addresses[version], 9))
            return str(sock.getsockname()[0])
        except OSError:
            return None
        finally:
            sock.close()

    def __str__(self) -> str:
        port = f", a port of {self.bridge}" if self.bridge else ""
        text = f"{self.device.name}{port}, the other end of the container's {self.inside}"
        return f"{text} ({', '.join(self.addresses.values()) or 'without an address'})"


def _inventory(ipr: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Links, default routes and addresses of a namespace."""
    routes = [
        route
        for family in (_socket.AF_INET, _socket.AF_INET6)
        for route in ipr.get_routes(family=family)
        if route["dst_len"] == 0
        and route["type"] == _UNICAST
        and (route.get_attr("RTA_TABLE") or route["table"]) == _MAIN_TABLE
    ]
    return list(ipr.get_links()), routes, list(ipr.get_addr())


def _uplink(links: list[Any], routes: list[Any], spec: str) -> Any:
    """The link of the best default route; without one, the only veth."""
    by_index = {link["index"]: link for link in links}
    routes.sort(key=lambda route: route.get_attr("RTA_PRIORITY") or 0)
    for route in routes:
        hops = route.get_attr("RTA_MULTIPATH") or []
        index = route.get_attr("RTA_OIF") or (hops[0]["oif"] if hops else 0)
        if index in by_index:
            return by_index[index]
    others = [link for link in links if link.get_attr("IFLA_IFNAME") != "lo"]
    veths = [link for link in others if _kind(link) == "veth"]
    if len(veths) == 1:
        return veths[0]
    names = ", ".join(str(link.get_attr("IFLA_IFNAME")) for link in others)
    raise InputError(
        f"the container {spec} has no uplink",
        why=f"no default route, and {f'the devices {names}' if names else 'no device but lo'}",
    )


def _kind(link: Any) -> str:
    info = link.get_attr("IFLA_LINKINFO")
    return str(info.get_attr("IFLA_INFO_KIND") or "") if info else ""


def _nsid(ipr: Any, fd: int) -> int | None:
    """The id of the namespace ``fd`` in the namespace of ``ipr``; None if it has none."""
    number = ipr.get_netnsid(fd=fd)["nsid"]
    return None if number < 0 else int(number)
