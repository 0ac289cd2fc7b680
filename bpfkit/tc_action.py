# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.tc_action: a program as the action behind a u32 or flower match.

The C side is bpf_c/tc/tc_action.bpf.c.  In the demo filters on a server's ingress match UDP, IPv4
and IPv6, with a VLAN tag and without, and hand it to the program, which drops every second packet;
ping never meets it.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.namespace import NamespaceApp
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.net.traffic.ping import PingReport
    from bpfkit.net.traffic.udp import UdpReport
    from bpfkit.show.rows import Row, Verdict

#: The server's address -> the client's.
SERVERS = {"10.77.0.2": "10.77.0.1", "fd77::2": "fd77::1"}


class TcAction(NamespaceApp):
    """A program as the action behind a tc filter's match: every second UDP packet is dropped."""

    name = "tc_action"
    expects = (
        "pings and UDP arrive; the filter gives the program UDP only, and every second "
        "one is dropped"
    )
    source = "tc/tc_action.bpf.c"
    counters = ("packets",)

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        text = "the filter that matches the packets (default: u32)"
        parser.add_argument("--match", choices=("u32", "flower"), default="u32", help=text)

    def check_options(self) -> None:
        from bpfkit.core.errors import UsageError

        super().check_options()
        if self.options.netns is not None:
            raise UsageError("tc_action works in its own lab only", why="it needs the filter")

    def setup(self) -> None:
        from bpfkit.net.attach.action import add_action

        self.object = self.load(one_in=2)
        self.made: list[PingReport | UdpReport] = self.for_check([])
        program = self.object.programs["tc_action"]
        interface = self.lab.interface("server:eth0")
        for version in (4, 6):
            for tagged in (False, True):
                add_action(program, interface, self.options.match, version, tagged=tagged)

    def demo(self) -> None:
        """Ping, UDP, and UDP in priority-tagged frames, over both IP versions."""
        from bpfkit.net.traffic.ping import ping
        from bpfkit.net.traffic.tagged import tagged_udp
        from bpfkit.net.traffic.udp import udp

        client, server = self.lab["client"], self.lab["server"]
        for host, source in SERVERS.items():
            self.made.append(ping(host, count=3, interval=0.02, ns=client))
            self.made.append(udp(host, count=10, timeout=0.3, ns=client, server_ns=server))
            ends = ("client:eth0", "server:eth0")
            self.made.append(tagged_udp(self.lab, *ends, host, source, at="server", count=4))

    def rows(self) -> list[Row]:
        sums = self.object["sums"][0]
        return [
            {"sum": "matched", "packets": sums.matched},
            {"sum": "dropped", "packets": sums.dropped},
        ]

    def conclusion(self, rows: list[Row]) -> str:
        sums = {row["sum"]: row["packets"] for row in rows}
        return (
            f"seen: {sums['dropped']} of {count_of(sums['matched'], 'UDP packet')} dropped; "
            "pings never met the program"
        )

    def verify(self) -> Iterable[Verdict]:
        made = 0
        for report in self.made:
            is_udp = report.proto == "udp"
            made += report.sent * is_udp
            wanted = report.sent // 2 if is_udp else report.sent
            text = f"IPv{report.family} {report.what}: {report.received} of {report.sent} arrived"
            yield report.received == wanted, text
        matched, dropped = (row["packets"] for row in self.rows())
        yield (
            matched == made,
            f"{count_of(made, 'datagram')} sent, the filters gave the program {matched}",
        )
        yield dropped == made // 2, f"the program dropped {dropped}"


if __name__ == "__main__":
    raise SystemExit(main(TcAction))
