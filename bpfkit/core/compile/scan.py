# SPDX-License-Identifier: Apache-2.0
"""Reading a source as text, and writing it the way BCC has to see it (compiles only).

BCC takes one file: only there it rewrites ``map.lookup()`` and looks for programs.  It also
inserts lines of its own, which moves every line number that clang, BTF and the verifier report.
:func:`flatten` therefore puts all user-level files into one text and says with ``#line``, wherever
BCC's insertions could have shifted something, which line of which file comes next.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.compile.source import Source
    from bpfkit.core.errors import CompileError

__all__ = ["Scan", "definitions", "directives", "flatten", "mask", "named", "scan"]

#: What a problem with a pinned map is filed under.
PINNED = "pinned map"
#: Name of the problem of a LOAD_CONST whose default is an expression.
EXPRESSION = "expression"
LIBBPF_MAP = "libbpf's map syntax is not understood by BCC"
LIBBPF_MAP_HINT = (
    "Declare it as BPF_HASH(name, key, value, size) …, or BPFKIT_MAP of bpfkit/maps.h."
)
NO_GLOBALS_HINT = (
    "Global variables are not available with BCC: use a map, or LOAD_CONST for constants."
)
STATIC = "program {} is static: BCC takes it for a helper"

_SKIP = re.compile(
    r"""/\*.*?(?:\*/|\Z) | //(?:\\\n|[^\n])* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'""",
    re.S | re.X,
)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.M)
_SEC = re.compile(r'\bSEC\s*\(\s*"')
#: A source that defines SEC() itself.
OWN_SEC = re.compile(r"^[ \t]*#[ \t]*define[ \t]+SEC\b", re.M)
_LICENSE = re.compile(r'\bLICENSE\s*\(\s*"')
_CONST = re.compile(r"\bLOAD_CONST\s*\(([^()]*)\)")
_PINNED = re.compile(r"\bBPF_(?:TABLE|QUEUESTACK)_PINNED[67]?\b|\bBPF_XSKMAP\s*\([^(),]*,[^(),]*,")
_BCC_PROBE = re.compile(
    r"\b(TRACEPOINT_PROBE|RAW_TRACEPOINT_PROBE|KFUNC_PROBE|KRETFUNC_PROBE|KMOD_RET|LSM_PROBE"
    r"|BPF_ITER)\s*\(([^()]*?)[,)]"
)
_TRACEPOINT_ARGS = re.compile(r"\s*(\w+)\s*,\s*(\w+)")
_BCC_NAME = re.compile(
    r"^[ \t]*int\s+((?:kprobe|kretprobe|tracepoint|raw_tracepoint)__\w+)\s*\(", re.M
)
_WORD = re.compile(r"[A-Za-z_]\w*")
_INTEGER = re.compile(r"(-?)\s*(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)[uUlL]*")

#: libbpf's and BCC's macros that take the function's name as an argument.
_NAMING = frozenset(
    "BPF_PROG BPF_PROG2 BPF_KPROBE BPF_KRETPROBE BPF_KSYSCALL BPF_KPROBE_SYSCALL BPF_UPROBE "
    "BPF_URETPROBE BPF_USDT".split()
)
#: BCC's probe macros: (prefix of the function, section).
_PROBES = {
    "TRACEPOINT_PROBE": ("tracepoint__", "tracepoint/"),
    "RAW_TRACEPOINT_PROBE": ("raw_tracepoint__", "raw_tp/"),
    "KFUNC_PROBE": ("kfunc__", "fentry/"),
    "KRETFUNC_PROBE": ("kretfunc__", "fexit/"),
    "KMOD_RET": ("kmod_ret__", "fmod_ret/"),
    "LSM_PROBE": ("lsm__", "lsm/"),
    "BPF_ITER": ("bpf_iter__", "iter/"),
}
#: Functions whose names say their section, as BCC has it.
_PREFIXES = {
    "kprobe__": "kprobe/",
    "kretprobe__": "kretprobe/",
    **dict(_PROBES.values()),
}


