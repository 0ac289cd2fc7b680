# SPDX-License-Identifier: Apache-2.0
"""xdp_lb's services and backends: their text form, their maps, and the effect of changes.

A change is applied in an order in which every packet finds a backend: new backends are added, the
new table replaces the old one in one step, and removed backends are deleted.
"""

from __future__ import annotations

import struct

from bpfkit.core.errors import InputError
from bpfkit.core.words import count_of
from bpfkit.net.packets.addresses import host_address, mapped
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


class Service:
    """An address, port and protocol that clients connect to.

    :ivar address: text.
    :ivar port: 1 to 65535.
    :ivar proto: a key of :data:`PROTOCOLS`.
    """

    __slots__ = ("address", "port", "proto")

    def __init__(self, address: str, port: int, proto: str) -> None:
        self.address = address
        self.port = port
        self.proto = proto

    @classmethod
    def parse(cls, text: str) -> Service:
        """``198.51.100.1:80/tcp``, ``[2001:db8::1]:53/udp``; the default protocol is TCP.

        :raises ValueError: not a service.
        """
        rest, slash, proto = text.partition("/")
        host, colon, port = rest.rpartition(":")
        if not colon or (":" in host and not (host.startswith("[") and host.endswith("]"))):
            raise ValueError("a service has the form 198.51.100.1:80/tcp or [2001:db8::1]:80/tcp")
        if (proto or "tcp") not in PROTOCOLS or (slash and not proto):
            raise ValueError(f"unknown protocol {proto!r}; known are {', '.join(PROTOCOLS)}")
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"{port!r} is not a port (1 to 65535)")
        return cls(host_address(host.strip("[]")), int(port), proto or "tcp")

    def key(self, port: int) -> bytes:
        """struct service_key."""
        proto = PROTOCOLS[self.proto]
        return mapped(self.address) + struct.pack("!HBx", port, proto)

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}/{self.proto}"


