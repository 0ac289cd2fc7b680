# SPDX-License-Identifier: Apache-2.0
"""The map and the demo of xdp_drop_tcp and tc_drop_tcp, which drop TCP at two places."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bpfkit.core.object import Object
    from bpfkit.net.links.lab import Lab
    from bpfkit.net.traffic.tagged_frames import TaggedFrames
    from bpfkit.show.rows import Row, Verdict

__all__ = ["DropTcpDemo", "drop_rows"]

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


def drop_rows(loaded: Object) -> list[Row]:
    """What was dropped and what passed."""
    rows = []
    for (action, version, what), (_, sums) in zip(_ROWS, loaded["rows"].sums(), strict=True):
        figures = {"bytes": sums.bytes, "packets": sums.packets}
        rows.append({"action": action, "ip": version, "what": what, **figures})
    return rows


class DropTcpDemo:
    """TCP connections and pings from the lab's client to its server.

    :param lab: a pair_lab.
    :ivar port: the TCP port that the server listens on.
    """

    def __init__(self, lab: Lab) -> None:
        from bpfkit.net.traffic.probes import Listener

        self._client = lab["client"]
        self._server = Listener(lab["server"])
        self.port = self._server.port
        #: (IP version, TCP connected, ping was answered), for every round.
        self.answers: list[tuple[int, bool, bool]] = []

    def run_round(self) -> None:
        """A TCP connection, which fails, and a ping, which is answered; IPv4 and IPv6."""
        for version, host in zip((4, 6), HOSTS, strict=True):
            self.answers.append((version, *self._probe(host)))

    def _probe(self, host: str) -> tuple[bool, bool]:
        """(a TCP connection to ``host`` succeeds, a ping is answered)."""
        from bpfkit.net.traffic.ping import ping
        from bpfkit.net.traffic.probes import tcp_answers

        answered = tcp_answers(host, self.port, ns=self._client, timeout=0.3)
        return answered, ping(host, timeout=2, ns=self._client).received == 1

    def verdicts(
        self, rows: list[Row], tagged: TaggedFrames, detach: Callable[[], None]
    ) -> Iterator[Verdict]:
        """With the program, then without it.

        :param rows: the program's.
        :param tagged: TCP and another protocol in tagged frames, through the program.
        """
        for version, tcp, ping in self.answers:
            yield not tcp, f"IPv{version}: TCP {'connects' if tcp else 'does not connect'}"
            yield ping, f"IPv{version}: ping {'answered' if ping else 'lost'}"
        for row in rows[:2]:
            yield row["packets"] > 0, f"IPv{row['ip']}: {row['packets']} TCP packets dropped"
        yield from tagged.verdicts({"TCP"})
        detach()
        yield from tagged.verdicts(when="without the program ")
        for version, host in zip((4, 6), HOSTS, strict=True):
            tcp, ping = self._probe(host)
            yield tcp and ping, f"IPv{version}: without the program TCP connects"

    def close(self) -> None:
        """Stop the server."""
        self._server.close()