def named(function: str) -> str:
    """The section that BCC's prefix of a function's name stands for, or an empty string."""
    prefix = function[: function.find("__") + 2]
    rest = function[len(prefix) :]
    if prefix not in _PREFIXES:
        return ""
    if prefix == "tracepoint__":
        rest = rest.replace("__", "/", 1)
    return _PREFIXES[prefix] + rest if rest else ""


class Scan:
    """What :func:`scan` finds; see the properties of :class:`~bpfkit.core.compile.source.Source`.

    ``blank`` lists (file, start, end) of declarations that BCC makes itself, ``heads`` the
    (file, line) -> function of each ``SEC()`` that starts its line.  ``problems`` are (function or
    variable, error) of what cannot work *if* the preprocessor keeps it: the text alone does not
    say.  ``license_by_sec``: the licence is libbpf's ``SEC("license")``.
    """

    __slots__ = ("blank", "consts", "heads", "license", "license_by_sec", "problems", "sections")

    def __init__(self) -> None:
        self.sections: list[tuple[str, str, int]] = []
        self.consts: dict[str, tuple[int, int]] = {}
        self.license: bytes | None = None
        self.license_by_sec = False
        self.problems: list[tuple[str, CompileError]] = []
        self.blank: list[tuple[int, int, int]] = []
        self.heads: dict[tuple[int, int], str] = {}


def mask(text: str, strings: bool = True) -> str:
    """``text`` with comments (and what is in strings) blanked out; same length, same lines."""

    def blank(match: re.Match[str]) -> str:
        found = match.group()
        if found[0] == "/":
            return "".join(c if c == "\n" else " " for c in found)
        return f"{found[0]}{'_' * (len(found) - 2)}{found[0]}" if strings else found

    return _SKIP.sub(blank, text)


def directives(code: str) -> str:
    """Masked text with preprocessor lines blanked out, too."""
    return _DIRECTIVE.sub(lambda m: "".join(c if c == "\n" else " " for c in m.group()), code)


def scan(source: Source) -> Scan:
    """Find programs, constants and the licence of a source, without a preprocessor.

    Which ``#if`` branches are kept and what macros expand to is the compiler's to say: see
    "sections" of the worker's answer.
    """
    result = Scan()
    for index, (_, _, text) in enumerate(source.files):
        code = directives(mask(text))
        for match in _SEC.finditer(code):
            _section(source, result, index, text, code, match)
        for match in _LICENSE.finditer(code):
            end = code.find('"', match.end())
            result.license = text[match.end() : end].encode()
        for match in _CONST.finditer(code):
            _const(source, result, index, text, match)
        for match in _PINNED.finditer(code):
            error = source.error(
                index,
                _line(text, match.start()),
                "pinned maps outlive the process, which bpfkit never leaves behind",
                "Use the macro without a path; "
                "bpfkit.core.kernel.syscall.obj_pin(map.fd, path) pins it if it has to stay.",
            )
            result.problems.append((PINNED, error))
        _bcc_probes(result, text, code)
    if any(OWN_SEC.search(text) for name, _, text in source.files if name != "bpfkit/bpfkit.h"):
        result.heads.clear()  # libbpf's SEC() is a section attribute; a function has only one
    return result


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _section(
    source: Source, result: Scan, index: int, text: str, code: str, match: re.Match[str]
) -> None:
    line = _line(text, match.start())
    close = code.find('"', match.end())
    section = text[match.end() : close]
    end = code.find(")", close) + 1

    def problem(name: str, text: str, hint: str = "") -> None:
        result.problems.append((name, source.error(index, line, text, hint)))

    if close < 0 or end <= 0:
        return problem("", "SEC() is not closed")
    line_start = text.rfind("\n", 0, match.start()) + 1
    before = code[line_start : match.start()].strip()
    kind, name, stop, static = _declaration(code, end)
    if kind == "variable":
        if section in ("license", "version"):
            if section == "license":
                value = re.compile(r'"(?:\\.|[^"\\\n])*"').search(text, end)
                if value is not None and value.start() < stop:
                    result.license = value.group()[1:-1].encode()
                    result.license_by_sec = True
            result.blank.append((index, line_start if before else match.start(), stop + 1))
            return
        if section.startswith(".maps") or section == "maps":
            return problem(name, LIBBPF_MAP, LIBBPF_MAP_HINT)
        return problem(name, f'SEC("{section}") does not belong to a function', NO_GLOBALS_HINT)
    if kind != "function":
        return problem("", f'SEC("{section}") does not belong to a function')
    if static or re.match(r"static\b", re.split(r"[;}]", before)[-1].strip()):
        return problem(name, STATIC.format(name), "Remove 'static'.")
    others = [other for function, other, _ in result.sections if function == name]
    if others and others[0] != section:
        problem(name, f"program {name} is defined twice", f'It is SEC("{others[0]}") already.')
    if not others:  # another one of this name is the other half of an #if, or the clang's to refuse
        result.sections.append((name, section, line))
    if not before:
        result.heads[index, line] = name


