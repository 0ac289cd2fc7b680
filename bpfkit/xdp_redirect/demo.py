# SPDX-License-Identifier: Apache-2.0
"""xdp_redirect's demo: hosts exchange traffic through the middle; and its verdicts.

It also sends crafted frames: tagged ones, broadcasts, and frames that a router has to change.
"""

from __future__ import annotations

from time import sleep

from bpfkit.core.words import count_of
from bpfkit.net.links.lab import star_lab
from bpfkit.net.packets.frames import BROADCAST, udp_frame
from bpfkit.net.traffic.ping import PingReport, ping
from bpfkit.net.traffic.tcp import TcpReport
from bpfkit.net.traffic.udp import UdpReport
from bpfkit.xdp_redirect.forwarding import forwarded
from bpfkit.xdp_redirect.path import hop, path_mtu
from bpfkit.xdp_redirect.star import Star, addresses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bpfkit.net.links.lab import Lab
    from bpfkit.net.traffic.report import Report
    from bpfkit.show.rows import Row, Verdict

__all__ = ["RedirectDemo", "redirect_lab"]

MTU = 1400  # of the third port, if the middle is a router


def redirect_lab(how: str, *, live: bool) -> Lab:
    """The star; mode ``patch`` has two wires and needs four hosts.

    :param how: ``patch``, ``switch``, ``hub`` or ``router``.
    :param live: False: no traffic; a router has a route to every address.
    """
    lab = star_lab(4 if how == "patch" else 3, routed=how == "router")
    if how == "router" and not live:
        # Default routes, with a known next hop.
        for via, device in (("10.77.2.1", "default"), ("fd77:2::1", "default6")):
            lab.neighbour("middle:p2", via, lab.lladdr("h2:eth0"))
            lab.route("middle", device, via=via)
    elif how == "router":
        for end in ("middle:p3", "h3:eth0"):
            lab.mtu(end, MTU)
        for ns in lab:  # no "time exceeded" may be suppressed
            lab.sysctl(ns, "net.ipv4.icmp_ratelimit", 0)
            lab.sysctl(ns, "net.ipv6.icmp.ratelimit", 0)
    return lab


class Figures:
    """Sums of xdp_redirect's rows.

    :ivar known: (direction, result) -> packets.
    :ivar wanted: copies that must be sent.
    :ivar left: frames that the map entries' program has seen.
    :ivar lost: failed redirects.
    """

    def __init__(self, rows: list[Row], ports: int) -> None:
        known: dict[tuple[str, str], int] = {}
        for row in rows:
            key = row["direction"], row["result"]
            known[key] = known.get(key, 0) + row["packets"]
        self.known = known
        self.wanted = known.get(("in", "to all other ports"), 0) * (ports - 1)
        self.wanted += known.get(("in", "to one port"), 0)
        self.wanted += known.get(("in", "BPF_FIB_LKUP_RET_SUCCESS"), 0)
        self.left = sum(count for (way, _), count in known.items() if way == "out")
        self.lost = sum(row["lost"] for row in rows)


def settled(rows: Callable[[], list[Row]], ports: int) -> Figures:
    """The figures once all redirected frames have been sent."""
    for _ in range(20):
        figures = Figures(rows(), ports)
        if figures.wanted == figures.left:
            break
        sleep(0.05)
    return figures


