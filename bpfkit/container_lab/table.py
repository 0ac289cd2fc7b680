# SPDX-License-Identifier: Apache-2.0
"""A state of the container lab as text: expected and observed results, and tools' output."""

from __future__ import annotations

from bpfkit.container_lab.scene import PROBES, expected
from bpfkit.core.shown import Shown
from bpfkit.show.text import cell, table
from bpfkit.show.view import Table, View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Matrix", "matrix"]

_TITLES = ["probe", "answer expected", "observed", "capture expected", "observed", ""]


def matrix(
    state: str,
    found: Mapping[str, tuple[bool, bool]],
    wanted: Mapping[str, tuple[bool, bool]],
    view: Mapping[str, str],
) -> list[str]:
    """The table of a state, as lines of text.

    :param found: probe -> (answered, captured), as observed.
    :param wanted: the same, as expected.
    :param view: command -> its output.
    """
    body = []
    for probe, (answered, captured) in found.items():
        answer, capture = wanted[probe]
        right = "" if wanted[probe] == (answered, captured) else "UNEXPECTED"
        body.append([probe, *map(cell, (answer, answered, capture, captured)), right])
    lines = [f"state {state}", *table(_TITLES, body, indent="  ")]
    for command, text in view.items():
        lines.append(f"  # {command}")
        lines += [f"    {line.strip()}" for line in text.splitlines() if line.strip()]
    return [*lines, ""]


class Matrix(Shown):
    """What was found in several states: a notebook shows it as a table.

    :param found: state -> probe -> (answered, captured).
    """

    def __init__(self, found: Mapping[str, Mapping[str, tuple[bool, bool]]]) -> None:
        self.found = found

    def _view(self) -> View:
        titles = ["probe"]
        for state in self.found:
            titles += [state, "capture"]
        probes = [probe for probe in PROBES if any(probe in seen for seen in self.found.values())]
        rows = []
        wrong = 0
        for probe in probes:
            row = [probe]
            for state, seen in self.found.items():
                row += [_mark(sign) for sign in seen[probe]] if probe in seen else ["", ""]
                wrong += probe in seen and seen[probe] != expected(state, probe)
            rows.append(row)
        note = "● answered, or seen by the capture; · not."
        if wrong:
            note += f" {wrong} differ from what was expected."
        return View("Container matrix", tables=[Table(titles, rows)], note=note)


def _mark(sign: bool) -> str:
    return "●" if sign else "·"
