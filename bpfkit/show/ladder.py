# SPDX-License-Identifier: Apache-2.0
"""One packet's way through several namespaces as a ladder: a lane each, a rung per sighting.

::

         us  client  router  server  hook        device  data
        0.0  ●       │       │       output      eth0    IP 92
       41.7  └───────●       │       xdp_native  left    Ethernet 106
"""

from __future__ import annotations

from .text import table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["ladder"]

_LAYERS = {"L2": "Ethernet", "L3": "IP", "L4": "transport", "none": "no data"}


def ladder(rows: Sequence[dict[str, Any]], lanes: Sequence[str]) -> list[str]:
    """Lines of text.

    :param rows: sightings in order: ``us``, ``hook``, ``namespace``, ``device``, ``form``,
        ``length``, ``vlan``, ``vlan_id``, ``seen``, ``dropped``.
    :param lanes: the namespaces, in the order of the way.
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
    """The lanes of one rung; a line from the lane of the rung before, where that was another."""
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
    where = "in the data" if row["vlan"] == "data" else "beside the packet"
    return f"VLAN {row['vlan_id']} {where}"
