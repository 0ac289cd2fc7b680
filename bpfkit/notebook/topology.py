# SPDX-License-Identifier: Apache-2.0
"""Draws a lab as SVG: a box for each namespace, its devices inside, cables between them."""

from __future__ import annotations

from html import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from bpfkit.net.links.device import Device

__all__ = ["topology"]

_LINE = 16  # pixels between lines of text
_CHAR = 6.7  # width of a character of the 11 pixel monospace font
_PAD = 10
_GAP = 46  # between boxes: room for the cables
_LANE = 12  # between cables that pass below the boxes
_PER_ROW = 4


def topology(devices: Mapping[str, Mapping[str, Device]], routes: Mapping[str, list[str]]) -> str:
    """``<svg>``; colours follow the notebook's theme (``currentColor``).

    :param devices: namespace -> its devices by name.
    :param routes: namespace -> its routes, as text.
    """
    bodies = {ns: _body(ns, found, routes.get(ns, [])) for ns, found in devices.items()}
    places = _places(bodies)
    parts: list[str] = []
    anchors: dict[tuple[str, str], tuple[float, float, float]] = {}
    for ns, body in bodies.items():
        x, y, width, height = places[ns]
        parts.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6" '
            'fill="none" stroke="currentColor"/>'
            + _text(x + _PAD, y + _LINE, ns, 'font-weight="bold"')
        )
        for number, (text, device) in enumerate(body):
            line = y + (number + 2) * _LINE
            parts.append(_text(x + _PAD, line, text))
            if device:
                anchors[ns, device] = (x, x + width, line - 4)
    below = max(y + height for _, y, _, height in places.values())
    cables, bottom = _cables(devices, anchors, below)
    right = max(x + width for x, _, width, _ in places.values()) + _GAP / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{right:.0f}" '
        f'height="{bottom + _PAD:.0f}" font-family="monospace" font-size="11">'
        f"<title>network namespaces and the cables between them</title>"
        f"{''.join(parts)}{cables}</svg>"
    )


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" fill="currentColor" xml:space="preserve" {more}>'
        f"{escape(text)}</text>"
    )


def _body(ns: str, devices: Mapping[str, Device], routes: list[str]) -> list[tuple[str, str]]:
    """(text, device whose cable leaves there or "") of each line of a box."""
    lines = []
    for name, device in devices.items():
        kind = f"port of {device.master}" if device.master else device.kind
        words = [] if kind in ("veth", "loopback") else [kind]
        lines.append(("  ".join([name, *device.addresses, *words]), name))
        lines += [(f"   ● {note}", "") for note in device.notes]
    return [*lines, *((f"route {route}", "") for route in routes)]


def _places(
    bodies: Mapping[str, list[tuple[str, str]]],
) -> dict[str, tuple[float, float, float, float]]:
    """(x, y, width, height) of each namespace's box, some in a row."""
    places = {}
    x, y, tallest = float(_PAD), float(_PAD), 0.0
    for number, (ns, body) in enumerate(bodies.items()):
        if number and number % _PER_ROW == 0:
            x, y, tallest = float(_PAD), y + tallest + _GAP, 0.0
        width = max(len(text) for text in [ns, *(text for text, _ in body)]) * _CHAR + 2 * _PAD
        height = (len(body) + 1.6) * _LINE
        places[ns] = (x, y, width, height)
        x += width + _GAP
        tallest = max(tallest, height)
    return places


def _cables(
    devices: Mapping[str, Mapping[str, Device]],
    anchors: Mapping[tuple[str, str], tuple[float, float, float]],
    below: float,
) -> tuple[str, float]:
    """The cables, and where the drawing ends.

    Neighbours are joined across the gap between them, others below the boxes.
    """
    drawn = []
    for end, (left, right, y) in anchors.items():
        peer = devices[end[0]][end[1]].peer
        if peer is None or peer not in anchors or end > peer:
            continue
        other = anchors[peer]
        first, second = sorted([(left, right, y), other])
        if 0 < second[0] - first[1] <= _GAP:
            path = (
                f"M{first[1]:.0f} {first[2]:.0f} C{first[1] + _GAP / 2:.0f} {first[2]:.0f} "
                f"{second[0] - _GAP / 2:.0f} {second[2]:.0f} {second[0]:.0f} {second[2]:.0f}"
            )
        else:
            below += _LANE
            turn, back = first[1] + _GAP / 3, second[1] + _GAP / 3
            path = (
                f"M{first[1]:.0f} {first[2]:.0f} H{turn:.0f} V{below:.0f} H{back:.0f} "
                f"V{second[2]:.0f} H{second[1]:.0f}"
            )
        drawn.append(f'<path d="{path}" fill="none" stroke="#2a7ae2" stroke-width="2"/>')
    return "".join(drawn), below
