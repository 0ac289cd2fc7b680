# SPDX-License-Identifier: Apache-2.0
"""What clang and libbcc say, in terms of the user's own lines (imported on failure only)."""

from __future__ import annotations

import os
import re

from bpfkit.core.errors import BpfkitError, CompileError, PrivilegeError, UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bpfkit.core.compile.source import Source

__all__ = [
    "Diagnostic",
    "explain",
    "find_c_line",
    "missing_function",
    "missing_types",
    "parse",
    "refused",
    "warnings",
]

_LINE = re.compile(r"^(.+?):(\d+):(?:(\d+):)? (fatal error|error|warning|note): (.*)$")
_BACKEND = re.compile(r"^error: (\S+?):(\d+):(\d+): in function (\w+)[^:]*: (?:0x\w+: )?(.*)$")
_FATAL = re.compile(r"^LLVM ERROR: (.*?)(?:, ([^\s,]+):(\d+):(\d+))?$")
_FROM = re.compile(r"^(?:In file included|\s+) from (.+?):(\d+)[:,]$")


class Diagnostic:
    """One message; ``kind`` is error, warning or note, ``via`` the user's line that led there."""

    __slots__ = ("column", "file", "kind", "line", "notes", "text", "via")

    def __init__(self, file: str, line: int, column: int, kind: str, text: str) -> None:
        self.file = file
        self.line = line
        self.column = column
        self.kind = kind
        self.text = text
        self.via: list[tuple[str, int]] = []
        self.notes: list[Diagnostic] = []


def parse(log: str) -> list[Diagnostic]:
    """Clang's errors and warnings, each with its notes, in order."""
    found: list[Diagnostic] = []
    via: list[tuple[str, int]] = []
    for line in log.split("\n"):
        match = _FROM.match(line)
        if match:
            via.append((match.group(1), int(match.group(2))))
            continue
        match = _LINE.match(line)
        if match:
            file, number, column, kind, text = match.groups()
            one = Diagnostic(file, int(number), int(column or 0), kind.split()[-1], text)
            one.via, via = via, []
            if one.kind == "note":
                if found:
                    found[-1].notes.append(one)
            else:
                found.append(one)
            continue
        match = _BACKEND.match(line)
        if match:
            file, number, column, function, text = match.groups()
            found.append(
                Diagnostic(file, int(number), int(column), "error", f"in {function}(): {text}")
            )
            continue
        match = _FATAL.match(line)
        if match and match.group(2):
            text, file, number, column = match.groups()
            found.append(Diagnostic(file, int(number), int(column), "error", text))
    return found


def _place(source: Source, one: Diagnostic) -> tuple[str, int, int, str] | None:
    """(file, line, column, C line) of the user's that a message is about."""
    texts = {name: text for name, _, text in source.files}
    candidates = [(one.file, one.line, one.column)]
    candidates += [
        (file, line, 0)
        for file, line in reversed(one.via)
        for name, text in texts.items()
        if file.endswith(name) and line <= text.count("\n")  # not BCC's own line at the end
    ]
    candidates += [(note.file, note.line, note.column) for note in one.notes]
    for file, line, column in candidates:
        for name, text in texts.items():
            if file == name or file.endswith("/" + name):
                lines = text.split("\n")
                return name, line, column, lines[line - 1].strip() if line <= len(lines) else ""
    return None


# --- errors ------------------------------------------------------------------------------------

_METHODS = (
    "lookup lookup_or_init lookup_or_try_init update insert delete increment atomic_increment call "
    "perf_submit perf_submit_skb perf_read perf_counter_value get_stackid check_current_task "
    "redirect_map push pop peek ringbuf_output ringbuf_reserve ringbuf_submit ringbuf_discard "
    "sock_map_update sock_hash_update msg_redirect_hash sk_redirect_hash sk_storage_get "
    "sk_storage_delete inode_storage_get inode_storage_delete task_storage_get "
    "task_storage_delete get_local_storage"
).split()


