# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit.hooks: which hooks one packet meets, and in which order.

The C side is bpf_c/misc/hooks.bpf.c, the lab and its probes are bpfkit/net/packet_path.py.  One
packet goes from a client through a router to a server; every hook that it meets tells when, on
which device, and what the packet looks like there.  ``--drop-at`` sends it twice: what the second
one no longer meets is what is behind the drop.
"""

from __future__ import annotations

from bpfkit.app import App, main
from bpfkit.core.errors import UsageError
from bpfkit.net.packet_path import HOOKS, PATHS, PLACES, XDP, PacketPath, expected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterable

    from bpfkit.app import Row, Verdict
    from bpfkit.net.packet_path import Journey, Sighting

#: Everything that is not a tap, which only gets a copy.
DROPS = tuple(hook for hook in HOOKS if not hook.startswith("tap"))


class Hooks(App):
    """The packet's path: one packet, the hooks it meets in their order, what a drop hides."""

    name = "hooks"
    source = "misc/hooks.bpf.c"
    needs = ("BPF", "NET_RAW", "NET_ADMIN", "SYS_ADMIN")
    demo_rounds = 1
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
        options.count = options.count or self.demo_rounds

    def setup(self) -> None:
        self.found: list[Row] = []
        self.lab = self.keep(PacketPath(self.options.xdp, cache=not self.options.no_cache))
        for hook, why in self.lab.missing.items():
            self.note(f"no probe at {hook}: {why}")

    def where(self) -> str:
        return "a lab of its own: client, router, server"

    def wants_demo(self) -> bool:
        """A round is a packet, sent when it is asked for: no thread that makes traffic."""
        return False

    def demo(self) -> None:
        """One packet; with ``--drop-at`` a second one, which is dropped."""
        options = self.options
        way = {"family": 6 if options.ipv6 else 4, "vlan": options.vlan}
        whole = self.lab.send(options.proto, options.path, **way)
        dropped = None
        if options.drop_at is not None:
            where = _find(whole, options.drop_at)
            dropped = self.lab.send(options.proto, options.path, drop=where, **way)
        self.found = _rows(whole, dropped)

    def rows(self) -> list[Row]:
        """A row per hook that the packet meets, per capture on its way, and for the application.

        With ``--drop-at``, ``seen`` says which of these still saw the second packet; ``form``,
        ``length`` and the tag of those that did not are those of the first.
        """
        if not self.options.check:
            self.demo()
        return self.found

    def lines(self, rows: list[Row]) -> Iterable[str]:
        from bpfkit.show.ladder import ladder

        options = self.options
        if not rows:
            return []
        hooks = [row for row in rows if row["event"] == "hook"]
        lanes = [place for place in PLACES if any(row["namespace"] == place for row in hooks)]
        version = "IPv6" if options.ipv6 else "IPv4"
        what = {"tcp": "TCP SYN", "udp": "UDP datagram", "icmp": "echo request"}[options.proto]
        lines = [f"one {what} over {version}", *ladder(hooks, lanes), ""]
        for row in rows:
            verb = "saw it" if row["seen"] else "did not see it"
            if row["event"] == "capture":
                way = "going out" if row["direction"] == "out" else "coming in"
                lines.append(f"a capture on {row['namespace']}:{row['device']} {verb} {way}")
            elif row["event"] == "application":
                verb = "got it" if row["seen"] else "did not get it"
                lines.append(f"the application on {row['namespace']} {verb}")
        return [*lines, *_explained(rows)]

    def verify(self) -> Iterable[Verdict]:
        """The order against the kernel's sources, drops against captures and the application."""
        options = self.options
        for family in (4, 6):
            for proto in ("tcp", "udp", "icmp"):
                for path in PATHS:
                    journey = self.lab.send(proto, path, family=family)
                    yield self._ordered(journey, f"IPv{family} {proto}, path {path}", proto, path)
        tagged = self.lab.send("udp", vlan=0)
        yield self._ordered(tagged, "with a priority tag", "udp", "all")
        places = {(s.hook, s.vlan) for s in tagged.sightings if s.place == "router"}
        forms = {("xdp_native", "data"), ("tap_in", "beside"), ("tc_ingress", "beside")}
        yield (
            options.xdp == "generic" or forms <= places,
            "the tag is in the data at native XDP, beside the packet at the tap and at tc",
        )
        whole = self.lab.send("udp")
        for where in whole.sightings:
            if where.hook in DROPS:
                yield _drop_verdict(whole, self.lab.send("udp", drop=where), where)

    def _ordered(self, journey: Journey, text: str, proto: str, path: str) -> Verdict:
        met = [(s.place, s.hook) for s in journey.sightings]
        wanted = [
            step
            for step in expected(path, proto, self.options.xdp)
            if step[1] not in self.lab.missing
        ]
        wrong = [f"{hook} on {place}" for place, hook in wanted if (place, hook) not in met]
        if wrong:
            text += f" (not met: {', '.join(wrong)})"
        captured = all(
            journey.captures[f"{s.place}:{s.device} {s.hook[4:]}"]
            for s in journey.sightings
            if s.hook.startswith("tap")
        )
        good = met == wanted and captured and journey.received
        return good, f"{text}: {len(met)} hooks in the documented order, captured and received"


