# SPDX-License-Identifier: Apache-2.0
"""The socket family's programs as the tests use them: load, run frames, read rows."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

import bpfkit

LAYERS = (
    "parse_eth",
    "parse_vlan",
    "parse_mpls",
    "parse_ipv4",
    "parse_ipv6",
    "parse_ipv6_ext",
    "parse_gre",
    "parse_transport",
    "parse_pppoe",
    "count",
)
BOTH = 3
_OUTER_VLAN = 0
_OUTER_TYPES = ("vlan", "gre", "ipip", "6in4", "4in6", "6in6", "vxlan")


class Tunnel(NamedTuple):
    """A tunnel around a flow, as in the JSON rows."""

    type: str
    src: str
    dst: str
    id: int | None = None


class Flow(NamedTuple):
    """A row's identity; ``proto`` is the number, addresses are text in RFC 5952 form."""

    src: str
    dst: str
    proto: int
    sport: int | None = None
    dport: int | None = None
    vlan: tuple[int, ...] = ()
    tunnel: tuple[Tunnel, ...] = ()


#: (packets, bytes)
Traffic = tuple[int, int]


def address(raw: bytes, family: int) -> str:
    """An address of the maps as text."""
    if family == 4:
        assert raw[4:] == bytes(12), "bytes behind an IPv4 address must be zero"
        return str(IPv4Address(raw[:4]))
    return str(IPv6Address(raw))


class Counter:
    """A loaded program; ``run`` a frame and read what it was counted as."""

    source = ""
    entry = ""

    def __init__(
        self,
        consts: Mapping[str, int] | None = None,
        max_entries: Mapping[str, int] | None = None,
        map_types: Mapping[str, str] | None = None,
    ) -> None:
        self.object = bpfkit.load(
            self.source,
            consts={"direction": BOTH, **(consts or {})},
            max_entries=max_entries,
            map_types=map_types,
        )
        self.prepare()

    def prepare(self) -> None:
        """Between loading and running."""

    def close(self) -> None:
        """Unload."""
        self.object.close()

    @property
    def program(self) -> Any:
        """The one that a socket gets."""
        return self.object.programs[self.entry]

    def run(self, frame: bytes, repeat: int = 1, wire_len: int = 0, **skb: int) -> None:
        """Run a frame, ``wire_len`` bytes long in its capture, with fields of ``__sk_buff``."""
        result = self.program.run(bytes(frame), repeat, skb={"cb": (0, 0, 0, 0, wire_len), **skb})
        assert result.retval == 0, "a tap keeps nothing"

    def totals(self) -> dict[str, Traffic]:
        """seen, nonip, unattributed."""
        (_, sums), *_ = self.object["totals"].sums()
        return {
            name: (getattr(sums, name).packets, getattr(sums, name).bytes)
            for name in ("seen", "nonip", "unattributed")
        }


class Sockex1(Counter):
    """Rows by protocol number."""

    source, entry = "socket/sockex1.bpf.c", "sockex1"

    def rows(self) -> dict[int, Traffic]:
        """Protocols that were seen."""
        sums = self.object["protocols"].sums()
        return {key: (row.packets, row.bytes) for key, row in sums if row.packets}

    def nonip(self) -> Traffic:
        """Everything else."""
        (_, row), *_ = self.object["nonip"].sums()
        return row.packets, row.bytes


class Sockex2(Counter):
    """Rows by destination address."""

    source, entry = "socket/sockex2.bpf.c", "sockex2"

    def rows(self) -> dict[str, Traffic]:
        """Destinations that were seen."""
        return {
            address(key.addr, key.family): (row.packets, row.bytes)
            for key, row in self.object["destinations"].sums()
        }


class Sockex3(Counter):
    """Rows by flow."""

    source, entry = "socket/sockex3.bpf.c", "sockex3"

    def prepare(self) -> None:
        for number, name in enumerate(LAYERS):
            self.object["jump"][number] = self.object.programs[name]

    def outers(self) -> dict[int, tuple[tuple[int, ...], tuple[Tunnel, ...]]]:
        """id -> (VLAN ids, tunnels), outermost first."""
        headers = {number: key for key, number in self.object["outers"].items()}
        assert 0 not in headers and len(headers) == len(self.object["outers"])

        def chain(number: int) -> tuple[tuple[int, ...], tuple[Tunnel, ...]]:
            if not number:
                return (), ()
            key = headers[number]
            vlan, tunnel = chain(key.outer_id)
            if key.type == _OUTER_VLAN:
                return (*vlan, key.id), tunnel
            src, dst = address(key.src, key.family), address(key.dst, key.family)
            this = Tunnel(_OUTER_TYPES[key.type], src, dst, key.id if key.has_id else None)
            return vlan, (*tunnel, this)

        return {number: chain(number) for number in headers}

    def rows(self) -> dict[Flow, Traffic]:
        """Flows that were seen."""
        outers = {0: ((), ()), **self.outers()}
        rows: dict[Flow, Traffic] = {}
        for key, row in self.object["flows"].sums():
            assert key.flags & 1 or (key.sport, key.dport) == (0, 0)
            vlan, tunnel = outers[key.outer_id]
            flow = Flow(
                address(key.src, key.family),
                address(key.dst, key.family),
                key.proto,
                key.sport if key.flags & 1 else None,
                key.dport if key.flags & 1 else None,
                vlan,
                tunnel,
            )
            packets, size = rows.get(flow, (0, 0))
            rows[flow] = packets + row.packets, size + row.bytes
        return rows

    def clear(self) -> None:
        """Forget everything that was counted."""
        self.object["flows"].clear()
        self.object["outers"].clear()
        self.object["totals"].clear()

    def check_sum(self) -> None:
        """flows + nonip + unattributed is everything that was seen."""
        totals = self.totals()
        rows = list(self.rows().values())
        for i in (0, 1):
            parts = sum(row[i] for row in rows) + totals["nonip"][i] + totals["unattributed"][i]
            assert parts == totals["seen"][i]

    def flow_of(self, frame: bytes, **options: int) -> tuple[Flow | None, Traffic]:
        """Run one frame alone: (its flow, None for non-IP; packets and bytes)."""
        self.clear()
        self.run(frame, **options)
        self.check_sum()
        rows = {flow: row for flow, row in self.rows().items() if row[0]}
        if not rows:
            return None, self.totals()["nonip"]
        ((flow, row),) = rows.items()
        return flow, row
