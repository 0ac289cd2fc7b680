# SPDX-License-Identifier: Apache-2.0
"""Selects, sorts and formats flows (tuples as in :mod:`bpfkit.net.packets.flows`)."""

from __future__ import annotations

from bpfkit.show.address import address_text
from bpfkit.show.protocols import protocol_name, protocol_number
from bpfkit.show.text import human, table
from bpfkit.sockex3.groups import encapsulation_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from bpfkit.net.packets.flows import Flow
    from bpfkit.show.rows import Row

__all__ = ["FIGURES", "SORTS", "Choice", "cells", "flow_row", "plain_lines", "prefix", "sort_flows"]

#: Values of ``--sort`` for every ``--by``: figures in descending order.
FIGURES = ("rate", "bytes", "packets", "recent")
#: Values of ``--sort`` for flows: those, and the rest in ascending order.
SORTS = (*FIGURES, "src", "dst", "sport", "dport", "proto")
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
    """Sort in place by a field.  The rest of the key breaks ties: the order of lines is stable."""
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
    src, dst, sport, dport, number, outer, total, packets = flow[:8]
    return {
        "src": address_text(src),
        "sport": sport,
        "dst": address_text(dst),
        "dport": dport,
        "proto": protocol_name(number),
        **encapsulation_fields(outer),
        "bytes": total,
        "packets": packets,
    }


# ---------------------------------------------------------------- for people


def _end(address: str, number: int | None) -> str:
    return address if number is None else f"{address}.{number}"


def _named(row: Row, field: str) -> str:
    """An address, or its name where that is known."""
    return str(row.get(f"{field}_name") or row[field])


def _encapsulation(row: Row) -> str:
    """``vlan 5 7 gre 192.0.2.1>192.0.2.2 id 9``; "" for most flows."""
    words = []
    if row["vlan"]:
        words.append("vlan " + " ".join(map(str, row["vlan"])))
    for tunnel in row["tunnel"]:
        ident = "" if tunnel["id"] is None else f" id {tunnel['id']}"
        words.append(f"{tunnel['type']} {tunnel['src']}>{tunnel['dst']}{ident}")
    return " ".join(words)


def cells(row: Row) -> dict[str, str]:
    """The text columns of a table row: title -> text."""
    if "sport" in row:
        return {
            "source": _end(_named(row, "src"), row["sport"]),
            "destination": _end(_named(row, "dst"), row["dport"]),
            "proto": row["proto"],
            "interface": row.get("interface", ""),
            "around": _encapsulation(row),
        }
    found = {}
    for field, value in row.items():
        if field == "bytes":
            break
        if not field.endswith("_name"):
            found[field] = _named(row, field) if value is not None else "-"
    return found


def rate_title(field: str, bits: bool) -> str:
    """The title of a column of rates: ``bytes/s``, ``bit/s``, ``packets/s``, ``sent/s``."""
    if field == "bytes":
        return "bit/s" if bits else "bytes/s"
    return f"{field.removeprefix('bytes_')}/s"


def rate_text(value: float, bits: bool = False) -> str:
    """Bytes per second as people read them: ``1.20 MB/s``, ``9.60 Mbit/s``."""
    return human(value * 8, "bit/s") if bits else human(value, "B/s")


def figures(row: Row, bits: bool) -> list[tuple[str, str, int]]:
    """The live view's columns of figures: (title, text, rank), all of them with SI prefixes."""
    host = "host" in row

    def size(field: str, rank: int) -> tuple[str, str, int]:
        title = "sent" if host and field == "bytes" else field.removeprefix("bytes_")
        return title, human(row[field], "B"), rank

    def rate(field: str, rank: int) -> tuple[str, str, int]:
        title = "sent/s" if host and field == "bytes" else rate_title(field, bits)
        value = row[f"{field}_per_s"] or 0
        return title, human(value * 8, "bit") if bits else human(value, "B"), rank

    pace = "pkt/s", human(row["packets_per_s"] or 0), 3
    count = "packets", human(row["packets"]), 4
    if host:
        both = [size("bytes_received", 2), rate("bytes_received", 0)]
        return [size("bytes", 2), rate("bytes", 0), *both, count, pace]
    found = [size("bytes", 1), rate("bytes", 0), count, pace]
    if "bytes_sent" in row:
        found += [rate("bytes_sent", 2), rate("bytes_received", 2)]
    return found


def _plain(row: Row, field: str, bits: bool) -> str:
    """A figure in plain digits: a program that reads a pipe takes a blank for the field's end."""
    value = row[field]
    if value is None:
        return "-"
    if not field.endswith("_per_s"):
        return str(value)
    if field.startswith("packets"):
        return f"{value:.1f}"
    return f"{value * 8 if bits else value:.0f}"


def plain_table(rows: list[Row], bits: bool = False) -> list[str]:
    """Rows of sums as aligned lines, figures in plain digits."""
    if not rows:
        return []
    names = list(cells(rows[0]))
    every = list(rows[0])
    fields = every[every.index("bytes") :]
    texts = [cells(row) for row in rows]
    names = [name for name in names if any(text[name] for text in texts)]
    titles = names[:]
    for field in fields:
        base = field.removesuffix("_per_s")
        titles.append(field if base == field else rate_title(base, bits))
    body = [
        [*(text[name] for name in names), *(_plain(row, field, bits) for field in fields)]
        for row, text in zip(rows, texts, strict=True)
    ]
    return table(titles, body, right=[False] * len(names) + [True] * len(fields))


def plain_lines(
    rows: Iterable[Row], total: Callable[[], str] | None = None, *, bits: bool = False
) -> list[str]:
    """The kernel sample's format: a header, then ``src.port -> dst.port bytes packets …``.

    Rates stand behind the totals, where the rows have some.
    """
    fields = ["bytes", "packets"]
    titles = fields[:]
    found = list(rows)
    if found and found[0].get("bytes_per_s") is not None:
        fields += ["bytes_per_s", "packets_per_s"]
        titles += [rate_title("bytes", bits), "packets/s"]
    body = []
    for row in found:
        words = list(cells(row).values())
        figures = [_plain(row, field, bits) for field in fields]
        body.append((*words[:2], *figures, *words[2:]))
    count = len(fields)
    widths = [max((len(line[i]) for line in body), default=0) for i in range(count + 5)]
    where = any(line[count + 3] for line in body)
    titles += ["proto", "interface"] if where else ["proto"]
    lines = [f"IP src.port -> dst.port {' '.join(titles)}"]
    for line in body:
        left = f"{line[0]:{widths[0]}} -> {line[1]:{widths[1]}} "
        middle = " ".join([f"{line[i]:>{widths[i]}}" for i in range(2, 2 + count)])
        names = [f"{line[i]:{widths[i]}}" for i in range(2 + count, 4 + count) if widths[i]]
        lines.append(" ".join([left + middle, *names, line[-1]]).rstrip())
    if total is not None:
        lines.append(total())
    return lines
