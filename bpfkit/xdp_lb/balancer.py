# SPDX-License-Identifier: Apache-2.0
"""xdp_lb's services and backends: as text, in its maps, and what a change of them moves.

A change happens in an order in which every packet finds a backend: newcomers are made known, the
new table takes the old one's place in one step, those that leave become unknown.
"""

from __future__ import annotations

import _socket
import struct

from bpfkit.core.errors import InputError
from bpfkit.xdp_lb import maglev

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Mapping
    from typing import Any

    from bpfkit.core.object import Object

__all__ = [
    "MAX_BACKENDS",
    "Backend",
    "Balancer",
    "Service",
    "flow_hash",
    "parse_backend",
    "read_backends",
]

PROTOCOLS = {"tcp": 6, "udp": 17, "dccp": 33, "sctp": 132, "udplite": 136}
MAX_BACKENDS = 1024
MAX_WEIGHT = 100
_GONE, _UP, _DRAIN = 0, 1, 2
_REMOVED = "removed"
_MASK = 0xFFFFFFFF


def address(text: str) -> str:
    """An IPv4 or IPv6 address of one host, in its one form.

    :raises ValueError: it is none.
    """
    from ipaddress import ip_address

    try:
        found = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 or IPv6 address") from None
    if found.is_multicast or found.is_unspecified or found.is_link_local:
        raise ValueError(f"{text} is not an address that others can reach one host by")
    return str(found)


def packed(text: str) -> bytes:
    """16 bytes, IPv4 as ::ffff:a.b.c.d."""
    if ":" in text:
        return _socket.inet_pton(_socket.AF_INET6, text)
    return bytes(10) + b"\xff\xff" + _socket.inet_pton(_socket.AF_INET, text)


class Service:
    """An address, port and protocol that clients see.

    :ivar address: text; :ivar port: 1 to 65535; :ivar proto: a key of :data:`PROTOCOLS`.
    """

    __slots__ = ("address", "port", "proto")

    def __init__(self, address: str, port: int, proto: str) -> None:
        self.address = address
        self.port = port
        self.proto = proto

    @classmethod
    def parse(cls, text: str) -> Service:
        """``198.51.100.1:80/tcp``, ``[2001:db8::1]:53/udp``; without a protocol it is TCP.

        :raises ValueError: it is no such thing.
        """
        rest, slash, proto = text.partition("/")
        host, colon, port = rest.rpartition(":")
        if not colon or (":" in host and not (host.startswith("[") and host.endswith("]"))):
            raise ValueError("a service is written 198.51.100.1:80/tcp or [2001:db8::1]:80/tcp")
        if (proto or "tcp") not in PROTOCOLS or (slash and not proto):
            raise ValueError(f"{proto!r} is none of {', '.join(PROTOCOLS)}")
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"{port!r} is not a port (1 to 65535)")
        return cls(address(host.strip("[]")), int(port), proto or "tcp")

    def key(self, port: int) -> bytes:
        """struct service_key."""
        proto = PROTOCOLS[self.proto]
        return packed(self.address) + struct.pack("!HBx", port, proto)

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}/{self.proto}"


def parse_backend(text: str) -> tuple[str, int]:
    """``10.0.0.2`` or ``10.0.0.2,weight=3``: (address, weight).  Weight 0: drained.

    :raises ValueError: it is no such thing.
    """
    words = text.replace(",", " ").split()
    if not words:
        raise ValueError("no address")
    weight = 1
    for word in words[1:]:
        name, _, value = word.partition("=")
        if name != "weight":
            raise ValueError(f"{word!r} is not weight=N")
        if not (value.isascii() and value.isdigit() and int(value) <= MAX_WEIGHT):
            raise ValueError(f"{value!r} is not a weight (0 to {MAX_WEIGHT}; 0: drained)")
        weight = int(value)
    return address(words[0]), weight


def read_backends(path: str) -> dict[str, int]:
    """Address -> weight of a file with a backend a line; ``#`` begins a comment.

    :raises InputError: unreadable, or a bad line (its number is told).
    """
    found: dict[str, int] = {}
    try:
        with open(path) as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"cannot read {path}", why=why) from None
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            name, weight = parse_backend(text)
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}", why="nothing of it is applied") from None
        if name in found:
            raise InputError(f"{path}:{number}: {name} twice", why="nothing of it is applied")
        found[name] = weight
    return found


