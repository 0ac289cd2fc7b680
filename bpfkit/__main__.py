# SPDX-License-Identifier: Apache-2.0
"""``python -m bpfkit``: what there is, what one program does, what works here, tidying up.

The programs themselves are modules of their own: ``python -m bpfkit.sockex3``.
"""

from __future__ import annotations

import os
import sys

from bpfkit.app.base import App, Signals, guarded, output
from bpfkit.core.errors import BpfkitError, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator, Sequence
    from typing import Any

    from bpfkit.core.features import Feature

__all__ = ["main", "program", "programs"]

_INFO_NAMES = "a program of `list`, a program type or its section name, or a map type"
#: What is in bpfkit/ and is no program.
_SUPPORT = ("app", "bpf_c", "commands", "core", "net", "show")


# ---------------------------------------------------------------- the programs


def programs() -> Iterator[type[App]]:
    """The class of every program module, by name."""
    import bpfkit

    for directory in bpfkit.__path__:
        for entry in sorted(os.listdir(directory)):
            module, _, end = entry.partition(".")
            if end in ("", "py") and not module.startswith("_") and module not in _SUPPORT:
                found = _program_of(module if end else f"{module}.program")
                if found is not None:
                    yield found


def program(name: str) -> type[App]:
    """The class of the program ``name``.

    :raises InputError: there is no such program (the nearest names are given).
    """
    name = name.removeprefix("bpfkit.").removesuffix(".py")
    for found in programs():
        if found.name == name:
            return found
    from difflib import get_close_matches

    known = [found.name for found in programs()]
    near = get_close_matches(name, known, n=3, cutoff=0.5) or known
    raise InputError(f"no program named {name!r}", why="there is " + ", ".join(near))


def _program_of(module: str) -> type[App] | None:
    from importlib import import_module

    loaded = import_module(f"bpfkit.{module}")
    for value in vars(loaded).values():
        if (
            isinstance(value, type)
            and issubclass(value, App)
            and value.__module__ == loaded.__name__
            and value.name
        ):
            return value
    return None


def _row(cls: type[App]) -> dict[str, object]:
    return {
        "name": cls.name,
        "types": cls.types(),
        "summary": cls.summary(),
        "source": f"bpf_c/{cls.source}" if cls.source else cls.__module__.replace(".", "/") + ".py",
    }


# ---------------------------------------------------------------- commands


def _short_list(words: list[str]) -> str:
    """The words, or the first and how many more: one program has nine types."""
    return " ".join(words) if len(words) < 3 else f"{words[0]}, {len(words) - 1} more"


def _list(options: Namespace) -> int:
    rows = [_row(cls) for cls in programs()]
    if options.json:
        from bpfkit.show.jsonl import json_lines

        output(json_lines(rows))
        return 0
    from bpfkit.show.text import table

    short = "BPF_PROG_TYPE_"
    cells = [
        [
            str(row["name"]),
            _short_list([name.removeprefix(short).lower() for name in row["types"]]),  # type: ignore[attr-defined]
            str(row["summary"]),
        ]
        for row in rows
    ]
    lines = table(["program", "program type", "what it shows"], cells)
    lines += ["", "Run one: sudo python -m bpfkit.NAME     More on one: python -m bpfkit info NAME"]
    output("\n".join(lines) + "\n")
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


def _info(options: Namespace) -> int:
    rows = _explain(options.name)
    if options.json:
        from bpfkit.show.jsonl import json_lines

        output(json_lines(rows))
        return 0
    render = {"program": _program_text, "program type": _type_text, "map type": _map_text}
    texts = ["\n".join(render[str(row["what"])](row)) for row in rows]
    output("\n\n".join(texts) + "\n")
    return 0


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

    row: dict[str, Any] = {"what": "program", **_row(cls)}
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


def _findings() -> Iterator[tuple[str, list[Feature]]]:
    """What the doctor looks at: heading, answers.  A generator, because probing takes a while."""
    from bpfkit.core import features
    from bpfkit.core.features.environment import environment

    yield "environment", [*environment(), *_compile_side()]
    yield "program types", features.program_types()
    yield "map types", features.map_types()


