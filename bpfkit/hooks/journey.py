# SPDX-License-Identifier: Apache-2.0
"""The hooks that one packet passes, in their order, and what follows from it.

:func:`expected` is the order according to the kernel's sources.  Not covered: netkit, another
device than veth, with a program in place of the link (Linux 6.7); nf_tables' ingress and egress
chains, which take no BPF programs (BPF_PROG_TYPE_NETFILTER has the five hooks of IPv4 and IPv6);
programs of DEVMAP and CPUMAP entries, act_bpf, SRv6's End.BPF, sk_reuseport and the flow dissector,
which see only packets that are directed to them; cgroup sock_addr, sockops, sk_msg and sk_skb,
which see calls and data of sockets, not packets.
"""

from __future__ import annotations

from bpfkit.core.errors import UsageError
from bpfkit.core.shown import Shown
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any, TypeAlias

    from bpfkit.show.rows import Row, Verdict
    from bpfkit.show.view import View

    #: Hook of a drop, adjacent tap, namespace:device of both, microseconds from hook to tap
    #: (negative: the tap is earlier), and whether the capture there saw the dropped packet.
    Tapped: TypeAlias = tuple[str, str, str, float, bool]

__all__ = [
    "DEVICES",
    "DROPS",
    "HOOKS",
    "PATHS",
    "PLACES",
    "XDP",
    "Journey",
    "Sighting",
    "expected",
    "find",
    "judge_drop",
    "judge_order",
    "rows_of",
    "taps",
]

#: ``enum hook`` of the C program.
HOOKS = (
    "xdp_native",
    "xdp_generic",
    "tap_in",
    "tcx_ingress",
    "tc_ingress",
    "prerouting",
    "lwt_in",
    "input",
    "sk_lookup",
    "cgroup_ingress",
    "socket_filter",
    "forward",
    "output",
    "lwt_out",
    "postrouting",
    "cgroup_egress",
    "lwt_xmit",
    "tcx_egress",
    "tc_egress",
    "tap_out",
)
PLACES = ("client", "router", "server")
DEVICES = ("client:eth0", "router:left", "router:right", "server:eth0")
#: Hooks that can drop: all but the taps, which get a copy.
DROPS = tuple(hook for hook in HOOKS if not hook.startswith("tap"))
#: Path -> (sender, receiver, observed namespaces).
PATHS = {
    "in": ("client", "router", ("router",)),
    "out": (
        "router",
        "server",
        ("router",),
    ),  # see PacketPath._routes()
    "forward": ("client", "server", ("router",)),
    "all": ("client", "server", PLACES),
}
#: XDP mode of each device; a device can have only one.
XDP = {
    "both": ("native", "native", "native", "generic"),
    "native": ("native",) * 4,
    "generic": ("generic",) * 4,
}

_OUT = "output lwt_out postrouting cgroup_egress lwt_xmit tcx_egress tc_egress tap_out".split()
_RECEIVE = "xdp tap_in tcx_ingress tc_ingress prerouting lwt_in".split()
_IN = [*_RECEIVE, *"input sk_lookup cgroup_ingress socket_filter".split()]
_FORWARD = [
    *_RECEIVE,
    *"forward lwt_out postrouting lwt_xmit tcx_egress tc_egress tap_out".split(),
]

_LAYERS = {0: "none", 2: "L2", 3: "L3", 4: "L4"}


def expected(path: str, proto: str, xdp: str = "both") -> list[tuple[str, str]]:
    """(namespace, hook) in the order of the kernel's sources.

    Source: net/core/dev.c (__netif_receive_skb_core, __dev_queue_xmit), net/ipv4/ip_input.c,
    ip_output.c, ip_forward.c, net/core/lwtunnel.c, net/core/filter.c (sk_filter_trim_cap).
    """
    sender, receiver, seen = PATHS[path]
    first, last = PLACES.index(sender), PLACES.index(receiver)
    modes = dict(zip(DEVICES, XDP[xdp], strict=True))
    found = []
    for place in PLACES[first : last + 1]:
        hooks = _OUT if place == sender else _IN if place == receiver else _FORWARD
        device = "server:eth0" if place == "server" else "router:left"
        for hook in hooks:
            if place not in seen or (hook == "sk_lookup" and proto == "icmp"):
                continue
            found.append((place, f"xdp_{modes[device]}" if hook == "xdp" else hook))
    return found


class Sighting:
    """The packet at a hook.

    :param record: ``struct sighting`` of the C side.
    :param devices: ifindex -> name.
    :ivar ns: CLOCK_MONOTONIC, nanoseconds.
    :ivar device: "" if the hook has none.
    :ivar form: the layer that its data starts with: ``L2``, ``L3``, ``L4``; ``none``: no data.
    :ivar length: bytes from there on.
    :ivar vlan: location of the VLAN tag: ``none``, ``data``, or ``beside`` (in skb->vlan_tci).
    """

    __slots__ = (
        "cpu",
        "device",
        "dropped",
        "form",
        "hook",
        "ifindex",
        "length",
        "ns",
        "place",
        "vlan",
        "vlan_id",
    )

    def __init__(self, record: Any, devices: dict[int, str]) -> None:
        self.ns: int = record.ns
        self.hook = HOOKS[record.hook]
        self.place = PLACES[record.place]
        self.ifindex: int = record.ifindex
        self.device = devices.get(record.ifindex, "")
        self.form = _LAYERS[record.layer]
        self.length: int = record.len
        self.vlan = "data" if record.tag_in else "beside" if record.tag_beside else "none"
        self.vlan_id = record.tci & 0xFFF if self.vlan != "none" else None
        self.dropped = bool(record.dropped)
        self.cpu: int = record.cpu

    def tap_result(self, cut: Journey, where: Sighting) -> Tapped:
        """Whether a capture at this tap saw a second packet that was dropped at ``where``."""
        device = f"{self.place}:{self.device}"
        later = (self.ns - where.ns) / 1e3
        return where.hook, self.hook, device, later, cut.captures[f"{device} {self.hook[4:]}"]

    def same_as(self, other: Sighting) -> bool:
        """Whether both are at the same hook of the same device."""
        return (self.hook, self.place, self.ifindex) == (other.hook, other.place, other.ifindex)


