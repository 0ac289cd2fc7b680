# SPDX-License-Identifier: Apache-2.0
"""The cells of the kernel matrix: what a program's answer on a kernel means, and the tables.

A cell is ``verified``, ``unsupported`` or ``failed``.  No list says what a kernel should lack: a
program that answers 77 must name a config, a version or a module, and the name is held against the
kernel's own configuration.  A config that the kernel has, or a version that it is past, is a
failure of the program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

VERIFIED, UNSUPPORTED, FAILED, NOT_RUN = "verified", "unsupported", "failed", "not run"
_ICON = {VERIFIED: "✔", UNSUPPORTED: "–", FAILED: "✘", NOT_RUN: " "}


class Cell(NamedTuple):
    """One program, program type or map type on one kernel."""

    state: str
    why: str = ""
    seconds: float = 0.0


def parse_config(text: str) -> dict[str, str]:
    """The options of a kernel's configuration that are set: CONFIG_NAME -> y, m or a value."""
    return dict(re.findall(r'^(CONFIG_\w+)="?(.*?)"?$', text, re.M))


def version_of(text: str) -> tuple[int, int]:
    """(6, 12) of ``6.12.117+deb13-amd64``."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def contradiction(why: str, release: str, config: Mapping[str, str]) -> str:
    """What is wrong with a reason for 77 on this kernel; "" if the kernel bears it out.

    :param why: the program's words.
    """
    options = re.findall(r"\bCONFIG_\w+", why)
    if any(config.get(option, "n") in ("n", "m") for option in options):
        return ""
    versions = [
        (int(major), int(minor))
        for major, minor in re.findall(
            r"(?:\b(?:Linux|kernel|since|from|until|before|needs|in) |[(;:] ?)(\d)\.(\d+)\b", why
        )
    ]
    later = [version for version in versions if version > version_of(release)]
    if later:
        return ""
    if options:
        return f"names {options[0]}, which this kernel has ({config[options[0]]})"
    if versions:
        return f"names Linux {versions[0][0]}.{versions[0][1]}, which this kernel is past"
    if re.search(
        r"(this|the) kernel(\'s BTF)? (has no|has neither|does not have|cannot|refuses|lacks)|lsm=|"
        r"no function|not have the (type|helper)|this machine has no|is not installed",
        why,
    ):
        return ""
    return "names neither a config nor a version nor what the kernel lacks"


def _without_place(text: str) -> str:
    """Paths of C sources as they are in the tree, wherever that is."""
    return re.sub(r"\S*/(?=bpf_c/)", "", text)


def short(text: str) -> str:
    """The line of a program's output that says why: what failed, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "FAILED" in line or "internal error" in line]
    return _without_place((telling or lines[-1:] or ["said nothing"])[0])[:300]


def reason(err: str) -> str:
    """A 77's words: all that it wrote on standard error, in one line, without the tree's place."""
    return _without_place(" ".join(err.split()))[-400:] or "said nothing"


def program_cell(answer: Mapping[str, Any], release: str, config: Mapping[str, str]) -> Cell:
    """The cell of a program's answer (``status``, ``out``, ``err``, ``seconds``)."""
    status, seconds = int(answer["status"]), float(answer["seconds"])
    if status == 0:
        return Cell(VERIFIED, "", seconds)
    if status == 77:
        why = reason(answer["err"])
        wrong = contradiction(why, release, config)
        return (
            Cell(FAILED, f"{wrong}: {why}", seconds) if wrong else Cell(UNSUPPORTED, why, seconds)
        )
    said = short(answer["out"] + "\n" + answer["err"])
    if status == 124:
        return Cell(FAILED, f"time limit of {seconds:.0f} s; last line: {said}", seconds)
    return Cell(FAILED, f"exit status {status}: {said}", seconds)


def map_cells(
    rows: Iterable[Mapping[str, Any]], release: str, config: Mapping[str, str]
) -> dict[str, Cell]:
    """The cells of the map tour's rows."""
    cells = {}
    for row in rows:
        name, why = str(row["type"]), str(row["why"])
        if row["status"] == "verified":
            cells[name] = Cell(VERIFIED, why)
        elif row["status"] == "unsupported":
            wrong = contradiction(why, release, config)
            cells[name] = Cell(FAILED, f"{wrong}: {why}") if wrong else Cell(UNSUPPORTED, why)
        else:
            cells[name] = Cell(FAILED, "; ".join(row["failed"]) or why)
    return cells


def type_cell(programs: Mapping[str, Sequence[str]], cells: Mapping[str, Cell], kind: str) -> Cell:
    """The cell of a program type: that of the programs that show it, the most specific first.

    :param programs: name -> its program types.
    :param cells: name -> its cell on this kernel.
    """
    showing = [name for name, types in programs.items() if kind in types]
    if not showing:
        return Cell(NOT_RUN, "no program shows it")
    fewest = min(len(programs[name]) for name in showing)
    specific = [name for name in showing if len(programs[name]) == fewest]
    found = [(name, cells[name]) for name in specific if name in cells]
    if not found:
        return Cell(NOT_RUN, "not run")
    for state in (FAILED, VERIFIED, UNSUPPORTED):
        for name, cell in found:
            if cell.state == state:
                why = cell.why.removeprefix(f"{name}: ")
                return Cell(state, f"{name}: {why}" if why else name)
    return found[0][1]


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def markdown(
    title: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[Cell]],
    *,
    with_reasons: bool = True,
) -> list[str]:
    """A table of cells; a cell that is not green has a number, and the reasons follow."""
    reasons: dict[str, int] = {}
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---|" + ":-:|" * len(columns)]
    for name, cells in rows.items():
        marks = []
        for cell in cells:
            mark = _ICON[cell.state]
            if with_reasons and cell.state in (UNSUPPORTED, FAILED):
                mark += f" {reasons.setdefault(cell.why, len(reasons) + 1)}"
            marks.append(mark)
        lines.append(f"| `{name}` | " + " | ".join(marks) + " |")
    if with_reasons:
        lines += [""] + [f"{number}. {_escape(why)}" for why, number in reasons.items()]
    return lines


def text_table(columns: Sequence[str], rows: Mapping[str, Sequence[Cell]]) -> list[str]:
    """The same for a terminal."""
    width = max([len(name) for name in rows], default=0)
    words = {VERIFIED: "ok", UNSUPPORTED: "-", FAILED: "FAILED", NOT_RUN: ""}
    lines = [" " * width + "".join(f"{column:>8}" for column in columns)]
    for name, cells in rows.items():
        lines.append(f"{name:{width}}" + "".join(f"{words[cell.state]:>8}" for cell in cells))
    return lines
