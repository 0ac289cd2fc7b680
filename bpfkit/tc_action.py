# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.tc_action: a program as the action behind a u32 match.

The C side is bpf_c/tc/tc_action.bpf.c.  In the demo a u32 filter on a client's egress matches UDP
and hands it to the program, which drops every second packet; ping never meets it.
"""

from __future__ import annotations

from bpfkit.app import main
from bpfkit.labapp import LabApp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.app import Row, Verdict
    from bpfkit.net.traffic import PingReport, UdpReport

SERVERS = ("10.77.0.2", "fd77::2")


class TcAction(LabApp):
    """A program as the action behind a u32 filter: every second UDP packet is dropped."""

    name = "tc_action"
    source = "tc/tc_action.bpf.c"
    counters = ("packets",)
    place = "client"

    def check_options(self) -> None:
        from bpfkit.core.errors import UsageError

        super().check_options()
        if self.options.netns is not None:
            raise UsageError("tc_action works in its own lab only", why="its filter is the lab's")

    def setup(self) -> None:
        from bpfkit.net.action import add_action

        assert self.lab is not None
        self.object = self.load(one_in=2)
        self.made: list[PingReport | UdpReport] = []
        for version in (4, 6):
            program = self.object.programs["tc_action"]
            add_action(program, self.lab.interface("client:eth0"), version)

    def demo(self) -> None:
        """Ping and UDP over both IP versions."""
        from bpfkit.net.traffic import ping, udp

        assert self.lab is not None
        client, server = self.lab["client"], self.lab["server"]
        for host in SERVERS:
            self.made.append(ping(host, count=3, interval=0.02, ns=client))
            self.made.append(udp(host, count=10, timeout=0.3, ns=client, server_ns=server))

    def rows(self) -> list[Row]:
        sums = self.object["sums"]
        return [
            {"sum": name, "packets": int(sums[i])} for i, name in enumerate(("matched", "dropped"))
        ]

    def verify(self) -> Iterable[Verdict]:
        made = 0
        for report in self.made:
            is_udp = report.proto == "udp"
            made += report.sent * is_udp
            wanted = report.sent // 2 if is_udp else report.sent
            text = f"IPv{report.family} {report.proto}: {report.received} of {report.sent} arrived"
            yield report.received == wanted, text
        matched, dropped = (row["packets"] for row in self.rows())
        yield matched == made, f"{made} datagrams sent, the filter gave the program {matched}"
        yield dropped == made // 2, f"the program dropped {dropped}"


if __name__ == "__main__":
    raise SystemExit(main(TcAction))
