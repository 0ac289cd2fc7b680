# SPDX-License-Identifier: Apache-2.0
"""``python -m bpfkit``: what there is, what one program does, what works here, tidying up.

The programs themselves are modules of their own: ``python -m bpfkit.sockex3``.
"""

from __future__ import annotations

import os
import sys

from bpfkit.app import App, Signals, guarded, output
from bpfkit.core.errors import BpfkitError, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator, Sequence

    from bpfkit.core.features import Feature

__all__ = ["main", "program", "programs"]

_NOT_PROGRAMS = ("__init__", "__main__", "app", "packets")


# ---------------------------------------------------------------- the programs


def programs() -> Iterator[type[App]]:
    """The class of every program module, by name."""
    import bpfkit

    for directory in bpfkit.__path__:
        for entry in sorted(os.listdir(directory)):
            module, dot, end = entry.partition(".")
            if dot and end == "py" and module not in _NOT_PROGRAMS:
                found = _program_of(module)
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
        "source": f"bpf_c/{cls.source}" if cls.source else f"bpfkit/{cls.name}.py",
    }


# ---------------------------------------------------------------- commands


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
            " ".join(name.removeprefix(short).lower() for name in row["types"]),  # type: ignore[attr-defined]
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
    from bpfkit.core.artifact import map_defs
    from bpfkit.core.constants import map_type_name
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
    cls = program(options.name)
    facts: dict[str, object] = _row(cls)
    comment: list[str] = []
    sections: list[dict[str, object]] = []
    maps: list[dict[str, object]] = []
    trouble = ""
    if cls.source:
        from bpfkit.core.source import Source

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
    facts |= {"run": f"sudo python -m bpfkit.{cls.name}", "about": comment}
    facts |= {"sections": sections, "maps": maps}
    if options.json:
        from bpfkit.show.jsonl import json_lines

        output(json_lines([facts]))
        return 0
    from bpfkit.show.text import cell, table

    lines = [f"{cls.name}: {cls.summary()}", ""]
    lines += [f"  {line}".rstrip() for line in comment]
    types = ", ".join(cls.types())
    lines += ["", f"run       {facts['run']}", f"source    {facts['source']}", f"type      {types}"]
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
    if trouble:
        lines += ["", f"  maps: not known, {trouble}"]
    output("\n".join(lines) + "\n")
    return 0


def _findings() -> Iterator[tuple[str, list[Feature]]]:
    """What the doctor looks at: heading, answers.  A generator, because probing takes a while."""
    from bpfkit.core import features

    yield "environment", [*features.environment(), *_compile_side()]
    yield "program types", features.program_types()
    yield "map types", features.map_types()


def _compile_side() -> list[Feature]:
    """The interpreter that has bcc, and where headers can come from."""
    from bpfkit.core.features import NOT_SUPPORTED, WORKS, Feature
    from bpfkit.core.headers import describe

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

    from bpfkit.core.compiler import interpreters
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
    from bpfkit.core.headers import remove_leftovers
    from bpfkit.core.records import reap

    removed = [*reap(), *remove_leftovers()]
    if options.cache:
        from bpfkit.core.cache import Cache

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
        ("info", "what one program is for, and how it works"),
        ("doctor", "what works on this machine, and what is missing for the rest"),
        ("clean", "remove what a killed run may have left behind"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="JSON lines")
        if name == "info":
            command.add_argument("name", metavar="NAME", help="a program of `list`")
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