def _declaration(code: str, at: int) -> tuple[str, str, int, bool]:
    """What follows a SEC(): (kind, name, place of its end, static?)."""
    name = ""
    static = False
    size = len(code)
    while at < size:
        c = code[at]
        if c.isspace() or c == "*":
            at += 1
        elif c.isalpha() or c == "_":
            word = _WORD.match(code, at)
            assert word is not None
            at = word.end()
            if word.group() == "static":
                static = True
            elif word.group() in ("__attribute__", "SEC"):
                at = _closing(code, code.find("(", at))
            else:
                name = word.group()
        elif c == "(" and name:
            if name in _NAMING:
                argument = _WORD.search(code, at)
                name = argument.group() if argument else ""
            return ("function", name, at, static) if name else ("", "", at, static)
        elif c in "[=;{":
            stop = code.find(";", at)
            return "variable", name, size - 1 if stop < 0 else stop, static
        else:
            break
    return "", "", at, static


def _closing(code: str, at: int) -> int:
    """The place after the parenthesis that closes the one at ``at``."""
    depth = 0
    while 0 <= at < len(code):
        if code[at] == "(":
            depth += 1
        elif code[at] == ")":
            depth -= 1
            if not depth:
                return at + 1
        at += 1
    return len(code)


def _const(source: Source, result: Scan, index: int, text: str, match: re.Match[str]) -> None:
    line = _line(text, match.start())

    def problem(what: str, name: str = "") -> None:
        result.problems.append((name, source.error(index, line, what)))

    parts = [part.strip() for part in match.group(1).split(",")]
    if len(parts) != 3 or not parts[0].isdigit() or not _WORD.fullmatch(parts[1]):
        return problem("LOAD_CONST takes (index, name, default)")
    value = _INTEGER.fullmatch(parts[2])
    if value is None:
        # To the compiler it is one; only a compiler that tells nothing of it needs the text.
        return problem(f"the default of LOAD_CONST {parts[1]} is not a number", EXPRESSION)
    digits = value.group(2)
    number = int(digits, 8 if digits.isdigit() and digits[0] == "0" else 0)
    number = -number if value.group(1) else number
    at = int(parts[0])
    if parts[1] in result.consts or any(at == other for other, _ in result.consts.values()):
        return problem(f"LOAD_CONST {at} ({parts[1]}) is declared twice")
    if not -(1 << 63) <= number < 1 << 64:
        return problem(f"the default of LOAD_CONST {parts[1]} exceeds 64 bits")
    result.consts[parts[1]] = (at, number & (1 << 64) - 1)


def _bcc_probes(result: Scan, text: str, code: str) -> None:
    """Programs that BCC's own macros and function prefixes declare."""
    known = {name for name, _, _ in result.sections}
    found: list[tuple[int, str, str]] = []
    for match in _BCC_PROBE.finditer(code):
        prefix, section = _PROBES[match.group(1)]
        what = match.group(2).strip()
        if match.group(1) == "TRACEPOINT_PROBE":
            pair = _TRACEPOINT_ARGS.match(code, match.start(2))
            if pair is None:
                continue
            name, section = (
                f"{prefix}{pair.group(1)}__{pair.group(2)}",
                f"{section}{pair.group(1)}/{pair.group(2)}",
            )
        else:
            name, section = prefix + what, section + what
        found.append((match.start(), name, section))
    for match in _BCC_NAME.finditer(code):
        name = match.group(1)
        found.append((match.start(), name, named(name)))
    for at, name, section in sorted(found):
        if name not in known:
            known.add(name)
            result.sections.append((name, section, _line(text, at)))


