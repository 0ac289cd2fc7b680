# SPDX-License-Identifier: Apache-2.0
"""Draws a lab: a box for each namespace, one below the other, and the cables beside them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.links.lab import Device, Lab

__all__ = ["draw"]

_ASCII = str.maketrans("─│╭╮╰╯├┤┼╴●", "-|++++++++o")


def draw(lab: Lab, *, ascii: bool = False) -> str:
    """The drawing, lines of at most about 80 columns for the ready labs.

    Each device is a line in its namespace's box; a cable leaves the box at the right of its line
    and runs down (or up) to the line of its other end.
    """
    lines: list[str] = []
    rows: dict[tuple[str, str], int] = {}
    bodies = {name: _body(name, lab) for name in lab.namespaces}
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
    lanes: list[int] = []  # per lane, the line that its last cable ends at
    for start, end in _cables(lab, rows):
        free = [lane for lane, last in enumerate(lanes) if last < start]
        lane = free[0] if free else len(lanes)
        lanes[lane:] = [end, *lanes[lane + 1 :]]
        _cable(lines, start, end, width + 3, width + 6 + 3 * lane)
    text = "\n".join([f"{lab.title} lab", *(line.rstrip() for line in lines)])
    return text.translate(_ASCII) if ascii else text


def _body(name: str, lab: Lab) -> list[tuple[str, tuple[str, str] | None]]:
    """The lines of a box, each with the device whose cable leaves there."""
    body: list[tuple[str, tuple[str, str] | None]] = []
    devices = lab.devices[name]
    indent = max(len(dev) for dev in devices) + 2
    for dev, device in devices.items():
        text = dev.ljust(indent) + "  ".join(device.addresses + _words(device))
        body.append((text, (name, dev) if device.peer else None))
        body += [(" " * indent + "● " + note, None) for note in device.notes]
    body += [(f"route {route}", None) for route in lab.routes[name]]
    return body


def _words(device: Device) -> list[str]:
    if device.master:
        return [f"port of {device.master}"]
    return [device.kind] if device.kind not in ("veth", "loopback") else []


def _cables(lab: Lab, rows: dict[tuple[str, str], int]) -> list[tuple[int, int]]:
    """(upper line, lower line) of each cable, from the top."""
    found = set()
    for ns, devices in lab.devices.items():
        for dev, device in devices.items():
            if device.peer in rows and (ns, dev) in rows:
                a, b = rows[ns, dev], rows[device.peer]
                found.add((min(a, b), max(a, b)))
    return sorted(found)


def _cable(lines: list[str], start: int, end: int, box: int, column: int) -> None:
    """Draw one at ``column``: from the box's edge and back, crossings where lines meet."""
    for row in range(start, end + 1):
        line = list(lines[row].ljust(column + 1))
        if row in (start, end):
            for at in range(box, column):
                line[at] = {"│": "├" if at == box else "┼", " ": "─"}.get(line[at], line[at])
            line[column] = "╮" if row == start else "╯"
        else:
            line[column] = "┼" if line[column] == "─" else "│"
        lines[row] = "".join(line)