def _method(match: re.Match[str]) -> tuple[str, str]:
    from difflib import get_close_matches

    method, name = match.group(1), match.group(2)
    if method in _METHODS:
        # BCC gives the method to other kinds of map only.
        hint = "Call the helper: bpf_map_…_elem(BPFKIT_MAP_REF(NAME), …) of <bpfkit/maps.h>."
        return f"map {name} is of a type without the method {method}()", hint
    near = get_close_matches(method, _METHODS, 3, 0.5)
    hint = f"Nearest: {', '.join(near)}." if near else f"Methods: {', '.join(_METHODS[:8])} …"
    return f"map {name} has no method {method}()", hint


def _incomplete(match: re.Match[str]) -> tuple[str, str]:
    return match.string, (
        f"Define {match.group(1)}, or include what does (kernel-internal types come from the BTF "
        "of the running kernel and its loaded modules: modprobe the one that has it)."
    )


_UNDEFINED = re.compile(r"(\w+)\(\) is called but defined nowhere")
_NEWLINE = re.compile(r"missing terminating '(.)' character")

_STACK_HINT = "The stack has 512 bytes: put large variables into a one-entry BPF_PERCPU_ARRAY."

#: (pattern, new text or a function of the match, hint); the first that matches is used.
_RULES: list[tuple[str, Any, str]] = [
    (r"no member named '(\w+)' in 'struct (\w+)_table_t'", _method, ""),
    (
        r"invalid bpf_table operation (\w+)",
        "this kind of map has no method \\1()",
        f"BCC knows: {', '.join(_METHODS[:8])} …",
    ),
    (
        r"cannot use map function inside a macro",
        "BCC cannot rewrite a map method inside a macro",
        "Use a static function, or bpf_map_lookup_elem() with a pointer to the map.",
    ),
    (
        r"cannot call non-static helper function",
        "",
        "Every non-static function is a program of its own: make the helper static.",
    ),
    (
        r"arguments to BPF program definition must be named",
        "",
        "Name the context argument: int f(struct __sk_buff *skb).",
    ),
    (r"unsupported map type: (\S+)", "", "Use BPFKIT_MAP of bpfkit/maps.h for this type."),
    (r"Looks like the BPF stack limit", "more than 512 bytes of stack", _STACK_HINT),
    (r"stack arguments|too many args|only supports in-register", "", "At most five arguments."),
    (r"incomplete (?:definition of |element )?type '(struct \w+)'", _incomplete, ""),
    (
        r"variable has incomplete type '(struct \w+)'",
        _incomplete,
        "",
    ),
    (
        r"unknown type name '(\w+)'",
        "",
        "Include the header that defines it before this line.",
    ),
    (
        r"redefinition of '(_license|_version)'",
        "BCC defines \\1 itself",
        'Write LICENSE("…") of bpfkit/bpfkit.h instead.',
    ),
    (
        r"A call to built-in function '__\w+[sd]f\w*' is not supported",
        "BPF has no floating point",
        "Scale to integers, or compute in user space.",
    ),
    (
        r"A call to built-in function '(mem\w+|str\w+)' is not supported",
        "",
        "BPF has no C library: use __builtin_\\1() with a small constant size, or a loop.",
    ),
    (
        r"Cannot select: .*\b(?:sdiv|srem)\b",
        "BPF of this compiler has no signed division",
        "Divide unsigned numbers, and apply the sign yourself.",
    ),
    (r"Cannot select: .*? = (\w+)", "BPF has no instruction for this (\\1)", ""),
    (r"'([^']+)' file not found", "", ""),
]


def _polish(text: str) -> tuple[str, str]:
    for pattern, words, hint in _RULES:
        match = re.search(pattern, text)
        if match:
            if callable(words):
                return words(match)  # type: ignore[no-any-return]
            return match.expand(words) if words else text, match.expand(hint) if hint else ""
    return text, ""


