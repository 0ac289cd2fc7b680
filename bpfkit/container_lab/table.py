# SPDX-License-Identifier: Apache-2.0
"""A state of the container lab as text: expected and observed results, and tools' output."""

from __future__ import annotations

from bpfkit.show.text import cell, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["matrix"]

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