class RedirectDemo:
    """The demo's traffic and its verdicts.

    :param lab: made by :func:`redirect_lab`.
    :param how: as for :func:`redirect_lab`.
    """

    def __init__(self, lab: Lab, how: str) -> None:
        self.lab = lab
        self.how = how
        #: ("h1 to h2", report) of the traffic.
        self.made: list[tuple[str, Report]] = []
        #: The verdicts about crafted frames.
        self.sent: list[Verdict] = []

    def perform(self) -> None:
        """Run one round."""
        with Star(self.lab) as star:
            getattr(self, f"_{self.how}")(star)

    def _talk(self, star: Star, a: str, b: str) -> None:
        self.made += [(f"{a} to {b}", report) for report in star.exchange(a, b)]

    def _frame(
        self, star: Star, to: str, expected: Iterable[str], *vlans: int, text: str = ""
    ) -> None:
        """Frames from h1, IPv4 and IPv6, must arrive at the ``expected`` hosts only, unchanged."""
        ends = zip(addresses(self.lab, "h1"), addresses(self.lab, "h2"), strict=True)
        for number, (source, destination) in zip((4, 6), ends, strict=True):
            mark = star.new_mark()
            by = self.lab.lladdr("h1:eth0")
            frame = udp_frame(to, by, source, destination, mark, vlans=vlans)
            got = star.send("h1", frame, mark, expected)
            fine = got == dict.fromkeys(expected, frame)
            tags = "".join(f", VLAN {vlan}" for vlan in vlans)
            reached = " and ".join(sorted(got)) or "no host"
            self.sent.append((fine, f"IPv{number}{tags}{text} from h1 reaches {reached}"))

    def _patch(self, star: Star) -> None:
        self._talk(star, "h1", "h2")
        self._talk(star, "h4", "h3")
        to = self.lab.lladdr("h2:eth0")
        self._frame(star, to, {"h2"}, 10)
        self._frame(star, BROADCAST, {"h2"}, 10, 20, text=", broadcast")

    def _hub(self, star: Star) -> None:
        self._talk(star, "h1", "h2")
        heard = star.count_overheard("h3", "h1", "h2")
        self.sent.append((heard > 0, f"h3 hears {count_of(heard, 'frame')} between h1 and h2"))
        self._frame(star, self.lab.lladdr("h2:eth0"), {"h2", "h3"}, 10)
        self._frame(star, BROADCAST, {"h2", "h3"}, text=", broadcast")

    def _switch(self, star: Star) -> None:
        self._talk(star, "h1", "h2")
        heard = star.count_overheard("h3", "h1", "h2")
        # At most the frames that were flooded before h2's address was learned.
        self.sent.append((heard <= 2, f"h3 hears {count_of(heard, 'frame')} between h1 and h2"))
        self._talk(star, "h3", "h1")
        self._frame(star, self.lab.lladdr("h2:eth0"), {"h2"})
        self._frame(star, BROADCAST, {"h2", "h3"}, text=", broadcast")
        self._frame(star, BROADCAST, {"h2"}, 10, text=", broadcast")
        self._frame(star, BROADCAST, {"h2", "h3"}, 20, text=", broadcast")

    def _router(self, star: Star) -> None:
        lab = self.lab
        self._talk(star, "h1", "h2")
        self._talk(star, "h3", "h1")
        port = lab.lladdr("middle:p1")
        self._frame(star, port, (), 10)
        self._frame(star, BROADCAST, (), text=", broadcast")
        ends = list(zip(addresses(lab, "h1"), addresses(lab, "h2"), strict=True))
        routers = [one.partition("/")[0] for one in lab.devices["middle"]["p1"].addresses]
        for (source, host), router in zip(ends, routers, strict=True):
            mark = star.new_mark()
            frame = udp_frame(port, lab.lladdr("h1:eth0"), source, host, mark, ttl=9)
            wanted = udp_frame(
                lab.lladdr("h2:eth0"), lab.lladdr("middle:p2"), source, host, mark, ttl=8
            )
            fine = star.send("h1", frame, mark, {"h2"}) == {"h2": wanted}
            text = f"{host}: TTL 9 arrives as 8, with the right MAC addresses and checksum"
            self.sent.append((fine, text))
            hops = [hop(host, ttl, ns=lab["h1"]) for ttl in (1, 2)]
            fine = hops == [(router, "time exceeded"), (host, "port unreachable")]
            self.sent.append((fine, f"{host}: traceroute from h1 shows {hops[0][0]}, {hops[1][0]}"))
        for host in addresses(lab, "h3"):
            mtu = path_mtu(host, MTU + 50, ns=lab["h1"])
            self.sent.append((mtu == MTU, f"{host}: h1 learns the MTU {mtu}"))

    # -- verdicts

    def verdicts(
        self, rows: Callable[[], list[Row]], ports: int, detach: Callable[[], None]
    ) -> Iterator[Verdict]:
        """The verdicts after the demo.

        :param rows: returns the program's rows.
        :param ports: number of ports.
        :param detach: detaches the program; then only the kernel can forward.
        """
        for who, report in self.made:
            text = f"IPv{report.family} {who}"
            if isinstance(report, TcpReport):
                yield (
                    report.bytes_down == 20000,
                    f"{text}: TCP, {count_of(report.bytes_down, 'byte')} back",
                )
            elif isinstance(report, (PingReport, UdpReport)):
                fine = report.received == report.sent > 0
                yield fine, f"{text}: {report.received} of {report.sent} {report.proto}"
        yield from self.sent
        middle, router = self.lab["middle"], self.how == "router"
        in_kernel = middle.run(forwarded)
        figures = settled(rows, ports)
        if router:
            yield from self._routed(in_kernel, figures.known)
        else:
            off = middle.sysctl("net.ipv4.ip_forward") == "0"
            yield off and not in_kernel, "the kernel between them forwards nothing"
        wanted, left, lost = figures.wanted, figures.left, figures.lost
        text = f"{wanted} copies redirected, {left} seen by the map entry's program, {lost} lost"
        yield wanted == left > 0 == lost, text
        if self.how == "patch":
            for host in addresses(self.lab, "h3"):
                apart = ping(host, ns=self.lab["h1"], timeout=0.2).received == 0
                yield apart, f"{host} is on the other wire: h1 cannot reach it"
        detach()
        for host in addresses(self.lab, "h2"):
            there = ping(host, ns=self.lab["h1"], timeout=2 if router else 0.2).received == 1
            text = f"without the program {host} is reachable: {'yes' if there else 'no'}"
            yield there == router, text + (", by the kernel" if router else "")
        if router:
            now = middle.run(forwarded)
            yield now > in_kernel, f"the kernel has now forwarded {count_of(now, 'packet')}"

    @staticmethod
    def _routed(in_kernel: int, known: dict[tuple[str, str], int]) -> Iterator[Verdict]:
        """The program forwarded the packets, not the kernel."""
        # Some kernels count a packet as forwarded before they find that it is too long.
        waited = known.get(("in", "BPF_FIB_LKUP_RET_NO_NEIGH"), 0)
        too_long = known.get(("in", "BPF_FIB_LKUP_RET_FRAG_NEEDED"), 0)
        text = (
            f"the kernel forwarded {count_of(in_kernel, 'packet')}: {waited} had no neighbour yet"
        )
        yield in_kernel <= waited + too_long, f"{text}, {too_long} were too long"
        for name in ("SUCCESS", "FRAG_NEEDED"):
            seen = known.get(("in", f"BPF_FIB_LKUP_RET_{name}"), 0)
            yield seen > 0, f"BPF_FIB_LKUP_RET_{name}: {count_of(seen, 'packet')}"
