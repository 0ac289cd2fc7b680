# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.xdp_redirect: frames from interface to interface, past the kernel.

``--how patch`` is a wire between each two ports (DEVMAP), ``switch`` learns where stations are and
floods the rest (DEVMAP_HASH, BPF_F_BROADCAST), ``hub`` floods everything, ``router`` asks the
kernel's routing table (bpf_fib_lookup).  Behind each runs the program on the map's entry, which
counts what really leaves and keeps VLANs apart.

The C sides are bpf_c/xdp/xdp_redirect*.bpf.c.  In the demo hosts around a namespace that does not
forward by itself reach each other.
"""

from __future__ import annotations

from bpfkit.app.xdp import XdpApp
from bpfkit.core.errors import BpfkitError, UnsupportedError, UsageError, errno_text
from bpfkit.core.words import count_of
from bpfkit.xdp_redirect.ports import SKIPPED, Losses, Ports, check_ports, tracepoint_consts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Iterable

    from bpfkit.core.attach.link import Link
    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.links.interfaces import Interface
    from bpfkit.show.rows import Row, Verdict
    from bpfkit.xdp_redirect.demo import RedirectDemo

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
_BROADCAST = 1 << 3  # BPF_F_BROADCAST
_XDP_REDIRECT = 4
_LO = 1  # ifindex of lo, in every namespace
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


def check_broadcast() -> None:
    """Try whether bpf_redirect_map() can send a frame to all ports (5.13).

    :raises UnsupportedError: it cannot: such frames would be dropped (XDP_ABORTED).
    """
    from bpfkit.core.kernel.asm import assemble, call, exit_, ld_map_fd, mov, r1, r2, r3
    from bpfkit.core.maps import Map
    from bpfkit.core.program import Program

    with Map.create("DEVMAP_HASH", 4, 4, 1) as ports:
        insns = assemble(
            ld_map_fd(r1, ports.fd),
            mov(r2, 0),
            mov(r3, _BROADCAST),
            call("redirect_map"),
            exit_(),
        )
        with Program.from_insns("XDP", insns, name="broadcast") as program:
            if program.run(bytes(64)).retval != _XDP_REDIRECT:
                raise UnsupportedError(
                    "frames cannot be sent to all ports",
                    why="this kernel's bpf_redirect_map() has no BPF_F_BROADCAST (Linux 5.13)",
                    hint="--how router and --how patch do without",
                )


class XdpRedirect(XdpApp):
    """Forwards past the kernel, as a wire, switch, hub or router between interfaces."""

    name = "xdp_redirect"
    expects = (
        "hosts on the ports ping and talk TCP and UDP; the kernel between them forwards nothing"
    )
    source = "xdp/xdp_redirect.bpf.c"
    counters = ("packets", "bytes", "lost")
    details = ("action",)
    importance = ("packets", "lost", "bytes")
    knows_l2_len = False
    epilog = (
        "A port receives nothing of what is redirected. VLAN tags must be in the frames: ethtool "
        "-K DEV rxvlan off. --pcap: as if all frames came in by one port. Wire and hub redirect "
        "everything; a switch learns from the capture; a router has a route and a neighbour for "
        "every address, and takes every destination MAC address for its own: XDP_REDIRECT is what "
        "can be forwarded, XDP_PASS what is left to the kernel."
    )
    ports: Ports
    losses: Losses
    egress: Object
    traffic: RedirectDemo

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        super().add_options(parser)
        add = parser.add_argument
        text = "another port; repeat for more"
        add("--to", metavar="IF", action="append", default=[], help=text)
        text = "patch: a wire between each two ports; switch, hub, router (default: switch)"
        add("--how", choices=HOW, default="switch", help=text)
        text = "VLAN ids that may leave by a port, `untagged` among them (default: all)"
        add("--vlan", metavar="PORT=ID,..", action="append", default=[], help=text)

    def check_options(self) -> None:
        from bpfkit.xdp_redirect.vlans import parse_vlans

        super().check_options()
        options = self.options
        check_ports(options)
        self.source, self.device_map = HOW[options.how]
        self.ports = Ports(paired=options.how == "patch")
        if options.how == "patch" and len(options.to) % 2 == 0 and options.to:
            raise UsageError(
                f"--how patch with {len(options.to) + 1} ports",
                why="each wire has two ends: -i A --to B [--to C --to D …]",
            )
        if options.interface is None and not options.vlan:
            options.vlan = _DEMO_VLANS.get(options.how, []) if options.pcap is None else []
        self.members = dict(map(parse_vlans, options.vlan))

    # -- ports

    def enter(self) -> None:
        """Find the ports: the given ones, or those of the lab's middle."""
        options = self.options
        if options.interface is None:
            self._enter_lab()
            return
        self.enter_place()
        for name in (options.interface, *options.to):
            self.ports.add_checked(name)
        self.interface = self.ports[0]
        veths = self.ports.veths()
        if options.mode == "auto" and veths:
            options.mode = "generic"
            self.note(
                f"{', '.join(veths)}: veth, so generic XDP; --mode native needs an XDP program on "
                "the other ends, and `ethtool -K DEV tx off` there"
            )

    def _enter_lab(self) -> None:
        """Enter the middle of a star; the ends of its cables are the ports."""
        from bpfkit.xdp_redirect.demo import redirect_lab
        from bpfkit.xdp_redirect.star import peers_pass

        live = self.options.pcap is None
        self.place.use_lab(self.keep(redirect_lab(self.options.how, live=live)))
        if live:
            self.keep(peers_pass(self.lab))
        self.enter_namespace(self.lab["middle"].dup())
        for name in self.lab.devices["middle"]:
            if name != "lo":
                self.ports.add(name)
        self.interface = self.ports[0]

    def describe_target(self) -> str:
        return self.place.describe(str(self.ports))

    def setup(self) -> None:
        super().setup()
        if self.options.how == "router":  # bpf_fib_lookup() works only where the kernel forwards
            from bpfkit.xdp_redirect.forwarding import not_forwarding

            for version, name, key in not_forwarding(port.name for port in self.ports):
                self.note(f"{version} is not forwarded from {name}: sysctl -w {key}=1")
        if self.place.has_lab:
            from bpfkit.xdp_redirect.demo import RedirectDemo

            self.traffic = RedirectDemo(self.lab, self.options.how)
            self.for_check(self.traffic.made)
            self.for_check(self.traffic.sent)

    def consts(self) -> dict[str, int]:
        how = self.options.how
        return {"learns": int(how == "switch")} if how in ("switch", "hub") else {}

    def prepare(self, loaded: Object) -> None:
        """Fill the maps with the ports, their VLANs and the program on the device map's entries."""
        from bpfkit import load
        from bpfkit.xdp_redirect.vlans import vlan_bits

        if self.options.how in ("switch", "hub"):
            check_broadcast()
        cache = not self.options.no_cache
        self.egress = self.keep(load("xdp/xdp_redirect_egress.bpf.c", cache=cache))
        behind = self.egress.programs["xdp_redirect_egress"]
        for name, vlans in self.members.items():
            self.egress["members"][self.ports.find(name).index] = vlan_bits(vlans)
        for slot, port in enumerate(self.ports):
            if self.options.how == "patch":  # by number of the port, to the other end of its wire
                loaded["wires"][slot] = (self.ports.peer(slot).index, behind)
            else:
                loaded[self.device_map][port.index] = (port.index, behind)
        for slot, port in enumerate(self.ports):
            self._follow(loaded, slot, port)

    def _follow(self, loaded: Object, slot: int, port: Interface) -> None:
        """Tell the program the port's MAC address, and again when it changes."""
        from bpfkit.app.watch import DeviceWatch

        def apply(mac: bytes, mtu: int) -> None:
            loaded["ports"][port.index] = {"slot": slot, "mac": {"byte": mac}, "any_mac": 0}

        self.check_regularly(DeviceWatch(port, apply, self.note).check)

    def runner(self) -> Callable[[bytes, int], int]:
        """As if the frames came in by lo of a namespace of its own; nothing is sent."""
        if self.options.how == "router":  # which needs routes
            self._enter_lab()
        else:
            self.enter_namespace(self.place.new_namespace("capture"))
            self.interface = self.ports.add("lo")
        run = super().runner()
        self._count_losses(None)
        self.ports.names[_LO] = "capture"
        self.object["ports"][_LO] = {"slot": 0, "mac": {}, "any_mac": 1}
        return run

    def attach_program(self, program: Program) -> list[tuple[Interface, Link]]:
        """The tracepoints first, then all ports."""
        keys_are_ports = self.options.how != "patch"
        lost = self.count_losses(
            "xdp/xdp_redirect_lost.bpf.c",
            lambda: tracepoint_consts(
                self.object[self.device_map].id, keys_are_ports=keys_are_ports
            ),
        )
        self._count_losses(lost)
        attached: list[tuple[Interface, Link, str]] = []
        try:
            for port in self.ports:
                attached.append((port, *self.attach_to(port, program)))
        except BaseException:
            for _, link, _ in attached:
                link.close()
            raise
        self.mode = " and ".join(dict.fromkeys(mode for _, _, mode in attached))
        return [(port, link) for port, link, _ in attached]

    def _count_losses(self, lost: Object | None) -> None:
        self.losses = Losses(self.ports, self.egress, lost, self._flooded, self.note)

    def start_watch(self) -> None:
        self.watch.report_as("port", self._port_removed)
        for port in self.ports:
            self.watch.add(port)
        self.check_regularly(self.losses.check)

    def _port_removed(self, port: Interface) -> None:
        # The kernel removed it from the device map.
        self.object["ports"].pop(port.index, None)
        rest = self.ports.remove(port)
        if not rest:
            raise BpfkitError(
                f"interface {port.name} was removed",
                why="no two ports are left to redirect between",
            )
        self.note(f"interface {port.name} was removed, going on with {', '.join(rest)}")

    def _flooded(self) -> dict[int, int]:
        sums = self.object["results"].sums()
        return {key.ifindex: row.packets for key, row in sums if key.result == _FLOODED}

    # -- figures

    def rows(self) -> list[Row]:
        """By port and direction: frames received by result, frames sent, frames lost."""
        rows: list[tuple[str, int, Row]] = []

        def add(index: int, way: str, action: str, result: str, *figures: int) -> None:
            port = self.ports.names.get(index, str(index))
            row: Row = {"port": port, "direction": way, "action": action, "result": result}
            row.update(zip(self.counters, figures, strict=True))
            rows.append((port, way == "out", row))

        for key, sums in self.object["results"].sums():
            action, text = _RESULTS.get(key.result) or _unknown(key.result)
            add(key.ifindex, "in", action, text, sums.packets, sums.bytes, 0)
        for key, sums in self.losses.departed():
            action, text = (
                ("XDP_DROP", "VLAN not of this port") if key.what else ("XDP_PASS", "sent")
            )
            add(key.ifindex, "out", action, text, sums.packets, sums.bytes, 0)
        for index, came_in, number, frames in self.losses.counts():
            word = _LOST.get(number) or errno_text(number).partition(" ")[0]
            add(index, "in" if came_in else "out", "lost", word, 0, 0, frames)
        rows.sort(key=lambda row: (row[0], row[1], row[2]["action"], row[2]["result"]))
        return [row for _, _, row in rows]

    # -- demo

    def demo(self) -> None:
        """Hosts talk; crafted frames cross: tagged, broadcast, addressed to the router."""
        self.traffic.perform()

    def conclusion(self, rows: list[Row]) -> str:
        sent = sum(row["packets"] for row in rows if row["result"] == "sent")
        lost = sum(row["lost"] for row in rows)
        return f"seen: {count_of(sent, 'frame')} sent on before the network stack, {lost} lost"

    def verify(self) -> Iterable[Verdict]:
        return self.traffic.verdicts(self.rows, len(self.ports), self.detach)


def _unknown(result: int) -> tuple[str, str]:
    """bpf_fib_lookup()'s own errors are negative."""
    number = (1 << 32) - result
    return "XDP_PASS", f"bpf_fib_lookup: {errno_text(number)}"
