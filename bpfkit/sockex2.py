# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sockex2: who gets how much.  The C side is bpf_c/socket/sockex2.bpf.c."""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.tap import TapApp, amount, sums_text
from bpfkit.show.address import address_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.show.rows import Row, Verdict


class Sockex2(TapApp):
    """Bytes and packets per destination address."""

    name = "sockex2"
    source = "socket/sockex2.bpf.c"
    counters = ("bytes", "packets")
    _warned = False

    def rows(self) -> list[Row]:
        """The busiest destination first."""
        lost = self.object["totals"].sum(0).unattributed
        if lost.packets and not self._warned:
            self._warned = True
            self.note("the table is full: packets to further addresses are not shown")
        found = [
            {"dst": address_text(addr[:4] if family == 4 else addr), "bytes": size, "packets": n}
            for addr, family, n, size in self.object["destinations"].rows()
        ]
        return sorted(found, key=lambda row: (-row["bytes"], row["dst"]))

    def lines(self, rows: list[Row]) -> Iterable[str]:
        return [f"ip {row['dst']} bytes {row['bytes']} packets {row['packets']}" for row in rows]

    def notes(self, rows: list[Row]) -> list[str]:
        totals = self.object["totals"].sum(0)
        return [
            f"{what}: {sums_text(part.packets, part.bytes)}"
            for what, part in (("not IP", totals.nonip), ("no room left", totals.unattributed))
            if part.packets
        ]

    def verify(self) -> Iterable[Verdict]:
        """Everything to an address of lo comes from that address, so reports count whole."""
        counted = {row["dst"]: (row["packets"], row["bytes"]) for row in self.rows()}
        for dst, family in (("127.0.0.1", 4), ("::1", 6)):
            reports = [report for report in self.made if report.family == family]
            made = sum(r.packets for r in reports), sum(r.wire_bytes for r in reports)
            found = counted.get(dst, (0, 0))
            yield made == found, f"{dst}: {amount(*made)} made, {amount(*found)} counted"
        packets, size = (sum(figures) for figures in zip(*counted.values(), strict=True))
        yield self.compare_total(packets, size)


if __name__ == "__main__":
    raise SystemExit(main(Sockex2))
