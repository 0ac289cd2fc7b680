# SPDX-License-Identifier: Apache-2.0
"""Whose packets a flow's are: sockets, the processes that hold them, and their cgroups.

::

    BPF iterator over the files of all tasks ─▶ sockets of all namespaces, each with its process
    (else) sock_diag in each namespace ─▶ sockets, inodes ─▶ /proc/PID/fd ─▶ processes

A packet belongs to the process that sends it; if it comes from elsewhere, to the one that receives
it.  A socket that is closed between two looks, the kernel's own sockets, a translated address (NAT)
and protocols without ports are not attributed.
"""

from __future__ import annotations

import os
import struct

from bpfkit.core.errors import BpfkitError
from bpfkit.net.links.rtnetlink import attributes, dump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from threading import Thread
    from typing import Any

    from bpfkit.core.object import Object
    from bpfkit.net.packets.flows import Flow

__all__ = ["Owner", "Owners", "cgroup_path"]

SOURCE = "socket/sockex3_owners.bpf.c"
_INIT_PIDNS = 0xEFFFFFFC  # include/linux/proc_ns.h: PROC_PID_INIT_INO
_AF_INET, _AF_INET6 = 2, 10
_MAPPED = bytes(10) + b"\xff\xff"
_MPTCP, _TCP = 262, 6
_SOCK_DIAG, _BY_FAMILY = 4, 20
_DIAG_STATES = 0xFFF & ~(1 << 6)  # all but TIME_WAIT
_DIAG_PROTOS = (6, 17)
_RTM_GETADDR, _IFADDRMSG = 22, 8  # message type, bytes of struct ifaddrmsg
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
#: Looks between two readings of a namespace's addresses.
_ADDRESSES_EVERY = 25
#: Seconds between looks in the background: a socket that is open for less may be missed.
_EVERY_S = 0.2
#: The time between looks is at least so many times the CPU time of a look.
_SHARE = 30


class Owner:
    """A process: its number in the kernel's first PID namespace, and its name."""

    __slots__ = ("cgroup", "name", "pid")

    def __init__(self, pid: int, name: str) -> None:
        self.pid = pid
        self.name = name
        self.cgroup: str | None = None


class _Socket:
    """One IP socket that a process holds; addresses of 4 or 16 bytes, empty: any."""

    __slots__ = ("daddr", "dport", "name", "netns", "pid", "proto", "saddr", "sport", "versions")

    def __init__(
        self,
        pid: int,
        name: str,
        netns: int,
        proto: int,
        ends: tuple[bytes, int, bytes, int],
    ) -> None:
        self.pid = pid
        self.name = name
        self.netns = netns
        self.proto = _TCP if proto == _MPTCP else proto
        saddr, self.sport, daddr, self.dport = ends
        # A socket that is bound to any address of IPv6 mostly takes IPv4, too.
        self.versions = (4,) if len(saddr) == 4 else (6, 4)
        self.saddr, self.daddr = _plain(saddr), _plain(daddr)


def _plain(address: bytes) -> bytes:
    """An address without IPv6's form of IPv4's; any address: empty."""
    if len(address) == 16 and address.startswith(_MAPPED):
        address = address[12:]
    return address if any(address) else b""


class _Namespace:
    """The sockets of one network namespace."""

    def __init__(self) -> None:
        self.connected: dict[tuple[int, bytes, int, bytes, int], Owner] = {}
        self.bound: dict[tuple[int, bytes | int, int], Owner] = {}  # address, or 4 or 6 for any
        self.addresses: frozenset[bytes] = frozenset()
        self.looks = 0

    def add(self, one: _Socket, owner: Owner) -> None:
        if one.dport:
            key = one.proto, one.saddr, one.sport, one.daddr, one.dport
            self.connected[key] = _of_both(self.connected.get(key), owner)
            return
        for where in (one.saddr,) if one.saddr else one.versions:
            place = one.proto, where, one.sport
            self.bound[place] = _of_both(self.bound.get(place), owner)

    def find(
        self, proto: int, here: bytes, port: int, there: bytes, far: int, *, own: bool
    ) -> Owner | None:
        found = self.connected.get((proto, here, port, there, far))
        if found is not None or not self.has(here, own):
            return found
        found = self.bound.get((proto, here, port))
        return found or self.bound.get((proto, 4 if len(here) == 4 else 6, port))

    def has(self, address: bytes, own: bool) -> bool:
        """Whether packets to the address are for this namespace; ``own``: it is the watched one."""
        if len(address) == 4:
            if address[0] == 127:
                return own
            shared = address[0] >> 4 == 14 or address == b"\xff\xff\xff\xff"
        else:
            if address == bytes(15) + b"\1":
                return own
            shared = address[0] == 0xFF
        return (shared and own) or address in self.addresses


def _of_both(one: Owner | None, other: Owner) -> Owner:
    """Which of two processes that hold a socket is named: the first, but not init, which holds the
    sockets that it starts services for."""
    return other if one is None or one.pid == 1 else one


