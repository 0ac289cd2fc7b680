# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.tc_drop_tcp: no TCP gets out (or in).  The C side: bpf_c/tc/tc_drop_tcp.bpf.c.

container_lab shows it together with xdp_drop_tcp.
"""

from __future__ import annotations

from bpfkit.app.drop_tcp import DropTcpDemo, drop_rows
from bpfkit.app.lifecycle import main
from bpfkit.app.tc import TcApp
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.net.traffic.tagged_frames import TaggedFrames
    from bpfkit.show.rows import Row, Verdict


class TcDropTcp(TcApp):
    """tc, by clsact or tcx, that drops the TCP packets an interface sends (or receives)."""

    protects = True
    name = "tc_drop_tcp"
    expects = "a server's TCP is dropped on its way out: connections time out, pings are answered"
    source = "tc/tc_drop_tcp.bpf.c"
    counters = ("bytes", "packets")
    traffic: DropTcpDemo

    def setup(self) -> None:
        super().setup()
        if self.place.has_lab:
            self.traffic = self.keep(DropTcpDemo(self.lab))
            self.for_check(self.traffic.answers)

    def demo(self) -> None:
        self.traffic.run_round()

    def rows(self) -> list[Row]:
        return drop_rows(self.object)

    def conclusion(self, rows: list[Row]) -> str:
        dropped = sum(row["packets"] for row in rows if row["action"] == "drop")
        return f"seen: {count_of(dropped, 'TCP packet')} dropped at tc; pings passed"

    def verify(self) -> Iterable[Verdict]:
        return self.traffic.verdicts(self.rows(), self._tagged_frames(), self.detach)

    def _tagged_frames(self) -> TaggedFrames:
        """Egress: frames to the client, captured there.  Ingress is behind the tap: answers."""
        from bpfkit.net.traffic.tagged_frames import PAIR, PriorityTaggedFrames, TaggedFrames

        client, server = "client:eth0", "server:eth0"
        if self.options.direction == "egress":
            ends = [(there, here) for here, there in PAIR]
            return TaggedFrames(self.lab, server, client, ends, ("TCP", "UDP"))
        port = self.traffic.port
        return PriorityTaggedFrames(
            self.lab, client, client, PAIR, ("TCP", "ping"), to=server, port=port
        )


if __name__ == "__main__":
    raise SystemExit(main(TcDropTcp))
