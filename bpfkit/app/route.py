# SPDX-License-Identifier: Apache-2.0
"""Base of the programs that are attached to a route: lwt_in, lwt_out, lwt_xmit.

The demo's lab is a client and a server with a router between them, IPv4 and IPv6.  With
``--netns NS --route PREFIX -i IF [--via ADDRESS]`` a route with the program is added in a namespace
of the user's, and removed at the end.  Rows: ``proto, packets, bytes``, and how many packets were
dropped or encapsulated.
"""

from __future__ import annotations

from bpfkit.app.namespace import NamespaceApp
from bpfkit.app.place import add_interface
from bpfkit.core.errors import InputError, UsageError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.net.links.lab import Lab
    from bpfkit.net.traffic.report import Report
    from bpfkit.show.rows import Row, Verdict

__all__ = ["DropApp", "RouteApp", "forwarding_client"]

#: The lab's two servers: (destination, the router's next hop for the client).
SERVERS = {"10.77.2.1": ("10.77.2.0/24", "10.77.1.254"), "fd77:2::1": ("fd77:2::/64", "fd77:1::fe")}


def forwarding_client(lab: Lab) -> Lab:
    """Let the lab's client forward, so that tagged frames that it receives leave by its routes."""
    lab.forward("client")
    for device in ("all", "eth0"):
        lab.sysctl("client", f"net.ipv4.conf.{device}.send_redirects", 0)
    return lab


class RouteApp(NamespaceApp):
    """A BPF program on a route."""

    protects = True
    counters = ("packets", "dropped", "bytes")
    #: Name of the third figure.
    acted = "dropped"
    headroom = 0

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add(
            "--route",
            metavar="PREFIX",
            help="with --netns: add a route to this prefix, with the program",
        )
        add_interface(parser, "the device that the route leaves by")
        add("--via", metavar="ADDRESS", default="", help="the next hop of the route")

    def check_options(self) -> None:
        super().check_options()
        options = self.options
        given = [name for name in ("route", "interface", "via") if getattr(options, name)]
        if options.netns is None and given:
            raise UsageError(f"--{given[0]} needs --netns", why="the demo has routes of its own")
        if options.netns is not None and not (options.route and options.interface):
            raise UsageError("--netns needs --route and -i", why="the program needs a route")
        if options.route:
            from ipaddress import ip_network

            try:
                options.route = str(ip_network(options.route))
            except ValueError as error:
                raise InputError(f"--route {options.route}", why=str(error)) from None

    def build_lab(self) -> Lab:
        from bpfkit.net.links.lab import router_lab

        return router_lab()

    def routes(self) -> list[tuple[str, str, str]]:
        """The lab's routes with the program: (prefix, device, next hop)."""
        return [(prefix, "eth0", via) for prefix, via in SERVERS.values()]

    def attach_routes(self) -> None:
        """Add the routes with the program."""
        from bpfkit.net.attach.route import attach_route

        options = self.options
        program = next(iter(self.object.programs.values()))
        in_lab = self.place.has_lab
        routes = self.routes() if in_lab else [(options.route, options.interface, options.via)]
        for prefix, device, via in routes:
            self.keep(
                attach_route(
                    program,
                    prefix,
                    ns=self.namespace,
                    device=device,
                    via=via,
                    headroom=self.headroom,
                    recorded=not in_lab,
                )
            )

    def rows(self) -> list[Row]:
        from bpfkit.show.protocols import protocol_name

        found = []
        for number, row in self.object["rows"].sums():
            if row.packets:
                proto = "not IP" if number == 256 else protocol_name(number)
                acted = {self.acted: row.acted}
                found.append({"proto": proto, "packets": row.packets, "bytes": row.bytes, **acted})
        return found

    def conclusion(self, rows: list[Row]) -> str:
        packets = sum(row["packets"] for row in rows)
        acted = sum(row[self.acted] for row in rows)
        return (
            f"seen: {acted} of {count_of(packets, 'packet')} {self.acted}: a program on a route "
            "judges only what goes by it"
        )


class DropApp(RouteApp):
    """A program on a route that counts packets, and drops one protocol."""

    #: (protocol, number) that the demo drops.
    drops = "icmp"
    #: The devices that frames with a priority tag leave and arrive by, before the route.  Routes
    #: neither add nor see tags, so tagged packets have to be received and forwarded.
    tagged = ("client:eth0", "router:left")

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        text = f"protocol to drop: icmp (ICMPv6 too), tcp, udp, none (default: {cls.drops})"
        names = ("icmp", "tcp", "udp", "none")
        parser.add_argument("--drop", choices=names, default=cls.drops, help=text)

    def setup(self) -> None:
        drop = {"icmp": 1, "tcp": 6, "udp": 17, "none": 255}[self.options.drop]
        self.object = self.load(drop=drop)
        self.made: list[Report] = self.for_check([])
        self.attach_routes()

    def demo(self) -> None:
        """Ping, TCP and UDP (tagged too) to the server; no TCP if the program drops it."""
        from bpfkit.net.traffic.ping import ping
        from bpfkit.net.traffic.tagged import tagged_udp
        from bpfkit.net.traffic.tcp import tcp
        from bpfkit.net.traffic.udp import udp

        client, server = self.lab["client"], self.lab["server"]
        drop = self.options.drop
        for host in SERVERS:
            self.made.append(ping(host, count=3, interval=0.02, timeout=0.3, ns=client))
            self.made.append(udp(host, count=3, timeout=0.3, ns=client, server_ns=server))
            source = "fd77:1::77" if ":" in host else "10.77.1.77"
            self.made.append(tagged_udp(self.lab, *self.tagged, host, source, at="server"))
            if drop != "tcp":
                self.made.append(tcp(host, requests=2, ns=client, server_ns=server))

    def verify_drops(self) -> Iterable[Verdict]:
        """The dropped protocol does not arrive, the others do; the program counted both."""
        from bpfkit.net.traffic.ping import PingReport
        from bpfkit.net.traffic.tagged import TaggedReport
        from bpfkit.net.traffic.tcp import TcpReport
        from bpfkit.net.traffic.udp import UdpReport

        counted = {row["proto"]: row for row in self.rows()}
        drop = self.options.drop
        for report in self.made:
            proto = report.proto
            if isinstance(report, TcpReport):
                yield (
                    report.requests == 2,
                    f"IPv{report.family} tcp: {report.requests} of 2 answered",
                )
                continue
            assert isinstance(report, (PingReport, UdpReport))
            wanted = 0 if proto.endswith(drop) else report.sent
            text = f"IPv{report.family} {report.what}: {report.received} of {report.sent} arrived"
            yield report.received == wanted, text
        for proto in ("icmp", "ipv6-icmp", "udp"):
            sent = sum(
                report.sent
                for report in self.made
                if report.proto == proto and isinstance(report, (PingReport, UdpReport))
            )
            row = counted.get(proto, {"packets": 0, "dropped": 0})
            dropped = sent if proto.endswith(drop) else 0
            # Neighbour discovery is ICMPv6 too, but never goes by such a route.
            fine = row["packets"] == sent and row["dropped"] == dropped
            yield fine, f"{proto}: {sent} sent, {row['packets']} counted, {row['dropped']} dropped"
        size = sum(
            report.wire_bytes - report.sent * (18 if isinstance(report, TaggedReport) else 14)
            for report in self.made
            if isinstance(report, UdpReport)
        )
        seen = counted.get("udp", {"bytes": 0})["bytes"]
        text = f"udp: {count_of(size, 'byte')} without Ethernet header and tag, {seen} counted"
        yield seen == size, text
