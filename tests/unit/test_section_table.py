# SPDX-License-Identifier: Apache-2.0
"""The table of section names in notebooks/07-writing-c is complete, and says what attach() does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bpfkit.commands.guide import PROGRAMS
from bpfkit.core.attach import symbols
from bpfkit.core.attach.by_section import attach
from bpfkit.core.errors import InputError
from bpfkit.core.kernel.constants import prog_type
from bpfkit.core.kernel.sections import SECTIONS, resolve

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "07-writing-c.ipynb"


def braces(pattern: str) -> list[str]:
    """``a/{b,c}`` -> ``a/b``, ``a/c``, as a shell expands it."""
    head, _, rest = pattern.partition("{")
    if not rest:
        return [head]
    words, _, tail = rest.partition("}")
    return [head + word + end for word in words.split(",") for end in braces(tail)]


def rows() -> list[tuple[list[str], str, str, str]]:
    """(sections, type, context, how it is attached) of each row."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    (text,) = (t for c in cells if "| SEC | type |" in (t := "".join(c["source"])))
    table = text.partition("| SEC | type |")[2].partition("|---|---|---|---|\n")[2]
    found = []
    for line in table.splitlines():
        sections, kind, context, how = line.strip("| ").split(" | ")
        names = [n for pattern in re.findall("`([^`]+)`", sections) for n in braces(pattern)]
        found.append(([name.removesuffix("/…") for name in names], kind, context.strip("`"), how))
    return found


def test_every_section_is_in_one_row():
    named = sorted(name for sections, *_ in rows() for name in sections)
    # The text above the table says of these that they work, too.
    variants = {name for name in SECTIONS if name.endswith(".s") or name.startswith("xdp.frags")}
    assert named == sorted(SECTIONS.keys() - variants)


def resolve_target(name: str) -> str:
    """What the section names behind its own name, if it names something."""
    try:
        return resolve(f"{name}/c:malloc").target
    except InputError:
        return ""


class Called(Exception):
    """The name of the method that attach() calls."""


class Stub:
    """A program of any section, which raises the name of its method that is called."""

    name = "f"

    def __init__(self, section: str) -> None:
        self.section = resolve(section)

    def __getattr__(self, method: str) -> object:
        def called(*_: object, **__: object) -> None:
            raise Called(method)

        return called


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][0])
def test_a_row_is_what_the_sections_are_and_where_attach_puts_them(row, monkeypatch):
    monkeypatch.setattr(symbols, "matching_functions", list)  # else it asks the kernel
    sections, kind, context, how = row
    guide = PROGRAMS[kind].context
    assert guide.startswith("unsigned long long *") if "arguments" in context else context in guide
    for name in sections:
        assert SECTIONS[name][0] == prog_type(kind)
        targeted = bool(resolve_target(name))
        target = None if targeted and name != "lsm_cgroup" else "/"
        with pytest.raises((Called, InputError)) as caught:
            attach(Stub(f"{name}/c:malloc" if targeted else name), target, {})
        said = getattr(caught.value, "hint", f"{caught.value}(")
        for method in re.findall(r"(?:attach_\w+|run)\(", said):
            assert method in how or (method == "attach_route(" and "route" in how)
