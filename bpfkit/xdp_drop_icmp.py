# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_drop_icmp: no ping.  The C side is bpf_c/xdp/xdp_drop_icmp.bpf.c.

The demo: on lo of a namespace of its own, pings are lost while TCP and UDP go on.
"""

from __future__ import annotations

from bpfkit.app.lifecycle import main
from bpfkit.app.xdp import XdpApp
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.net.links.lab import Lab
    from bpfkit.net.traffic.report import Report
    from bpfkit.show.rows import Row, Verdict

HOSTS = ("127.0.0.1", "::1")
_NO_TYPE = 512
_TOO_DEEP, _PASSED = 514, 515
_NAMES = {
    "icmp": {
        0: "echo reply",
        3: "unreachable",
        5: "redirect",
        8: "echo request",
        11: "time exceeded",
    },
    "ipv6-icmp": {
        1: "unreachable",
        2: "packet too big",
        3: "time exceeded",
        128: "echo request",
        129: "echo reply",
        133: "router solicitation",
        134: "router advertisement",
        135: "neighbour solicitation",
        136: "neighbour advertisement",
        143: "multicast listener report",
    },
}


class XdpDropIcmp(XdpApp):
    """XDP that drops ICMP and ICMPv6, counted by type, and lets everything else pass."""

    name = "xdp_drop_icmp"
    expects = "pings, which are to be lost, and TCP and UDP, which are not, by IPv4 and IPv6"
    source = "xdp/xdp_drop_icmp.bpf.c"
    counters = ("bytes", "packets")
    lab_device = "host:lo"

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        text = "let neighbour discovery pass; IPv6 over Ethernet needs it"
        parser.add_argument("--keep-nd", action="store_true", help=text)

    def consts(self) -> dict[str, int]:
        return {"keep_nd": int(self.options.keep_nd), "log": int(self.options.log)}

    def build_lab(self) -> Lab:
        from bpfkit.net.links.lab import loopback_lab

        return loopback_lab()

    def setup(self) -> None:
        self.lost: list[Report] = self.for_check([])
        self.made: list[Report] = self.for_check([])
        super().setup()

    def demo(self) -> None:
        """Pings, which are lost, and TCP and UDP, which are not; over IPv4 and IPv6."""
        from bpfkit.net.traffic.ping import ping
        from bpfkit.net.traffic.tcp import tcp
        from bpfkit.net.traffic.udp import udp

        for host in HOSTS:
            self.lost.append(ping(host, count=2, interval=0.01, timeout=0.1))
            self.made += [tcp(host), udp(host, count=10)]

    def rows(self) -> list[Row]:
        """A row per ICMP and ICMPv6 type that was seen, and one for packets that passed."""
        rows: list[Row] = []
        for key, sums in self.object["types"].sums():
            if sums.packets or key == _PASSED:
                rows.append({**_named(key), "bytes": sums.bytes, "packets": sums.packets})
        return rows

    def conclusion(self, rows: list[Row]) -> str:
        lost = sum(row["packets"] for row in rows if row["action"] == "drop")
        passed = sum(row["packets"] for row in rows if row["action"] == "pass")
        return (
            f"seen: {count_of(lost, 'ICMP packet')} dropped, {passed} others passed: only the "
            "protocol decides"
        )

    def verify(self) -> Iterable[Verdict]:
        from bpfkit.net.traffic.ping import PingReport, ping
        from bpfkit.net.traffic.tagged_frames import TaggedFrames
        from bpfkit.net.traffic.tcp import TcpReport
        from bpfkit.net.traffic.udp import UdpReport

        counted = {(row["proto"], row["type"]): row["packets"] for row in self.rows()}
        for proto, request in (("icmp", 8), ("ipv6-icmp", 128)):
            pings = [r for r in self.lost if isinstance(r, PingReport) and r.proto == proto]
            sent, received = sum(r.sent for r in pings), sum(r.received for r in pings)
            yield (
                sent > 0 == received,
                f"{proto}: {count_of(sent, 'ping')} sent, {received} answered",
            )
            dropped = counted.get((proto, request), 0)
            yield dropped == sent, f"{proto}: {dropped} echo requests counted"
        for report in self.made:
            if isinstance(report, TcpReport):
                yield report.requests == 1, f"TCP over IPv{report.family}: answered"
            elif isinstance(report, UdpReport):
                text = f"UDP over IPv{report.family}: {report.received} of {report.sent} arrived"
                yield report.received == report.sent, text
        passed = sum(report.packets for report in self.made)
        seen = counted.get((None, None), 0)
        yield seen == passed, f"{count_of(seen, 'packet')} passed, TCP and UDP had {passed}"
        ends = [(host, host) for host in HOSTS]
        tagged = TaggedFrames(self.lab, self.lab_device, self.lab_device, ends, ("ping", "UDP"))
        yield from tagged.verdicts({"ping"})
        self.detach()
        yield from tagged.verdicts(when="without the program ")
        for host in HOSTS:
            yield ping(host).received == 1, f"without the program {host} answers"


def _named(key: int) -> Row:
    if key in (_TOO_DEEP, _PASSED):
        word = "passed" if key == _PASSED else "too many headers"
        return {
            "action": "pass" if key == _PASSED else "drop",
            "proto": None,
            "type": None,
            "name": word,
        }
    if key >= _NO_TYPE:
        proto = ("icmp", "ipv6-icmp")[key - _NO_TYPE]
        return {"action": "drop", "proto": proto, "type": None, "name": "no type (later fragment)"}
    proto = "ipv6-icmp" if key >= 256 else "icmp"
    number = key & 255
    return {"action": "drop", "proto": proto, "type": number, "name": _NAMES[proto].get(number, "")}


if __name__ == "__main__":
    raise SystemExit(main(XdpDropIcmp))
