# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.fanout: packet sockets that share an interface, each flow on one of them.

The C side is bpf_c/socket/fanout.bpf.c, which chooses the socket.  The filter on each socket is
sockex3's: it counts the flows that came there, without a packet being copied to user space.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.options import positive
from bpfkit.app.tap import TapApp
from bpfkit.core.errors import UsageError
from bpfkit.core.words import count_of
from bpfkit.net.packets.flows import ENTRY, SOURCE, fill_jump, read_flows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.core.object import Object
    from bpfkit.show.rows import Row, Verdict

#: A kernel frees the programs of a process that ended all at once, in a work queue that has room
#: for 1024; one of them may then wait for a work item that gets no place behind the others, and
#: nobody can load or free a program until the next boot (seen on 6.18).  Stay well below.
MOST_SOCKETS = 32


class Fanout(TapApp):
    """Packet sockets share an interface; a program gives each flow to one of them."""

    name = "fanout"
    expects = (
        "pings, TCP requests and UDP cross lo; four sockets share the packets, a flow stays on one"
    )
    source = "socket/fanout.bpf.c"
    counters = ("bytes", "packets")
    details = ("flows",)
    direction = "both"
    takes_capture = False  # one packet has no share of the sockets

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add(
            "--sockets",
            metavar="N",
            type=positive,
            default=4,
            help=f"number of sockets, up to {MOST_SOCKETS} (default: 4)",
        )
        add(
            "--promisc",
            action="store_true",
            help="promiscuous mode: frames for other hosts too",
        )

    def check_options(self) -> None:
        super().check_options()
        if self.options.sockets > MOST_SOCKETS:
            raise UsageError(
                f"--sockets {self.options.sockets} is too many",
                why=f"at most {MOST_SOCKETS}, each has a copy of sockex3's programs to itself",
            )

    def setup(self) -> None:
        from bpfkit import load
        from bpfkit.net.packets.packet_socket import Fanout as Group

        interface, count = self.interface, self.options.sockets
        spread = self.load(sockets=count, l2_len=interface.l2_len)
        consts = {"direction": self.directions(), "l2_len": interface.l2_len}
        cache = not self.options.no_cache
        self.counted: list[Object] = []
        for _ in range(count):
            loaded = self.keep(load(SOURCE, consts=consts, cache=cache))
            fill_jump(loaded)
            self.counted.append(loaded)
        group = Group(
            interface,
            count,
            program=spread.programs["fanout"],
            filters=[loaded.programs[ENTRY] for loaded in self.counted],
            promiscuous=self.options.promisc,
            counting=True,
        )
        self.keep(group)
        self.start_watch(group.sockets[0])

    def rows(self) -> list[Row]:
        rows = []
        for number, loaded in enumerate(self.counted):
            flows = len(read_flows(loaded))
            seen = loaded["totals"].sum(0).seen
            rows.append(
                {"socket": number, "flows": flows, "bytes": seen.bytes, "packets": seen.packets}
            )
        return rows

    def conclusion(self, rows: list[Row]) -> str:
        flows = sum(row["flows"] for row in rows)
        return (
            f"seen: {count_of(flows, 'flow')} on {count_of(len(rows), 'socket')}; the kernel "
            "asks the program once a packet, and both ways of a flow have one hash"
        )

    def verify(self) -> Iterable[Verdict]:
        """Every packet is counted once, and no flow is on two sockets."""
        rows = self.rows()
        yield self.compare_total(
            sum(row["packets"] for row in rows), sum(row["bytes"] for row in rows)
        )
        where: dict[tuple[object, ...], set[int]] = {}
        for number, loaded in enumerate(self.counted):
            for src, dst, sport, dport, proto, *_ in read_flows(loaded):
                ends = sorted([(src, sport or 0), (dst, dport or 0)])
                where.setdefault((*ends, proto), set()).add(number)
        split = sum(len(sockets) > 1 for sockets in where.values())
        flows = count_of(len(where), "flow")
        yield not split, f"{flows}, both ways together: {split} of them on two sockets"
        used = sum(bool(row["flows"]) for row in rows)
        yield used > 1 or len(rows) == 1, f"{used} of {count_of(len(rows), 'socket')} got flows"


if __name__ == "__main__":
    raise SystemExit(main(Fanout))
