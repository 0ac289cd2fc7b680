# SPDX-License-Identifier: Apache-2.0
"""Routes with BPF programs, by netlink: lightweight tunnels (``encap bpf``) and SRv6 (End.BPF).

bpfkit adds a route and never replaces an existing one.  The route has bpfkit's routing protocol
number, which identifies it in ``ip route`` and for the clean-up.  In a lab's namespace it goes
with the namespace; in a user's namespace an ownership record is kept.

Source: ip-route(8); ``net/core/lwt_bpf.c`` (kernel 4.10), ``net/ipv6/seg6_local.c`` (4.18).
"""

from __future__ import annotations

import errno
import struct
import sys
from ipaddress import ip_network

from bpfkit.core.attach.link import Link
from bpfkit.core.errors import AttachError, BpfkitError, InputError, UnsupportedError, errno_text
from bpfkit.core.records import Record
from bpfkit.net.links.netlink import with_iproute
from bpfkit.net.links.rtnetlink import attributes, dump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.core.program import Program
    from bpfkit.net.links.netns import NetNS

__all__ = ["attach_route", "undo_route"]

#: rtm_protocol of bpfkit's routes (from 5 on not the kernel's; zebra, bird … use others).
PROTOCOL = 0xBF
_RTM_GETROUTE = 26
_RTMSG = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_RTA_DST, _RTA_OIF = 1, 4
_CONFIG = {
    "bpf": "CONFIG_LWTUNNEL_BPF",
    "seg6local": "CONFIG_IPV6_SEG6_BPF",
}


def attach_route(
    program: Program,
    destination: str,
    *,
    ns: NetNS,
    device: str,
    via: str = "",
    headroom: int = 0,
    recorded: bool = True,
) -> Link:
    """Add a route that runs ``program``, of type LWT_IN, LWT_OUT, LWT_XMIT or LWT_SEG6LOCAL.

    :param destination: a prefix, ``10.0.0.0/8`` or ``fd00::/64``; for LWT_SEG6LOCAL the segment.
    :param ns: the namespace.
    :param device: name of the outgoing device.
    :param via: the next hop.
    :param headroom: bytes that an LWT_XMIT program may prepend (0 to 256).
    :param recorded: keep an ownership record; False where the namespace is bpfkit's own.
    :raises InputError: no such device, or such a route exists.
    :raises UnsupportedError: the kernel cannot; names the setting.
    """
    kind = program.type_name.removeprefix("BPF_PROG_TYPE_LWT_").lower()
    what = f"cannot route {destination} through '{program.name}' ({program.type_name})"
    body = {"fd": program.fd, "name": program.name}
    if kind == "seg6local":
        encap: dict[str, Any] = {"type": kind, "action": "End.BPF", "bpf": body}
    else:
        encap = {"type": "bpf", kind: body}
        if headroom:
            encap[kind] = {**body, "headroom": headroom}
    from bpfkit.net.links.interfaces import Interface

    route = {
        "dst": destination,
        "oif": Interface.find(device, ns).index,
        "proto": PROTOCOL,
        "family": 10 if ":" in destination else 2,
    }
    if via:
        route["gateway"] = via
    elif ":" not in destination:
        route["scope"] = 253  # link: the destination is on the device's own network
    data = {"netns": ns.inode, "prefix": destination, "oif": route["oif"]}
    record = Record("route", data) if recorded else None
    try:
        with_iproute(ns, what, lambda ipr: ipr.route("add", encap=encap, **route))
    except BpfkitError as error:
        if record:
            record.done()
        number = error.errno
        if not number:
            raise
        if number == errno.EEXIST:
            raise InputError(
                what,
                why="the route exists already",
                hint="use a longer prefix, or remove the existing route first",
            ) from None
        if number in (errno.EOPNOTSUPP, errno.EINVAL) and kind in ("seg6local",):
            raise UnsupportedError(what, why=f"this kernel has no {_CONFIG[kind]}") from None
        if number == errno.EOPNOTSUPP:
            raise UnsupportedError(what, why=f"this kernel has no {_CONFIG['bpf']}") from None
        raise AttachError(what, why=errno_text(number)) from None
    held = ns.dup()

    def undo() -> None:
        with held:
            _remove(held, data)
        if record:
            record.done()

    def check() -> bool:
        with held.entered():
            return _is_there(data)

    return Link(program, "route", f"route {destination}", undo=undo, check=check)


def _is_there(data: dict[str, Any]) -> bool:
    """Whether our route is in a routing table of the thread's namespace."""
    network = ip_network(data["prefix"])
    family = 2 if network.version == 4 else 10
    wanted = network.network_address.packed if network.prefixlen else b""
    for body in dump(_RTM_GETROUTE, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
        _, length, _, _, _, protocol, _, _, _ = _RTMSG.unpack_from(body)
        if (protocol, length) != (PROTOCOL, network.prefixlen):
            continue
        found = dict(attributes(body[_RTMSG.size :]))
        oif = int.from_bytes(found.get(_RTA_OIF, b""), sys.byteorder)
        if (found.get(_RTA_DST, b""), oif) == (wanted, data["oif"]):
            return True
    return False


def _remove(ns: NetNS, data: dict[str, Any]) -> None:
    """Delete bpfkit's route, if it still exists."""
    family = 10 if ":" in data["prefix"] else 2
    request = {"dst": data["prefix"], "oif": data["oif"], "proto": PROTOCOL, "family": family}
    what = f"cannot remove the route to {data['prefix']}"
    try:
        with_iproute(ns, what, lambda ipr: ipr.route("del", **request))
    except BpfkitError as error:
        if error.errno not in (errno.ESRCH, errno.ENOENT, errno.ENODEV):
            raise


def undo_route(data: dict[str, Any]) -> None:
    """Remove the route of a killed process."""
    from bpfkit.net.links.netns import NetNS

    ns = NetNS.from_inode(data["netns"])
    if ns is not None:  # a namespace that is gone took the route with it
        with ns:
            _remove(ns, data)