def definitions(source: Source, function: str) -> list[tuple[str, int]]:
    """(file, line) of each place where a function of this name is written down with a body.

    The name may be an argument of the macro that makes the function's head.
    """
    found = []
    named = re.escape(function)
    head = re.compile(rf"\b{named}\s*\(|\b\w+\s*\((?=[^(){{}};]*\b{named}\b)")
    for name, _, text in source.files:
        code = directives(mask(text))
        for match in head.finditer(code):
            end = _closing(code, match.end() - 1)
            if code[end:].lstrip()[:1] == "{":
                found.append((name, _line(text, match.start())))
    return found


# --- one text for BCC ------------------------------------------------------------------------

_BRACKETS = re.compile(r"[{}();]")


def flatten(source: Source) -> str:
    """The whole program as one text with exact ``#line`` information."""
    scan = source.scanned()
    out: list[str] = []
    _flatten(source, scan, 0, out, [])
    return "\n".join(out) + "\n"


def _flatten(source: Source, scan: Scan, index: int, out: list[str], stack: list[int]) -> None:
    name, _, text = source.files[index]
    for file, start, end in scan.blank:
        if file == index:
            gap = "".join(c if c == "\n" else " " for c in text[start:end])
            text = text[:start] + gap + text[end:]
    includes = {i.line: i.target for i in source.includes if i.file == index and i.target >= 0}
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    out.append(f'#line 1 "{quoted}"')
    lines, code = text.split("\n"), mask(text).split("\n")
    depth = paren = 0
    saved: list[int] = []
    statement = 0  # first line of the statement that is under way, 0 between statements
    continued = resync = False
    made = False  # the line before may be a macro that makes a program, where BCC adds a line
    once = ""
    for number, (line, masked) in enumerate(zip(lines, code, strict=True), 1):
        bare = masked.strip()
        if continued or (bare[:1] == "#" and not paren):
            if not continued:
                word = bare[1:].lstrip()
                if word.startswith("if"):
                    saved.append(depth)
                elif word.startswith("el") and saved:
                    depth = saved[-1]
                elif word.startswith("endif") and saved:
                    saved.pop()
                elif word.startswith("pragma") and word[6:].strip() == "once":
                    once = f"__BPFKIT_ONCE_{index}"
                    out += [f"#ifndef {once}", f"#define {once}", f'#line {number} "{quoted}"', ""]
                    continue
            continued = line.endswith("\\")
            target = includes.get(number)
            if target is None:
                out.append(line)
            else:
                if target not in stack and target != index:
                    _flatten(source, scan, target, out, [*stack, index])
                out.append(f'#line {number + 1} "{quoted}"')
            continue
        if bare and not paren:
            if resync or (made and not depth):
                out.append(f"#line {number}")
                resync = False
            made = False
            function = scan.heads.get((index, number))
            if function is not None and not depth:
                # With a section of its own, BCC adds no line in front of the function.
                out.append(f'__attribute__((section(".bpf.fn.{function}")))')
                out.append(f"#line {number}")
        if bare and not statement:
            statement = number
        begin = 0
        for match in _BRACKETS.finditer(masked):
            c = match.group()
            if c == "(":
                paren += 1
            elif c == ")":
                paren = max(paren - 1, 0)
            elif paren:
                continue
            elif c == "{":
                depth += 1
                if depth == 1:  # BCC breaks the line after a function's opening brace
                    after = match.end()
                    if masked[after:].strip():
                        out.append(" " * begin + line[begin:after])
                        out.append(f"#line {number}")
                        begin = after
                    else:
                        resync = True
            elif c == "}":
                depth = max(depth - 1, 0)
        out.append(" " * begin + line[begin:] if begin else line)
        if bare and not paren and bare[-1] == ")":
            made = True
        if bare and not paren and bare[-1] in ";{}":
            resync = resync or statement != number
            statement = 0
    if once:
        out.append("#endif")
