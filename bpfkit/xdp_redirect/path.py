# SPDX-License-Identifier: Apache-2.0
"""Traceroute and path MTU discovery, one datagram each, from a namespace.

Hosts are numeric addresses.
"""

from __future__ import annotations

import _socket
import select
import time

from bpfkit.core.errors import BpfkitError, errno_text
from bpfkit.net.packets.addresses import family_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.links.netns import NetNS

__all__ = ["hop", "path_mtu"]

_MSG_ERRQUEUE = 0x2000
#: family -> (level, TTL or hop limit, RECVERR, MTU_DISCOVER, MTU); ip(7), ipv6(7).
_OPTIONS = {_socket.AF_INET: (0, 2, 11, 10, 14), _socket.AF_INET6: (41, 16, 25, 23, 24)}
_PMTUDISC_DO = 2


def hop(host: str, ttl: int, *, ns: NetNS, timeout: float = 1.0) -> tuple[str, str]:
    """The ICMP error that a UDP datagram with this TTL or hop limit causes: a traceroute line.

    :returns: the sender of the error, and ``time exceeded``, ``port unreachable`` or ``other``;
        ("", "") if no error arrives.
    """
    family = family_of(host)
    level, limit, receive, _, _ = _OPTIONS[family]
    sock = ns.socket(family, _socket.SOCK_DGRAM)
    try:
        sock.setsockopt(level, receive, 1)
        sock.setsockopt(level, limit, ttl)
        sock.connect((host, 33434 + ttl))
        sock.send(bytes(32))
        poller = select.poll()
        poller.register(sock, 0)  # POLLERR is always reported
        if not poller.poll(timeout * 1000):
            return "", ""
        _, control, _, _ = sock.recvmsg(512, 512, _MSG_ERRQUEUE)
    except OSError:
        return "", ""
    finally:
        sock.close()
    # struct sock_extended_err, then the address of the sender of the error
    _, _, error = control[0]
    kind, code = error[5], error[6]
    six = family == _socket.AF_INET6
    offender = error[16:]
    who = _socket.inet_ntop(family, offender[8:24] if six else offender[4:8])
    if kind == (3 if six else 11):
        return who, "time exceeded"
    return who, "port unreachable" if (kind, code) == ((1, 4) if six else (3, 3)) else "other"


def path_mtu(host: str, size: int, *, ns: NetNS, timeout: float = 1.0) -> int:
    """The path MTU to ``host`` after a datagram of ``size`` bytes with Don't Fragment."""
    family = family_of(host)
    level, _, _, discover, mtu = _OPTIONS[family]
    sock = ns.socket(family, _socket.SOCK_DGRAM)
    try:
        sock.setsockopt(level, discover, _PMTUDISC_DO)
        sock.connect((host, 9))
        before = now = sock.getsockopt(level, mtu)
        if now < size:
            return now  # the kernel has a smaller path MTU already
        sock.send(bytes(size))
        end = time.monotonic() + timeout
        while now == before and time.monotonic() < end:
            time.sleep(0.005)
            now = sock.getsockopt(level, mtu)
        return now
    except OSError as error:
        raise BpfkitError(f"cannot send to {host}", why=errno_text(error.errno or 0)) from error
    finally:
        sock.close()
