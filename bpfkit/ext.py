# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.ext: a function of a loaded XDP program is replaced while packets arrive.

The C side is bpf_c/xdp/ext.bpf.c.  On an interface of the user's the function is replaced from the
beginning to the end; the demo replaces it and takes the replacement away, again and again.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.xdp import XdpApp
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from bpfkit.core.attach.link import Link
    from bpfkit.net.links.lab import Lab
    from bpfkit.net.traffic.ping import PingReport
    from bpfkit.net.traffic.udp import UdpReport
    from bpfkit.show.rows import Row, Verdict

HOST = "127.0.0.1"
#: enum row of the C side.
ROWS = (
    ("original", "pass"),
    ("replacement", "pass"),
    ("replacement", "drop"),
)
#: Replacements during the UDP traffic of --check.
CHANGES = 20


class Ext(XdpApp):
    """A function of a loaded XDP program is replaced (EXT) while packets arrive."""

    name = "ext"
    expects = (
        "pings before, while and after a function of the attached program is replaced: "
        "lost only meanwhile"
    )
    source = "xdp/ext.bpf.c"
    entry = "original"
    counters = ("bytes", "packets")
    lab_device = "host:lo"
    takes_capture = False
    demo_in_background = False
    demo_rounds = 3
    replaced: Link | None = None

    def build_lab(self) -> Lab:
        from bpfkit.net.links.lab import loopback_lab

        return loopback_lab()

    def load_options(self) -> dict[str, Any]:
        return {"programs": [self.entry], "global_functions": True}

    def setup(self) -> None:
        from bpfkit import load
        from bpfkit.core.types.btf import FUNC

        super().setup()
        self.target = self.object.programs[self.entry]
        assert self.object.btf is not None
        number = self.object.btf.find(self.entry, FUNC)
        assert number is not None
        # The program is verified against the target's BTF, of which the number is one.
        replacing = load(
            self.source,
            consts=self.link_consts(self.interface.l2_len),
            programs=["replacement"],
            attach_targets={"replacement": (number, self.target.fd)},
            reuse_maps=self.object.maps,
            global_functions=True,
            cache=not self.options.no_cache,
        )
        self.number = number
        self.replacement = self.keep(replacing).programs["replacement"]
        self.before: list[PingReport] = self.for_check([])
        self.during: list[PingReport] = self.for_check([])
        self.udp: list[UdpReport] = self.for_check([])
        if not self.wants_demo():
            self.replace()
            self.note("its function original is replaced until the end")

    def replace(self) -> None:
        """From now on calls of original() run replacement()."""
        self.replaced = self.keep(self.replacement.attach_extension(self.target, self.number))

    def put_back(self) -> None:
        """From now on original() runs again."""
        link, self.replaced = self.replaced, None
        assert link is not None
        self._keep.remove(link)
        link.close()

    def demo(self) -> None:
        """Pings before, while and after the function is replaced, and UDP while it is."""
        from bpfkit.net.traffic.ping import ping
        from bpfkit.net.traffic.udp import udp

        if not self.before and not self.options.check:
            self.note("original() lets pings pass; replacement() drops them, and nothing else")
        before = ping(HOST, count=3, interval=0.01)
        self.replace()
        during = ping(HOST, count=3, interval=0.01, timeout=0.2)
        self.udp.append(udp(HOST, count=20))
        self.put_back()
        after = ping(HOST, count=3, interval=0.01)
        self.before += [before, after]
        self.during.append(during)
        if not self.options.check:
            got = [f"{r.received} of {r.sent}" for r in (before, during, after)]
            self.note(f"answered before {got[0]}, replaced {got[1]}, afterwards {got[2]}")

    def rows(self) -> list[Row]:
        return [
            {
                "function": ROWS[key][0],
                "action": ROWS[key][1],
                "bytes": sums.bytes,
                "packets": sums.packets,
            }
            for key, sums in self.object["seen"].sums()
        ]

    def conclusion(self, rows: list[Row]) -> str:
        dropped = sum(row["packets"] for row in rows if row.get("action") in ("drop", "XDP_DROP"))
        return (
            f"seen: {count_of(dropped, 'packet')} dropped by the replacement; the program "
            "stayed attached"
        )

    def verify(self) -> Iterable[Verdict]:
        """Answers to pings, the id that the kernel gives, packets that UDP lost."""
        from threading import Thread
        from time import sleep

        from bpfkit.net.attach.xdp import attached
        from bpfkit.net.traffic.udp import udp

        rows = {(row["function"], row["action"]): row["packets"] for row in self.rows()}
        sent, received = (sum(getattr(r, n) for r in self.before) for n in ("sent", "received"))
        yield sent == received > 0, f"original: {received} of {count_of(sent, 'ping')} answered"
        lost, answered = (sum(getattr(r, n) for r in self.during) for n in ("sent", "received"))
        yield lost > 0 == answered, f"replaced: {answered} of {count_of(lost, 'ping')} answered"
        dropped = rows["replacement", "drop"]
        yield (
            dropped == lost,
            f"replaced: {count_of(dropped, 'packet')} dropped, {count_of(lost, 'ping')} were sent",
        )
        passed = rows["replacement", "pass"]
        wanted = sum(report.packets for report in self.udp)
        yield (
            passed == wanted > 0,
            f"replaced: {count_of(passed, 'packet')} passed, UDP had {wanted}",
        )
        passed = rows["original", "pass"]
        yield (
            passed == 2 * sent,
            f"original: {count_of(passed, 'packet')} passed, pings had {2 * sent}",
        )

        reports: list[UdpReport] = []
        traffic = Thread(target=lambda: reports.append(udp(HOST, count=500, rate=500.0)))
        traffic.start()
        ids = set()
        for _ in range(CHANGES):
            self.replace()
            ids |= {one.prog_id for one in attached(self.interface.index)}
            sleep(0.02)
            self.put_back()
        traffic.join()
        report = reports[0]
        text = f"{report.received} of {report.sent} UDP packets arrived in {CHANGES} replacements"
        yield report.received == report.sent > 0, text
        yield ids == {self.target.id}, f"the interface's program stayed {self.target.id}: {ids}"


if __name__ == "__main__":
    raise SystemExit(main(Ext))