def explain(source: Source, log: str, status: int) -> BpfkitError:
    """The error of a compile that failed.

    :param log: the worker's stderr.
    :param status: its exit status, negative for a signal.
    """
    errors = [one for one in parse(log) if one.kind == "error"]
    tracepoint = _tracepoint(source, errors, log)
    if tracepoint is not None:
        return tracepoint
    found: list[tuple[str, int, int, str]] = []
    best: tuple[str, int, int, str, Diagnostic] | None = None
    for one in errors:
        place = _place(source, one)
        if place is None:
            continue
        entry = (place[0], place[1], place[2], one.text)
        if entry in found:
            continue
        found.append(entry)
        if best is None:
            best = (*place, one)
    if best is not None:
        file, line, column, code, one = best
        text, hint = _polish(one.text)
        if "SEC" in code and _is_undefined_sec(source, code):
            text = "SEC() is not defined"
            hint = "#include <bpfkit/bpfkit.h> before this line."
        newline = _open_string(source, log, file, line)
        if newline is not None:
            line, column, code = newline
            text = "a line ends inside a string literal"
            hint = (
                "Write \\n in C for a newline; in a Python string that is \\\\n, or a raw string "
                '(r"""…""").'
            )
        for note in one.notes:
            if not hint and note.text.startswith("did you mean"):
                hint = note.text
        at = f"{file}:{line}:{column}" if column else f"{file}:{line}"
        if not hint and ".lookup" in code and "void" in text:
            hint = "BCC makes lookup() return void *: assign it to a pointer of the value's type."
        parts = [f"    {code}" if code else "", hint]
        more = len(found) - 1
        if more:
            parts[1] = f"{hint} ".lstrip() + f"({more} more error{'s' * (more > 1)})"
        return CompileError(
            at, why=text, hint="\n".join(p for p in parts if p), log=log, diagnostics=found
        )
    if errors:
        one = errors[0]
        return CompileError(
            f"cannot compile {source.name}",
            why=f"{os.path.basename(one.file)}:{one.line}: {one.text}",
            hint="The error is in a header that BCC brings or was given; -v shows everything.",
            log=log,
            diagnostics=[(one.file, one.line, one.column, one.text)],
        )
    denied = re.search(r"could not open bpf map: (\S+), error: (.*)", log)
    if denied is not None:  # only without hooks
        kind = PrivilegeError if "not permitted" in denied.group(2) else CompileError
        return kind(f"map {denied.group(1)}", why=denied.group(2), log=log)
    last = [line.strip() for line in log.split("\n") if line.strip()]
    fatal = next((line for line in last if line.startswith("LLVM ERROR")), "")
    why = fatal or (last[-1] if last else f"the compiler said nothing (status {status})")
    if status < 0:
        import signal

        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = str(-status)
        why = f"the compiler died of {name}" + (f" ({fatal})" if fatal else "")
        limit = _memory_limit()
        if limit:  # LLVM does not always say why it gives up
            why += f"; its memory is limited to {limit >> 20} MB"
    memory = re.search(r"out of memory|bad_alloc|Cannot allocate memory|memory is", log + why)
    return CompileError(
        f"cannot compile {source.name}",
        why=why,
        hint="Raise the limit on memory: ulimit -v unlimited" if memory else "",
        log=log,
    )


def _is_undefined_sec(source: Source, code: str) -> bool:
    """Is this the line of a SEC() that no header of the source defines?"""
    from bpfkit.core.compile.scan import OWN_SEC

    if re.search(r"\bSEC\s*\(", code) is None:
        return False
    return not any(
        name == "bpfkit/bpfkit.h" or OWN_SEC.search(text) for name, _, text in source.files
    )


def _open_string(source: Source, log: str, file: str, line: int) -> tuple[int, int, str] | None:
    """(line, column, C line) of a string that is not closed where it begins, at or above a line.

    To clang that is a warning, and the errors that follow name neither cause nor place.
    """
    for one in parse(log):
        match = _NEWLINE.search(one.text)
        place = _place(source, one) if match else None
        if place is not None and place[0] == file and place[1] <= line <= place[1] + 1:
            return place[1], place[2], place[3]
    return None


