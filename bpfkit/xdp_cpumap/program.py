# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_cpumap: the flows of an interface over CPUs.

The C sides are bpf_c/xdp/xdp_cpumap.bpf.c and xdp_cpumap_lost.bpf.c.  In the demo each receiving
socket is asked which CPU the kernel handled its datagrams on (SO_INCOMING_CPU).
"""

from __future__ import annotations

from bpfkit.app.xdp import XdpApp
from bpfkit.core.errors import InputError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.links.lab import Lab
    from bpfkit.show.rows import Row, Verdict
    from bpfkit.xdp_cpumap.demo import CpumapDemo

_MOST = 16384  # the longest queue that the kernel accepts


def _queue(text: str) -> int:
    from argparse import ArgumentTypeError

    if text.isascii() and text.isdigit() and 1 <= int(text) <= _MOST:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a queue length (1 to {_MOST})")


class XdpCpumap(XdpApp):
    """Spreads the flows that an interface receives over CPUs, with counts per CPU."""

    protects = False
    name = "xdp_cpumap"
    expects = (
        "flows of many ports arrive at one queue: each is to be handled on one CPU, all "
        "CPUs get some"
    )
    source = "xdp/xdp_cpumap.bpf.c"
    counters = ("queued", "packets", "bytes", "lost")
    importance = ("packets", "lost", "queued", "bytes")
    entry = "xdp_cpumap"
    epilog = (
        "queued: sent to the CPU; packets, bytes: seen by the program there; lost: the CPU's queue "
        "was full, or no memory for an skb. The row without a CPU is what stayed on the CPU that "
        "received it: not IP, or headers that cannot be looked through. --pcap: XDP_REDIRECT is "
        "what is spread."
    )

    traffic: CpumapDemo
    losses: Object | None = None

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        add("--cpus", metavar="LIST", help="CPUs to use, 0,2-3 (default: all that are online)")
        text = "length of each CPU's queue in frames (default: 2048)"
        add("--queue", metavar="N", type=_queue, default=2048, help=text)

    def check_options(self) -> None:
        from bpfkit.core.cpus import cpu_list, online

        super().check_options()
        there = online()
        self.cpus = there
        if self.options.cpus is not None:
            try:
                self.cpus = cpu_list(self.options.cpus)
            except ValueError as error:
                raise InputError(f"--cpus {self.options.cpus}", why=str(error)) from None
        missing = [cpu for cpu in self.cpus if cpu not in there]
        if missing:
            raise InputError(
                f"--cpus: no CPU {missing[0]}",
                why=f"these are online: {', '.join(map(str, there))}",
            )

    def load_options(self) -> dict[str, Any]:
        from bpfkit.core.cpus import possible_cpus

        count = possible_cpus()
        sizes = {"chosen": len(self.cpus), "cpus": count, "queued": count + 1}
        return {"max_entries": sizes}

    def consts(self) -> dict[str, int]:
        return {"cpu_count": len(self.cpus)}

    def prepare(self, loaded: Object) -> None:
        there = loaded.programs["on_cpu"]
        for slot, cpu in enumerate(self.cpus):
            loaded["chosen"][slot] = cpu
            loaded["cpus"][cpu] = (self.options.queue, there)

    def build_lab(self) -> Lab:
        from bpfkit.net.links.lab import pair_lab

        return pair_lab(offloads=False)

    def setup(self) -> None:
        super().setup()
        if self.place.has_lab:
            from bpfkit.xdp_cpumap.demo import CpumapDemo

            self.traffic = CpumapDemo(self.lab)
            self.for_check(self.traffic.made)
            self.for_check(self.traffic.sent)

    def attach(self, program: Program) -> None:
        """Attach the tracepoints first, so that every loss is counted."""
        from bpfkit.core.cpus import possible_cpus
        from bpfkit.net.links.offloads import driver

        self.losses = self.count_losses(
            "xdp/xdp_cpumap_lost.bpf.c",
            lambda: {"map_id": self.object["cpus"].id},
            max_entries={"lost": possible_cpus()},
        )
        super().attach(program)
        if not self.place.has_lab and driver(self.interface) == "veth":
            self.note(
                f"{self.interface.name} is a veth: `ethtool -K DEV tx off` on its other end, or "
                "what comes with unfinished checksums is lost"
            )

    def rows(self) -> list[Row]:
        """A row per CPU, then the packets that stayed on the CPU that received them."""
        queued = dict(self.object["queued"].sums())
        ran = self.object["ran"][0]
        lost = self.losses["lost"] if self.losses is not None else None
        rows: list[Row] = []
        for cpu in self.cpus:
            gone = lost[cpu] if lost is not None else None
            row: Row = {"cpu": cpu, "queued": queued[1 + cpu].packets}
            row |= {"packets": ran[cpu].packets, "bytes": ran[cpu].bytes}
            row["lost"] = gone.full + gone.no_skb if gone is not None else 0
            rows.append(row)
        stayed = queued[0]
        row = {"cpu": None, "queued": 0, "packets": stayed.packets, "bytes": stayed.bytes}
        return [*rows, {**row, "lost": 0}]

    # -- demo

    def demo(self) -> None:
        self.traffic.perform(lambda: sum(self.object["ran"].sum(0)))

    def conclusion(self, rows: list[Row]) -> str:
        used = sum(1 for row in rows if row["cpu"] is not None and row["packets"])
        lost = sum(row["lost"] for row in rows)
        return (
            f"seen: flows on {count_of(used, 'CPU')}, {count_of(lost, 'frame')} lost; a hash of "
            "the flow chooses"
        )

    def verify(self) -> Iterable[Verdict]:
        from bpfkit.xdp_cpumap.demo import DATAGRAMS

        yield from self.traffic.verdicts(self.cpus)
        if len(self.cpus) == 1:
            self.note("one CPU: its queue and its program were checked, nothing could be spread")
        rows, total = self._settled()
        for cpu, count in self.traffic.counts(self.cpus).items():
            least, ran = count * DATAGRAMS, rows[cpu]["packets"]
            yield (
                ran >= least,
                f"CPU {cpu}: its program saw {count_of(ran, 'frame')}, its sockets {least}",
            )
        queued = count_of(total["queued"], "frame")
        text = f"{queued} queued, {total['packets']} taken out, {total['lost']} lost"
        taken, lost = total["packets"], total["lost"]
        good = total["queued"] == taken + lost > 0
        # 5.10 counts among the lost what the stack dropped: the tagged frames, which nobody wants.
        good = good or (total["queued"] == taken > 0 and lost == len(self.traffic.sent))
        yield good, text
        self.detach()
        yield from self.traffic.answers()

    def _settled(self) -> tuple[dict[int | None, Row], dict[str, int]]:
        """Rows by CPU, and their sums, when the queues are empty."""
        from time import sleep

        for _ in range(20):
            rows = {row["cpu"]: row for row in self.rows()}
            spread = [row for cpu, row in rows.items() if cpu is not None]
            total = {name: sum(row[name] for row in spread) for name in self.counters}
            if total["queued"] == total["packets"] + total["lost"]:
                break
            sleep(0.05)
        return rows, total