class Owners:
    """Finds the owner of a flow.

    :param load: loads :data:`SOURCE`; :meth:`close` closes the object.
    :param note: prints a line for people.
    :ivar how: ``iterator`` or ``sock_diag``.
    """

    def __init__(self, load: Callable[[], Object], note: Callable[[str], None]) -> None:
        from threading import Event, Lock
        from threading import Thread as NewThread

        self._note = note
        self._loaded: Object | None = None
        self._said = False
        self._namespaces: dict[int, _Namespace] = {}
        self._known: dict[tuple[Any, ...], Owner] = {}
        self._used = True
        self._lock = Lock()
        self._end = Event()
        self._thread: Thread | None = None
        self._own = os.stat("/proc/thread-self/ns/net").st_ino
        self.how = "sock_diag"
        self.why = ""
        self._choose(load)
        self.look()
        self._thread = NewThread(target=self._work, name="owners", daemon=True)
        self._thread.start()

    def _choose(self, load: Callable[[], Object]) -> None:
        if os.stat("/proc/self/ns/pid").st_ino != _INIT_PIDNS:
            self.why = "this process is in a PID namespace"
            return
        try:
            self._loaded = load()
            list(self._by_iterator())
            self.how = "iterator"
        except (BpfkitError, OSError) as error:
            self.why = str(error)

    def _work(self) -> None:
        """Look again and again, in the namespace of the thread that made this object."""
        from time import thread_time

        pause = _EVERY_S
        while not self._end.wait(pause):
            begun = thread_time()
            self.look()
            # On a machine with very many processes: at most a fraction of a CPU.
            pause = min(max(_EVERY_S, (thread_time() - begun) * _SHARE), 1.0)

    def close(self) -> None:
        """Stop looking, unload the iterator."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        if self._loaded is not None:
            self._loaded.close()

    # -- looking

    def look(self) -> None:
        """Read who holds which socket now.

        What was read since the last :meth:`assign` is kept, so that a socket that is closed before
        the next one is attributed all the same.
        """
        try:
            found = list(self._by_iterator() if self.how == "iterator" else self._by_diag())
        except (BpfkitError, OSError) as error:
            if not self._said:
                self._said = True
                self._note(f"cannot see who holds which socket: {error}")
            found = []
        with self._lock:
            self._take(found)

    def _take(self, found: list[_Socket]) -> None:
        if self._used:
            for namespace in self._namespaces.values():
                namespace.connected.clear()
                namespace.bound.clear()
            self._used = False
        owners: dict[int, Owner] = {}
        seen: dict[int, int] = {}
        fresh: dict[int, _Namespace] = {}
        for one in found:
            owner = owners.get(one.pid)
            if owner is None:
                owner = owners[one.pid] = Owner(one.pid, one.name)
            seen.setdefault(one.netns, one.pid)
            fresh.setdefault(one.netns, _Namespace()).add(one, owner)
        for number, latest in fresh.items():
            kept = self._namespaces.setdefault(number, _Namespace())
            kept.connected.update(latest.connected)
            kept.bound.update(latest.bound)
        for number, namespace in list(self._namespaces.items()):
            if number not in seen and number != self._own:
                if not namespace.connected and not namespace.bound:
                    del self._namespaces[number]
            elif namespace.looks % _ADDRESSES_EVERY == 0 or not namespace.addresses:
                namespace.addresses = self._addresses(number, seen.get(number, 0))
            namespace.looks += 1

    def _by_iterator(self) -> Iterator[_Socket]:
        from bpfkit.core.attach.iter import read_iter

        assert self._loaded is not None
        assert self._loaded.btf is not None
        layout = self._loaded.btf.record_layout("owners")
        assert layout is not None
        with self._loaded.programs["owners"].attach_iter() as link:
            data = read_iter(link)
        for at in range(0, len(data), layout.size):
            row = layout.decode(data[at : at + layout.size])
            size = 4 if row.family == _AF_INET else 16
            ends = bytes(row.saddr)[:size], row.sport, bytes(row.daddr)[:size], row.dport
            yield _Socket(row.pid, row.name, row.netns, row.proto, ends)

    def _by_diag(self) -> Iterator[_Socket]:
        """Every namespace's sockets, then whose descriptors they are."""
        from bpfkit.net.links.netns import NetNS

        holders, namespaces = _holders()
        for netns, path in namespaces.items():
            try:
                if netns == self._own:
                    found = list(_diag())
                else:
                    with NetNS.from_path(path) as namespace:
                        found = namespace.run(lambda: list(_diag()))
            except (BpfkitError, OSError):
                continue
            for inode, proto, ends in found:
                if inode in holders:
                    pid, name = holders[inode]
                    yield _Socket(pid, name, netns, proto, ends)

    def _addresses(self, number: int, pid: int) -> frozenset[bytes]:
        from bpfkit.net.links.netns import NetNS

        try:
            if number == self._own:
                return _local_addresses()
            with NetNS.from_path(f"/proc/{pid}/ns/net") as namespace:
                return namespace.run(_local_addresses)
        except (BpfkitError, OSError):
            return frozenset()

    # -- answers

    def assign(self, flows: Iterable[Flow], is_new: Callable[[int], bool]) -> list[Owner | None]:
        """The owner of each flow, None where it is not known.

        :param is_new: whether flow number i of them had packets since the last time; else its owner
            stays.
        """
        with self._lock:
            self._used = True
            return self._assign(flows, is_new)

    def _assign(self, flows: Iterable[Flow], is_new: Callable[[int], bool]) -> list[Owner | None]:
        owners: list[Owner | None] = []
        known: dict[tuple[Any, ...], Owner] = {}
        # The watched namespace first.
        order = sorted(self._namespaces.items(), key=lambda item: item[0] != self._own)
        for i, flow in enumerate(flows):
            key = flow[:6] + flow[8:]
            owner = self._known.get(key)
            if owner is None or is_new(i):
                owner = self._of(flow, order) or owner
            if owner is not None:
                known[key] = owner
            owners.append(owner)
        self._known = known
        return owners

    def _of(self, flow: Flow, order: list[tuple[int, _Namespace]]) -> Owner | None:
        src, dst, sport, dport, proto = flow[:5]
        if sport is None or dport is None:
            return None
        # Loopback addresses mean something in the watched namespace only.
        local = src[0] == 127 if len(src) == 4 else src == bytes(15) + b"\1"
        is_here = False
        for number, namespace in order:
            own = number == self._own
            if local and not own:
                continue
            owner = namespace.find(proto, src, sport, dst, dport, own=own)
            if owner is not None:
                return owner
            is_here = is_here or namespace.has(src, own)
        if is_here:
            return None  # its sender is on this machine, and is not known
        for number, namespace in order:
            owner = namespace.find(proto, dst, dport, src, sport, own=number == self._own)
            if owner is not None:
                return owner
        return None


