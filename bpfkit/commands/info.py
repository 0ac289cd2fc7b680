# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit info: what a program, a type, a hook or a helper is for, and how it works.

Of a program type also what the running kernel says: the context's fields by its BTF, the helpers
and kfuncs that it allows by trying them.
"""

from __future__ import annotations

import sys

from bpfkit.app.signals import output
from bpfkit.commands.catalog import programs
from bpfkit.commands.catalog import row as catalog_row
from bpfkit.commands.glossary import GLOSSARY
from bpfkit.core.errors import BpfkitError, InputError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence
    from typing import Any

    from bpfkit.app.base import App


_NAMES = (
    "a program of `list`, a program type or its section name (tcx/ingress, fentry/tcp_connect), a "
    "map type, a helper or kfunc, or a word of the glossary (default: what there is)"
)
HELP = "explain a program, a program type, a map type, a hook or a helper"
_COLUMNS = 80


def add_options(parser: ArgumentParser) -> None:
    """The command's options, beside ``--json``."""
    parser.add_argument("name", metavar="NAME", nargs="?", help=_NAMES)
    parser.add_argument("--glossary", action="store_true", help="the words for hooks and probes")


def run(options: Namespace) -> int:
    """Print it; returns the exit status."""
    if options.glossary:
        if options.name is not None:
            raise UsageError("--glossary takes no name")
        rows = [_term_row(word) for word in GLOSSARY]
    elif options.name is None:
        rows = _overview()
    else:
        rows = _explain(options.name)
    if options.json:
        from bpfkit.show.jsonl import json_lines

        output(json_lines(rows))
        return 0
    if options.name is None and not options.glossary:
        output("\n".join(_overview_text(rows)) + "\n")
        return 0
    render = {
        "program": _program_text,
        "program type": _type_text,
        "map type": _map_text,
        "term": _term_text,
        "helper": _function_text,
        "kfunc": _function_text,
    }
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
    """What there is by that name: a program; else a word of the glossary, program types, map
    types, a helper or kfunc.

    :raises InputError: nothing has that name (the nearest names are given).
    """
    every = list(programs())
    wanted = name.removeprefix("bpfkit.").removesuffix(".py")
    for cls in every:
        if cls.name == wanted:
            return [_program_row(cls, every)]
    from bpfkit.core.kernel.constants import MAP_TYPES, PROG_TYPES

    rows = [_term_row(word) for word in GLOSSARY if word.lower() == name.lower()]
    for number, section, target in _types_named(name):
        rows.append(_type_row(number, every) | _kernel_says(number, section, target))
    shown = {row["name"] for row in rows if row["what"] == "program type"}
    for row in rows:
        if row["what"] == "term" and row["type"] in shown:
            row["type"] = None  # no pointer to what follows
    rows += [_map_row(number) for number in _index(MAP_TYPES, "bpf_map_type_", name)]
    if name.startswith("bpf_") or not rows:
        rows += _function_rows(name)
    if rows:
        return rows
    from difflib import get_close_matches

    from bpfkit.core.kernel.sections import SECTIONS

    known = [cls.name for cls in every]
    known += [kind.lower() for kind in (*PROG_TYPES[1:], *MAP_TYPES[1:])]
    known = list(dict.fromkeys([*known, *SECTIONS, *(word.lower() for word in GLOSSARY)]))
    if name.startswith("bpf_"):
        from bpfkit.core.features.kfuncs import kernel_kfuncs
        from bpfkit.core.kernel.helpers import HELPERS

        known += [f"bpf_{helper}" for helper in HELPERS[1:]]
        known += kernel_kfuncs()
    short = name.lower().removeprefix("bpf_prog_type_").removeprefix("bpf_map_type_")
    near = get_close_matches(short, known, n=4, cutoff=0.5)
    raise InputError(
        f"no program named {name!r}, nor a program type, section or map type",
        why=f"the nearest are {', '.join(near)}" if near else "`python3 -m bpfkit list` has names",
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


def _types_named(name: str) -> list[tuple[int, str, str]]:
    """The program types that a type's name, section name or attach type stands for, with the
    section's known part and its target where a section is named."""
    from bpfkit.core.kernel.constants import ATTACH_TYPES, PROG_TYPES
    from bpfkit.core.kernel.sections import SECTIONS, resolve

    found = _index(PROG_TYPES, "bpf_prog_type_", name)
    if found:
        return [(number, "", "") for number in found]
    text = name.removeprefix('SEC("').removesuffix('")')
    try:
        section = resolve(text)
        known = section.name.removeprefix("?").removesuffix(section.target).rstrip("/")
        return [(section.prog_type, known, section.target)]
    except InputError:
        pass
    # The first word of several section names ("tcx") where they are of one type.
    begun = {entry[0] for known, entry in SECTIONS.items() if known.startswith(f"{text}/")}
    if text and len(begun) == 1:
        return [(begun.pop(), "", "")]
    attach = name.upper().removeprefix("BPF_")
    if attach not in ATTACH_TYPES:
        return []
    number = ATTACH_TYPES.index(attach)
    types = sorted({entry[0] for entry in SECTIONS.values() if number and entry[1] == number})
    return [(kind, "", "") for kind in types]


def _type_row(number: int, every: Sequence[type[App]]) -> dict[str, Any]:
    """The five answers for a program type."""
    from bpfkit.commands.guide import CHECKS, PROGRAMS, first_stock, verified_on
    from bpfkit.core.kernel.constants import PROG_TYPES, attach_type_name, prog_type_name
    from bpfkit.core.kernel.sections import SECTIONS, resolve

    guide = PROGRAMS[PROG_TYPES[number]]._asdict()
    full = prog_type_name(number)
    check, shows = CHECKS[PROG_TYPES[number]]
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
        "stock_kernel": first_stock(guide["since"]),
        "verified_on": verified_on("program type", PROG_TYPES[number].lower()),
        "purpose": guide["purpose"],
        "sections": sections,
        "context": guide["context"],
        "changes": guide["changes"],
        "returns": guide["returns"],
        "check": check if any(cls.name == check for cls in every) else None,
        "check_shows": shows,
        "programs": [cls.name for cls in every if full in _types_of(cls)],
        "kernel_examples": list(guide["examples"]),
        "runs": guide["runs"],
        "functions": list(guide["functions"]),
        "attach": guide["attach"],
        "method": guide["method"] or None,
    }


