# SPDX-License-Identifier: Apache-2.0
"""Enters the listeners' sockets into the map, and replaces those that have closed.

A target has two slots for each kind of packet (TCP or UDP, IPv4 or IPv6), filled from the listeners
of one address: one, or members of an SO_REUSEPORT group.  Slots read as socket cookies, so what is
there is compared with what listens without opening anything.
"""

from __future__ import annotations

import os
from time import monotonic

from bpfkit.core.errors import BpfkitError, InputError, MapError
from bpfkit.net.sockets.listeners import (
    Listener,
    borrow,
    find_owner,
    listeners,
    process_name,
    sockets_of,
)
from bpfkit.sk_lookup.rules import PROTOS
from bpfkit.sk_lookup.targets import SPARES, Target, choose, several

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bpfkit.core.maps.base import Map
    from bpfkit.sk_lookup.rules import Rule

__all__ = ["Sockets", "check_free", "ephemeral_clash", "holder", "in_use", "resolve"]

_SO_PROTOCOL, _IPPROTO_MPTCP = 38, 262
#: Seconds until a socket without a process is looked for again.
_AGAIN = 2.0
#: Slots of a target: protocol * 4 + family * 2 + spare.
EACH = 8


def _slots(number: int, proto: str, family: int) -> list[int]:
    first = number * EACH + (4 if proto == "udp" else 0) + (2 if family == 6 else 0)
    return list(range(first, first + SPARES))


class Sockets:
    """The sockets in the map.

    :param sockets: the sockmap.
    :ivar found: the listeners of the last :meth:`refresh`.
    :ivar chosen: target -> the listeners in its slots, of all protocols.
    """

    def __init__(self, sockets: Map) -> None:
        self._map = sockets
        self._refused: dict[int, str] = {}
        self._ownerless: dict[int, float] = {}
        self.found: list[Listener] = []
        self.chosen: dict[int, list[Listener]] = {}

    def refresh(self, targets: dict[int, Target]) -> None:
        """Fill the slots of all targets from the sockets that listen now."""
        self.found = listeners({target.port for target in targets.values()})
        self.chosen = {}
        for number, target in targets.items():
            inodes = _of_process(target)
            kinds = choose(self.found, target, inodes)
            if inodes is not None and not any(kinds.values()):
                kinds = choose(self.found, target)  # a new process listens in place of the old one
            chosen: dict[int, Listener] = {}
            for (proto, family), fitting in kinds.items():
                for one in self._fill(_slots(number, proto, family), fitting, target):
                    chosen[one.inode] = one
            self.chosen[number] = list(chosen.values())

    def _fill(self, slots: list[int], fitting: list[Listener], target: Target) -> list[Listener]:
        """Put the best listeners into the slots; returns those that are there."""
        group = [
            one
            for one in fitting
            if (one.family, one.address) == (fitting[0].family, fitting[0].address)
        ]
        for one in group:
            if not one.cookie:
                self._learn_cookie(one, target)
        wanted = {one.cookie: one for one in group if one.cookie not in self._refused}
        current = {slot: int(self._map.get(slot, 0)) for slot in slots}
        there = [wanted.pop(cookie) for cookie in current.values() if cookie in wanted]
        good = {one.cookie for one in there}
        for slot, cookie in current.items():
            if cookie in good:
                good.discard(cookie)
                continue
            entered = False
            while wanted and not entered:
                one = wanted.pop(next(iter(wanted)))
                entered = self._enter(slot, one, target)
                if entered:
                    there.append(one)
            if not entered and cookie:
                self._map.pop(slot, None)
        return there

    def _enter(self, slot: int, one: Listener, target: Target) -> bool:
        fd = self._borrowed(one, target)
        if fd < 0:
            return False
        try:
            self._map[slot] = fd
        except MapError as error:
            self._refused[one.cookie] = error.why
            return False
        finally:
            os.close(fd)
        return True

    def _borrowed(self, one: Listener, target: Target) -> int:
        if not one.inode or monotonic() < self._ownerless.get(one.inode, 0.0):
            return -1
        owner = find_owner(one.inode, target.pid)
        if owner is None:  # of a process in another PID namespace; to look costs all of /proc
            self._ownerless[one.inode] = monotonic() + _AGAIN
            return -1
        try:
            return borrow(one, *owner)
        except BpfkitError as error:
            if error.exit_status == 77:
                raise
            return -1  # it was closed meanwhile

    def _learn_cookie(self, one: Listener, target: Target) -> None:
        fd = self._borrowed(one, target)
        if fd >= 0:
            os.close(fd)

    def refusal(self, one: Listener) -> str:
        """Why the kernel takes this socket into no map; "": it does."""
        return self._refused.get(one.cookie, "")


def _of_process(target: Target) -> frozenset[int] | None:
    """Inodes of the sockets of the target's process; None: no process was named, or it ended."""
    if not target.pid:
        return None
    try:
        return sockets_of(target.pid, target.fd)
    except InputError:
        return None


# ---------------------------------------------------------------- before a rule is added


