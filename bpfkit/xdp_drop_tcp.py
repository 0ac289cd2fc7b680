# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.xdp_drop_tcp: no TCP gets in.  The C side is bpf_c/xdp/xdp_drop_tcp.bpf.c.

See also container_lab, where it stands beside tc_drop_tcp.
"""

from __future__ import annotations

from bpfkit.app.interface import HookApp, XdpApp
from bpfkit.app.lifecycle import main

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.net.traffic.tagged_frames import TaggedFrames
    from bpfkit.show.rows import Row, Verdict

HOSTS = ("10.77.0.2", "fd77::2")
#: enum drop_row -> (verdict, IP version, what).
_ROWS = (
    ("drop", 4, "TCP"),
    ("drop", 6, "TCP"),
    ("drop", 4, "later fragment of TCP"),
    ("drop", 6, "later fragment of TCP"),
    ("drop", None, "too many headers"),
    ("pass", None, "everything else"),
)


class DropTcp(HookApp):
    """What xdp_drop_tcp and tc_drop_tcp have in common: the map, the demo."""

    counters = ("bytes", "packets")

    def setup(self) -> None:
        from bpfkit.net.traffic.probes import Listener

        #: (IP version, a TCP connection came about, a ping was answered), of every round.
        self.answers: list[tuple[int, bool, bool]] = []
        super().setup()
        if self.lab is not None:
            self.server = self.keep(Listener(self.lab["server"]))

    def demo(self) -> None:
        """A TCP connection, which does not come about, and a ping, which is answered."""
        for version, host in zip((4, 6), HOSTS, strict=True):
            self.answers.append((version, *self.ask(host)))

    def ask(self, host: str) -> tuple[bool, bool]:
        """(a TCP connection to the server comes about, it answers a ping)."""
        from bpfkit.net.traffic.ping import ping
        from bpfkit.net.traffic.probes import tcp_answers

        assert self.lab is not None
        client = self.lab["client"]
        answered = tcp_answers(host, self.server.port, ns=client, timeout=0.3)
        return answered, ping(host, timeout=2, ns=client).received == 1

    def tag_play(self) -> TaggedFrames:
        """TCP and something else in tagged frames, past the program."""
        from bpfkit.net.traffic.tagged_frames import PAIR, TaggedFrames

        assert self.lab is not None
        return TaggedFrames(self.lab, "client:eth0", "server:eth0", PAIR, ("TCP", "UDP"))

    def rows(self) -> list[Row]:
        """What was dropped and what passed."""
        rows = []
        for (action, version, what), (_, sums) in zip(
            _ROWS, self.object["rows"].sums(), strict=True
        ):
            figures = {"bytes": sums.bytes, "packets": sums.packets}
            rows.append({"action": action, "ip": version, "what": what, **figures})
        return rows

    def verify(self) -> Iterable[Verdict]:
        for version, tcp, ping in self.answers:
            yield not tcp, f"IPv{version}: TCP {'comes about' if tcp else 'does not come about'}"
            yield ping, f"IPv{version}: ping {'answered' if ping else 'lost'}"
        for row in self.rows()[:2]:
            yield row["packets"] > 0, f"IPv{row['ip']}: {row['packets']} TCP packets dropped"
        tagged = self.tag_play()
        yield from tagged.verdicts({"TCP"})
        self.detach()
        yield from tagged.verdicts(when="without the program ")
        for version, host in zip((4, 6), HOSTS, strict=True):
            tcp, ping = self.ask(host)
            yield tcp and ping, f"IPv{version}: without the program TCP comes about"


class XdpDropTcp(DropTcp, XdpApp):
    """XDP that drops the TCP packets an interface receives."""

    name = "xdp_drop_tcp"
    source = "xdp/xdp_drop_tcp.bpf.c"


if __name__ == "__main__":
    raise SystemExit(main(XdpDropTcp))
