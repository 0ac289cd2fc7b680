# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.sockex3: who talks to whom.  The C side is bpf_c/socket/sockex3.bpf.c."""

from __future__ import annotations

import os

from bpfkit.app.options import port, positive
from bpfkit.app.tap import TapApp, amount
from bpfkit.core.errors import UsageError
from bpfkit.net.packets.flows import ENTRY, SOURCE, fill_jump, read_flows

__all__ = ["Sockex3"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.core.object import Object
    from bpfkit.show.rows import Row, Verdict

VXLAN_PORT = 4789


def fits(flows: int) -> None:
    """The kernel makes room for all flows at once; a table that memory cannot hold is refused.

    :raises UsageError: it would take more than half of what is free.
    """
    per_flow = 128 + 24 * (os.cpu_count() or 1)  # element and key, then a value for each CPU
    with open("/proc/meminfo", "rb") as file:
        for line in file:
            if line.startswith(b"MemAvailable:"):
                free = int(line.split()[1]) * 1024
                if flows * per_flow > free // 2:
                    raise UsageError(
                        f"--max-flows {flows} is too much",
                        why=f"it takes {flows * per_flow >> 20} MB, {free >> 20} MB are available",
                    )


class Sockex3(TapApp):
    """Who talks to whom: bytes and packets per flow, through VLANs, MPLS and tunnels."""

    name = "sockex3"
    source = SOURCE
    counters = ("bytes", "packets")
    direction = "both"
    entry = ENTRY
    epilog = (
        "Flows are found in VLANs, MPLS, PPPoE, Ethernet pseudowires, GRE, PPTP, IP in IP and, "
        "with --vxlan, VXLAN. ERSPAN, SNAP and other encapsulations are not looked into: such "
        "frames count as GRE or as not IP. A VLAN tag with id 0 is a priority, not a VLAN."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        from bpfkit.sockex3.flow_rows import SORTS, host, proto

        super().add_options(parser)
        add = parser.add_argument
        add("--max-flows", metavar="N", type=positive, help="room in the table (default: 16384)")
        add("--lru", action="store_true", help="when the table is full, forget the oldest flow")
        add(
            "--vxlan",
            metavar="PORT",
            type=port,
            nargs="?",
            const=VXLAN_PORT,
            default=0,
            help=f"look into VXLAN (UDP port {VXLAN_PORT} if not given)",
        )
        add("--sort", choices=SORTS, default="bytes", help="order of the flows (default: bytes)")
        add("--top", metavar="N", type=positive, help="show the first N flows only")
        chosen = "show only flows of this {} (repeatable; the summary still counts all)"
        for name, kind, what in (
            ("host", host, "address or prefix"),
            ("port", port, "port"),
            ("proto", proto, "protocol"),
        ):
            add(
                f"--{name}",
                type=kind,
                action="append",
                default=[],
                metavar=name.upper(),
                help=chosen.format(what),
            )

    def load_options(self) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if self.options.max_flows:
            fits(self.options.max_flows)
            more["max_entries"] = {"flows": self.options.max_flows}
        if self.options.lru:
            more["map_types"] = {"flows": "lru_percpu_hash"}
        return more

    def consts(self) -> dict[str, int]:
        return {"vxlan_port": self.options.vxlan}

    def prepare(self, loaded: Object) -> None:
        fill_jump(loaded)

    def rows(self) -> list[Row]:
        """The flows that were asked for, then the summary of everything."""
        from bpfkit.sockex3.flow_rows import Choice, flow_row, sort_flows

        options = self.options
        before = self.object["totals"].sum(0)
        flows = read_flows(self.object)
        totals = self.object["totals"].sum(0)
        summary = {
            "summary": True,
            "packets": sum([flow[7] for flow in flows]),
            "bytes": sum([flow[6] for flow in flows]),
            "flows": len(flows),
        }
        for part in ("nonip", "unattributed"):
            for field in ("packets", "bytes"):
                value = getattr(getattr(totals, part), field)
                if part == "unattributed" and options.lru:
                    # What evicted flows had counted is in no flow any more.
                    seen = getattr(before.seen, field) - getattr(before.nonip, field)
                    value = max(value, seen - summary[field])
                summary[f"{part}_{field}"] = value
        # By their definition these add up; totals.seen would be a moment older or younger.
        for field in ("packets", "bytes"):
            summary[field] += summary[f"nonip_{field}"] + summary[f"unattributed_{field}"]
        choice = Choice(options.host, options.port, options.proto)
        if choice:
            flows = [flow for flow in flows if choice(flow)]
        sort_flows(flows, options.sort)
        return [*map(flow_row, flows[: options.top]), summary]

    def lines(self, rows: list[Row]) -> Iterable[str]:
        from bpfkit.sockex3.flow_rows import plain_lines

        return [*plain_lines(rows[:-1]), *self.notes(rows)]

    def text_cells(self, row: Row) -> dict[str, str]:
        from bpfkit.sockex3.flow_rows import cells

        return dict(zip(("source", "destination", "proto", "around"), cells(row), strict=True))

    def notes(self, rows: list[Row]) -> list[str]:
        total = rows[-1]
        text = f"total {total['bytes']} bytes {total['packets']} packets in {total['flows']} flows"
        lost = "of flows that were forgotten" if self.options.lru else "no room for their flow"
        for part, word in (("nonip", "not IP"), ("unattributed", lost)):
            if total[f"{part}_packets"]:
                text += (
                    f", {word}: {total[f'{part}_bytes']} bytes {total[f'{part}_packets']} packets"
                )
        return [text]

    def verify(self) -> Iterable[Verdict]:
        """Each flow against the sockets that made it, the sum against the interface."""
        from bpfkit.sockex3.flow_rows import flow_row

        rows = [*map(flow_row, read_flows(self.object))]
        counted = {
            (row["src"], row["sport"], row["dport"], row["proto"]): (row["packets"], row["bytes"])
            for row in rows
        }
        for key, made in sorted(self.made_by_flow().items(), key=str):
            found = counted.pop(key, (0, 0))
            host, sport, dport, proto = key
            ports = "" if sport is None else f" port {sport} to port {dport}"
            text = f"{host}{ports} {proto}: {amount(*made)} made, {amount(*found)} counted"
            yield made == found, text
        yield not counted, f"{len(counted)} flows counted that nobody made"
        seen = self.object["totals"].sum(0).seen
        yield self.compare_total(seen.packets, seen.bytes)
