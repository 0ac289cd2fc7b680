# SPDX-License-Identifier: Apache-2.0
"""Where packets to an address go: route, next hop and its MAC address; by rtnetlink, no pyroute2.

Everything is as the calling thread's network namespace sees it.  Source: rtnetlink(7).
"""

from __future__ import annotations

import _socket
import errno
import struct
import time

from bpfkit.core.errors import BpfkitError, errno_text
from bpfkit.net.links.rtnetlink import attribute, attributes, dump, request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Route", "neighbours", "provoke", "resolve", "route"]

_RTM_GETROUTE, _RTM_GETNEIGH = 26, 30
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_VIA = 1, 4, 5, 7, 18
_NDA_DST, _NDA_LLADDR = 1, 2
_RTN_UNICAST, _RTN_LOCAL = 1, 2
#: REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT: the MAC address is known.
_KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
_DISCARD = 9  # the port of a datagram that nobody misses


def _family(address: str) -> int:
    return _socket.AF_INET6 if ":" in address else _socket.AF_INET


def _text(packed: bytes) -> str:
    family = _socket.AF_INET6 if len(packed) == 16 else _socket.AF_INET
    return _socket.inet_ntop(family, packed)


class Route:
    """How an address is reached.

    :ivar ifindex: of the interface.
    :ivar hop: the neighbour that gets the packets: a gateway, or the address itself.
    :ivar source: the address that this host has for it; "" where the kernel does not say.
    :ivar local: the address is one of this host's.
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
    family = _family(address)
    packed = _socket.inet_pton(family, address)
    head = struct.pack("=BBBBBBBBI", family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
    what = f"no route to {address}"
    try:
        answer = request(_RTM_GETROUTE, head + attribute(_RTA_DST, packed), 0)
    except OSError as error:
        raise BpfkitError(what, why=errno_text(error.errno or 0)) from None
    kind = answer[7]
    if kind not in (_RTN_UNICAST, _RTN_LOCAL):
        raise BpfkitError(what, why=errno_text(errno.ENETUNREACH))
    found = dict(attributes(answer[12:]))
    via = found.get(_RTA_VIA, b"")[2:]
    hop = found.get(_RTA_GATEWAY) or via or packed
    source = found.get(_RTA_PREFSRC)
    oif = struct.unpack("=I", found.get(_RTA_OIF, bytes(4)))[0]
    return Route(oif, _text(hop), _text(source) if source else "", kind == _RTN_LOCAL)


def neighbours(ifindex: int) -> dict[str, bytes]:
    """Address -> MAC address of an interface's neighbours, as far as they are known."""
    found: dict[str, bytes] = {}
    for family in (_socket.AF_INET, _socket.AF_INET6):
        body = struct.pack("=BxxxiHBB", family, ifindex, 0, 0, 0)
        for answer in dump(_RTM_GETNEIGH, body):
            index, state = struct.unpack_from("=iH", answer, 4)
            known = dict(attributes(answer[12:]))
            mac = known.get(_NDA_LLADDR, b"")
            if index == ifindex and state & _KNOWN and len(mac) == 6 and _NDA_DST in known:
                found[_text(known[_NDA_DST])] = mac
    return found


def provoke(ifindex: int, address: str) -> None:
    """Make the kernel ask for the MAC address of a neighbour: by a datagram to its discard port."""
    family = _family(address)
    scope = (0, ifindex) if family == _socket.AF_INET6 else ()  # fe80::1 needs one
    sock = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.sendto(b"", (address, _DISCARD, *scope))
    except OSError:
        pass  # what comes of it is seen in the table
    finally:
        sock.close()


def resolve(ifindex: int, addresses: Iterable[str], timeout: float = 1.0) -> dict[str, bytes]:
    """MAC addresses of neighbours; those that do not answer within ``timeout`` seconds lack."""
    wanted = set(addresses)
    deadline = time.monotonic() + timeout
    asked = False
    while True:
        known = neighbours(ifindex)
        missing = wanted - known.keys()
        if not missing or time.monotonic() > deadline:
            return {address: known[address] for address in wanted & known.keys()}
        if not asked:
            for address in missing:
                provoke(ifindex, address)
            asked = True
        time.sleep(0.01)
