# SPDX-License-Identifier: Apache-2.0
"""python -m bpfkit info: what a program, a program type or a map type is for, and how it works."""

from __future__ import annotations

import sys

from bpfkit.app.signals import output
from bpfkit.commands.catalog import programs
from bpfkit.commands.catalog import row as catalog_row
from bpfkit.core.errors import BpfkitError, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence
    from typing import Any

    from bpfkit.app.base import App


_NAMES = "a program of `list`, a program type or its section name, or a map type"
HELP = "explain a program, a program type or a map type"


def add_options(parser: ArgumentParser) -> None:
    """The command's options, beside ``--json``."""
    parser.add_argument("name", metavar="NAME", help=_NAMES)


def run(options: Namespace) -> int:
    """Print it; returns the exit status."""
    rows = _explain(options.name)
    if options.json:
        from bpfkit.show.jsonl import json_lines

        output(json_lines(rows))
        return 0
    render = {"program": _program_text, "program type": _type_text, "map type": _map_text}
    texts = ["\n".join(render[str(row["what"])](row)) for row in rows]
    output("\n\n".join(texts) + "\n")
    return 0


def _header_comment(text: str) -> list[str]:
    """The lines of a C file's first comment that is more than the licence, without its stars."""
    at = 0
    while (start := text.find("/*", at)) >= 0:
        end = text.find("*/", start)
        if end < 0:
            break
        comment = text[start + 2 : end]
        at = end + 2
        if "SPDX-License-Identifier" in comment:
            continue
        lines = []
        for line in comment.expandtabs(8).split("\n"):
            bare = line.strip()
            # Keep the indentation behind the star: there are drawings.
            lines.append(line.split("*", 1)[1][1:].rstrip() if bare.startswith("*") else bare)
        while lines and not lines[0].strip():
            lines.pop(0)
        while lines and not lines[-1].strip():
            lines.pop()
        return lines
    return []


def _maps(cls: type[App]) -> list[dict[str, object]]:
    """The maps of a program, from a compile or the cache; needs no privilege."""
    from bpfkit.core.compile.artifact import map_defs
    from bpfkit.core.kernel.constants import map_type_name
    from bpfkit.core.object import compiled

    return [
        {
            "name": definition.name,
            "type": map_type_name(definition.type),
            "key_size": definition.key_size,
            "value_size": definition.value_size,
            "max_entries": definition.max_entries,
        }
        for definition in map_defs(compiled(cls.source))
    ]


def _explain(name: str) -> list[dict[str, Any]]:
    """What there is by that name: a program; else program types and map types.

    :raises InputError: nothing has that name (the nearest names are given).
    """
    every = list(programs())
    wanted = name.removeprefix("bpfkit.").removesuffix(".py")
    for cls in every:
        if cls.name == wanted:
            return [_program_row(cls, every)]
    from bpfkit.core.kernel.constants import MAP_TYPES, PROG_TYPES

    rows = [_type_row(number, every) for number in _types_named(name)]
    rows += [_map_row(number) for number in _index(MAP_TYPES, "bpf_map_type_", name)]
    if rows:
        return rows
    from difflib import get_close_matches

    from bpfkit.core.kernel.sections import SECTIONS

    known = [cls.name for cls in every]
    known += [kind.lower() for kind in (*PROG_TYPES[1:], *MAP_TYPES[1:])]
    known = list(dict.fromkeys([*known, *SECTIONS]))
    short = name.lower().removeprefix("bpf_prog_type_").removeprefix("bpf_map_type_")
    near = get_close_matches(short, known, n=4, cutoff=0.5)
    raise InputError(
        f"no program named {name!r}, nor a program type, section or map type",
        why=f"the nearest are {', '.join(near)}" if near else "`python -m bpfkit list` has names",
    )


def _index(names: Sequence[str], prefix: str, name: str) -> list[int]:
    """The number that a name has in an enumeration, with or without prefix and underscores."""
    short = name.lower().replace("-", "_").removeprefix(prefix)
    plain = short.replace("_", "")
    ways = [plain]
    if prefix == "bpf_map_type_":
        ways.append(plain.removesuffix("map"))  # HashMap is hash, but DevMap is devmap
    for way in ways:
        for number, known in enumerate(names):
            if number and way and known.lower().replace("_", "") == way:
                return [number]
    return []


def _types_named(name: str) -> list[int]:
    """The program types that a type's name, section name or attach type stands for."""
    from bpfkit.core.kernel.constants import ATTACH_TYPES, PROG_TYPES
    from bpfkit.core.kernel.sections import SECTIONS, resolve

    found = _index(PROG_TYPES, "bpf_prog_type_", name)
    if found:
        return found
    try:
        return [resolve(name.removeprefix('SEC("').removesuffix('")')).prog_type]
    except InputError:
        pass
    attach = name.upper().removeprefix("BPF_")
    if attach not in ATTACH_TYPES:
        return []
    number = ATTACH_TYPES.index(attach)
    return sorted({entry[0] for entry in SECTIONS.values() if number and entry[1] == number})


