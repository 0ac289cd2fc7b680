# SPDX-License-Identifier: Apache-2.0
"""``--by``: what flows are added up by.

Every packet belongs to exactly one row, so that the rows' ``bytes`` and ``packets`` always add up
to those of all flows:

========== ======================================= ==============================================
by         a row                                   its ``bytes`` and ``packets``
========== ======================================= ==============================================
flow       one direction of a connection           of the flow
connection both directions                         of both
pair       two addresses                           between them, both directions
host       an address                              what it sent; ``bytes_received`` is beside it
port       a port and a protocol                   of flows whose lower port it is
proto      an IP protocol                          of flows of that protocol
process    a process                               what it sent, and what it got from elsewhere
cgroup     a cgroup                                of its processes
interface  an interface                            of flows that were counted on it
========== ======================================= ==============================================
"""

from __future__ import annotations

from bpfkit.show.address import address_text
from bpfkit.show.protocols import protocol_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from bpfkit.net.packets.flows import Flow, Outer
    from bpfkit.show.rows import Row
    from bpfkit.sockex3.rates import Reading

__all__ = [
    "BY",
    "NOT_ATTRIBUTED",
    "Group",
    "aggregate",
    "encapsulation_fields",
    "group_row",
    "sort_groups",
    "two_way",
]

#: Values of ``--by``.
BY = ("flow", "connection", "pair", "host", "port", "proto", "process", "cgroup", "interface")
#: The row of what belongs to no process that is known.
NOT_ATTRIBUTED = "(not attributed)"


_NOTHING = [0, 0, 0.0, 0.0]  # what groups without a second direction share


class Group:
    """The sum of some flows.

    :ivar key: what they have in common, see the functions ``_…_key``.
    :ivar sent: (bytes, packets, bytes per second, packets per second) in the direction of the key.
    :ivar received: the same in the other direction.
    :ivar flows: how many there are.
    :ivar active: when one of them had its last packet.
    :ivar first: when the first of them was seen.
    """

    __slots__ = ("active", "first", "flows", "key", "received", "sent")

    def __init__(self, key: Any, reading: Reading, both: bool) -> None:
        self.key = key
        self.sent = [0, 0, 0.0, 0.0]
        self.received = [0, 0, 0.0, 0.0] if both else _NOTHING
        self.flows = 0
        self.active = reading.active
        self.first = reading.first

    def _see(self, reading: Reading) -> None:
        self.active = max(self.active, reading.active)
        self.first = min(self.first, reading.first)

    def both(self, i: int) -> float:
        """Figure ``i`` of both directions."""
        return self.sent[i] + self.received[i]


# ---------------------------------------------------------------- keys: (key, is it the way back)


def _turned(outer: Outer | None) -> Outer | None:
    """Headers around a flow as they are around the flow of the other direction."""
    if outer is None:
        return None
    vlans, tunnels = outer
    return vlans, tuple([(kind, far, near, ident) for kind, near, far, ident in tunnels])


def _connection_key(flow: Flow) -> tuple[Any, bool]:
    """The end with the higher port is named first: mostly it is the client."""
    src, dst, sport, dport, proto, outer = flow[:6]
    here, there = (-(sport or 0), src), (-(dport or 0), dst)
    if here <= there:
        return (src, dst, sport, dport, proto, outer), False
    return (dst, src, dport, sport, proto, _turned(outer)), True


def _pair_key(flow: Flow) -> tuple[Any, bool]:
    src, dst = flow[:2]
    return ((src, dst), False) if src <= dst else ((dst, src), True)


def _port_key(flow: Flow) -> tuple[Any, bool]:
    sport, dport, proto = flow[2:5]
    if sport is None or dport is None:
        return (None, proto), False
    return (min(sport, dport), proto), False


_KEYS: dict[str, Callable[[Flow], tuple[Any, bool]]] = {
    "flow": lambda flow: (flow[:6] + flow[8:], False),
    "connection": _connection_key,
    "pair": _pair_key,
    "host": lambda flow: (flow[0], False),
    "port": _port_key,
    "proto": lambda flow: (flow[4], False),
}


def two_way(by: str) -> bool:
    """Do rows tell the two directions apart?"""
    return by in ("connection", "pair", "host")


