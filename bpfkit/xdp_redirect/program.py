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

from bpfkit.core.errors import InputError, UsageError, errno_text
from bpfkit.xdp_redirect.ports import SKIPPED, PortApp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.links.lab import Lab
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


class XdpRedirect(PortApp):
    """Forwards past the kernel, as a wire, switch, hub or router between interfaces."""

    name = "xdp_redirect"
    source = "xdp/xdp_redirect.bpf.c"
    counters = ("packets", "bytes", "lost")
    play: RedirectDemo
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
        from bpfkit.xdp_redirect.vlans import parse_vlans

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
        self.members = dict(map(parse_vlans, options.vlan))

    def consts(self) -> dict[str, int]:
        how = self.options.how
        return {"learns": int(how == "switch")} if how in ("switch", "hub") else {}

    def make_lab(self) -> Lab:
        from bpfkit.xdp_redirect.demo import redirect_lab

        return redirect_lab(self.options.how, live=self.options.pcap is None)

    def fill(self, loaded: Object, behind: Program) -> None:
        """A wire's entries are crossed; a hash has each port under its own number."""
        from bpfkit.xdp_redirect.vlans import vlan_bits

        for name, vlans in self.members.items():
            port = next((port for port in self.ports if port.name == name), None)
            if port is None:
                known = ", ".join(one.name for one in self.ports)
                raise InputError(f"--vlan: no port {name!r}", why=f"there are {known}")
            self.egress["members"][port.index] = vlan_bits(vlans)
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
        super().setup()
        if self.options.how == "router":  # bpf_fib_lookup() wants the kernel to be one
            from bpfkit.xdp_redirect.forwarding import not_forwarding

            for version, name, key in not_forwarding(port.name for port in self.ports):
                self.note(f"{version} is not forwarded from {name}: sysctl -w {key}=1")
        if self.lab is not None:
            from bpfkit.xdp_redirect.demo import RedirectDemo

            self.play = RedirectDemo(self.lab, self.options.how)

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
        self.play.perform()

    def verify(self) -> Iterable[Verdict]:
        return self.play.verdicts(self.rows, len(self.ports), self.detach)


def _unknown(result: int) -> tuple[str, str]:
    """bpf_fib_lookup()'s own errors are negative."""
    number = (1 << 32) - result
    return "XDP_PASS", f"bpf_fib_lookup: {errno_text(number)}"