_types: dict[str, list[str]] = {}


def _types_of(cls: type[App]) -> list[str]:
    """A program's types; its source is read once."""
    if cls.name not in _types:
        _types[cls.name] = list(cls.types())
    return _types[cls.name]


def _kernel_says(number: int, section: str, target: str) -> dict[str, Any]:
    """What the running kernel says of a program type: the context, the helpers and kfuncs.

    :param section: the section's known part, :param target: what follows it; may be empty.
    """
    from bpfkit.app.progress import Progress
    from bpfkit.commands.context import context_rows
    from bpfkit.commands.guide import PROGRAMS
    from bpfkit.core.features.calls import calls_of
    from bpfkit.core.kernel.constants import PROG_TYPES

    name = PROG_TYPES[number]
    with Progress("info") as progress:
        calls = calls_of(name, progress)
    return {
        "target": target or None,
        "context_fields": context_rows(PROGRAMS[name].context, section, target),
        "helpers": None if calls.why else [f"bpf_{helper}" for helper in calls.helpers],
        "helpers_unknown": calls.why,
        "kfuncs": None if calls.why_no_kfuncs else calls.kfuncs,
        "kfuncs_sleepable_only": calls.sleepable,
        "kfuncs_unknown": calls.why_no_kfuncs,
    }


def _function_rows(name: str) -> list[dict[str, Any]]:
    """A helper or a kfunc, and which program types may call it."""
    from bpfkit.app.progress import Progress
    from bpfkit.core.features.calls import types_that_may_call
    from bpfkit.core.features.kfuncs import kernel_kfuncs
    from bpfkit.core.kernel.helpers import find_helper

    row: dict[str, Any]
    if name in kernel_kfuncs():
        from bpfkit.core.attach.function import Function

        row = {"what": "kfunc", "name": name, "prototype": str(Function(name))}
    else:
        try:
            number = find_helper(name)
        except KeyError:
            return []
        row = {"what": "helper", "name": f"bpf_{name.removeprefix('bpf_')}", "number": number}
    with Progress("info") as progress:
        types, unknown = types_that_may_call(name, progress)
    return [row | {"types": types, "unknown": unknown}]


