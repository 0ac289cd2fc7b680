# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_drop_world: nothing gets in.  The C side is bpf_c/xdp/xdp_drop_world.bpf.c.

The demo: two namespaces on a cable; the program goes on one end, off, and on again, and pings from
the other end show it.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.xdp import XdpApp
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.net.links.lab import Lab
    from bpfkit.show.rows import Row, Verdict

HOSTS = ("10.77.0.2", "fd77::2")
PINGS = 3


class XdpDropWorld(XdpApp):
    """XDP that drops everything an interface receives; on, off, on again, shown by ping."""

    name = "xdp_drop_world"
    expects = (
        "pings while the program is on, off, and on again: only those while it is off are answered"
    )
    source = "xdp/xdp_drop_world.bpf.c"
    knows_l2_len = False
    has_live_view = False

    def build_lab(self) -> Lab:
        # Neighbours are known, so that echo requests are dropped and not neighbour requests.
        lab = super().build_lab()
        lab.neighbours("client:eth0", "server:eth0")
        return lab

    def setup(self) -> None:
        self.states: list[Row] = []
        super().setup()

    def demo(self) -> None:
        """One state: pings over IPv4 and IPv6; then the other state."""
        from bpfkit.net.traffic.ping import ping

        before = self.dropped()
        if self.states:
            if self.links:
                self.detach()
            else:
                self.attach(next(iter(self.object.programs.values())))
        state = "on" if self.links else "off"
        client = self.lab["client"]
        reports = [ping(host, count=PINGS, interval=0.02, timeout=0.2, ns=client) for host in HOSTS]
        packets, size = (now - was for now, was in zip(self.dropped(), before, strict=True))
        sent, received = (
            sum(getattr(report, what) for report in reports) for what in ("sent", "received")
        )
        self.states.append(_row(state, sent, received, packets, size))

    def dropped(self) -> tuple[int, int]:
        """Packets and bytes that the program dropped."""
        sums = self.object["dropped"].sum(0)
        return sums.packets, sums.bytes

    def rows(self) -> list[Row]:
        """The demo's states so far; on an interface of the user's, what was dropped."""
        if self.place.has_lab:
            return list(self.states)
        return [_row("on", None, None, *self.dropped())]

    def rows_accumulate(self) -> bool:
        """Rows of the demo are states, which stay; figures of the user's interface change."""
        return self.place.has_lab

    def lines(self, rows: list[Row]) -> Iterable[str]:
        from bpfkit.show.text import cell, table

        titles = ["XDP", "pings sent", "answered", "packets dropped", "bytes dropped"]
        body = [[cell(value) for value in row.values()] for row in rows]
        return table(titles, body, right=[False, True, True, True, True])

    def conclusion(self, rows: list[Row]) -> str:
        lost = sum(row["sent"] - row["received"] for row in rows if row["sent"] is not None)
        return (
            f"seen: {count_of(lost, 'ping')} lost, all while the program was attached: it drops "
            "every packet"
        )

    def verify(self) -> Iterable[Verdict]:
        while len(self.states) < 3:
            self.demo()
        words = [row["state"] for row in self.states]
        yield words[:3] == ["on", "off", "on"], f"the program was {', '.join(words)}"
        for row in self.states:
            sent, received, on = row["sent"], row["received"], row["state"] == "on"
            good = sent > 0 and received == (0 if on else sent)
            yield good, f"{row['state']}: {count_of(sent, 'ping')} sent, {received} answered"
            counted = row["packets"] >= sent if on else row["packets"] == 0
            yield counted, f"{row['state']}: {count_of(row['packets'], 'packet')} dropped"
        yield from self._tagged()

    def _tagged(self) -> Iterable[Verdict]:
        """Tagged frames do not reach a capture on the interface."""
        from bpfkit.net.traffic.tagged_frames import PAIR, TaggedFrames

        tagged = TaggedFrames(self.lab, "client:eth0", self.lab_device, PAIR, ("TCP", "UDP"))
        before = self.dropped()[0]
        yield from tagged.verdicts(("TCP", "UDP"), lambda sent: self.dropped()[0] >= before + sent)
        self.detach()
        yield from tagged.verdicts(when="without the program ")


def _row(state: str, sent: int | None, received: int | None, packets: int, size: int) -> Row:
    figures = {"sent": sent, "received": received, "packets": packets, "bytes": size}
    return {"state": state, **figures}


if __name__ == "__main__":
    raise SystemExit(main(XdpDropWorld))