def _type_row(number: int, every: Sequence[type[App]]) -> dict[str, Any]:
    """The five answers for a program type."""
    from bpfkit.commands.guide import PROGRAMS
    from bpfkit.core.kernel.constants import PROG_TYPES, attach_type_name, prog_type_name
    from bpfkit.core.kernel.sections import SECTIONS, resolve

    guide = PROGRAMS[PROG_TYPES[number]]._asdict()
    full = prog_type_name(number)
    sections = []
    for name, (kind, attach, flags, _) in SECTIONS.items():
        if kind != number:
            continue
        try:
            more = bool(resolve(f"{name}/target").target)
        except InputError:
            more = False
        # 0 is an attach type and the absence of one.
        named = attach or name == "cgroup_skb/ingress"
        sections.append(
            {
                "section": name,
                "target": more,
                "attach_type": attach_type_name(attach) if named else None,
                "sleepable": bool(flags & 1 << 4),
            }
        )
    return {
        "what": "program type",
        "name": PROG_TYPES[number].lower(),
        "kernel_name": full,
        "number": number,
        "since": guide["since"],
        "purpose": guide["purpose"],
        "sections": sections,
        "context": guide["context"],
        "changes": guide["changes"],
        "returns": guide["returns"],
        "programs": [cls.name for cls in every if full in cls.types()],
        "kernel_examples": list(guide["examples"]),
        "runs": guide["runs"],
        "functions": list(guide["functions"]),
        "attach": guide["attach"],
        "method": guide["method"] or None,
    }


def _map_row(number: int) -> dict[str, Any]:
    from bpfkit.commands.guide import MAPS
    from bpfkit.core.kernel.constants import MAP_TYPES, map_type_name

    return {
        "what": "map type",
        "name": MAP_TYPES[number].lower(),
        "kernel_name": map_type_name(number),
        "number": number,
        **MAPS[MAP_TYPES[number]]._asdict(),
    }


def _program_row(cls: type[App], every: Sequence[type[App]]) -> dict[str, Any]:
    """What a program is: its row of `list`, the answers for its types, its source, its maps."""
    from bpfkit.core.kernel.constants import prog_type

    row: dict[str, Any] = {"what": "program", **catalog_row(cls)}
    comment: list[str] = []
    sections: list[dict[str, object]] = []
    maps: list[dict[str, object]] = []
    trouble = ""
    if cls.source:
        from bpfkit.core.compile.source import Source

        source = Source.find(cls.source)
        comment = _header_comment(source.text)
        sections = [
            {"function": function, "section": section, "line": line}
            for function, section, line in source.sections
        ]
        try:
            maps = _maps(cls)
        except BpfkitError as error:
            trouble = str(error).partition("\n")[0]
    else:
        module = sys.modules[cls.__module__]
        comment = (module.__doc__ or "").strip().split("\n")
    row |= {"run": f"sudo python -m bpfkit.{cls.name}", "about": comment}
    row |= {"sections": sections, "maps": maps}
    if trouble:
        row["maps_unknown"] = trouble
    row["answers"] = [_type_row(prog_type(name), every) for name in cls.types()]
    return row


def _labelled(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """``label  text``, the text in lines that fit a terminal."""
    from textwrap import wrap

    room = max(len(label) for label, _ in pairs) + 2
    lines = []
    for label, text in pairs:
        body = wrap(text, 98 - room, break_long_words=False, break_on_hyphens=False) or ["-"]
        lines.append(label.ljust(room) + body[0])
        lines += [" " * room + more for more in body[1:]]
    return lines


def _type_text(row: dict[str, Any]) -> list[str]:
    names = [s["section"] + ("/…" if s["target"] else "") for s in row["sections"]]
    attach = row["attach"]
    if row["method"]:
        attach += f"; here: Program.{row['method']}()"
    elsewhere = ", ".join(row["kernel_examples"])
    return [
        f"{row['name']}: {row['kernel_name']} ({row['number']}), Linux {row['since']}",
        "",
        *_labelled(
            [
                ("1 what for", row["purpose"]),
                ("2 section", ", ".join(names)),
                ("  context", row["context"]),
                ("3 may change", row["changes"]),
                ("  returns", row["returns"]),
                ("4 examples", "bpfkit: " + (", ".join(row["programs"]) or "none")),
                ("", f"kernel: {elsewhere}"),
                ("5 runs", row["runs"]),
                ("  functions", ", ".join(row["functions"])),
                ("  since", f"Linux {row['since']}"),
                ("  attach", attach),
            ]
        ),
    ]


def _map_text(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['name']}: {row['kernel_name']} ({row['number']}), Linux {row['since']}",
        "",
        *_labelled(
            [
                ("what for", row["purpose"]),
                ("key", row["key"]),
                ("value", row["value"]),
                ("max_entries", row["entries"]),
                ("user space", row["operations"]),
                ("since", f"Linux {row['since']}"),
                ("in bpfkit", f"bpfkit.core.maps.{row['handled_by']}"),
                ("example", f"python -m bpfkit.{row['example']} --type {row['name']}"),
            ]
        ),
    ]


def _program_text(row: dict[str, Any]) -> list[str]:
    from bpfkit.show.text import cell, table

    lines = [f"{row['name']}: {row['summary']}"]
    for answer in row["answers"]:
        lines += ["", *_type_text(answer)]
    lines += ["", *(f"  {line}".rstrip() for line in row["about"])]
    lines += ["", f"run       {row['run']}", f"source    {row['source']}"]
    lines += [f"type      {', '.join(row['types'])}"]
    sections, maps = row["sections"], row["maps"]
    if sections:
        body = [
            [f'SEC("{s["section"]}")', str(s["function"]), f"line {s['line']}"] for s in sections
        ]
        lines += ["", *table(["section", "function", ""], body, indent="  ")]
    if maps:
        titles = list(maps[0])
        body = [[cell(m[title]).removeprefix("BPF_MAP_TYPE_") for title in titles] for m in maps]
        right = [False, False, True, True, True]
        lines += ["", *table(["map", *titles[1:]], body, right=right, indent="  ")]
    if "maps_unknown" in row:
        lines += ["", f"  maps: not known, {row['maps_unknown']}"]
    return lines