def resolve(target: Target, protos: int) -> list[Listener]:
    """See that a listener fits a new target; fills in the user where it names a process.

    :param protos: of the rules: 1 TCP, 2 UDP, 3 both, of which one is enough.
    :raises InputError: nothing listens there, or several do.
    """
    inodes = sockets_of(target.pid, target.fd) if target.pid else None
    found = [
        one
        for one in listeners([target.port])
        if PROTOS[one.proto] & protos and (inodes is None or one.inode in inodes)
    ]
    fitting = list(_all(choose(found, target, inodes)))
    if not fitting:
        what, why = _nobody(target, protos, found)
        raise InputError(what, why=why)
    addresses = several(fitting) if not target.address else []
    if addresses:
        raise InputError(
            f"several sockets listen on port {target.port}",
            why=f"on {', '.join(addresses)}",
            hint=f"choose one: --to {addresses[0]}",
        )
    for one in fitting:
        _see_that_it_can_be_entered(one, target)
    if target.pid:
        target.uid = fitting[0].uid
    return fitting


def _see_that_it_can_be_entered(one: Listener, target: Target) -> None:
    import _socket

    owner = find_owner(one.inode, target.pid) if one.inode else None
    if owner is None:
        raise InputError(
            f"cannot steer to {one}", why="no process that can be seen has this socket open"
        )
    sock = _socket.socket(fileno=borrow(one, *owner))
    try:
        protocol = sock.getsockopt(_socket.SOL_SOCKET, _SO_PROTOCOL)
    finally:
        sock.close()
    if protocol == _IPPROTO_MPTCP:
        raise InputError(
            f"cannot steer to {one} of {process_name(owner[0])}",
            why="it is a socket of MPTCP, which keeps the one that listens inside the kernel",
            hint="let the server listen on plain TCP (Go: GODEBUG=multipathtcp=0)",
        )


def _all(kinds: dict[tuple[str, int], list[Listener]]) -> Iterable[Listener]:
    return {one.inode: one for fitting in kinds.values() for one in fitting}.values()


def _nobody(target: Target, protos: int, found: list[Listener]) -> tuple[str, str]:
    """(what, why) where no listener fits."""
    what = {1: "TCP", 2: "UDP", 3: "TCP or UDP"}[protos]
    if target.fd >= 0:
        text = f"descriptor {target.fd} of process {target.pid}"
        return f"{text} does not listen on {what} port {target.port}", _state_of(target)
    if target.pid:
        return (
            f"process {target.pid} does not listen on {what} port {target.port}",
            _elsewhere(target.pid) or "it has no such socket in this network namespace",
        )
    if target.address and found:
        return (
            f"nothing listens on {target} ({what})",
            "the port's sockets are bound to " + ", ".join(sorted({str(one) for one in found})),
        )
    return f"nothing listens on {what} port {target.port}", "start the server first"


def _elsewhere(pid: int) -> str:
    """That a process is in another network namespace; "": it is in this one."""
    try:
        if os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/proc/thread-self/ns/net").st_ino:
            return ""
    except OSError:
        return ""
    return f"it is in another network namespace: --netns {pid}"


def _state_of(target: Target) -> str:
    """What kind of socket a descriptor is, if it is not a listening one of that port."""
    import socket

    inode = next(iter(sockets_of(target.pid, target.fd)), 0)
    try:
        fd = borrow(_anyone(inode), target.pid, target.fd)
    except (BpfkitError, OSError):
        return "the socket is not one of this network namespace"
    with socket.socket(fileno=fd) as sock:
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return "the socket is neither IPv4 nor IPv6"
        name = sock.getsockname()
        try:
            peer = sock.getpeername()
        except OSError:
            return f"the socket is bound to port {name[1]}" if name[1] else "it is not bound"
        return f"the socket is connected to {peer[0]} port {peer[1]}"


def _anyone(inode: int) -> Listener:
    one = Listener("tcp", 4, bytes(4), 0)
    one.inode = inode
    return one


def check_free(rules: Iterable[Rule], own: Iterable[Listener]) -> None:
    """See that no other socket listens where the rules steer.

    :param own: the sockets that the rules steer to.
    :raises InputError: one does.
    """
    used = next(in_use(list(rules), {one.inode for one in own}, listeners()), None)
    if used is None:
        return
    rule, one = used
    raise InputError(
        f"'{rule}' steers a port that is in use",
        why=f"{holder(one)} listens on {one}",
        hint="--take steers its new connections away from it, too",
    )


def in_use(
    rules: list[Rule], own: set[int], found: Iterable[Listener]
) -> Iterator[tuple[Rule, Listener]]:
    """The (rule, listener) pairs where a rule steers packets away from a listener.

    UDP sockets in the range of ephemeral ports are clients', and are left out.

    :param own: inodes of the sockets that are steered to.
    """
    ephemeral = _ephemeral()
    for one in found:
        if one.inode in own or (one.proto == "udp" and one.port in ephemeral):
            continue
        for rule in rules:
            if rule.covers(one.proto, one.family, one.address, one.port):
                yield rule, one
                break


def ephemeral_clash(rule: Rule) -> str:
    """What a rule for UDP takes from this machine's own clients; "": nothing."""
    ports = _ephemeral()
    if not rule.protos & PROTOS["udp"] or rule.family:
        return ""
    if rule.last < ports.start or rule.first >= ports.stop:
        return ""
    return (
        f"'{rule}' covers UDP ports of this machine's own clients "
        f"({ports.start}-{ports.stop - 1}): what is sent to their unconnected sockets is steered, "
        "too; tcp/ or a prefix avoids that"
    )


def holder(one: Listener) -> str:
    """Who has a listener's socket open, for people."""
    owner = find_owner(one.inode) if one.inode else None
    return process_name(owner[0]) if owner else "a process that cannot be seen"


def _ephemeral() -> range:
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            low, high = map(int, file.read().split())
    except (OSError, ValueError):
        return range(32768, 61000)
    return range(low, high + 1)
