# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_lb: a load balancer that sends packets back out where they came in.

The C side is bpf_c/xdp/xdp_lb.bpf.c.  In this folder: maglev.py builds the table, balancer.py
fills the maps and computes which flows a change moves, keeper.py checks health and reads the
backends file.  In the demo (demo.py) one of three backends fails and comes back, while connections
to the others stay open.
"""

from __future__ import annotations

from bpfkit.app.options import port, positive
from bpfkit.app.signals import output
from bpfkit.app.xdp import XdpApp
from bpfkit.core.errors import UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Iterable
    from typing import Any

    from bpfkit.core.object import Object
    from bpfkit.net.links.lab import Lab
    from bpfkit.show.rows import Row, Verdict
    from bpfkit.xdp_lb.demo import BalancerDemo

#: enum result of the C side.
RESULTS = (
    "sent",
    "sent_fragment",
    "sent_icmp",
    "passed",
    "passed_deep",
    "passed_malformed",
    "told_too_big",
    "dropped_too_big",
    "dropped_no_backend",
    "dropped_no_room",
)


class XdpLb(XdpApp):
    """A load balancer: Maglev over health-checked backends, by IP in IP; replies go directly."""

    name = "xdp_lb"
    expects = (
        "clients use a service; backend b2 fails and comes back: its share moves, no "
        "connection breaks"
    )
    source = "xdp/xdp_lb.bpf.c"
    counters = ("flows", "packets", "bytes")
    demo_in_background = False  # a state for each round
    details = ("state", "weight", "slots", "healthy")
    importance = ("packets", "state", "flows", "bytes")
    lab_device = "lb:eth0"
    knows_l2_len = False
    traffic: BalancerDemo
    epilog = (
        "The VIP is an address of this host, or routed to it. A backend has it on lo, with "
        "arp_ignore=1 and arp_announce=2, answers from it (a UDP server must be bound to it), and "
        "for --forward ipip takes the outer header off: by an ipip, ip6tnl or sit device, or by "
        "`python3 -m bpfkit.xdp_decap` where the kernel has none. Lines of the backends file: "
        "ADDRESS [weight=N] [# comment]; weight 0 drains. It is read again when it changes; with a "
        "bad line, nothing of it counts."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        from bpfkit.xdp_lb.options import table_size

        super().add_options(parser)
        add = parser.add_argument
        add("--vip", metavar="A:PORT/PROTO", action="append", help="a service; again: more")
        add("--backend", metavar="A[,weight=N]", action="append", help="a backend; again: more")
        add("--backends", metavar="FILE", help="file with a backend a line; watched")
        text = "to a backend: IP in IP, or the same packet with its MAC address (default: ipip)"
        add("--forward", choices=("ipip", "l2"), default="ipip", help=text)
        text = "health check: TCP connect, or none (assume up) (default: tcp)"
        add("--health", choices=("tcp", "none"), default="tcp", help=text)
        add("--health-port", metavar="P", type=port, help="default: that of the first TCP service")
        text = "seconds between checks (default: 1); for an answer, at least 1"
        add("--health-interval", metavar="S", type=float, default=1.0, help=text)
        add("--rise", metavar="N", type=positive, default=2, help="good checks that bring one back")
        add("--fall", metavar="N", type=positive, default=2, help="bad checks that take one out")
        text = "slots of the Maglev table, a prime (default: 65537)"
        add("--table", metavar="N", type=table_size, default=65537, help=text)
        text = "flows that are remembered (default: 65536)"
        add("--flows", metavar="N", type=positive, default=65536, help=text)

    def check_options(self) -> None:
        from bpfkit.xdp_lb.balancer import read_backends
        from bpfkit.xdp_lb.options import (
            parse_backends,
            parse_services,
            port_to_check,
            refuse_own,
        )

        super().check_options()
        options = self.options
        if options.interface is None and options.pcap is None:
            for given in ("vip", "backend", "backends"):
                if getattr(options, given):
                    raise UsageError(
                        f"--{given} needs --interface", why="the demo has its own services"
                    )
            self._demo_options()
        elif not options.vip or not (options.backend or options.backends):
            where = "--interface" if options.interface else "--pcap"
            raise UsageError(
                f"{where} needs --vip, and --backend or --backends",
                why="a service and at least one backend are required",
            )
        self.services = parse_services(options.vip)
        self.given = parse_backends(options.backend or ())
        if not 0 < options.health_interval <= 3600:  # refuses nan too
            raise UsageError("--health-interval is not a time in seconds (up to 3600)")
        more = read_backends(options.backends) if options.backends else {}
        refuse_own(self.services, {*self.given, *more})
        self.check_port = 0  # no checks
        if options.health == "tcp" and options.pcap is None:
            self.check_port = port_to_check(self.services, options.health_port)

    def _demo_options(self) -> None:
        from bpfkit.xdp_lb.lab import BACKENDS, PORT, VIP4, VIP6

        options = self.options
        options.vip = [f"{VIP4}:{PORT}/tcp", f"[{VIP6}]:{PORT}/tcp"]
        options.backend = list(BACKENDS.values())
        options.health_interval = min(options.health_interval, 0.1)

    # -- life cycle

    def build_lab(self) -> Lab:
        from bpfkit.xdp_lb.demo import BalancerDemo

        self.traffic = self.keep(BalancerDemo(self.options.forward == "ipip"))
        return self.traffic.lab

    def consts(self) -> dict[str, int]:
        """The size of the table, and whether packets are encapsulated."""
        from bpfkit.xdp_lb.options import check_interface

        consts = {"slots": self.options.table, "encap": int(self.options.forward == "ipip")}
        if self.options.pcap is None:
            for remark in check_interface(self.interface, self.services, self.options.forward):
                self.note(remark)
        return consts

    def load_options(self) -> dict[str, Any]:
        return {"max_entries": {"flows": self.options.flows}}

    def prepare(self, loaded: Object) -> None:
        """Services and backends; the first health check, so that no packet goes to a dead one."""
        from threading import Lock

        from bpfkit.app.watch import DeviceWatch
        from bpfkit.xdp_lb.balancer import Balancer, read_backends
        from bpfkit.xdp_lb.health import Health
        from bpfkit.xdp_lb.keeper import Keeper
        from bpfkit.xdp_lb.veth import VethCheck

        options = self.options
        self.changes: list[Row | str] = []
        self.round = -1
        self.lock = Lock()
        self.balancer = Balancer(loaded, options.table)
        for service in self.services:
            self.balancer.add_service(service)
        if options.pcap is not None:
            more = read_backends(options.backends) if options.backends else {}
            for backend in self.balancer.set_backends({**more, **self.given}):
                backend.down_reason, backend.mac = "", bytes(6)  # no wire, no neighbours
            self.balancer.apply()
            return
        self.sent = VethCheck(self.interface, self.note)
        self.check_regularly(self.sent.check)
        device = DeviceWatch(self.interface, self._set_device, self.note)
        self.check_regularly(device.check)
        keeper = Keeper(
            self.balancer,
            self.interface,
            self.given,
            options.backends or "",
            port=self.check_port,
            on_link=options.forward == "l2",
            interval=options.health_interval,
            timeout=max(options.health_interval, 1.0),
            health=Health(options.rise, options.fall),
            tell=self.changes.append,
            lock=self.lock,
        )
        self.keeper = self.keep(keeper)
        keeper.start()
        self.check_regularly(self._check_keeper)

    def _set_device(self, lladdr: bytes, mtu: int) -> None:
        """Tell the program about its interface."""
        import sys

        number = int.from_bytes(lladdr + bytes(2), sys.byteorder)
        self.object["device"][0] = {"lladdr": number, "mtu": mtu, "zero": 0}

    def _check_keeper(self) -> None:
        self._say_changes()
        if self.keeper.error is not None:
            raise self.keeper.error

    def _say_changes(self) -> None:
        """Print the keeper's changes; in the main thread, so that lines are not mixed."""
        from bpfkit.xdp_lb.keeper import change_words

        while self.changes:
            row = self.changes.pop(0)
            if isinstance(row, str):
                self.note(row)
                continue
            if self.options.json:
                from bpfkit.show.rows import json_rows

                output(json_rows([row], max(self.round, 0)))
            self.note(change_words(row))

    # -- figures

    def rows(self) -> list[Row]:
        """A row per backend, then packets by result."""
        self.round += 1
        self._say_changes()
        if self.options.pcap is None:
            self.sent.check()
        with self.lock:
            rows: list[Row] = self.balancer.rows()
        rows.append({"summary": True, **self.results()})
        return rows

    def results(self) -> dict[str, int]:
        """Packets by what was done with them."""
        sums = dict(self.object["results"].sums())
        return {word: sums[i].packets for i, word in enumerate(RESULTS)}

    def lines(self, rows: list[Row]) -> Iterable[str]:
        table = super().lines([row for row in rows if "summary" not in row])
        return [*table, *self._sums(rows, str)]

    def notes(self, rows: list[Row]) -> list[str]:
        from bpfkit.show.text import human

        return self._sums(rows, human)

    def _sums(self, rows: list[Row], form: Callable[[int], str]) -> list[str]:
        """The summary in a line; in the demo, the requests lost on connections that stay open."""
        sums = next((row for row in rows if "summary" in row), {})
        words = [
            f"{word.replace('_', ' ')} {form(sums[word])}" for word in RESULTS if sums.get(word)
        ]
        notes = ["packets: " + (", ".join(words) or "none")] if sums else []
        if self.place.has_lab and self.traffic.lost:
            others, lost = self.traffic.others, max(self.traffic.lost.values())
            kept = count_of(others, "open connection")
            notes.append(f"{kept} to others than b2, {count_of(lost, 'request')} lost")
        return notes

    # -- demo

    def demo(self) -> None:
        """A backend fails and comes back: a state for each round; for ``--check``, all of them."""
        from bpfkit.xdp_lb.demo import STATES

        for _ in STATES if self.options.check else STATES[:1]:
            self.traffic.step(self.balancer, self.lock)

    def conclusion(self, rows: list[Row]) -> str:
        flows = sum(row["flows"] for row in rows if "summary" not in row)
        end = "; b2 is down at the end" if self.traffic.is_down else ""
        return (
            f"seen: {count_of(flows, 'flow')}; Maglev moves little more than the failed "
            f"backend's share{end}"
        )

    def verify(self) -> Iterable[Verdict]:
        return self.traffic.verdicts(self.balancer, lambda: self.results()["told_too_big"])