class Journey(Shown):
    """The way of one packet; a notebook shows its ladder.

    :ivar sightings: the packet at each hook, in order of time.
    :ivar captures: device and direction (``router:left in``) -> whether a capture there saw it.
    :ivar receiver: the namespace of the application.
    :ivar received: whether the application (a socket there) received it.
    """

    __slots__ = ("captures", "received", "receiver", "sightings")

    def __init__(self, receiver: str) -> None:
        self.receiver = receiver
        self.sightings: list[Sighting] = []
        self.captures: dict[str, bool] = {}
        self.received = False

    def _view(self) -> View:
        from html import escape

        from bpfkit.hooks import ladder
        from bpfkit.show.view import View

        lines = ladder.journey(rows_of(self, None), "") if self.sightings else []
        text = "\n".join(lines[1:])
        drawing = (f'<pre style="line-height:1.1">{escape(text)}</pre>', text)
        seen = "the application received it" if self.received else "the application did not"
        facts = [("hooks", str(len(self.sightings))), ("end", seen)]
        return View("One packet through the kernel's hooks", facts, drawing=drawing)


def find(journey: Journey, spec: str) -> Sighting:
    """The sighting at ``HOOK`` or ``HOOK@NAMESPACE``.

    :raises UsageError: the packet does not pass that hook (the message lists those it passes).
    """
    hook, _, place = spec.partition("@")
    for sighting in journey.sightings:
        if sighting.hook == hook and place in ("", sighting.place):
            return sighting
    met = list(dict.fromkeys(s.hook for s in journey.sightings if s.hook in DROPS))
    raise UsageError(f"this packet does not pass {spec}", why="it passes " + ", ".join(met))


def rows_of(whole: Journey, dropped: Journey | None) -> list[Row]:
    """The rows of a journey, or of a second one that ended early by a drop.

    One row per hook that the packet passes, per capture on its way, and for the application.
    ``seen`` says whether the last packet was seen there; if not, ``form``, ``length`` and the tag
    are those of the first packet.
    """
    judged = whole if dropped is None else dropped
    start = judged.sightings[0].ns
    rows: list[Row] = []
    for place in whole.sightings:
        seen = next((s for s in judged.sightings if s.same_as(place)), None)
        shown = seen or place
        rows.append(
            {
                "event": "hook",
                "us": round((seen.ns - start) / 1e3, 3) if seen else None,
                "hook": shown.hook,
                "namespace": shown.place,
                "device": shown.device or None,
                "form": shown.form,
                "length": shown.length,
                "vlan": shown.vlan,
                "vlan_id": shown.vlan_id,
                "seen": seen is not None,
                "dropped": shown.dropped,
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


def taps(whole: Journey) -> list[tuple[Sighting, Sighting]]:
    """Hooks adjacent to a packet tap, and that tap, one of each kind.

    On the way in XDP is before the tap and tc ingress after; on the way out tc egress is before.
    """
    found = []
    for hooks, tap in (
        (("xdp_native", "xdp_generic"), "tap_in"),
        (("tc_ingress",), "tap_in"),
        (("tc_egress",), "tap_out"),
    ):
        for where in whole.sightings:
            near = [s for s in whole.sightings if s.hook == tap and s.ifindex == where.ifindex]
            if where.hook in hooks and near:
                found.append((where, near[0]))
                break
    return found


def judge_order(
    journey: Journey, text: str, wanted: list[tuple[str, str]], missing: Collection[str]
) -> Verdict:
    """Whether the packet passed the ``wanted`` hooks in order, and was captured and received.

    :param missing: hooks where this kernel can have no probe.
    """
    met = [(s.place, s.hook) for s in journey.sightings]
    wanted = [step for step in wanted if step[1] not in missing]
    wrong = [f"{hook} on {place}" for place, hook in wanted if (place, hook) not in met]
    if wrong:
        text += f" (not passed: {', '.join(wrong)})"
    captured = all(
        journey.captures[f"{s.place}:{s.device} {s.hook[4:]}"]
        for s in journey.sightings
        if s.hook.startswith("tap")
    )
    good = met == wanted and captured and journey.received
    return good, f"{text}: {len(met)} hooks in the documented order, captured and received"


def judge_drop(whole: Journey, cut: Journey, where: Sighting) -> Verdict:
    """Whether all hooks and captures up to the drop saw the packet, and nothing after it did."""
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
    text += f"{count_of(sum(whole.captures.values()), 'capture')} see it, the application does not"
    return met == wanted and captured == taps and not cut.received, text
