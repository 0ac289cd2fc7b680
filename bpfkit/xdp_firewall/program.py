# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_firewall: deny and allow lists, edited live from another terminal.

The C side is bpf_c/xdp/xdp_firewall.bpf.c.  In one terminal, and in another::

    python3 -m bpfkit.xdp_firewall -i eth0 --rule 192.0.2.0/24 --rule tcp/23 --write dropped.pcapng

    python3 -m bpfkit.xdp_firewall add 2001:db8::/32 "allow 192.0.2.7" "proto gre"
    python3 -m bpfkit.xdp_firewall del tcp/23
    python3 -m bpfkit.xdp_firewall list
    python3 -m bpfkit.xdp_firewall load FILE

The demo: in a lab, sources, ports and protocols are denied and allowed, and edited by a second
process while packets flow.
"""

from __future__ import annotations

import sys

from bpfkit.app.lifecycle import main as run
from bpfkit.app.options import positive
from bpfkit.app.xdp import XdpApp
from bpfkit.core.errors import UsageError
from bpfkit.core.words import count_of, thousands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable, Sequence
    from typing import Any

    from bpfkit.app.events import EventSource
    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.links.lab import Lab
    from bpfkit.show.rows import Event, Row, Verdict
    from bpfkit.xdp_firewall.control import Firewall
    from bpfkit.xdp_firewall.demo import FirewallDemo
    from bpfkit.xdp_firewall.events import Dropped, DropReader
    from bpfkit.xdp_firewall.rules import RuleSet

COMMANDS = ("add", "del", "list", "load")
MAX_SNAP = 2048  # of the C side
_EVENTS = {"none": 0, "ringbuf": 1, "perf": 2}
_SHOWN = 100  # up to so many prefixes a round shows each; `list` shows more

DEMO_RULES = (
    "192.0.2.0/24",
    "allow 192.0.2.7",
    "2001:db8::/32",
    "allow 2001:db8::7",
    "tcp/8080",
    "udp/9000-9999",
    "proto gre",
)


class XdpFirewall(XdpApp):
    """XDP firewall: prefixes, ports, protocols, edited live; dropped packets as events."""

    name = "xdp_firewall"
    expects = "sources and ports that are denied, allowed, or neither send pings, TCP and UDP"
    source = "xdp/xdp_firewall.bpf.c"
    needs = (*XdpApp.needs, "SYS_ADMIN")  # inner maps are opened by their ids
    counters = ("packets", "bytes")
    epilog = (
        "RULE is [deny|allow] ADDRESS[/LENGTH] (of the source) | tcp/PORT[-PORT] (destination; "
        "udp, sctp, dccp, udplite) | proto PROTOCOL. The longest prefix decides, else the port "
        "(the narrowest range), else the protocol; other packets pass. Later "
        "fragments have no ports: address and protocol decide, and without the first one nobody "
        "can reassemble them. Live: python3 -m bpfkit.xdp_firewall add|del RULE, list, load FILE."
    )
    firewall: Firewall
    drops: DropReader | None = None
    _drops_failed = False

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add("--rule", metavar="RULE", action="append", default=[], help="a rule; repeat for more")
        add("--rules", metavar="FILE", help="rules from a file, one a line (-: standard input)")
        add(
            "--default",
            choices=("pass", "drop"),
            default="pass",
            help="verdict on IP packets that match no rule (default: pass)",
        )
        add(
            "--events",
            choices=tuple(_EVENTS),
            default="ringbuf",
            help="how dropped packets are reported (default: ringbuf)",
        )
        add(
            "--snap",
            metavar="N",
            type=int,
            default=128,
            help="bytes of each dropped packet (default: 128)",
        )
        add("--write", metavar="FILE", help="write dropped packets to a pcapng file")
        add(
            "--front",
            choices=("bits", "bloom", "none"),
            default="bits",
            help="pre-filter consulted before the prefix lookup (default: bits)",
        )
        add(
            "--bloom",
            dest="front",
            action="store_const",
            const="bloom",
            help="the same as --front bloom: a bloom filter",
        )
        add(
            "--max-rules",
            metavar="N",
            type=positive,
            default=1 << 22,
            help=f"maximum number of prefixes (default: {1 << 22})",
        )

    def check_options(self) -> None:
        super().check_options()
        options = self.options
        if not 0 <= options.snap <= MAX_SNAP:
            raise UsageError(f"--snap {options.snap}", why=f"0 to {MAX_SNAP} bytes are possible")
        if options.write is not None and options.events == "none":
            raise UsageError("--write needs --events", why="the file is written from events")
        if options.write is not None and options.pcap is not None:
            raise UsageError("--write and --pcap do not go together")
        self.rules = self._rules()

    def _rules(self) -> RuleSet:
        """The rules of --rules and --rule; read before anything is attached."""
        from bpfkit.xdp_firewall.rules import RuleSet, parse_file, parse_rule

        options = self.options
        rules = RuleSet() if options.rules is None else parse_file(options.rules)
        texts = options.rule
        if options.interface is None and options.pcap is None and options.rules is None:
            texts = texts or DEMO_RULES
        for text in texts:
            try:
                rules.add(parse_rule(text))
            except ValueError as error:
                raise UsageError(f"--rule {text}", why=str(error)) from None
        return rules

    # -- setting up

    def consts(self) -> dict[str, int]:
        from bpfkit.xdp_firewall.control import FRONTS

        options = self.options
        return {
            "front_kind": FRONTS[options.front],
            "drop_rest": int(options.default == "drop"),
            "events": 0 if options.pcap is not None else _EVENTS[options.events],
            "snap": options.snap,
        }

    def load_options(self) -> dict[str, Any]:
        from bpfkit.xdp_firewall.control import templates

        made = templates()
        for one in made.values():
            self.keep(one)
        return {"reuse_maps": made}

    def prepare(self, loaded: Object) -> None:
        from bpfkit.xdp_firewall.control import MAPS, Firewall

        name = "" if self.options.pcap is not None else self.interface.name
        self.firewall = Firewall({one: loaded[one] for one in MAPS}, name)
        self.firewall.start(self.options.front, self.options.max_rules, self.rules)

    def attach(self, program: Program) -> None:
        """Open the reader of events first, so that it sees every dropped packet."""
        from bpfkit.xdp_firewall.events import DropReader

        options = self.options
        if options.events != "none" and self.drops is None:
            buffer = self.object["ring" if options.events == "ringbuf" else "perf"].open()
            types = self.object.btf
            head = types.record_layout("dropped") if types is not None else None
            assert head is not None
            self.drops = self.keep(
                DropReader(
                    buffer,
                    head,
                    self._event,
                    write=options.write or "",
                    interface=self.interface.name,
                    linktype=1 if self.interface.l2_len else 101,
                    snap=options.snap,
                )
            )
            self.check_regularly(self._check_drops)
        super().attach(program)

    def _check_drops(self) -> None:
        if self.drops is not None and self.drops.error is not None and not self._drops_failed:
            self._drops_failed = True
            if not self.goes_on():
                raise self.drops.error
            self.note(f"{self.drops.error}; packets are dropped as before")

    # -- figures

    def rows(self) -> list[Row]:
        """Packets passed and dropped on the interface, then each rule, then the sums."""
        from bpfkit.xdp_firewall.commands import interface_rows, rule_rows

        totals = self.firewall.totals()
        rows = interface_rows(self.firewall.interface, totals)
        count = self.firewall.count
        rows += rule_rows(self.firewall, skip=count > _SHOWN)
        seen = self.drops.seen if self.drops else 0
        lost = totals[-1][0]
        summary = {"summary": True, "prefixes": count, "events": seen, "lost_events": lost}
        if self.options.write is not None and self.drops is not None:
            summary["unwritten"] = self.drops.unwritten
        rows.append(summary)
        return rows

    def lines(self, rows: list[Row]) -> Iterable[str]:
        yield from super().lines([row for row in rows if "rule" in row])
        yield from self.notes(rows)

    def notes(self, rows: list[Row]) -> list[str]:
        return [
            f"{count_of(row['prefixes'], 'prefix')}, {count_of(row['events'], 'event')}, "
            f"{thousands(row['lost_events'])} more lost"
            for row in rows
            if "summary" in row
        ]

    # -- dropped packets

    def events(self) -> EventSource | None:
        return None if self.drops is None else self.drops.queue

    def _event(self, packet: Dropped) -> Event:
        from bpfkit.show.protocols import protocol_name
        from bpfkit.show.rows import Event

        fields = {
            "interface": self.interface.name,
            "src": packet.source,
            "proto": protocol_name(packet.head.proto) if packet.address else None,
            "length": packet.head.length,
            "rule": self._rule_of(packet),
            "payload": packet.payload[:64].decode("latin-1"),
        }
        return Event("drop", packet.ts_ns / 1e9, fields)

    def event_row(self, event: Event, round_: int) -> Row:
        """Stamped like a row; ``time`` is when the packet was dropped."""
        from bpfkit.show.rows import stamp

        first = {"event": event.kind, "time": round(event.time, 6)}
        return {**stamp(round_), **first, **event.fields}

    def event_line(self, event: Event) -> str:
        from time import localtime, strftime

        row = event.fields
        when = strftime("%H:%M:%S", localtime(event.time))
        text = "".join(char if " " <= char <= "~" else "." for char in row["payload"][:32])
        what = f"{row['proto']} from {row['src']}" if row["src"] else "a frame"
        line = f"{when} dropped {what}, {count_of(row['length'], 'byte')}, by {row['rule']}"
        return f"{line}: {text}" if text.strip(".") else line

    def _rule_of(self, event: Dropped) -> str:
        from bpfkit.xdp_firewall.rules import Rule

        if event.why == "address":
            bits = 8 * len(event.address)
            mask = (1 << bits) - (1 << bits - event.head.prefix)
            cleared = int.from_bytes(event.address, "big") & mask
            return str(Rule(2, cleared.to_bytes(bits // 8, "big"), event.head.prefix))
        if event.head.number:
            rule = self.firewall.numbered(event.head.number)
            if rule is not None:
                return str(rule)
        return event.why

    # -- the demo

    def build_lab(self) -> Lab:
        from bpfkit.xdp_firewall.demo import firewall_lab

        return firewall_lab()

    def setup(self) -> None:
        self.traffic: FirewallDemo | None = None
        super().setup()

    def demo(self) -> None:
        """Pings, TCP and UDP from sources and to ports that are denied, allowed, or neither."""
        if self.traffic is None:
            from bpfkit.xdp_firewall.demo import FirewallDemo

            self.traffic = self.keep(FirewallDemo(self.lab))
        self.traffic.round()

    def conclusion(self, rows: list[Row]) -> str:
        verdicts = {"drop": 0, "deny": 0}
        dropped = sum(
            r["packets"] for r in rows if r.get("action") in verdicts and r["rule"][0] != "("
        )
        return (
            f"seen: {count_of(dropped, 'packet')} dropped by rules; the longest prefix that "
            "matches decides"
        )

    def verify(self) -> Iterable[Verdict]:
        if self.traffic is not None:
            yield from self.traffic.verdicts(self.firewall, self.drops, self.channel)


def main(argv: Sequence[str] | None = None) -> int:
    """The firewall, or one of the commands that edit a running one."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in COMMANDS:
        from bpfkit.xdp_firewall.commands import command

        return command(words)
    return run(XdpFirewall, words)