def flow_hash(source: str, sport: int, destination: str, dport: int, proto: int) -> int:
    """tuple_hash() of bpf_c/xdp/tuple.h, seed 0: what chooses a slot of the table."""
    words = struct.unpack("=8I", packed(source) + packed(destination))
    first, second = struct.unpack("=HH", struct.pack("!HH", sport, dport))
    seed = proto
    if ":" in destination:
        seed = _mix(words[0], words[1], words[2], seed)
        seed = _mix(words[4], words[5], words[6], seed)
    return _mix(words[3], words[7], first << 16 | second, seed)


def _mix(a: int, b: int, c: int, seed: int) -> int:
    def rol(word: int, shift: int) -> int:
        return (word << shift | word >> (32 - shift)) & _MASK

    seed += 0xDEADBEEF + (3 << 2)
    a, b, c = (a + seed) & _MASK, (b + seed) & _MASK, (c + seed) & _MASK
    c = ((c ^ b) - rol(b, 14)) & _MASK
    a = ((a ^ c) - rol(c, 11)) & _MASK
    b = ((b ^ a) - rol(a, 25)) & _MASK
    c = ((c ^ b) - rol(b, 16)) & _MASK
    a = ((a ^ c) - rol(c, 4)) & _MASK
    b = ((b ^ a) - rol(a, 14)) & _MASK
    return ((c ^ b) - rol(b, 24)) & _MASK


class Backend:
    """One server.

    :ivar number: its place in the maps; :ivar serial: never the same for two that shared a place.
    :ivar weight: 0: drained, it keeps its flows and gets no new ones.
    :ivar mac: of the next hop, b"" while it is not known; :ivar hop: that neighbour's address.
    :ivar source: this host's address for it.
    :ivar ill: why it gets nothing at all; "": it is well.
    :ivar state: what the program knows.
    """

    __slots__ = ("address", "hop", "ill", "mac", "number", "serial", "source", "state", "weight")

    def __init__(self, address: str, weight: int, number: int, serial: int) -> None:
        self.address = address
        self.weight = weight
        self.number = number
        self.serial = serial
        self.mac = b""
        self.hop = address
        self.source = "::" if ":" in address else "0.0.0.0"
        self.ill = "not looked at yet"
        self.state = _GONE

    @property
    def wanted_state(self) -> int:
        """From what is known of it."""
        if self.ill or not self.mac:
            return _GONE
        return _UP if self.weight else _DRAIN

    @property
    def removed(self) -> bool:
        """Is it to go?"""
        return self.ill == _REMOVED

    @property
    def words(self) -> str:
        """The state, for people."""
        if self.state == _GONE:
            return self.ill or "no MAC address"
        return "up" if self.state == _UP else "drained"

    def value(self, state: int) -> bytes:
        """struct backend."""
        family = 6 if ":" in self.address else 4
        ends = packed(self.address) + packed(self.source)
        mac = self.mac or bytes(6)
        return ends + mac + struct.pack("=BBII", family, state, self.serial, 0)