def cgroup_path(owner: Owner) -> str | None:
    """The cgroup of a process, from the root of the hierarchy: ``/system.slice/ssh.service``.

    That of cgroup v2; where a process is in its root, the one of the v1 hierarchies that says most.
    None: the process had ended before it was asked for.
    """
    if owner.cgroup is None:
        best = ""
        try:
            with open(f"/proc/{owner.pid}/cgroup", errors="surrogateescape") as file:
                for line in file:
                    number, _, path = line.rstrip("\n").split(":", 2)
                    if number == "0" and path != "/":
                        best = path
                        break
                    best = max(best, path, key=len)
        except OSError:
            return None
        owner.cgroup = best or None
    return owner.cgroup


def _local_addresses() -> frozenset[bytes]:
    """The addresses of the calling thread's namespace, those for broadcasts included."""
    found = set()
    for body in dump(_RTM_GETADDR, bytes(_IFADDRMSG)):
        given = dict(attributes(body[_IFADDRMSG:]))
        local = given.get(_IFA_LOCAL) or given.get(_IFA_ADDRESS)
        found |= {address for address in (local, given.get(_IFA_BROADCAST)) if address}
    return frozenset(found)


def _diag() -> Iterator[tuple[int, int, tuple[bytes, int, bytes, int]]]:
    """(inode, protocol, ends) of the sockets of the calling thread's namespace.

    Source: struct inet_diag_req_v2, struct inet_diag_msg; sock_diag(7).
    """
    for proto in _DIAG_PROTOS:
        for family in (_AF_INET, _AF_INET6):
            request = struct.pack("=BBBBI", family, proto, 0, 0, _DIAG_STATES) + bytes(48)
            try:
                bodies = dump(_BY_FAMILY, request, _SOCK_DIAG)
            except OSError:
                continue  # a kernel without IPv6, or without UDP_DIAG
            size = 4 if family == _AF_INET else 16
            for body in bodies:
                sport, dport = struct.unpack_from(">HH", body, 4)
                (inode,) = struct.unpack_from("=I", body, 68)
                if inode and sport:
                    ends = body[8 : 8 + size], sport, body[24 : 24 + size], dport
                    yield inode, proto, ends


def _holders() -> tuple[dict[int, tuple[int, str]], dict[int, str]]:
    """(socket inode -> a process that holds it, namespace -> a path to it), from /proc."""
    holders: dict[int, tuple[int, str]] = {}
    namespaces: dict[int, str] = {}
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            namespaces.setdefault(os.stat(f"/proc/{pid}/ns/net").st_ino, f"/proc/{pid}/ns/net")
            with open(f"/proc/{pid}/comm", errors="surrogateescape") as file:
                name = file.read().rstrip("\n")
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue  # it ended, or is another user's
        for fd in descriptors:
            try:
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue
            if target.startswith("socket:["):
                inode = int(target[8:-1])
                if inode not in holders or holders[inode][0] == 1:
                    holders[inode] = pid, name
    return holders, namespaces