def _compile_side() -> list[Feature]:
    """The interpreter that has bcc, and where headers can come from."""
    from bpfkit.core.compile.headers import describe
    from bpfkit.core.features import NOT_SUPPORTED, WORKS, Feature

    routes = [
        Feature(
            route,
            WORKS if fine else NOT_SUPPORTED,
            "" if fine else text,
            value=text if fine else None,
        )
        for route, fine, text in describe()
    ]
    usable = [route.name for route in routes if route.state == WORKS]
    headers = Feature(
        "headers",
        WORKS if usable else NOT_SUPPORTED,
        "" if usable else "neither UAPI headers nor BTF of the kernel nor its own headers",
        value=", ".join(usable) or None,
        hint="" if usable else "install linux-libc-dev",
        parts=routes,
    )
    return [_bcc(), headers]


def _bcc() -> Feature:
    import subprocess

    from bpfkit.core.compile.compiler import interpreters
    from bpfkit.core.features import NOT_SUPPORTED, WORKS, Feature

    ask = "from importlib.util import find_spec as f; s = f('bcc'); print(s.origin if s else '')"
    tried = interpreters()
    for interpreter in tried:
        try:
            done = subprocess.run(
                [interpreter, "-c", ask], capture_output=True, text=True, timeout=30, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.stdout.strip():
            return Feature("bcc", WORKS, value=f"{interpreter} ({done.stdout.strip()})")
    return Feature(
        "bcc",
        NOT_SUPPORTED,
        f"no Python with bcc (tried {', '.join(tried) or 'none'})",
        hint="install python3-bpfcc, or name an interpreter with BPFKIT_BCC_PYTHON",
    )


def _doctor(options: Namespace) -> int:
    if options.json:
        from bpfkit.show.jsonl import json_lines

        for heading, answers in _findings():
            what = heading.removesuffix("s")
            output(json_lines([{"what": what, **answer.as_dict()} for answer in answers]))
        return 0
    from bpfkit.show.text import table

    for heading, answers in _findings():
        body = []
        for answer in answers:
            body.append([answer.name, answer.state, "" if answer.parts else _detail(answer)])
            if answer.hint:
                body.append(["", "", f"→ {answer.hint}"])
            for part in answer.parts:
                body.append([f"  {part.name}", part.state, _detail(part)])
        lines = table([heading, "", ""], body)
        output("\n".join(lines) + "\n\n")
    return 0


def _detail(answer: Feature) -> str:
    """Why it does not work; else what there is to know."""
    return answer.why or ("" if answer.value is None else str(answer.value))


def _clean(options: Namespace) -> int:
    from bpfkit.core.compile.headers import remove_leftovers
    from bpfkit.core.records import reap

    removed = [*reap(), *remove_leftovers()]
    if options.cache:
        from bpfkit.core.compile.cache import Cache

        count = Cache().clear()
        removed += [f"{count} compiled programs from the cache"] if count else []
    if options.json:
        from bpfkit.show.jsonl import json_lines

        output(json_lines([{"removed": what} for what in removed]))
    else:
        output("".join(f"removed {what}\n" for what in removed) or "nothing to clean up\n")
    return 0


# ---------------------------------------------------------------- command line


def _parser() -> ArgumentParser:
    from argparse import ArgumentParser

    parser = ArgumentParser(
        prog="python -m bpfkit",
        description="Every BPF program type and map type, live, with one command.",
        epilog="A program is run as its own module: sudo python -m bpfkit.sockex3",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in (
        ("list", "the programs there are"),
        ("info", "what a program, program type or map type is for, and how it works"),
        ("doctor", "what works on this machine, and what is missing for the rest"),
        ("clean", "remove what a killed run may have left behind"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="JSON lines")
        if name == "info":
            command.add_argument("name", metavar="NAME", help=_INFO_NAMES)
        if name == "clean":
            command.add_argument("--cache", action="store_true", help="empty the cache as well")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""

    def work(signals: Signals) -> int:
        options = _parser().parse_args(argv)
        run = {"list": _list, "info": _info, "doctor": _doctor, "clean": _clean}[options.command]
        return run(options)

    return guarded("bpfkit", work)


if __name__ == "__main__":
    raise SystemExit(main())
