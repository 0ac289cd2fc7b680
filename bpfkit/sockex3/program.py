# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sockex3: who talks to whom.  The C side is bpf_c/socket/sockex3.bpf.c."""

from __future__ import annotations

import os
from time import monotonic

from bpfkit.app.options import port, positive, seconds
from bpfkit.app.place import add_interface
from bpfkit.app.tap import TapApp, amount, read_error, sums_text
from bpfkit.core.errors import UsageError
from bpfkit.core.words import count_of
from bpfkit.net.packets.flows import ENTRY, SOURCE, fill_jump, read_flows

__all__ = ["Sockex3"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from bpfkit.core.object import Object
    from bpfkit.net.packets.flows import Flow
    from bpfkit.show.rows import Row, Verdict
    from bpfkit.sockex3.interfaces import Interfaces
    from bpfkit.sockex3.names import Names
    from bpfkit.sockex3.owners import Owners
    from bpfkit.sockex3.rates import Rates, Reading

VXLAN_PORT = 4789
#: ``-i any``: all interfaces of the namespace.
ANY = "any"
#: Seconds after which the live view leaves out a row without packets.
IDLE = 30.0
#: Rows that the live view has at most; nobody looks at more, and a full table costs time.
VIEW_MOST = 1000
#: Values of ``--by`` for which owners of sockets are found.
OWNED = ("process", "cgroup")


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
        "frames count as GRE or as not IP. A VLAN tag with id 0 is a priority, not a VLAN. "
        "--by: connection joins both directions; host counts what an address sent, and shows what "
        "it received beside it; port is the lower one of a flow; process and cgroup are those that "
        "send a packet, or receive it if it comes from elsewhere. Rows of every --by, not IP and "
        "no room left add up to the total."
    )

    #: Several interfaces, where they are watched.
    interfaces: Interfaces | None = None
    owners: Owners | None = None
    names: Names | None = None
    rates: Rates
    #: Rows that are left out of a table: idle ones, and those behind the first VIEW_MOST.
    _idle = _left = 0
    _lasting: tuple[Any, Any] | None = None

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        from bpfkit.sockex3.flow_rows import SORTS, host, proto
        from bpfkit.sockex3.groups import BY

        super().add_options(parser)
        add = parser.add_argument
        every = f"{', '.join(BY[:-1])} or {BY[-1]}"
        help_ = f"what a row stands for: {every} (default: flow)"
        add("--by", choices=BY, default="flow", metavar="BY", help=help_)
        help_ = f"order of the rows: {', '.join(SORTS[:-1])} or {SORTS[-1]} (default: rate)"
        add("--sort", choices=SORTS, default="rate", metavar="FIELD", help=help_)
        add("--bits", action="store_true", help="rates in bits per second, not bytes")
        add(
            "--idle",
            metavar="S",
            type=seconds,
            help="leave out rows without packets for S seconds: in the live view (default: 30), "
            "in text if given; they stay in the sums and in JSON",
        )
        add("--resolve", action="store_true", help="show names of addresses when they are known")
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
        add("--top", metavar="N", type=positive, help="show the first N rows only")
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

    @classmethod
    def add_interface_option(cls, parser: ArgumentParser) -> None:
        add_interface(
            parser,
            "interface to watch (default: lo, with a demo); repeatable; any: all of the namespace",
            several=True,
        )

    # -- several interfaces

    def check_options(self) -> None:
        """One interface is watched as ever; the sorts and sums must go together."""
        from bpfkit.sockex3.flow_rows import FIGURES

        options = self.options
        given = options.interface
        self.given: list[str] = []
        if given is not None:
            if ANY in given and len(given) > 1:
                raise UsageError(f"-i {ANY} is all interfaces", why="another -i adds nothing")
            if len(set(given)) < len(given):
                raise UsageError("an interface was given twice", why=", ".join(given))
            options.interface = given[0] if len(given) == 1 else ", ".join(given)
            self.given = given if len(given) > 1 or given == [ANY] else []
        super().check_options()
        if options.check and self.given:
            raise UsageError("--check takes one interface", why="its traffic runs over lo")
        if options.by != "flow" and options.sort not in FIGURES:
            raise UsageError(
                f"--sort {options.sort} needs --by flow",
                why=f"rows of --by {options.by} are sorted by {', '.join(FIGURES)}",
            )
        if self.capture_path() is not None and options.by in (*OWNED, "interface"):
            raise UsageError(
                f"--pcap and --by {options.by} do not go together",
                why="a capture does not say whose its packets were",
            )

    def enter(self) -> None:
        """Names are looked up where the program was started, the rest in the namespace."""
        if self.options.resolve:
            from bpfkit.sockex3.names import Names

            self.names = Names()
        if not self.given:
            super().enter()
            return
        from bpfkit.sockex3.interfaces import Interfaces

        namespace = self.place.open_namespace()
        if namespace is not None:
            self.enter_namespace(namespace)
        self.interfaces = Interfaces(self.given, self.wanted_directions(), self.note)

    def setup(self) -> None:
        """Load the program, and put it on a packet socket of each interface, or on one of all."""
        if self.interfaces is None:
            super().setup()
        else:
            program = self.load_program()
            for socket in self.interfaces.attach(self.object, program):
                self.keep(socket)
                self.check_regularly(lambda socket=socket: read_error(socket))  # type: ignore[misc]
                self.sockets.append(socket)
            self.check_regularly(self.interfaces.check)
        if self.options.by in OWNED:
            self._find_owners()

    def describe_target(self) -> str:
        """Interfaces and namespace."""
        if self.interfaces is None:
            return super().describe_target()
        return self.place.describe(str(self.interfaces))

    def _find_owners(self) -> Owners:
        """See from now on who holds which socket."""
        if self.owners is None:
            from bpfkit import load
            from bpfkit.sockex3.owners import SOURCE as OWNERS
            from bpfkit.sockex3.owners import Owners

            cache = not self.options.no_cache
            self.owners = self.keep(Owners(lambda: load(OWNERS, cache=cache), self.note))
            if self.options.verbose:
                why = f" ({self.owners.why})" if self.owners.why else ""
                self.note(f"processes are found by {self.owners.how}{why}")
        return self.owners

    def demo(self) -> None:
        """As ever; and a connection that lasts, so that processes have something to show."""
        super().demo()
        if self.options.by in OWNED and not self.options.check:
            self._send_more()

    def _send_more(self) -> None:
        import socket

        if self._lasting is None:
            with socket.create_server(("127.0.0.1", 0)) as server:
                far = socket.create_connection(server.getsockname())
                near, _ = server.accept()
            self._lasting = self.keep(far), self.keep(near)
        far, near = self._lasting
        for _ in range(20):
            far.sendall(bytes(1000))
            near.recv(1000, socket.MSG_WAITALL)

    # -- loading

    def load_options(self) -> dict[str, Any]:
        more: dict[str, Any] = {}
        sizes = {}
        if self.options.max_flows:
            fits(self.options.max_flows)
            sizes["flows"] = self.options.max_flows
        if self.interfaces is not None:
            from bpfkit.sockex3.interfaces import MOST

            sizes["interfaces"] = MOST
        if sizes:
            more["max_entries"] = sizes
        if self.options.lru:
            more["map_types"] = {"flows": "lru_percpu_hash"}
        return more

    def consts(self) -> dict[str, int]:
        return {"vxlan_port": self.options.vxlan, "several": int(self.interfaces is not None)}

    def prepare(self, loaded: Object) -> None:
        from bpfkit.sockex3.rates import Rates

        fill_jump(loaded)
        self.rates = Rates(self.options.interval, monotonic())

    # -- figures

    def rows(self) -> list[Row]:
        """What was asked for, then the summary of everything."""
        flows, summary = self._count()
        options = self.options
        now = monotonic()
        readings = self.rates.update(flows, now)
        total = self.rates.update_sum(summary["bytes"], summary["packets"], now)
        summary["bytes_per_s"] = round(total.bytes_per_s, 1)
        summary["packets_per_s"] = round(total.packets_per_s, 1)
        self._idle = self._left = 0
        return [*self._shown(flows, readings, options, now), summary]

    def _count(self) -> tuple[list[Flow], Row]:
        """All flows, and the summary without rates."""
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
        return flows, summary

    def _shown(
        self, flows: list[Flow], readings: list[Reading], options: Namespace, now: float
    ) -> list[Row]:
        """The rows that the options ask for."""
        from bpfkit.sockex3.flow_rows import FIGURES, Choice, sort_flows
        from bpfkit.sockex3.groups import aggregate, group_row, sort_groups

        choice = Choice(options.host, options.port, options.proto)
        both = list(zip(flows, readings, strict=True))
        if choice:
            both = [pair for pair in both if choice(pair[0])]
        by = options.by
        chosen = [flow for flow, _ in both]
        key_of = self._key_of(by, chosen, [reading.active == now for _, reading in both])
        groups = aggregate(by, chosen, [reading for _, reading in both], key_of)
        if options.sort in FIGURES:
            sort_groups(groups, by, options.sort)
        else:
            order = chosen[:]
            sort_flows(order, options.sort)
            place = {flow[:6] + flow[8:]: i for i, flow in enumerate(order)}
            groups.sort(key=lambda group: place[group.key])
        view = self.sink is not None and self.sink.is_view
        idle = options.idle or (IDLE if view else None)
        if idle is not None and not options.json:
            active = [group for group in groups if now - group.active <= idle]
            self._idle = len(groups) - len(active)
            groups = active
        most = options.top
        if view and (most is None or most > VIEW_MOST):
            most = VIEW_MOST
            self._left = max(0, len(groups) - most)
        rows = []
        for group in groups[:most]:
            row = group_row(by, group)
            if by == "flow" and self.interfaces is not None:
                row = {"interface": self.interfaces.names.get(group.key[6], ""), **row}
            if self.names is not None:
                row = self._named(row, self.names)
            rows.append(row)
        return rows

    def _key_of(
        self, by: str, flows: list[Flow], is_new: list[bool]
    ) -> Callable[[Flow], Any] | None:
        """The key of a flow, where its own fields do not say it."""
        if by == "interface":
            names = self.interfaces.names if self.interfaces is not None else {}
            only = "" if self.interfaces is not None else self.interface.name
            return lambda flow: names.get(flow[8], only)
        if by not in OWNED:
            return None
        from bpfkit.sockex3.owners import cgroup_path

        found = self._find_owners()
        found.look()
        owners = iter(found.assign(flows, is_new.__getitem__))

        def key(flow: Flow) -> Any:  # called for each flow in turn
            owner = next(owners)
            if owner is None:
                return None
            return (owner.pid, owner.name) if by == "process" else cgroup_path(owner)

        return key

    @staticmethod
    def _named(row: Row, names: Names) -> Row:
        """The row with the names of its addresses behind them; None: not known (yet)."""
        named = {}
        for field, value in row.items():
            named[field] = value
            if field in ("src", "dst", "host"):
                named[f"{field}_name"] = names.get(value)
        return named

    def capture_rows(self) -> list[Row]:
        """A capture has no interval: its rows have no rates."""
        rows = self.rows()
        for row in rows:
            for field in row:
                if field.endswith("_per_s"):
                    row[field] = None
        return rows

    def cycle_by(self) -> str:
        """The next of ``--by``; a sort that is for flows only gives way to the default."""
        from bpfkit.sockex3.flow_rows import FIGURES
        from bpfkit.sockex3.groups import BY

        options = self.options
        options.by = BY[(BY.index(options.by) + 1) % len(BY)]
        if options.by != "flow" and options.sort not in FIGURES:
            options.sort = "rate"
        return str(options.by)

    # -- for people

    def lines(self, rows: list[Row]) -> Iterable[str]:
        from bpfkit.sockex3.flow_rows import plain_lines, plain_table

        options = self.options
        if options.by == "flow":
            return [*plain_lines(rows[:-1], bits=options.bits), *self._plain_notes(rows[-1])]
        return [*plain_table(rows[:-1], options.bits), *self._plain_notes(rows[-1])]

    def text_cells(self, row: Row) -> dict[str, str]:
        from bpfkit.sockex3.flow_rows import cells

        return cells(row)

    def figure_cells(self, row: Row, rates: Sequence[float]) -> list[tuple[str, str, int]]:
        from bpfkit.sockex3.flow_rows import figures

        return figures(row, self.options.bits)

    def title(self, round_: int) -> str:
        options = self.options
        if options.by == "flow" and options.sort == "rate":
            return super().title(round_)
        return f"{super().title(round_)} · by {options.by}, sorted by {options.sort}"

    def notes(self, rows: list[Row]) -> list[str]:
        """The sums in the units of the table."""
        from bpfkit.show.text import human
        from bpfkit.sockex3.flow_rows import rate_text

        total = rows[-1]
        now = rate_text(total["bytes_per_s"], self.options.bits)

        def amount(prefix: str) -> str:
            return sums_text(total[f"{prefix}packets"], total[f"{prefix}bytes"])

        found = [
            f"total {amount('')}, {count_of(total['flows'], 'flow', form=human)}; now {now}, "
            f"{human(total['packets_per_s'])} packets/s"
        ]
        parts = [
            f"{word}: {amount(f'{part}_')}"
            for part, word in self._parts()
            if total[f"{part}_packets"]
        ]
        if self._idle:
            parts.append(f"{self._idle} idle for {self.options.idle or IDLE:g} s, not shown")
        if self._left:
            parts.append(f"only the first {VIEW_MOST} rows are listed, {self._left} are not")
        return [*found, "; ".join(parts)] if parts else found

    def _parts(self) -> list[tuple[str, str]]:
        lost = "of flows that were forgotten" if self.options.lru else "no room for their flow"
        return [("nonip", "not IP"), ("unattributed", lost)]

    def _plain_notes(self, total: Row) -> list[str]:
        """The sums in plain digits."""

        def amount(prefix: str) -> str:
            size, packets = total[f"{prefix}bytes"], total[f"{prefix}packets"]
            return f"{size} bytes {count_of(packets, 'packet', form=str)}"

        text = f"total {amount('')} in {count_of(total['flows'], 'flow', form=str)}"
        for part, word in self._parts():
            if total[f"{part}_packets"]:
                text += f", {word}: {amount(f'{part}_')}"
        if self._idle:
            text += f", {self._idle} idle rows not shown"
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
        yield not counted, f"{count_of(len(counted), 'flow')} counted that nobody made"
        seen = self.object["totals"].sum(0).seen
        yield self.compare_total(seen.packets, seen.bytes)
