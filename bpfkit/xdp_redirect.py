# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.xdp_redirect: frames from interface to interface, past the kernel.

``--how patch`` is a wire between each two ports (DEVMAP), ``switch`` learns where stations are and
floods the rest (DEVMAP_HASH, BPF_F_BROADCAST), ``hub`` floods everything, ``router`` asks the
kernel's routing table (bpf_fib_lookup).  Behind each runs the program on the map's entry, which
counts what really leaves and keeps VLANs apart.

The C sides are bpf_c/xdp/xdp_redirect*.bpf.c.  In the demo hosts around a namespace that does not
forward by itself reach each other.
"""

from __future__ import annotations

from bpfkit.app import main
from bpfkit.core.errors import InputError, UsageError, errno_text
from bpfkit.portapp import SKIPPED, PortApp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.app import Row, Verdict
    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.lab import Lab
    from bpfkit.net.star import Star
    from bpfkit.net.traffic import Report

#: --how -> source, device map.
HOW = {
    "patch": ("xdp/xdp_redirect.bpf.c", "wires"),
    "switch": ("xdp/xdp_redirect_switch.bpf.c", "out"),
    "hub": ("xdp/xdp_redirect_switch.bpf.c", "out"),
    "router": ("xdp/xdp_redirect_router.bpf.c", "out"),
}
_FIB = (
    "SUCCESS BLACKHOLE UNREACHABLE PROHIBIT NOT_FWDED FWD_DISABLED UNSUPP_LWT NO_NEIGH FRAG_NEEDED "
    "NO_SRC_ADDR"
).split()
_FLOODED = 17
#: enum result -> what became of the frame, and why.
_RESULTS = {number: ("XDP_PASS", f"BPF_FIB_LKUP_RET_{name}") for number, name in enumerate(_FIB)}
_RESULTS |= {
    0: ("XDP_REDIRECT", "BPF_FIB_LKUP_RET_SUCCESS"),
    1: ("XDP_DROP", "BPF_FIB_LKUP_RET_BLACKHOLE"),
    16: ("XDP_REDIRECT", "to one port"),
    17: ("XDP_REDIRECT", "to all other ports"),
    18: ("XDP_DROP", "destination at this port"),
    19: ("XDP_DROP", "impossible source"),
    20: ("XDP_PASS", "leaves by no port"),
    21: ("XDP_PASS", "for this machine"),
    22: ("XDP_PASS", "not to this port"),
    23: ("XDP_PASS", "VLAN-tagged"),
    24: ("XDP_PASS", "not IP"),
    25: ("XDP_PASS", "more than forwarding"),
    26: ("XDP_PASS", "TTL used up"),
}
_LOST = {0: "no room", SKIPPED: "left out of broadcasts"}
_DEMO_VLANS = {"switch": ["p3=untagged,20"]}
_MTU = 1400  # of the router demo's third port


class XdpRedirect(PortApp):
    """Forwards past the kernel, as a wire, switch, hub or router between interfaces."""

    name = "xdp_redirect"
    source = "xdp/xdp_redirect.bpf.c"
    counters = ("packets", "bytes", "lost")
    epilog = (
        "A port receives nothing of what is redirected. VLAN tags must be in the frames: ethtool "
        "-K DEV rxvlan off. --pcap: as if all frames came in by one port. Wire and hub redirect "
        "everything; a switch learns from the capture; a router has a route and a neighbour for "
        "every address, and takes every destination MAC address for its own: XDP_REDIRECT is what "
        "can be forwarded, XDP_PASS what is left to the kernel."
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        text = "patch: a wire between each two ports; switch, hub, router (default: switch)"
        add("--how", choices=HOW, default="switch", help=text)
        text = "VLAN ids that may leave by a port, `untagged` among them (default: all)"
        add("--vlan", metavar="PORT=ID,..", action="append", default=[], help=text)

    def check_options(self) -> None:
        super().check_options()
        options = self.options
        self.source, self.device_map = HOW[options.how]
        self.keys_are_ports = options.how != "patch"
        if options.how == "patch" and len(options.to) % 2 == 0 and options.to:
            raise UsageError(
                f"--how patch with {len(options.to) + 1} ports",
                why="each wire has two ends: -i A --to B [--to C --to D …]",
            )
        if options.interface is None and not options.vlan:
            options.vlan = _DEMO_VLANS.get(options.how, []) if options.pcap is None else []
        self.members = dict(map(_vlans, options.vlan))

    def consts(self) -> dict[str, int]:
        how = self.options.how
        return {"learns": int(how == "switch")} if how in ("switch", "hub") else {}

    def make_lab(self) -> Lab:
        from bpfkit.net.lab import star_lab

        how = self.options.how
        lab = star_lab(4 if how == "patch" else 3, routed=how == "router")
        if how == "router" and self.options.pcap is not None:
            # Everything has a route, and the next hop is known.
            for via, device in (("10.77.2.1", "default"), ("fd77:2::1", "default6")):
                lab.neighbour("middle:p2", via, lab.lladdr("h2:eth0"))
                lab.route("middle", device, via=via)
        elif how == "router":
            for end in ("middle:p3", "h3:eth0"):
                lab.mtu(end, _MTU)
            for ns in lab:  # every "time exceeded" of every round is wanted
                lab.sysctl(ns, "net.ipv4.icmp_ratelimit", 0)
                lab.sysctl(ns, "net.ipv6.icmp.ratelimit", 0)
        return lab

    def fill(self, loaded: Object, behind: Program) -> None:
        """A wire's entries are crossed; a hash has each port under its own number."""
        for name, vlans in self.members.items():
            port = next((port for port in self.ports if port.name == name), None)
            if port is None:
                known = ", ".join(one.name for one in self.ports)
                raise InputError(f"--vlan: no port {name!r}", why=f"there are {known}")
            self.egress["members"][port.index] = _bits(vlans)
        if self.options.how != "patch":
            super().fill(loaded, behind)
            return
        for slot in range(len(self.ports)):
            other = self.ports[slot ^ 1 if len(self.ports) > 1 else 0]
            loaded["wires"][slot] = (other.index, behind)

    def enter_capture(self) -> None:
        """A router needs routes."""
        if self.options.how == "router":
            self.enter_lab()
        else:
            super().enter_capture()

    def setup(self) -> None:
        self.made: list[tuple[str, Report]] = []
        self.sent: list[Verdict] = []
        super().setup()
        if self.options.how == "router":
            self._warn_no_router()

    def _warn_no_router(self) -> None:
        """bpf_fib_lookup() wants the kernel to be a router."""
        for family, word in (("ipv4", "IPv4"), ("ipv6", "IPv6")):
            for port in self.ports:
                try:
                    with open(f"/proc/sys/net/{family}/conf/{port.name}/forwarding") as file:
                        off = file.read().strip() == "0"
                except OSError:
                    continue
                if off:
                    key = f"net.{family}.conf.{port.name}.forwarding"
                    self.note(f"{word} is not forwarded from {port.name}: sysctl -w {key}=1")

    def left(self) -> list[str]:
        names = super().left()
        if self.options.how != "patch":
            return names
        order = list(self.names.values())
        return [name for name in names if order[order.index(name) ^ 1] in names]

    def flooded(self) -> dict[int, int]:
        sums = self.object["results"].sums()
        return {key.ifindex: row.packets for key, row in sums if key.result == _FLOODED}

    # -- figures

    def rows(self) -> list[Row]:
        """By port and direction: what became of what came in, what left, what was lost."""
        rows: list[tuple[str, int, Row]] = []

        def add(index: int, way: str, action: str, result: str, *figures: int) -> None:
            port = self.names.get(index, str(index))
            row: Row = {"port": port, "direction": way, "action": action, "result": result}
            row.update(zip(self.counters, figures, strict=True))
            rows.append((port, way == "out", row))

        for key, sums in self.object["results"].sums():
            action, text = _RESULTS.get(key.result) or _unknown(key.result)
            add(key.ifindex, "in", action, text, sums.packets, sums.bytes, 0)
        for key, sums in self.egress["departed"].sums():
            action, text = (
                ("XDP_DROP", "VLAN not of this port") if key.what else ("XDP_PASS", "sent")
            )
            add(key.ifindex, "out", action, text, sums.packets, sums.bytes, 0)
        for index, came_in, number, frames in self.lost():
            word = _LOST.get(number) or errno_text(number).partition(" ")[0]
            add(index, "in" if came_in else "out", "lost", word, 0, 0, frames)
        rows.sort(key=lambda row: (row[0], row[1], row[2]["action"], row[2]["result"]))
        return [row for _, _, row in rows]

    # -- demo

    def demo(self) -> None:
        """Hosts talk, and frames made by hand cross: tagged, broadcast, for the router."""
        from bpfkit.net.star import Star

        assert self.lab is not None
        with Star(self.lab) as star:
            getattr(self, f"_demo_{self.options.how}")(star)

    def _talk(self, star: Star, a: str, b: str) -> None:
        self.made += [(f"{a} to {b}", report) for report in star.talk(a, b)]

    def _frame(
        self, star: Star, to: str, expected: Iterable[str], *vlans: int, text: str = ""
    ) -> None:
        """From h1 to a MAC address, IPv4 and IPv6: it must arrive there only, and unchanged."""
        from bpfkit.net.frames import udp_frame
        from bpfkit.net.star import addresses

        assert self.lab is not None
        ends = zip(addresses(self.lab, "h1"), addresses(self.lab, "h2"), strict=True)
        for number, (source, destination) in zip((4, 6), ends, strict=True):
            mark = star.mark()
            by = self.lab.lladdr("h1:eth0")
            frame = udp_frame(to, by, source, destination, mark, vlans=vlans)
            got = star.send("h1", frame, mark, expected)
            fine = got == dict.fromkeys(expected, frame)
            tags = "".join(f", VLAN {vlan}" for vlan in vlans)
            reached = " and ".join(sorted(got)) or "nobody"
            self.sent.append((fine, f"IPv{number}{tags}{text} from h1 reaches {reached}"))

    def _demo_patch(self, star: Star) -> None:
        assert self.lab is not None
        self._talk(star, "h1", "h2")
        self._talk(star, "h4", "h3")
        to = self.lab.lladdr("h2:eth0")
        self._frame(star, to, {"h2"}, 10)
        self._frame(star, "ff:ff:ff:ff:ff:ff", {"h2"}, 10, 20, text=", broadcast")

    def _demo_hub(self, star: Star) -> None:
        assert self.lab is not None
        self._talk(star, "h1", "h2")
        heard = star.overheard("h3", "h1", "h2")
        self.sent.append((heard > 0, f"h3 hears {heard} frames between h1 and h2"))
        self._frame(star, self.lab.lladdr("h2:eth0"), {"h2", "h3"}, 10)
        self._frame(star, "ff:ff:ff:ff:ff:ff", {"h2", "h3"}, text=", broadcast")

    def _demo_switch(self, star: Star) -> None:
        from bpfkit.net.frames import BROADCAST

        assert self.lab is not None
        self._talk(star, "h1", "h2")
        heard = star.overheard("h3", "h1", "h2")
        # At most what was flooded because the answer had not been heard yet.
        self.sent.append((heard <= 2, f"h3 hears {heard} frames between h1 and h2"))
        self._talk(star, "h3", "h1")
        self._frame(star, self.lab.lladdr("h2:eth0"), {"h2"})
        self._frame(star, BROADCAST, {"h2", "h3"}, text=", broadcast")
        self._frame(star, BROADCAST, {"h2"}, 10, text=", broadcast")
        self._frame(star, BROADCAST, {"h2", "h3"}, 20, text=", broadcast")

    def _demo_router(self, star: Star) -> None:
        from bpfkit.net.frames import BROADCAST, udp_frame
        from bpfkit.net.probes import hop, path_mtu
        from bpfkit.net.star import addresses

        assert self.lab is not None
        lab = self.lab
        self._talk(star, "h1", "h2")
        self._talk(star, "h3", "h1")
        port = lab.lladdr("middle:p1")
        self._frame(star, port, (), 10)
        self._frame(star, BROADCAST, (), text=", broadcast")
        ends = list(zip(addresses(lab, "h1"), addresses(lab, "h2"), strict=True))
        routers = [one.partition("/")[0] for one in lab.devices["middle"]["p1"].addresses]
        for (source, host), router in zip(ends, routers, strict=True):
            mark = star.mark()
            frame = udp_frame(port, lab.lladdr("h1:eth0"), source, host, mark, ttl=9)
            wanted = udp_frame(
                lab.lladdr("h2:eth0"), lab.lladdr("middle:p2"), source, host, mark, ttl=8
            )
            fine = star.send("h1", frame, mark, {"h2"}) == {"h2": wanted}
            text = f"{host}: TTL 9 arrives as 8, MAC addresses and checksum as they must be"
            self.sent.append((fine, text))
            hops = [hop(host, ttl, ns=lab["h1"]) for ttl in (1, 2)]
            fine = hops == [(router, "time exceeded"), (host, "port unreachable")]
            self.sent.append((fine, f"{host}: traceroute from h1 shows {hops[0][0]}, {hops[1][0]}"))
        for host in addresses(lab, "h3"):
            mtu = path_mtu(host, _MTU + 50, ns=lab["h1"])
            self.sent.append((mtu == _MTU, f"{host}: h1 is told the MTU {mtu}"))

    # -- check

    def verify(self) -> Iterable[Verdict]:
        from bpfkit.net.star import addresses
        from bpfkit.net.traffic import PingReport, TcpReport, UdpReport, ping

        assert self.lab is not None
        middle, how = self.lab["middle"], self.options.how
        router = how == "router"
        for who, report in self.made:
            text = f"IPv{report.family} {who}"
            if isinstance(report, TcpReport):
                yield report.bytes_down == 20000, f"{text}: TCP, {report.bytes_down} bytes back"
            elif isinstance(report, (PingReport, UdpReport)):
                fine = report.received == report.sent > 0
                yield fine, f"{text}: {report.received} of {report.sent} {report.proto}"
        yield from self.sent
        in_kernel = middle.run(_forwarded)
        known, wanted, left = self._settled()
        if router:
            # Some kernels count a packet as forwarded before they find that it is too long.
            waited = known.get(("in", "BPF_FIB_LKUP_RET_NO_NEIGH"), 0)
            too_long = known.get(("in", "BPF_FIB_LKUP_RET_FRAG_NEEDED"), 0)
            text = f"the kernel forwarded {in_kernel} packets: {waited} had no neighbour yet"
            yield in_kernel <= waited + too_long, f"{text}, {too_long} were too long"
            for name in ("SUCCESS", "FRAG_NEEDED"):
                seen = known.get(("in", f"BPF_FIB_LKUP_RET_{name}"), 0)
                yield seen > 0, f"BPF_FIB_LKUP_RET_{name}: {seen} packets"
        else:
            off = middle.sysctl("net.ipv4.ip_forward") == "0"
            yield off and not in_kernel, "the kernel between them forwards nothing"
        lost = sum(row["lost"] for row in self.rows())
        text = f"{wanted} copies redirected, {left} met the map entry's program, {lost} lost"
        yield wanted == left > 0 == lost, text
        if how == "patch":
            for host in addresses(self.lab, "h3"):
                lost = ping(host, ns=self.lab["h1"], timeout=0.2).received == 0
                yield lost, f"{host} is on the other wire: h1 does not reach it"
        self.detach()
        for host in addresses(self.lab, "h2"):
            there = ping(host, ns=self.lab["h1"], timeout=2 if router else 0.2).received == 1
            now = middle.run(_forwarded)
            text = f"without the program {host} is reached: {'yes' if there else 'no'}"
            yield there == router, text + (", by the kernel" if router else "")
        if router:
            yield now > in_kernel, f"the kernel has forwarded {now} packets now"

    def _settled(self) -> tuple[dict[tuple[str, str], int], int, int]:
        """(packets by direction and result, copies that must leave, frames that the program on the
        entries has seen), when nothing is on its way any more."""
        from time import sleep

        for _ in range(20):
            known: dict[tuple[str, str], int] = {}
            for row in self.rows():
                key = row["direction"], row["result"]
                known[key] = known.get(key, 0) + row["packets"]
            wanted = known.get(("in", "to all other ports"), 0) * (len(self.ports) - 1)
            wanted += known.get(("in", "to one port"), 0)
            wanted += known.get(("in", "BPF_FIB_LKUP_RET_SUCCESS"), 0)
            left = sum(count for (way, _), count in known.items() if way == "out")
            if wanted == left:
                break
            sleep(0.05)
        return known, wanted, left