def _term_row(word: str) -> dict[str, Any]:
    kind, text = GLOSSARY[word]
    return {"what": "term", "name": word, "type": kind.lower() or None, "text": text}


def _overview() -> list[dict[str, Any]]:
    """A row for each type and word: its name and what it is for."""
    from bpfkit.commands.guide import MAPS, PROGRAMS

    rows: list[dict[str, Any]] = []
    for what, guide in (("program type", PROGRAMS), ("map type", MAPS)):
        for name, entry in guide.items():
            rows.append({"what": what, "name": name.lower(), "purpose": entry.purpose})
    return rows + [_term_row(word) for word in GLOSSARY]


def _map_row(number: int) -> dict[str, Any]:
    from bpfkit.commands.guide import MAPS, first_stock, verified_on
    from bpfkit.core.features.maps import probe_map_type
    from bpfkit.core.kernel.constants import MAP_TYPES, map_type_name

    here = probe_map_type(MAP_TYPES[number])
    return {
        "what": "map type",
        "name": MAP_TYPES[number].lower(),
        "kernel_name": map_type_name(number),
        "number": number,
        **MAPS[MAP_TYPES[number]]._asdict(),
        "stock_kernel": first_stock(MAPS[MAP_TYPES[number]].since),
        "verified_on": verified_on("map type", MAP_TYPES[number].lower()),
        "here": here.state,
        "why": here.why,
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
    row |= {"run": f"sudo python3 -m bpfkit.{cls.name}", "about": comment}
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
        body = wrap(text, _COLUMNS - room, break_long_words=False, break_on_hyphens=False) or ["-"]
        lines.append(label.ljust(room) + body[0])
        lines += [" " * room + more for more in body[1:]]
    return lines


def _since(row: dict[str, Any]) -> str:
    parts = [f"Linux {row['since']}"]
    if row["stock_kernel"]:
        parts.append(f"the first stock kernel: {row['stock_kernel']}")
    if row["verified_on"]:
        parts.append(f"verified on {', '.join(row['verified_on'])} (tools/matrix.md)")
    return "; ".join(parts)


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    from textwrap import wrap

    return wrap(
        text,
        _COLUMNS,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


#: Types whose context depends on what they are attached to, and a section that says that.
_EXAMPLES = {
    "kprobe": "kprobe/tcp_connect",
    "tracepoint": "tp/sched/sched_switch",
    "raw_tracepoint": "raw_tp/sched_switch",
    "tracing": "fentry/tcp_connect",
    "lsm": "lsm/file_open",
}


def _kernel_text(row: dict[str, Any]) -> list[str]:
    """The part of a program type's text that comes from the running kernel."""
    if "context_fields" not in row:
        return []
    lines: list[str] = []
    for part in row["context_fields"]:
        if "prototype" in part:
            lines += ["", "arguments, by this kernel's BTF"]
            lines += _wrapped(part["prototype"])
        elif "fields" in part:
            lines += ["", f"struct {part['struct']}, {part['size']} bytes, by this kernel's BTF"]
            lines += _fields_text(part["fields"])
        else:
            lines += ["", *_wrapped(part["unknown"], "")]
    example = _EXAMPLES.get(row["name"], "")
    if example and not row["target"]:
        lines += ["", f"For the arguments name a target, as in info {example}"]
    for what, title in (("helpers", "helpers"), ("kfuncs", "kernel functions (kfuncs)")):
        names = row[what]
        if names is None:
            lines += ["", *_wrapped(f"{title}: not known: {row[f'{what}_unknown']}", "")]
            continue
        lines += ["", f"{title} that this kernel allows: {len(names)}"]
        starred = [f"{n}*" if n in row["kfuncs_sleepable_only"] else n for n in names]
        if what == "helpers":
            starred = [name.removeprefix("bpf_") for name in starred]
            lines[-1] += " (all begin with bpf_)"
        elif row["kfuncs_sleepable_only"]:
            lines[-1] += " (* only for programs that may sleep)"
        lines += _wrapped(" ".join(starred))
    return lines


def _fields_text(fields: Sequence[dict[str, Any]]) -> list[str]:
    """Offset, size, type and name; a long type or name is cut."""
    body = []
    for field in fields:
        bits = f":{field['bits']}" if "bits" in field else ""
        at = str(field["offset"]) + (f".{field['bit']}" if bits else "")
        kind = field["type"] if len(field["type"]) <= 32 else field["type"][:31] + "…"
        body.append([at, str(field["size"]), kind, (field["name"] or "(unnamed)") + bits])
    from bpfkit.show.text import table

    right = [True, True, False, False]
    return table(["offset", "size", "type", "field"], body, right=right, indent="  ")


def _function_text(row: dict[str, Any]) -> list[str]:
    from bpfkit.core.kernel.constants import PROG_TYPES

    kind = f"helper {row['number']}" if row["what"] == "helper" else "kernel function (kfunc)"
    lines = [f"{row['name']}: {kind}", ""]
    if "prototype" in row:
        lines += [*_wrapped(row["prototype"]), ""]
    types = row["types"]
    every = len(PROG_TYPES) - 1
    lines.append(f"program types that may call it on this kernel: {len(types)} of {every}")
    lines += _wrapped(" ".join(types) or "none")
    reasons: dict[str, list[str]] = {}
    for name, why in row["unknown"].items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        lines += _wrapped(f"not known of {', '.join(names)}: {why}")
    return lines


def _term_text(row: dict[str, Any]) -> list[str]:
    lines = [row["name"], *_wrapped(row["text"])]
    if row["type"]:
        lines += _wrapped(f"See: python3 -m bpfkit info {row['type']}")
    return lines


def _overview_text(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "python3 -m bpfkit info NAME explains one of these. NAME may also be a program",
        "(python3 -m bpfkit list), a section name (tcx/ingress, fentry/tcp_connect), a",
        "helper or a kernel function (bpf_redirect_map, bpf_dynptr_from_skb).",
    ]
    titles = {"program type": "program types", "map type": "map types", "term": "hooks and words"}
    for what, title in titles.items():
        names = [str(row["name"]) for row in rows if row["what"] == what]
        lines += ["", f"{title} ({len(names)})", *_wrapped(", ".join(names))]
    return [*lines, "", "info --glossary prints the words with a paragraph each."]


def _type_text(row: dict[str, Any]) -> list[str]:
    names = [s["section"] + ("/…" if s["target"] else "") for s in row["sections"]]
    attach = row["attach"]
    if row["method"]:
        attach += f"; here: Program.{row['method']}()"
    elsewhere = ", ".join(row["kernel_examples"])
    shown = "no program here"
    if row["check"]:
        shown = f"python3 -m bpfkit.{row['check']} --check: {row['check_shows']}"
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
                ("  shown by", shown),
                ("4 examples", "bpfkit: " + (", ".join(row["programs"]) or "none")),
                ("", f"kernel: {elsewhere}"),
                ("5 runs", row["runs"]),
                ("  functions", ", ".join(row["functions"])),
                ("  since", _since(row)),
                ("  attach", attach),
            ]
        ),
        *_kernel_text(row),
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
                ("since", _since(row)),
                ("this kernel", row["here"] + (f": {row['why']}" if row["why"] else "")),
                ("in bpfkit", f"bpfkit.core.maps.{row['handled_by']}"),
                ("example", f"python3 -m bpfkit.{row['example']} --type {row['name']}"),
            ]
        ),
    ]


def _program_text(row: dict[str, Any]) -> list[str]:
    from bpfkit.show.text import cell, table

    lines = _wrapped(f"{row['name']}: {row['summary']}", "")
    for answer in row["answers"]:
        lines += ["", *_type_text(answer)]
    lines += ["", *(f"  {line}".rstrip() for line in row["about"])]
    lines += ["", f"run       {row['run']}", f"source    {row['source']}"]
    lines += _labelled([("type    ", ", ".join(row["types"]))])
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
