# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_drop_tcp: no TCP gets in.  The C side is bpf_c/xdp/xdp_drop_tcp.bpf.c.

container_lab shows it together with tc_drop_tcp.
"""

from __future__ import annotations

from bpfkit.app.drop_tcp import DropTcpDemo, drop_rows
from bpfkit.app.lifecycle import main
from bpfkit.app.xdp import XdpApp
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.show.rows import Row, Verdict


class XdpDropTcp(XdpApp):
    """XDP that drops the TCP packets an interface receives."""

    name = "xdp_drop_tcp"
    expects = (
        "a client tries TCP, which is to get no answer, and pings, which are, by IPv4 and IPv6"
    )
    source = "xdp/xdp_drop_tcp.bpf.c"
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
        return (
            f"seen: {count_of(dropped, 'TCP packet')} dropped before the host's stack; pings passed"
        )

    def verify(self) -> Iterable[Verdict]:
        from bpfkit.net.traffic.tagged_frames import PAIR, TaggedFrames

        tagged = TaggedFrames(self.lab, "client:eth0", "server:eth0", PAIR, ("TCP", "UDP"))
        return self.traffic.verdicts(self.rows(), tagged, self.detach)


if __name__ == "__main__":
    raise SystemExit(main(XdpDropTcp))