def _unknown(result: int) -> tuple[str, str]:
    """bpf_fib_lookup()'s own errors are negative."""
    number = (1 << 32) - result
    return "XDP_PASS", f"bpf_fib_lookup: {errno_text(number)}"


def _forwarded() -> int:
    """Packets that the kernel of the thread's namespace has forwarded, IPv4 and IPv6."""
    total = 0
    with open("/proc/thread-self/net/snmp") as file:
        titles, figures = [line.split() for line in file if line.startswith("Ip:")]
        total += int(figures[titles.index("ForwDatagrams")])
    try:
        with open("/proc/thread-self/net/snmp6") as file:
            total += sum(int(x.split()[1]) for x in file if x.startswith("Ip6OutForwDatagrams"))
    except FileNotFoundError:
        pass
    return total


def _vlans(text: str) -> tuple[str, set[int]]:
    """``eth0=10,20,untagged`` -> name and VLAN ids, 0 for untagged."""
    name, equals, words = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--vlan {text}", why="it is PORT=ID[,ID…]")
    ids = set()
    for word in words.split(","):
        number = "0" if word == "untagged" else word
        if not (number.isascii() and number.isdigit() and int(number) < 4095):
            raise UsageError(
                f"--vlan {text}", why=f"{word!r} is no VLAN id (1 to 4094) or untagged"
            )
        ids.add(int(number))
    return name, ids


def _bits(vlans: set[int]) -> bytes:
    return sum(1 << vlan for vlan in vlans).to_bytes(512, "little")


if __name__ == "__main__":
    raise SystemExit(main(XdpRedirect))