class Balancer:
    """The maps of a loaded xdp_lb.

    :param size: of the Maglev table, a prime; the program's ``slots``.
    """

    def __init__(self, loaded: Object, size: int) -> None:
        self.maps = loaded
        self.size = size
        self.backends: dict[str, Backend] = {}
        #: The services' addresses.
        self.vips: set[str] = set()
        #: Owner of each slot, by number.
        self.table: array[int] = maglev.build({}, size)
        self._free = list(range(MAX_BACKENDS - 1, -1, -1))
        self._serial = 0

    def add_service(self, service: Service) -> None:
        """From now on its packets are balanced."""
        self.vips.add(service.address)
        for port in (service.port, 0):
            self.maps["services"][service.key(port)] = 1

    # -- changes ----------------------------------------------------------------------------------

    def want(self, wanted: Mapping[str, int]) -> list[Backend]:
        """Which backends there are to be, with their weights; those that are new.

        Nothing of it is in effect before :meth:`apply`; who is not wanted any more goes then.

        :raises InputError: too many, or one is a service's own address.
        """
        for name in wanted.keys() & self.vips:
            raise InputError(f"{name} is a VIP and a backend", why="it would get its own packets")
        if len(wanted.keys() | self.backends.keys()) > MAX_BACKENDS:
            raise InputError(
                f"{len(wanted)} backends",
                why=f"there is room for {MAX_BACKENDS}, with those that leave",
            )
        if sum(wanted.values()) > self.size:
            raise InputError(
                f"{self.size} slots are too few for these backends",
                why=f"their weights add up to {sum(wanted.values())}",
                hint="take a larger --table",
            )
        for name in self.backends.keys() - wanted.keys():
            self.backends[name].ill = _REMOVED
        fresh = []
        for name, weight in wanted.items():
            backend = self.backends.get(name)
            if backend is None:
                self._serial += 1
                backend = Backend(name, weight, self._free.pop(), self._serial)
                self.maps["served"][backend.number] = 0, 0, 0
                self.backends[name] = backend
                fresh.append(backend)
            elif backend.removed:
                backend.ill = "not looked at yet"
            backend.weight = weight
        return fresh

    def apply(self) -> dict[str, Any]:
        """Put into effect what the backends' ``ill``, ``mac`` and ``weight`` say.

        :returns: what it moves: ``moved_slots`` of the table, and how many of them no hashing
            could have spared (``ideal_slots``); the ``flows`` that were known, those whose backend
            is gone (``moved_flows``), and those of other backends that would have moved too if
            nobody had remembered them (``spared_flows``).
        """
        owners = {
            name: (one.number, one.weight)
            for name, one in self.backends.items()
            if one.wanted_state == _UP
        }
        table = maglev.build(owners, self.size)
        before = {one.number: one.serial for one in self.backends.values() if one.state != _GONE}
        going = [one for one in self.backends.values() if one.wanted_state == _GONE]
        gone = {one.number for one in going}
        flows = moved = spared = 0
        for number, serial, hash_ in self._flows():
            if before.get(number) != serial:
                continue
            flows += 1
            slot = hash_ % self.size
            if number in gone:
                moved += 1
            elif table[slot] != self.table[slot]:
                spared += 1
        for one in self.backends.values():
            if one not in going:
                self._write(one, one.wanted_state)
        self._swap(table)
        for one in going:
            self._write(one, _GONE)
            if one.removed:
                del self.backends[one.address]
                self._free.append(one.number)
        old, self.table = self.table, table
        return {
            "backends": len(owners),
            "slots": self.size,
            "moved_slots": sum(map(int.__ne__, old, table)),
            "ideal_slots": maglev.unavoidable(old, table),
            "flows": flows,
            "moved_flows": moved,
            "spared_flows": spared,
        }

    def _write(self, one: Backend, state: int) -> None:
        self.maps["backends"].update_elem(one.number, one.value(state))
        one.state = state

    def _swap(self, table: array[int]) -> None:
        """A new map in the old one's place: no packet sees half a table."""
        old = self.maps["table"]
        fresh = old.twin()
        self.maps.maps["table"] = fresh  # closed with the others
        fresh[0] = table.tobytes().ljust(old.value_size, b"\xff")
        self.maps["tables"][0] = fresh
        old.close()

    def _flows(self) -> list[tuple[int, int, int]]:
        """(number, serial, hash) of the flows that are remembered."""
        count, _, values = self.maps["flows"].items_raw()
        return list(struct.iter_unpack("=III", values[: count * 12]))

    def refresh(self, one: Backend) -> None:
        """Tell the program of another MAC address."""
        if one.state != _GONE:
            self._write(one, one.state)

    # -- figures ----------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """A row per backend."""
        served = dict(self.maps["served"].sums())
        slots = maglev.shares(self.table)
        rows = []
        for one in sorted(self.backends.values(), key=lambda one: packed(one.address)):
            sums = served[one.number]
            rows.append(
                {
                    "backend": one.address,
                    "healthy": one.state != _GONE,
                    "state": one.words,
                    "weight": one.weight,
                    "slots": slots.get(one.number, 0),
                    "flows": sums.flows,
                    "packets": sums.packets,
                    "bytes": sums.bytes,
                }
            )
        return rows

    def expected(self, hash_: int) -> str:
        """The backend that the table has for a hash; "" if there is none."""
        number = self.table[hash_ % self.size]
        return next((one.address for one in self.backends.values() if one.number == number), "")
