# SPDX-License-Identifier: Apache-2.0
"""Reads flows from the maps of a loaded ``bpf_c/socket/sockex3.bpf.c`` (structs in sockex3_flow.h).

A flow is a plain tuple, so that a hundred thousand of them cost little::

    (src, dst, sport, dport, proto, outer, bytes, packets, interface)

``src`` and ``dst`` are 4 or 16 bytes in network byte order.  ``sport`` and ``dport`` are None if
the flow has no ports.  ``proto`` is the IP protocol number.  ``outer`` is None or (VLAN ids,
tunnels), each outermost first; a tunnel is (type, source, destination, id or None).
``interface`` is the number that the loader gave the interface, 0 where only one is watched.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from bpfkit.core.object import Object

    Tunnel: TypeAlias = tuple[str, bytes, bytes, int | None]
    Outer: TypeAlias = tuple[tuple[int, ...], tuple[Tunnel, ...]]
    Flow: TypeAlias = tuple[bytes, bytes, int | None, int | None, int, Outer | None, int, int, int]

__all__ = ["ENTRY", "LAYERS", "SOURCE", "fill_jump", "read_flows"]

#: The C source, and its program that a socket gets; that one calls the layers.
SOURCE = "socket/sockex3.bpf.c"
ENTRY = "sockex3"
#: ``enum layer`` of the C source: the slots of its tail-call array, each for the program of that
#: name.
LAYERS = (
    "parse_eth parse_vlan parse_mpls parse_ipv4 parse_ipv6 parse_ipv6_ext parse_gre "
    "parse_transport parse_pppoe count"
).split()
#: ``enum outer_type`` of the C source: 0 is a VLAN tag, the others are tunnels.
_TUNNELS = ("vlan", "gre", "ipip", "6in4", "4in6", "6in6", "vxlan")
_FLOW_PORTS = 1


def fill_jump(loaded: Object) -> None:
    """Put the layers' programs into the tail-call array."""
    for number, layer in enumerate(LAYERS):
        loaded["jump"][number] = loaded.programs[layer]


def read_flows(loaded: Object) -> list[Flow]:
    """All flows of the loaded object."""
    rows = loaded["flows"].rows()
    # Read after the flows, so that every header that a flow refers to is present.
    outers = _chains(loaded["outers"].rows()) if any(row[8] for row in rows) else {}
    return [
        (
            src[:4] if family == 4 else src,
            dst[:4] if family == 4 else dst,
            sport if flags & _FLOW_PORTS else None,
            dport if flags & _FLOW_PORTS else None,
            proto,
            outers.get(outer),
            size,
            packets,
            number,
        )
        for src, dst, sport, dport, family, proto, flags, number, outer, packets, size in rows
    ]


def _chains(rows: list[tuple[Any, ...]]) -> dict[int, Outer]:
    """Header id -> the chain of headers that ends with it, outermost first."""
    known = {row[-1]: row for row in rows}
    chains: dict[int, Outer] = {}
    for start in known:
        vlan: list[int] = []
        tunnel: list[Tunnel] = []
        at = start
        while at in known:
            src, dst, at, ident, kind, family, has_id = known[at][:7]
            if kind == 0:
                vlan.insert(0, ident)
                continue
            size = 4 if family == 4 else 16
            tunnel.insert(0, (_TUNNELS[kind], src[:size], dst[:size], ident if has_id else None))
        chains[start] = tuple(vlan), tuple(tunnel)
    return chains