def _memory_limit() -> int:
    """Bytes that a process may have (``ulimit -v``); 0: no limit."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return 0 if limit == resource.RLIM_INFINITY else limit


def _tracepoint(source: Source, errors: Sequence[Diagnostic], log: str) -> BpfkitError | None:
    """BCC makes a tracepoint's struct from tracefs, and says nothing when it cannot."""
    for one in errors:
        match = re.search(r"struct tracepoint__(\w+?)__(\w+)", one.text)
        if match is None:
            continue
        group, event = match.groups()
        bases = ("/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events")
        what = f"tracepoint {group}:{event}"
        for base in bases:
            if os.path.isdir(base):
                break
        else:
            if "bpfkit worker: tracefs mounted" in log:  # the worker had it and found nothing
                place = _place(source, one)
                at = f"{place[0]}:{place[1]}" if place else source.name
                return CompileError(at, why=f"this kernel has no {what}", log=log)
            for base in bases:
                try:
                    os.listdir(os.path.dirname(base))
                except PermissionError:
                    return PrivilegeError(
                        what, why="reading tracefs takes root", hint="Run as root.", log=log
                    )
                except OSError:
                    pass
            return UnsupportedError(
                what,
                why="tracefs is not mounted",
                hint="mount -t tracefs nodev /sys/kernel/tracing",
                log=log,
            )
        place = _place(source, one)
        at = f"{place[0]}:{place[1]}" if place else source.name
        if not os.path.isdir(os.path.join(base, group, event)):
            from difflib import get_close_matches

            try:
                events = os.listdir(os.path.join(base, group))
                near = [f"{group}:{name}" for name in get_close_matches(event, events, 3)]
            except OSError:
                near = get_close_matches(group, os.listdir(base), 3)
            hint = f"Nearest: {', '.join(near)}." if near else ""
            return CompileError(at, why=f"this kernel has no {what}", hint=hint, log=log)
        if not os.access(os.path.join(base, group, event, "format"), os.R_OK):
            return PrivilegeError(
                what, why="reading tracefs takes root", hint="Run as root.", log=log
            )
    return None


def refused(source: Source, answer: Sequence[Any], log: str) -> CompileError:
    """The error of a program that compiles and that BCC cannot carry."""
    text, file, line, hint = answer
    where = f"{file}:{line}" if file else source.name
    code = ""
    for name, _, content in source.files:
        if name == file:
            lines = content.split("\n")
            code = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    match = _UNDEFINED.match(text)
    if match:
        near = _near_helper(match.group(1))
        if near:
            hint = f"Did you mean {near}()?"
        else:
            for one in parse(log):
                for note in one.notes:
                    if match.group(1) in one.text and note.text.startswith("did you mean"):
                        hint = note.text
    if text.startswith("a string or constant table"):
        text, hint = _table(source, file, line, code) or (text, hint)
    parts = [f"    {code}" if code else "", hint]
    return CompileError(
        where,
        why=text,
        hint="\n".join(part for part in parts if part),
        log=log,
        diagnostics=[(file, line, 0, text)],
    )


def _table(source: Source, file: str, line: int, code: str) -> tuple[str, str] | None:
    """(why, hint) of a local table with an initialiser: the compiler took it off the stack."""
    text = next(content for name, _, content in source.files if name == file)
    above = "\n".join(text.split("\n")[:line])
    for name in dict.fromkeys(re.findall(r"\b(\w+)\s*\[", code)):
        made = list(re.finditer(rf"(.*?)\b{name}\s*(?:\[[^\]]*\]\s*)+=\s*(.)", above))
        if not made or not made[-1].group(1)[:1].isspace():
            continue
        if '"' in above[made[-1].end() - 1 :].partition(";")[0]:
            hint = "Choose among the strings with a switch, or put them into a BPF_ARRAY."
        else:
            hint = "Assign its elements one by one, or use a BPF_ARRAY or a switch."
        return (
            f"the compiler made a constant table outside the program of {name}, "
            "which is initialised with constants; BCC cannot reach it there",
            hint,
        )
    return None


