# SPDX-License-Identifier: Apache-2.0
"""Explains a verifier log: the cause in a sentence, the C line, the remedy.

The log is a trace of the rejected path: instructions, register states, C lines from BTF
(``; *v = 1; @ main.c:18``), then one or two lines of complaint and a trailer ``processed N
insns``.  Since Linux 7.3 a report follows the complaint: ``Verification failed: category:
problem`` and the blocks ``Reason:``, ``At:``, ``Causal path:``, ``Suggestion:``.  Both are
read; complaints without an explanation here are passed on in the kernel's words.

Logs are cut off where the buffer ends (from 6.4 on the kernel keeps the tail, before that the
head), so nothing here relies on a line being there.

Sources: the messages of ``kernel/bpf/verifier.c``, 5.4 to 6.18, as produced by real rejections
(``tests/packet/test_verifier_live.py``); the 7.3 layout from the reports of its first users
(cilium/ebpf issue 2105), there was no such kernel to try.
"""

from __future__ import annotations

from bpfkit.core.kernel.helpers import helper_name
from bpfkit.core.verifier.causes import CAUSES, HINT_COMPLEX, MAX_INSNS, Case, too_complex
from bpfkit.core.verifier.trace import Trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    FindLine: TypeAlias = Callable[[str, int], "tuple[str, int] | None"]

__all__ = ["Explanation", "explain"]


class Explanation:
    """The explanation of a verifier log.

    :ivar kind: a short name of the cause (``"packet-bounds"``), ``"other"`` if it is not known.
    :ivar cause: one sentence.
    :ivar c_line: the C text the kernel quotes for the failing instruction, "" without BTF.
    :ivar c_location: ``file:line`` of it, "" if not known.
    :ivar insn: the failing instruction as the verifier prints it, "" if the log has none.
    :ivar log_lines: the last relevant lines of the log, shortened.
    :ivar hint: what to do, one line; may be empty.
    :ivar function: ``bpf_x()`` where a call of that helper or kfunc was refused, else "".
    """

    __slots__ = ("c_line", "c_location", "cause", "function", "hint", "insn", "kind", "log_lines")

    def __init__(
        self,
        kind: str,
        cause: str,
        hint: str = "",
        *,
        c_line: str = "",
        c_location: str = "",
        insn: str = "",
        log_lines: list[str] | None = None,
    ) -> None:
        self.kind = kind
        self.cause = cause
        self.hint = hint
        self.c_line = c_line
        self.c_location = c_location
        self.insn = insn
        self.log_lines = log_lines or []
        self.function = ""

    def __repr__(self) -> str:
        return f"<Explanation {self.kind}: {self.cause}>"


def explain(
    log: str,
    *,
    prog_type_name: str = "",
    insn_count: int = 0,
    find_line: FindLine | None = None,
    number: int = 0,
) -> Explanation:
    """Read a verifier log.

    :param log: as much of it as there is; the tail is enough, an empty one is allowed.
    :param prog_type_name: ``BPF_PROG_TYPE_XDP`` or ``xdp``: for what the type may and may not.
    :param insn_count: instructions of the program, for "too large".
    :param find_line: where a quoted C line stands in the user's sources: called with its text
        and the line number the log has for it (0: none), answers (file, line) or None.
    :param number: the errno of the load, for logs that are cut off before the reason.
    """
    import re

    kind = prog_type_name.upper().removeprefix("BPF_PROG_TYPE_")
    trace = Trace(log)
    for name, pattern, words in CAUSES:
        match = re.search(pattern, trace.complaint, re.M)
        if match is None:
            continue
        case = Case(match, trace, kind, insn_count)
        made = words(case) if callable(words) else (words[0].format(**case.groups()), words[1])
        if made is None:
            continue
        found = Explanation(name, made[0], made[1])
        if name in ("helper-type", "unknown-function"):
            found.function = _function(case)
        break
    else:
        found = _unknown(trace, insn_count, number)
    insn = trace.insn
    c_line, file, line = trace.c_line
    taken = trace.acquired() if found.kind == "reference" else None
    if taken is not None:
        # Not the exit but the place that took what is not given back is what must be looked at.
        there = trace.c_line_of(taken)
        c_line, file, line = there if there[0] else (c_line, file, line)
    found.insn = insn
    found.c_line = c_line
    found.c_location = f"{file}:{line}" if file and line else file
    if c_line and find_line is not None:
        place = find_line(c_line, line)
        if place is not None:
            found.c_location = f"{place[0]}:{place[1]}"
    found.log_lines = trace.relevant()
    if not found.hint:
        found.hint = trace.suggestion
    return found


def _function(case: Case) -> str:
    """The refused function's name with ``()``; "a function" where the log has only a number."""
    groups = case.groups()
    name = groups.get("name") or helper_name(int(groups.get("id") or "-1"))
    if name == "unknown":
        return "a function"
    helper = "kernel function" not in case.match[0] and not name.startswith("bpf_")
    return f"bpf_{name}()" if helper else f"{name}()"


def _unknown(trace: Trace, insn_count: int, number: int) -> Explanation:
    if trace.reason:
        return Explanation("other", trace.reason, trace.suggestion)
    if insn_count > MAX_INSNS or (number == 7 and not trace.lines):  # E2BIG
        return Explanation(
            "complexity",
            f"the program has {insn_count:,} instructions, the kernel takes {MAX_INSNS:,}",
            HINT_COMPLEX,
        )
    if trace.complaint:
        return Explanation("other", trace.complaint.splitlines()[-1].strip())
    if number == 7:
        return Explanation("complexity", too_complex(trace), HINT_COMPLEX)
    return Explanation("other", "the verifier's log ends before it says why (it was cut off)")
