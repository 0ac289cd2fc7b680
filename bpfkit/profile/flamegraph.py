# SPDX-License-Identifier: Apache-2.0
"""A flame graph as SVG: the width of a frame is its share of the samples, its callers stand below.

One file without scripts: browsers show a frame's name, samples and share when the pointer rests on
it.  Source: B. Gregg, "The Flame Graph", Communications of the ACM 59(6), 2016.
"""

from __future__ import annotations

from html import escape
from zlib import crc32

from bpfkit.core.printable import printable
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["flamegraph"]

_WIDTH, _ROW, _CHAR = 1200, 17, 7.2
#: Frames narrower than this many pixels are left out.
_NARROWEST = 0.3


class _Frame:
    __slots__ = ("children", "name", "samples")

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples = 0
        self.children: dict[str, _Frame] = {}


def flamegraph(stacks: Mapping[tuple[str, ...], int], title: str) -> str:
    """The SVG text.

    :param stacks: frames from the outermost to the innermost -> samples.
    """
    root = _Frame("all")
    for frames, samples in stacks.items():
        root.samples += samples
        at = root
        for name in frames:
            at = at.children.setdefault(name, _Frame(name))
            at.samples += samples
    depth = max((len(frames) for frames in stacks), default=0) + 1
    height = (depth + 3) * _ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="monospace" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fdfdf8"/>',
        f'<text x="{_WIDTH / 2}" y="20" text-anchor="middle" font-size="15">'
        f"{escape(printable(title))}</text>",
    ]
    if root.samples:
        lines += _draw(root, 0.0, 0, height, root.samples)
    return "\n".join([*lines, "</svg>\n"])


def _draw(frame: _Frame, x: float, level: int, height: int, total: int) -> Iterator[str]:
    width = frame.samples / total * _WIDTH
    if width < _NARROWEST:
        return
    y = height - (level + 1) * _ROW
    share = frame.samples / total
    shown = printable(frame.name)  # XML takes no control characters, UTF-8 no surrogates
    label = escape(shown)
    yield (
        f"<g><title>{label}: {count_of(frame.samples, 'sample')}, {share:.1%}</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 1}" '
        f'fill="{_colour(frame.name)}" rx="1"/>'
    )
    room = int((width - 4) / _CHAR)
    if room >= 3:
        name = shown if len(shown) <= room else shown[: room - 1] + "…"
        yield f'<text x="{x + 3:.1f}" y="{y + 12}">{escape(name)}</text>'
    yield "</g>"
    for child in sorted(frame.children.values(), key=lambda child: child.name):
        yield from _draw(child, x, level + 1, height, total)
        x += child.samples / total * _WIDTH


def _colour(name: str) -> str:
    """Warm colours for user code, cold ones for the kernel; the same for the same name."""
    number = crc32(name.encode(errors="replace"))
    if name.endswith("_[k]"):
        return f"rgb({110 + number % 40},{150 + number // 64 % 50},{200 + number // 4096 % 50})"
    return f"rgb({215 + number % 40},{110 + number // 64 % 100},{60 + number // 4096 % 40})"
