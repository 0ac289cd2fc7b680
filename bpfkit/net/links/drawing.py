# SPDX-License-Identifier: Apache-2.0
"""Draws a lab: a box for each namespace, one below the other, and the cables to their right."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from bpfkit.net.links.device import Device

    Devices = Mapping[str, Mapping[str, Device]]

__all__ = ["draw"]

_ASCII = str.maketrans("─│╭╮╰╯├┤┼╴●", "-|++++++++o")


def draw(
    title: str, devices: Devices, routes: Mapping[str, list[str]], *, ascii: bool = False
) -> str:
    """The drawing; the ready-made labs fit in about 80 columns.

    :param devices: namespace -> its devices by name.
    :param routes: namespace -> its routes, as text.

    Each device is a line in its namespace's box; a cable leaves the box at the right of that line
    and runs to the line of its other end.
    """
    lines: list[str] = []
    rows: dict[tuple[str, str], int] = {}
    bodies = {name: _body(name, found, routes[name]) for name, found in devices.items()}
    width = max(
        [len(text) for body in bodies.values() for text, _ in body]
        + [len(n) + 4 for n in bodies]
        + [20]
    )
    for name, body in bodies.items():
        lines.append(f"╭─ {name} ".ljust(width + 3, "─") + "╮")
        for text, device in body:
            if device:
                rows[device] = len(lines)
            lines.append(f"│ {text.ljust(width)} │")
        lines.append("╰" + "─" * (width + 2) + "╯")
    lanes: list[int] = []  # lane -> the line where its last cable ends
    for start, end in _cables(devices, rows):
        free = [lane for lane, last in enumerate(lanes) if last < start]
        lane = free[0] if free else len(lanes)
        lanes[lane:] = [end, *lanes[lane + 1 :]]
        _cable(lines, start, end, width + 3, width + 6 + 3 * lane)
    text = "\n".join([f"{title} lab", *(line.rstrip() for line in lines)])
    return text.translate(_ASCII) if ascii else text


def _body(
    name: str, devices: Mapping[str, Device], routes: list[str]
) -> list[tuple[str, tuple[str, str] | None]]:
    """The lines of a box, each with the device whose cable leaves at that line."""
    body: list[tuple[str, tuple[str, str] | None]] = []
    indent = max(len(dev) for dev in devices) + 2
    for dev, device in devices.items():
        text = dev.ljust(indent) + "  ".join(device.addresses + _words(device))
        body.append((text, (name, dev) if device.peer else None))
        body += [(" " * indent + "● " + note, None) for note in device.notes]
    body += [(f"route {route}", None) for route in routes]
    return body


def _words(device: Device) -> list[str]:
    if device.master:
        return [f"port of {device.master}"]
    return [device.kind] if device.kind not in ("veth", "loopback") else []


def _cables(devices: Devices, rows: dict[tuple[str, str], int]) -> list[tuple[int, int]]:
    """(upper line, lower line) of each cable, top to bottom."""
    found = set()
    for ns, inside in devices.items():
        for dev, device in inside.items():
            if device.peer in rows and (ns, dev) in rows:
                a, b = rows[ns, dev], rows[device.peer]
                found.add((min(a, b), max(a, b)))
    return sorted(found)


def _cable(lines: list[str], start: int, end: int, box: int, column: int) -> None:
    """Draw a cable at ``column``, from the box's edge and back, with crossings where lines meet."""
    for row in range(start, end + 1):
        line = list(lines[row].ljust(column + 1))
        if row in (start, end):
            for at in range(box, column):
                line[at] = {"│": "├" if at == box else "┼", " ": "─"}.get(line[at], line[at])
            line[column] = "╮" if row == start else "╯"
        else:
            line[column] = "┼" if line[column] == "─" else "│"
        lines[row] = "".join(line)
