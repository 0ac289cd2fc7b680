# SPDX-License-Identifier: Apache-2.0
"""Flows as the maps of ``bpf_c/socket/sockex3.bpf.c`` hold them (structs in sockex3_flow.h)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.core.object import Object
    from bpfkit.sockex3.flow_rows import Flow, Outer, Tunnel

__all__ = ["fill_jump", "read_flows"]

#: enum layer of the C side: what its tail calls number; each is the program of that name.
LAYERS = (
    "parse_eth parse_vlan parse_mpls parse_ipv4 parse_ipv6 parse_ipv6_ext parse_gre "
    "parse_transport count"
).split()
#: enum outer_type: 0 is a VLAN tag, the others are tunnels.
TUNNELS = ("vlan", "gre", "ipip", "6in4", "4in6", "6in6", "vxlan")
FLOW_PORTS = 1


def fill_jump(loaded: Object) -> None:
    """Enter the layers' programs in the tail-call array."""
    for number, layer in enumerate(LAYERS):
        loaded["jump"][number] = loaded.programs[layer]


def read_flows(loaded: Object) -> list[Flow]:
    """All flows of the loaded object, as :mod:`bpfkit.sockex3.flow_rows` describes them."""
    rows = loaded["flows"].rows()
    # Read after the flows: whatever a flow refers to is there by now.
    around = _chains(loaded["outers"].rows()) if any(row[8] for row in rows) else {}
    return [
        (
            src[:4] if family == 4 else src,
            dst[:4] if family == 4 else dst,
            sport if flags & FLOW_PORTS else None,
            dport if flags & FLOW_PORTS else None,
            proto,
            around.get(outer),
            size,
            packets,
        )
        for src, dst, sport, dport, family, proto, flags, _, outer, packets, size in rows
    ]


def _chains(rows: list[tuple[Any, ...]]) -> dict[int, Outer]:
    """The headers that each id stands for, outermost first."""
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
            tunnel.insert(0, (TUNNELS[kind], src[:size], dst[:size], ident if has_id else None))
        chains[start] = vlan, tunnel
    return chains