def parse_backend(text: str) -> tuple[str, int]:
    """``10.0.0.2`` or ``10.0.0.2,weight=3``: (address, weight).  Weight 0: drained.

    :raises ValueError: not a backend.
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
    return host_address(words[0]), weight


def read_backends(path: str) -> dict[str, int]:
    """Address -> weight of a file with one backend per line; ``#`` starts a comment.

    :raises InputError: unreadable, or a bad line (the message has its number).
    """
    found: dict[str, int] = {}
    try:
        with open(path) as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"cannot read {path}", why=why) from None
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            name, weight = parse_backend(text)
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}", why="the file is not applied") from None
        if name in found:
            raise InputError(f"{path}:{number}: {name} twice", why="the file is not applied")
        found[name] = weight
    return found


def flow_hash(source: str, sport: int, destination: str, dport: int, proto: int) -> int:
    """tuple_hash() of bpf_c/xdp/tuple.h, seed 0: it selects the slot in the table."""
    words = struct.unpack("=8I", mapped(source) + mapped(destination))
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
    """One backend.

    :ivar number: its index in the maps.
    :ivar serial: a number that is never reused, unlike ``number``.
    :ivar weight: share of new flows; 0: drained, it keeps its flows and gets no new ones.
    :ivar mac: MAC address of the next hop, b"" while unknown.
    :ivar hop: IP address of the next hop.
    :ivar source: this host's address towards it.
    :ivar down_reason: why it gets no packets; "": it is up.
    :ivar state: its state in the program's map.
    """

    __slots__ = (
        "address",
        "down_reason",
        "hop",
        "mac",
        "number",
        "serial",
        "source",
        "state",
        "weight",
    )

    def __init__(self, address: str, weight: int, number: int, serial: int) -> None:
        self.address = address
        self.weight = weight
        self.number = number
        self.serial = serial
        self.mac = b""
        self.hop = address
        self.source = "::" if ":" in address else "0.0.0.0"
        self.down_reason = "not checked yet"
        self.state = _GONE

    @property
    def target_state(self) -> int:
        """The state that follows from health, MAC address and weight."""
        if self.down_reason or not self.mac:
            return _GONE
        return _UP if self.weight else _DRAIN

    @property
    def removed(self) -> bool:
        """Whether it is to be removed."""
        return self.down_reason == _REMOVED

    @property
    def state_text(self) -> str:
        """The state, as text."""
        if self.state == _GONE:
            return self.down_reason or "no MAC address"
        return "up" if self.state == _UP else "drained"

    def value(self, state: int) -> bytes:
        """struct backend."""
        family = 6 if ":" in self.address else 4
        ends = mapped(self.address) + mapped(self.source)
        mac = self.mac or bytes(6)
        return ends + mac + struct.pack("=BBII", family, state, self.serial, 0)


class Balancer:
    """The maps of a loaded xdp_lb.

    :param size: size of the Maglev table, a prime; the program's ``slots``.
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
        """Start balancing the packets of a service."""
        self.vips.add(service.address)
        for port in (service.port, 0):
            self.maps["services"][service.key(port)] = 1

    # -- changes ----------------------------------------------------------------------------------

    def set_backends(self, wanted: Mapping[str, int]) -> list[Backend]:
        """Set the backends and their weights; returns the new ones.

        :meth:`apply` puts the change into effect, and removes the backends that are not in
        ``wanted``.

        :param wanted: address -> weight.
        :raises InputError: too many backends, or a backend is a service's own address.
        """
        for name in wanted.keys() & self.vips:
            raise InputError(f"{name} is a VIP and a backend", why="it would get its own packets")
        if len(wanted.keys() | self.backends.keys()) > MAX_BACKENDS:
            raise InputError(
                f"{count_of(len(wanted), 'backend')}",
                why=f"at most {MAX_BACKENDS}, including those being removed",
            )
        if sum(wanted.values()) > self.size:
            raise InputError(
                f"{self.size} slots are too few for these backends",
                why=f"their weights add up to {sum(wanted.values())}",
                hint="use a larger --table",
            )
        for name in self.backends.keys() - wanted.keys():
            self.backends[name].down_reason = _REMOVED
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
                backend.down_reason = "not checked yet"
            backend.weight = weight
        return fresh

    def apply(self) -> dict[str, Any]:
        """Put the backends' ``down_reason``, ``mac`` and ``weight`` into effect.

        :returns: the effect: ``moved_slots`` of the table, and the number that any hashing would
            have had to move (``ideal_slots``); the known ``flows``, those whose backend is gone
            (``moved_flows``), and those of other backends that only the flow table keeps from
            moving (``spared_flows``).
        """
        owners = {
            name: (one.number, one.weight)
            for name, one in self.backends.items()
            if one.target_state == _UP
        }
        table = maglev.build(owners, self.size)
        before = {one.number: one.serial for one in self.backends.values() if one.state != _GONE}
        going = [one for one in self.backends.values() if one.target_state == _GONE]
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
                self._write(one, one.target_state)
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
        """Replace the table's map by a new one: no packet sees half a table."""
        old = self.maps["table"]
        fresh = old.twin()
        self.maps.maps["table"] = fresh  # closed together with the other maps
        fresh[0] = table.tobytes().ljust(old.value_size, b"\xff")
        self.maps["tables"][0] = fresh
        old.close()

    def _flows(self) -> list[tuple[int, int, int]]:
        """(backend number, serial, hash) of the flows in the flow table."""
        count, _, values = self.maps["flows"].items_raw()
        return list(struct.iter_unpack("=III", values[: count * 12]))

    def refresh(self, one: Backend) -> None:
        """Write a backend's new MAC address into the map."""
        if one.state != _GONE:
            self._write(one, one.state)

    # -- figures ----------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """One row per backend."""
        served = dict(self.maps["served"].sums())
        slots = maglev.shares(self.table)
        rows = []
        for one in sorted(self.backends.values(), key=lambda one: mapped(one.address)):
            sums = served[one.number]
            rows.append(
                {
                    "backend": one.address,
                    "healthy": one.state != _GONE,
                    "state": one.state_text,
                    "weight": one.weight,
                    "slots": slots.get(one.number, 0),
                    "flows": sums.flows,
                    "packets": sums.packets,
                    "bytes": sums.bytes,
                }
            )
        return rows

    def expected(self, hash_: int) -> str:
        """The backend in the table for a hash; "" if there is none."""
        number = self.table[hash_ % self.size]
        return next((one.address for one in self.backends.values() if one.number == number), "")
