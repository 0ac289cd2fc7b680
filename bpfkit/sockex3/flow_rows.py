# SPDX-License-Identifier: Apache-2.0
"""Selects, sorts and formats flows (tuples as in :mod:`bpfkit.net.packets.flows`)."""

from __future__ import annotations

from bpfkit.show.address import address_text
from bpfkit.show.protocols import protocol_name, protocol_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from bpfkit.net.packets.flows import Flow
    from bpfkit.show.rows import Row

__all__ = ["SORTS", "Choice", "cells", "flow_row", "plain_lines", "prefix", "sort_flows"]

#: Values of ``--sort``; counters sort in descending order, everything else ascending.
SORTS = ("bytes", "packets", "src", "dst", "sport", "dport", "proto")
_FIELD = {"src": 0, "dst": 1, "sport": 2, "dport": 3, "proto": 4, "bytes": 6, "packets": 7}


def prefix(text: str) -> tuple[int, int, int]:
    """``10.0.0.0/8``, ``2001:db8::/32`` or an address -> (address length, shift, leading bits).

    :raises ValueError: neither an address nor a prefix.
    """
    from _socket import AF_INET, AF_INET6, inet_pton

    address, slash, length = text.partition("/")
    try:
        raw = inet_pton(AF_INET6 if ":" in address else AF_INET, address)
    except OSError:
        raise ValueError(text) from None
    bits = len(raw) * 8
    if slash and not (length.isascii() and length.isdigit() and int(length) <= bits):
        raise ValueError(text)
    shift = bits - int(length) if slash else 0
    return len(raw), shift, int.from_bytes(raw, "big") >> shift


class Choice:
    """A filter for flows.  A flow must match at least one entry of each list that is not empty.

    :param hosts: prefixes (see :func:`prefix`); source or destination must match.
    :param ports: port numbers; source or destination must match.
    :param protos: protocol numbers.
    """

    __slots__ = ("hosts", "ports", "protos")

    def __init__(
        self,
        hosts: Iterable[tuple[int, int, int]] = (),
        ports: Iterable[int] = (),
        protos: Iterable[int] = (),
    ) -> None:
        self.hosts = list(hosts)
        self.ports = frozenset(ports)
        self.protos = frozenset(protos)

    def __bool__(self) -> bool:
        return bool(self.hosts or self.ports or self.protos)

    def __call__(self, flow: Flow) -> bool:
        """Whether the flow matches."""
        src, dst, sport, dport, proto = flow[:5]
        if self.protos and proto not in self.protos:
            return False
        if self.ports and sport not in self.ports and dport not in self.ports:
            return False
        return not self.hosts or any(
            len(raw) == size and int.from_bytes(raw, "big") >> shift == bits
            for size, shift, bits in self.hosts
            for raw in (src, dst)
        )


def proto(text: str) -> int:
    """A protocol keyword or number (argparse type)."""
    from argparse import ArgumentTypeError

    try:
        return protocol_number(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not an IP protocol") from None


def host(text: str) -> tuple[int, int, int]:
    """An address or a prefix (argparse type)."""
    from argparse import ArgumentTypeError

    try:
        return prefix(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not an address or a prefix") from None


def sort_flows(flows: list[Flow], by: str) -> None:
    """Sort in place.  The rest of the key breaks ties, so that the order of lines is stable."""
    field = _FIELD[by]

    def figure(flow: Any) -> tuple[Any, ...]:
        return -flow[field], flow[0], flow[1], flow[2] or 0, flow[3] or 0, flow[4]

    def address(flow: Any) -> tuple[Any, ...]:
        return len(flow[field]), flow[field], flow[1], flow[0], flow[2] or 0, flow[3] or 0, flow[4]

    def number(flow: Any) -> tuple[Any, ...]:
        value = flow[field]
        return -1 if value is None else value, flow[0], flow[1], flow[2] or 0, flow[3] or 0

    if by in ("bytes", "packets"):
        flows.sort(key=figure)
    else:
        flows.sort(key=address if by in ("src", "dst") else number)


def flow_row(flow: Flow) -> Row:
    """The flow as a row of JSON values: addresses and protocol as text, the rest as numbers."""
    src, dst, sport, dport, number, outer, total, packets = flow
    vlan, tunnels = outer if outer is not None else ([], [])
    return {
        "src": address_text(src),
        "sport": sport,
        "dst": address_text(dst),
        "dport": dport,
        "proto": protocol_name(number),
        "vlan": vlan,
        "tunnel": [
            {"type": kind, "src": address_text(near), "dst": address_text(far), "id": ident}
            for kind, near, far, ident in tunnels
        ],
        "bytes": total,
        "packets": packets,
    }


def _end(address: str, number: int | None) -> str:
    return address if number is None else f"{address}.{number}"


def _encapsulation(row: Row) -> str:
    """``vlan 5 7 gre 192.0.2.1>192.0.2.2 id 9``; "" for most flows."""
    words = []
    if row["vlan"]:
        words.append("vlan " + " ".join(map(str, row["vlan"])))
    for tunnel in row["tunnel"]:
        ident = "" if tunnel["id"] is None else f" id {tunnel['id']}"
        words.append(f"{tunnel['type']} {tunnel['src']}>{tunnel['dst']}{ident}")
    return " ".join(words)


def cells(row: Row) -> list[str]:
    """Source, destination, protocol and encapsulation: the text columns of a table row."""
    source, target = _end(row["src"], row["sport"]), _end(row["dst"], row["dport"])
    return [source, target, row["proto"], _encapsulation(row)]


def plain_lines(rows: Iterable[Row], total: Callable[[], str] | None = None) -> list[str]:
    """The kernel sample's format: a header, then ``src.port -> dst.port bytes packets proto …``."""
    body = []
    for row in rows:
        source, target, name, outer = cells(row)
        body.append((source, target, str(row["bytes"]), str(row["packets"]), name, outer))
    widths = [max((len(line[i]) for line in body), default=0) for i in range(5)]
    lines = ["IP src.port -> dst.port bytes packets proto"]
    for source, target, size, packets, name, outer in body:
        text = (
            f"{source:{widths[0]}} -> {target:{widths[1]}} {size:>{widths[2]}} "
            f"{packets:>{widths[3]}} {name:{widths[4]}} {outer}"
        )
        lines.append(text.rstrip())
    if total is not None:
        lines.append(total())
    return lines