def aggregate(
    by: str,
    flows: Iterable[Flow],
    readings: Iterable[Reading],
    key_of: Callable[[Flow], Any] | None = None,
) -> list[Group]:
    """Add the flows up.

    :param by: one of :data:`BY`.
    :param key_of: the key of a flow, where it is not in the flow itself: process, cgroup.
    """
    groups: dict[Any, Group] = {}
    both = two_way(by)

    def group(key: Any, reading: Reading) -> Group:
        found = groups.get(key)
        if found is None:
            found = groups[key] = Group(key, reading, both)
        else:
            found._see(reading)
        return found

    key = _KEYS.get(by)
    for flow, reading in zip(flows, readings, strict=True):
        if key_of is not None:
            which, back = key_of(flow), False
        else:
            assert key is not None
            which, back = key(flow)
        one = group(which, reading)
        one.flows += 1
        _add(one.received if back else one.sent, flow, reading)
        if by == "host":
            _add(group(flow[1], reading).received, flow, reading)
    return list(groups.values())


def _add(figures: list[float], flow: Flow, reading: Reading) -> None:
    figures[0] += flow[6]
    figures[1] += flow[7]
    figures[2] += reading.bytes_per_s
    figures[3] += reading.packets_per_s


# ---------------------------------------------------------------- order


def sort_groups(groups: list[Group], by: str, order: str) -> None:
    """Sort in place, descending; the key breaks ties, so that the order of lines is stable.

    :param by: what they were added up by.
    :param order: ``rate``, ``bytes``, ``packets`` or ``recent``: those with the latest packets
        first, among them the latest to appear.
    """

    def tie(key: Any) -> Any:
        if by in ("flow", "connection"):
            return key[0], key[1], key[2] or 0, key[3] or 0, key[4]
        return key if by in ("host", "pair", "proto") else str(key)

    def rate(group: Group) -> tuple[Any, ...]:
        return -group.both(2), -group.both(0), tie(group.key)

    def recent(group: Group) -> tuple[Any, ...]:
        return -group.active, -group.first, *rate(group)

    def figure(group: Group) -> tuple[Any, ...]:
        return -group.both(1 if order == "packets" else 0), tie(group.key)

    groups.sort(key={"rate": rate, "recent": recent}.get(order, figure))


# ---------------------------------------------------------------- rows


def encapsulation_fields(outer: Outer | None) -> Row:
    """``vlan`` and ``tunnel`` of a flow's row."""
    vlans, tunnels = outer if outer is not None else ((), ())
    return {
        "vlan": list(vlans),
        "tunnel": [
            {"type": kind, "src": address_text(near), "dst": address_text(far), "id": ident}
            for kind, near, far, ident in tunnels
        ],
    }


def _identity(by: str, key: Any) -> Row:
    """The fields that say what a row is about."""
    if by in ("flow", "connection"):
        return {
            "src": address_text(key[0]),
            "sport": key[2],
            "dst": address_text(key[1]),
            "dport": key[3],
            "proto": protocol_name(key[4]),
            **encapsulation_fields(key[5]),
        }
    if by == "pair":
        return {"src": address_text(key[0]), "dst": address_text(key[1])}
    if by == "host":
        return {"host": address_text(key)}
    if by == "port":
        return {"port": key[0], "proto": protocol_name(key[1])}
    if by == "proto":
        return {"proto": protocol_name(key)}
    if by == "process":
        pid, name = key or (None, NOT_ATTRIBUTED)
        return {"process": name, "pid": pid}
    return {by: key or NOT_ATTRIBUTED}


def group_row(by: str, group: Group) -> Row:
    """A row of JSON values: identity, totals, rates; ``flows`` where several may be added up."""
    row = _identity(by, group.key)
    total = group.sent
    if two_way(by) and by != "host":  # a packet that a host receives is in its sender's row
        total = [group.both(i) for i in range(4)]
    row["bytes"], row["packets"] = total[0], total[1]
    row["bytes_per_s"], row["packets_per_s"] = round(total[2], 1), round(total[3], 1)
    if two_way(by):
        if by != "host":
            row["bytes_sent"] = group.sent[0]
            row["bytes_sent_per_s"] = round(group.sent[2], 1)
        else:
            row["packets_received"] = group.received[1]
        row["bytes_received"] = group.received[0]
        row["bytes_received_per_s"] = round(group.received[2], 1)
    if by != "flow":
        row["flows"] = group.flows
    return row
