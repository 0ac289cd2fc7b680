# SPDX-License-Identifier: Apache-2.0
"""Draws a packet's way through namespaces as a ladder: a lane per namespace, a rung per hook.

::

         us  client  router  server  hook        device  data
        0.0  ●       │       │       output      eth0    IP 92
       41.7  └───────●       │       xdp_native  left    Ethernet 106
"""

from __future__ import annotations

from bpfkit.show.text import table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["journey", "ladder", "taps"]

_LAYERS = {"L2": "Ethernet", "L3": "IP", "L4": "transport", "none": "no data"}


def ladder(rows: Sequence[dict[str, Any]], lanes: Sequence[str]) -> list[str]:
    """The ladder, as lines of text.

    :param rows: hooks in order: ``us``, ``hook``, ``namespace``, ``device``, ``form``,
        ``length``, ``vlan``, ``vlan_id``, ``seen``, ``dropped``.
    :param lanes: the namespaces, in the order of the packet's way.
    """
    width = max(map(len, lanes)) + 2
    body = []
    before = -1
    for row in rows:
        at = lanes.index(row["namespace"])
        mark = "✗" if row["dropped"] else "●" if row["seen"] else "·"
        came = before if row["seen"] else -1
        body.append(
            [
                f"{row['us']:.1f}" if row["seen"] else "",
                _rails(at, came, mark, len(lanes), width),
                row["hook"],
                row["device"] or "",
                _data(row) if row["seen"] else "not seen",
                _tag(row),
                "the packet is dropped here" if row["dropped"] else "",
            ]
        )
        if row["seen"]:
            before = at
    names = "".join(name.ljust(width) for name in lanes).rstrip()
    titles = ["µs", names, "hook", "device", "data", "tag", ""]
    keep = [i for i in range(len(titles)) if i < 5 or any(line[i] for line in body)]
    return table(
        [titles[i] for i in keep],
        [[line[i] for i in keep] for line in body],
        right=[True],
    )


def _rails(at: int, before: int, mark: str, count: int, width: int) -> str:
    """The lanes of one rung, with a line from the lane of the previous rung if it differs."""
    cells = ["│"] * count
    cells[at] = mark
    gaps = [" " * (width - 1)] * count
    if 0 <= before < at:
        cells[before] = "└"
        for i in range(before, at):
            gaps[i] = "─" * (width - 1)
            if i > before:
                cells[i] = "─"
    return "".join(c + g for c, g in zip(cells, gaps, strict=True)).rstrip()


def _data(row: dict[str, Any]) -> str:
    what = _LAYERS[row["form"]]
    return what if row["form"] == "none" else f"{what} {row['length']}"


def _tag(row: dict[str, Any]) -> str:
    if not row["seen"] or row["vlan"] == "none":
        return ""
    where = "in the data" if row["vlan"] == "data" else "in metadata"
    return f"VLAN {row['vlan_id']} {where}"


def journey(rows: Sequence[dict[str, Any]], what: str) -> list[str]:
    """Lines of text about one packet: its ladder, who saw it, and why captures did or did not.

    :param rows: of :func:`bpfkit.hooks.journey.rows_of`.
    :param what: description of the packet.
    """
    hooks = [row for row in rows if row["event"] == "hook"]
    lanes = list(dict.fromkeys(row["namespace"] for row in hooks))
    lines = [what, *ladder(hooks, lanes), ""]
    for row in rows:
        verb = "saw it" if row["seen"] else "did not see it"
        if row["event"] == "capture":
            way = "going out" if row["direction"] == "out" else "coming in"
            lines.append(f"a capture on {row['namespace']}:{row['device']} {verb} {way}")
        elif row["event"] == "application":
            verb = "got it" if row["seen"] else "did not get it"
            lines.append(f"the application on {row['namespace']} {verb}")
    return [*lines, *_explained(rows, hooks)]


def _explained(rows: Sequence[dict[str, Any]], hooks: list[dict[str, Any]]) -> list[str]:
    """Why captures in the namespace of the drop saw the packet, or did not."""
    at = next((i for i, row in enumerate(hooks) if row["dropped"]), None)
    if at is None and not rows[-1]["seen"]:
        last = [row for row in hooks if row["seen"]][-1]
        why = "the kernel itself dropped it"
        if last["vlan_id"]:
            why = f"no device is in VLAN {last['vlan_id']}"
        return ["", f"{last['device']}: the packet ends after {last['hook']}: {why}"]
    if at is None:
        return []
    here = hooks[at]
    near = [
        (i, row)
        for i, row in enumerate(hooks)
        if row["hook"].startswith("tap") and row["namespace"] == here["namespace"]
    ]
    lines = [""]
    saw = {(row["device"], row["direction"]): row["seen"] for row in rows[len(hooks) : -1]}
    for i, tap in near:
        order = "after" if i > at else "before"
        result = "still shows" if saw[tap["device"], tap["hook"][4:]] else "misses"
        way = "in" if tap["hook"] == "tap_in" else "out"
        lines.append(
            f"{tap['device']}: the tap on the way {way} is {order} {here['hook']}, "
            f"so tcpdump {result} the packet"
        )
    return lines


def taps(answers: Sequence[tuple[str, str, str, float, bool]]) -> list[str]:
    """Whether captures see dropped packets, as measured with one more packet for each hook.

    :param answers: hook of the drop, tap, namespace:device of both, microseconds from hook to tap
        (negative: the tap is earlier), and whether the capture there saw the dropped packet.
    """
    lines = ["", "whether tcpdump sees dropped packets, measured with one more packet each:"]
    for hook, tap, where, later, seen in answers:
        order = f"{abs(later):.1f} µs {'before' if later > 0 else 'after'} {tap}"
        verb = "saw it" if seen else "did not see it"
        lines.append(f"  dropped at {hook} on {where}, {order}: a capture there {verb}")
    return lines
