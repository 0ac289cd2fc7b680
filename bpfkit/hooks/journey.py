# SPDX-License-Identifier: Apache-2.0
"""What one packet met on its way: the hooks in their order, and what follows from it.

The order that the kernel's sources say is :func:`expected`.  Hooks that have packets, and are not
here: netkit is another device than veth, with its program in the place of a cable (6.7); nf_tables'
ingress and egress chains take no BPF programs (BPF_PROG_TYPE_NETFILTER has the five hooks of IPv4
and IPv6); programs of DEVMAP and CPUMAP entries, act_bpf, SRv6's End.BPF, sk_reuseport and the flow
dissector only meet packets that something else sent to them; cgroup sock_addr, sockops, sk_msg and
sk_skb see calls and data of sockets, not packets.
"""

from __future__ import annotations

from struct import Struct

from bpfkit.core.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import TypeAlias

    from bpfkit.show.rows import Row, Verdict

    #: Hook of a drop, tap beside it, namespace:device of both, microseconds by which the tap comes
    #: later (negative: earlier), and did the capture there see the dropped packet?
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

#: enum hook of the C side.
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
#: Everything that is not a tap, which only gets a copy.
DROPS = tuple(hook for hook in HOOKS if not hook.startswith("tap"))
#: Path: (sender, receiver, places that are looked at).
PATHS = {
    "in": ("client", "router", ("router",)),
    "out": ("router", "server", ("router",)),  # to an address of its own, see _routes()
    "forward": ("client", "server", ("router",)),
    "all": ("client", "server", PLACES),
}
#: Which device gets which XDP mode; one cannot have both.
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

_SIGHTING = Struct("=QIIIIHBBBBH")
_LAYERS = {0: "none", 2: "L2", 3: "L3", 4: "L4"}


def expected(path: str, proto: str, xdp: str = "both") -> list[tuple[str, str]]:
    """(place, hook) in the order that the kernel's sources say.

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

    :ivar ns: CLOCK_MONOTONIC nanoseconds.
    :ivar device: "" where the hook has none.
    :ivar form: what its data starts with: ``L2``, ``L3``, ``L4``, or ``none``: there is no data.
    :ivar length: bytes from there on.
    :ivar vlan: place of the VLAN tag: ``none``, ``data``, or ``beside`` (in skb->vlan_tci).
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

    def __init__(self, record: bytes, devices: dict[int, str]) -> None:
        ns, hook, place, ifindex, length, tci, layer, inside, beside, dropped, cpu = (
            _SIGHTING.unpack(record[: _SIGHTING.size])
        )
        self.ns = ns
        self.hook = HOOKS[hook]
        self.place = PLACES[place]
        self.ifindex = ifindex
        self.device = devices.get(ifindex, "")
        self.form = _LAYERS[layer]
        self.length = length
        self.vlan = "data" if inside else "beside" if beside else "none"
        self.vlan_id = tci & 0xFFF if inside or beside else None
        self.dropped = bool(dropped)
        self.cpu = cpu

    def seen_by(self, cut: Journey, where: Sighting) -> Tapped:
        """What the capture at this tap shows of a second packet that was dropped at ``where``."""
        device = f"{self.place}:{self.device}"
        later = (self.ns - where.ns) / 1e3
        return where.hook, self.hook, device, later, cut.captures[f"{device} {self.hook[4:]}"]

    def same_as(self, other: Sighting) -> bool:
        """Whether both are of the same hook at the same device."""
        return (self.hook, self.place, self.ifindex) == (other.hook, other.place, other.ifindex)


class Journey:
    """What one packet met.

    :ivar sightings: in order of time.
    :ivar captures: device and direction (``router:left in``) -> did a capture there see it?
    :ivar receiver: the namespace of the application.
    :ivar received: did the application (a socket there) get it?
    """

    __slots__ = ("captures", "received", "receiver", "sightings")

    def __init__(self, receiver: str) -> None:
        self.receiver = receiver
        self.sightings: list[Sighting] = []
        self.captures: dict[str, bool] = {}
        self.received = False


def find(journey: Journey, spec: str) -> Sighting:
    """The sighting that ``HOOK`` or ``HOOK@PLACE`` names.

    :raises UsageError: the packet does not meet it (the message lists what it meets).
    """
    hook, _, place = spec.partition("@")
    for sighting in journey.sightings:
        if sighting.hook == hook and place in ("", sighting.place):
            return sighting
    met = list(dict.fromkeys(s.hook for s in journey.sightings if s.hook in DROPS))
    raise UsageError(f"this packet does not meet {spec}", why="it meets " + ", ".join(met))


def rows_of(whole: Journey, dropped: Journey | None) -> list[Row]:
    """Rows of a journey, or of what is left of it in a second one that ended early.

    One per hook that the packet meets, per capture on its way, and for the application.  ``seen``
    says which of these the last packet was seen by; ``form``, ``length`` and the tag of those that
    did not see it are those of the first.
    """
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


def taps(whole: Journey) -> list[tuple[Sighting, Sighting]]:
    """Hooks beside a packet tap, and that tap, each kind once: what a capture shows of their drops.

    XDP and tc ingress are around the tap on the way in, tc egress is before the one on the way out.
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
    """Were the ``wanted`` hooks met, in this order, by a packet that was captured and received?

    :param missing: hooks that this kernel has no probe at.
    """
    met = [(s.place, s.hook) for s in journey.sightings]
    wanted = [step for step in wanted if step[1] not in missing]
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


def judge_drop(whole: Journey, cut: Journey, where: Sighting) -> Verdict:
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