def _vlan(text: str) -> int:
    from argparse import ArgumentTypeError

    if text.isascii() and text.isdigit() and int(text) < 4095:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a VLAN id (0 to 4094)")


def _find(journey: Journey, spec: str) -> Sighting:
    """The sighting that ``--drop-at`` names."""
    hook, _, place = spec.partition("@")
    for sighting in journey.sightings:
        if sighting.hook == hook and place in ("", sighting.place):
            return sighting
    met = list(dict.fromkeys(s.hook for s in journey.sightings if s.hook in DROPS))
    raise UsageError(f"this packet does not meet {spec}", why="it meets " + ", ".join(met))


def _rows(whole: Journey, dropped: Journey | None) -> list[Row]:
    """Rows of a journey, or of what is left of it in a second one that ended early."""
    judged = whole if dropped is None else dropped
    start = judged.sightings[0].ns
    rows: list[Row] = []
    for place in whole.sightings:
        seen = next((s for s in judged.sightings if s.same_as(place)), None)
        told = seen or place
        rows.append(
            {
                "event": "hook",
                "us": round((seen.ns - start) / 1e3, 3) if seen else None,
                "hook": told.hook,
                "namespace": told.place,
                "device": told.device or None,
                "form": told.form,
                "length": told.length,
                "vlan": told.vlan,
                "vlan_id": told.vlan_id,
                "seen": seen is not None,
                "dropped": told.dropped,
            }
        )
    for name, saw in whole.captures.items():
        if saw:
            device, direction = name.split(" ")
            namespace, _, device = device.partition(":")
            rows.append(
                {
                    "event": "capture",
                    "namespace": namespace,
                    "device": device,
                    "direction": direction,
                    "seen": judged.captures[name],
                }
            )
    rows.append({"event": "application", "namespace": whole.receiver, "seen": judged.received})
    return rows


def _explained(rows: list[Row]) -> list[str]:
    """Why a capture on the device of the drop saw the packet, or did not."""
    hooks = [row for row in rows if row["event"] == "hook"]
    at = next((i for i, row in enumerate(hooks) if row["dropped"]), None)
    if at is None and not rows[-1]["seen"]:
        last = [row for row in hooks if row["seen"]][-1]
        why = "the kernel itself dropped it"
        if last["vlan_id"]:
            why = f"no device takes VLAN {last['vlan_id']}"
        return ["", f"{last['device']}: the packet ends behind {last['hook']}: {why}"]
    if at is None:
        return []
    here = hooks[at]
    taps = [
        (i, row)
        for i, row in enumerate(hooks)
        if row["hook"].startswith("tap") and row["namespace"] == here["namespace"]
    ]
    lines = [""]
    for i, tap in taps:
        order = "behind" if i > at else "before"
        result = "misses" if i > at else "still shows"
        way = "in" if tap["hook"] == "tap_in" else "out"
        lines.append(
            f"{tap['device']}: the tap on the way {way} comes {order} {here['hook']}, "
            f"so tcpdump {result} the packet"
        )
    return lines


def _drop_verdict(whole: Journey, cut: Journey, where: Sighting) -> Verdict:
    """Was everything up to the drop met, and nothing behind it, by captures and application too?"""
    count = next(i for i, s in enumerate(whole.sightings) if s.same_as(where)) + 1
    met = [(s.place, s.hook) for s in cut.sightings]
    wanted = [(s.place, s.hook) for s in whole.sightings[:count]]
    taps = {
        f"{s.place}:{s.device} {s.hook[4:]}"
        for s in whole.sightings[:count]
        if s.hook.startswith("tap")
    }
    captured = {name for name, saw in cut.captures.items() if saw}
    text = f"dropped at {where.hook} of {where.place}: {len(met)} hooks and {len(captured)} of "
    text += f"{sum(whole.captures.values())} captures see it, the application does not"
    return met == wanted and captured == taps and not cut.received, text


if __name__ == "__main__":
    raise SystemExit(main(Hooks))
