# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.hooks: which hooks one packet meets, and in which order.

The C side is bpf_c/misc/hooks.bpf.c, the lab and its probes are bpfkit/hooks/probes.py, the
documented order and what follows from a way are bpfkit/hooks/journey.py.  One packet goes from a
client through a router to a server; every hook that it meets tells when, on which device, and what
the packet looks like there.  ``--drop-at`` sends it twice: what the second one no longer meets is
what is behind the drop.
"""

from __future__ import annotations

from bpfkit.app.base import App
from bpfkit.core.errors import UsageError
from bpfkit.hooks.journey import (
    DROPS,
    HOOKS,
    PATHS,
    PLACES,
    XDP,
    expected,
    find,
    judge_drop,
    judge_order,
    rows_of,
    taps,
)
from bpfkit.hooks.probes import PacketPath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.hooks.journey import Journey, Sighting, Tapped
    from bpfkit.show.rows import Row, Verdict


class Hooks(App):
    """The packet's path: one packet, the hooks it meets in their order, what a drop hides."""

    name = "hooks"
    expects = (
        "one UDP datagram crosses a router: each hook that it meets shows itself, with its time"
    )
    source = "misc/hooks.bpf.c"
    needs = ("BPF", "NET_RAW", "NET_ADMIN", "SYS_ADMIN")
    demo_rounds = check_rounds = 1
    demo_in_background = False  # a packet for each round
    has_live_view = False
    epilog = (
        "hooks to drop at: " + ", ".join(DROPS) + "; HOOK@client, HOOK@router or HOOK@server "
        "says where, if the packet meets it several times"
    )

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--proto", choices=("tcp", "udp", "icmp"), default="udp", help="default: udp")
        text = (
            "which way at the router: into it, out of it, through it; all: the whole way from "
            "client to server (default)"
        )
        add("--path", choices=PATHS, default="all", help=text)
        add("-6", "--ipv6", action="store_true", help="IPv6")
        text = "push a tag with this id where the packet leaves (0: a priority tag)"
        add("--vlan", metavar="ID", type=_vlan, help=text)
        text = "XDP mode of the probes; both: native on the router, generic on the server"
        add("--xdp", choices=XDP, default="both", help=text)
        add("--drop-at", metavar="HOOK", help="send it again, and drop it at this hook")

    def check_options(self) -> None:
        options = self.options
        if options.no_demo:
            raise UsageError("hooks is its demo", why="--no-demo leaves nothing to observe")
        if options.drop_at is not None:
            hook, at, place = options.drop_at.partition("@")
            if hook in HOOKS and hook not in DROPS:
                raise UsageError(
                    f"nothing can be dropped at {hook}", why="a packet tap only gets a copy"
                )
            if hook not in DROPS:
                raise UsageError(f"no hook '{hook}'", why="there are " + ", ".join(DROPS))
            if at and place not in PLACES:
                raise UsageError(f"no place '{place}'", why="there are " + ", ".join(PLACES))

    def setup(self) -> None:
        self.found: list[Row] = []
        self.answers: list[Tapped] = []
        self.packet_path = self.keep(PacketPath(self.options.xdp, cache=not self.options.no_cache))
        for hook, why in self.packet_path.missing.items():
            self.note(f"no probe at {hook}: {why}")

    def describe_target(self) -> str:
        return "a lab of its own: client, router, server"

    def demo(self) -> None:
        """One packet; with ``--drop-at`` a second one, which is dropped.

        Text without it answers what captures show of drops, with one more packet for each tap.
        """
        options = self.options
        way = {"family": 6 if options.ipv6 else 4, "vlan": options.vlan}

        def send(drop: Sighting | None = None) -> Journey:
            return self.packet_path.send(options.proto, options.path, drop=drop, **way)

        whole = send()
        dropped = None if options.drop_at is None else send(find(whole, options.drop_at))
        self.found = rows_of(whole, dropped)
        if options.drop_at is None and not options.json and not options.check:
            self.answers = [tap.tap_result(send(where), where) for where, tap in taps(whole)]

    def rows(self) -> list[Row]:
        """The packet that was sent last: see :func:`bpfkit.hooks.journey.rows_of`."""
        return self.found

    def lines(self, rows: list[Row]) -> Iterable[str]:
        from bpfkit.hooks import ladder

        options = self.options
        what = {"tcp": "TCP SYN", "udp": "UDP datagram", "icmp": "echo request"}[options.proto]
        lines = ladder.journey(rows, f"one {what} over IPv{6 if options.ipv6 else 4}")
        return lines + (ladder.taps(self.answers) if self.answers else [])

    def conclusion(self, rows: list[Row]) -> str:
        return (
            "seen: captures see a packet at the tap only: what is dropped before it, no "
            "capture shows"
        )

    def verify(self) -> Iterable[Verdict]:
        """The order against the kernel's sources, drops against captures and the application."""
        options = self.options
        for family in (4, 6):
            for proto in ("tcp", "udp", "icmp"):
                for path in PATHS:
                    journey = self.packet_path.send(proto, path, family=family)
                    yield self._ordered(journey, f"IPv{family} {proto}, path {path}", proto, path)
        tagged = self.packet_path.send("udp", vlan=0)
        yield self._ordered(tagged, "with a priority tag", "udp", "all")
        places = {(s.hook, s.vlan) for s in tagged.sightings if s.place == "router"}
        forms = {("xdp_native", "data"), ("tap_in", "beside"), ("tc_ingress", "beside")}
        yield (
            options.xdp == "generic" or forms <= places,
            "the tag is in the data at native XDP, beside the packet at the tap and at tc",
        )
        whole = self.packet_path.send("udp")
        for where in whole.sightings:
            if where.hook in DROPS:
                yield judge_drop(whole, self.packet_path.send("udp", drop=where), where)

    def _ordered(self, journey: Journey, text: str, proto: str, path: str) -> Verdict:
        wanted = expected(path, proto, self.options.xdp)
        return judge_order(journey, text, wanted, self.packet_path.missing)


def _vlan(text: str) -> int:
    from argparse import ArgumentTypeError

    if text.isascii() and text.isdigit() and int(text) < 4095:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a VLAN id (0 to 4094)")