def missing_function(answer: Sequence[Any]) -> str:
    """The function that a refused program calls and nothing defines, or an empty string."""
    match = _UNDEFINED.match(answer[0])
    return match.group(1) if match else ""


def _near_helper(name: str) -> str:
    from difflib import get_close_matches

    try:
        from bpfkit.core.kernel import helpers
    except ImportError:
        return ""
    names: list[str] = []
    for table in vars(helpers).values():
        if isinstance(table, dict):
            names += [str(item) for pair in table.items() for item in pair if isinstance(item, str)]
        elif isinstance(table, (tuple, list)):
            names += [item for item in table if isinstance(item, str)]
    full = [n if n.startswith("bpf_") else f"bpf_{n}" for n in names]
    near = get_close_matches(name, full, 1, 0.75)
    return near[0] if near and near[0] != name else ""


def warnings(source: Source, log: str) -> str:
    """Warnings about the user's own lines, one a line."""
    out = []
    for one in parse(log):
        place = _place(source, one) if one.kind == "warning" else None
        if place is not None:
            out.append(f"{place[0]}:{place[1]}:{place[2]}: {one.text}")
    return "\n".join(dict.fromkeys(out))


# --- another tree ------------------------------------------------------------------------------

_TYPES = re.compile(
    r"(?:incomplete (?:definition of |element |result )?type|unknown type name"
    r"|has incomplete type|use of undeclared identifier|use of undeclared type"
    r"|invalid application of '\w+' to an incomplete type) "
    r"'(?:struct |union |enum )?(\w+)(?: \*)?'"
)
_MEMBER = re.compile(r"no member named '(\w+)' in '(?:struct|union) (\w+)'")
_FILE = re.compile(r"'([^']+)' file not found")


def missing_types(log: str) -> list[str]:
    """Names of types, constants and headers that these headers lacked."""
    found = []
    for one in parse(log):
        if one.kind == "error":
            for pattern in (_TYPES, _MEMBER, _FILE):
                match = pattern.search(one.text)
                if match and not (pattern is _MEMBER and match.group(2).endswith("_table_t")):
                    found.append(match.group(1))
    return list(dict.fromkeys(found))


# --- the verifier's quotations -------------------------------------------------------------------


def find_c_line(source: Source, quoted: str, approximate: int = 0) -> tuple[str, int] | None:
    """(path or name, line) of a C line as a verifier log quotes it.

    bpfkit's own artifacts carry exact lines; other logs are off by a varying amount, so the text
    decides and the number only chooses among equal lines.

    :param quoted: the text, without the leading ``;``; ``@ file.c:18`` at its end is understood.
    """
    match = re.search(r"\s*@ ([^:@]+):(\d+)\s*$", quoted)
    file = ""
    if match:
        quoted, file = quoted[: match.start()], match.group(1)
        approximate = int(match.group(2))
    wanted = _squeeze(quoted.lstrip("; "))
    best: tuple[int, str, int] | None = None
    for name, path, text in source.files:
        elsewhere = bool(file) and os.path.basename(name) != os.path.basename(file)
        for number, line in enumerate(text.split("\n"), 1):
            if _squeeze(line) != wanted and not (
                not wanted and file and not elsewhere and number == approximate
            ):
                continue
            distance = abs(number - approximate) + 100000 * elsewhere
            if best is None or distance < best[0]:
                best = (distance, path or name, number)
    if best is None and wanted:
        for name, path, text in source.files:  # part of a line, as BCC's rewriting leaves it
            for number, line in enumerate(text.split("\n"), 1):
                bare = _squeeze(line)
                if len(bare) > 3 and (bare in wanted or wanted in bare):
                    distance = abs(number - approximate)
                    if best is None or distance < best[0]:
                        best = (distance, path or name, number)
    return (best[1], best[2]) if best else None


def _squeeze(text: str) -> str:
    return "".join(text.split())
