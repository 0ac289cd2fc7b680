# SPDX-License-Identifier: Apache-2.0
"""The route to an address, its next hop and that neighbour's MAC address, by rtnetlink.

Everything is looked up in the calling thread's network namespace.  Source: rtnetlink(7).
"""

from __future__ import annotations

import _socket
import errno
import struct
import time

from bpfkit.core.errors import BpfkitError, errno_text
from bpfkit.net.links.rtnetlink import attribute, attributes, dump, request
from bpfkit.net.packets.addresses import family_of, packed
from bpfkit.show.address import address_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Route", "neighbours", "resolve", "route", "solicit"]

_RTM_GETROUTE, _RTM_GETNEIGH = 26, 30
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_VIA = 1, 4, 5, 7, 18
_NDA_DST, _NDA_LLADDR = 1, 2
_RTN_UNICAST, _RTN_LOCAL = 1, 2
#: REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT: the MAC address is known.
_KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
_DISCARD = 9  # destination port of a datagram that is sent for its ARP or ND request only


class Route:
    """The route to an address.

    :ivar ifindex: output interface.
    :ivar hop: next hop: a gateway, or the address itself.
    :ivar source: preferred source address; "" if the kernel reports none.
    :ivar local: whether it is one of this host's addresses.
    """

    __slots__ = ("hop", "ifindex", "local", "source")

    def __init__(self, ifindex: int, hop: str, source: str, local: bool) -> None:
        self.ifindex = ifindex
        self.hop = hop
        self.source = source
        self.local = local


def route(address: str) -> Route:
    """The kernel's answer to ``ip route get ADDRESS``.

    :raises BpfkitError: there is no route.
    """
    family = family_of(address)
    raw = packed(address)
    head = struct.pack("=BBBBBBBBI", family, 8 * len(raw), 0, 0, 0, 0, 0, 0, 0)
    what = f"no route to {address}"
    try:
        answer = request(_RTM_GETROUTE, head + attribute(_RTA_DST, raw), 0)
    except OSError as error:
        raise BpfkitError(what, why=errno_text(error.errno or 0)) from None
    kind = answer[7]
    if kind not in (_RTN_UNICAST, _RTN_LOCAL):
        raise BpfkitError(what, why=errno_text(errno.ENETUNREACH))
    found = dict(attributes(answer[12:]))
    via = found.get(_RTA_VIA, b"")[2:]
    hop = found.get(_RTA_GATEWAY) or via or raw
    source = found.get(_RTA_PREFSRC)
    oif = struct.unpack("=I", found.get(_RTA_OIF, bytes(4)))[0]
    return Route(oif, address_text(hop), address_text(source) if source else "", kind == _RTN_LOCAL)


def neighbours(ifindex: int) -> dict[str, bytes]:
    """Address -> MAC address of an interface's neighbours whose MAC address is known."""
    found: dict[str, bytes] = {}
    for family in (_socket.AF_INET, _socket.AF_INET6):
        body = struct.pack("=BxxxiHBB", family, ifindex, 0, 0, 0)
        for answer in dump(_RTM_GETNEIGH, body):
            index, state = struct.unpack_from("=iH", answer, 4)
            known = dict(attributes(answer[12:]))
            mac = known.get(_NDA_LLADDR, b"")
            if index == ifindex and state & _KNOWN and len(mac) == 6 and _NDA_DST in known:
                found[address_text(known[_NDA_DST])] = mac
    return found


def solicit(ifindex: int, address: str) -> None:
    """Make the kernel resolve a neighbour's MAC address, by a datagram to its discard port."""
    family = family_of(address)
    scope = (0, ifindex) if family == _socket.AF_INET6 else ()  # fe80::1 needs one
    sock = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.sendto(b"", (address, _DISCARD, *scope))
    except OSError:
        pass  # the neighbour table shows the result
    finally:
        sock.close()


def resolve(ifindex: int, addresses: Iterable[str], timeout: float = 1.0) -> dict[str, bytes]:
    """Address -> MAC address of neighbours; without those that do not answer in ``timeout`` s."""
    wanted = set(addresses)
    deadline = time.monotonic() + timeout
    requested = False
    while True:
        known = neighbours(ifindex)
        missing = wanted - known.keys()
        if not missing or time.monotonic() > deadline:
            return {address: known[address] for address in wanted & known.keys()}
        if not requested:
            for address in missing:
                solicit(ifindex, address)
            requested = True
        time.sleep(0.01)
