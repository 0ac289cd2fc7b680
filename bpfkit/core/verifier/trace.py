# SPDX-License-Identifier: Apache-2.0
"""The parts of a verifier log: the path of instructions, the complaint, the kernel's own report."""

from __future__ import annotations

__all__ = ["Trace"]

_TAIL = 1 << 18  # characters of a log that are looked at: the end is where the reason is
_WIDTH = 160


class Trace:
    """The parts of a log."""

    __slots__ = ("at", "complaint", "insn", "lines", "problem", "reason", "suggestion")

    def __init__(self, log: str) -> None:
        import re

        text = log[-_TAIL:]
        if len(log) > _TAIL:
            text = text.partition("\n")[2]
        lines = [line.rstrip() for line in text.replace("\0", "").splitlines()]
        trailer = re.compile(
            r"processed \d+ insns|verification time \d|stack depth |mark_precise|"
            r"func#\d+ |insns processed|\(truncated"
        )
        report = next(
            (
                i
                for i in range(len(lines) - 1, -1, -1)
                if lines[i].startswith("Verification failed:")
            ),
            None,
        )
        self.problem = self.reason = self.suggestion = ""
        self.at: list[str] = []
        if report is not None:
            self._read_report(lines[report:])
            lines = lines[:report]
        self.lines = [line for line in lines if line and not trailer.match(line)]
        complaint: list[str] = []
        trace = re.compile(
            r"\d+: |from \d+ to \d+|;|\s*R\d+[_=(]|\s*R\d+_?\w*=|\s*frame\d|last_idx|regs=|parent "
            r"|callee:|caller:|returning from|to caller|func '|Validating|Live regs|propagating"
            r"|\s+(?:frame\d+: )?(?:R\d+|fp-\d+)"
        )
        for line in reversed(self.lines):
            # "func 'x' arg1 ..." is a complaint although "func " also starts trace lines
            if trace.match(line) and not re.match(r"func '\w+' (?:arg|doesn't|size)", line):
                break
            complaint.insert(0, line)
            if len(complaint) == 8:
                break
        if self.reason:
            complaint += [self.problem, self.reason]
        self.complaint = "\n".join(complaint)
        self.insn = ""
        for line in reversed(self.lines):
            found = re.match(r"(\d+: \([0-9a-f]{2}\) .*?)(?:\s+;.*|\s+\d+: R\d.*)?$", line)
            if found:
                self.insn = found[1]
                break

    def _read_report(self, lines: list[str]) -> None:
        """Linux 7.3: a headline, then blocks ``Name:`` with indented text."""
        import re

        self.problem = lines[0].partition(":")[2].strip()
        blocks: dict[str, list[str]] = {}
        current: list[str] = []
        for line in lines[1:]:
            head = re.fullmatch(r"([A-Z][a-z]+(?: [a-z]+)*):\s*(.*)", line)
            if head:
                current = blocks.setdefault(head[1], [])
                line = head[2]
            elif line.startswith("processed "):
                break
            if line.strip():
                current.append(line.rstrip())
        self.reason = " ".join(line.strip() for line in blocks.get("Reason", []))
        self.suggestion = " ".join(line.strip() for line in blocks.get("Suggestion", []))
        self.at = blocks.get("At", [])

    @property
    def c_line(self) -> tuple[str, str, int]:
        """(C text, file, line) of the failing instruction; empty where the log quotes none."""
        import re

        for place, line in enumerate(self.at):
            where = re.match(r"\s*(?:\S+ @ )?(\S+?):(\d+)(?::\d+)?$", line)
            if where:
                quoted = (re.match(r"\s*>>>\s*\d+ \| (.*)", later) for later in self.at[place:])
                text = next((found[1].strip() for found in quoted if found), "")
                return text, where[1], int(where[2])
        return self._quoted(len(self.lines))

    def c_line_of(self, slot: int) -> tuple[str, str, int]:
        """As :attr:`c_line`, for the last time the trace comes by instruction ``slot``."""
        for place in range(len(self.lines) - 1, -1, -1):
            if self.lines[place].startswith(f"{slot}: ("):
                return self._quoted(place)
        return "", "", 0

    def _quoted(self, end: int) -> tuple[str, str, int]:
        """The last ``; text @ file:line`` before a line of the trace."""
        import re

        for line in reversed(self.lines[:end]):
            if line.startswith(";"):
                found = re.match(r"; ?(.*?)(?: @ (\S+):(\d+))?$", line)
                if found and found[1].strip():
                    return found[1].strip(), found[2] or "", int(found[3] or 0)
        return "", "", 0

    def relevant(self, count: int = 5) -> list[str]:
        """The failing instruction and the complaint, each line shortened."""
        lines = [self.insn] if self.insn else []
        lines += [line.strip() for line in self.complaint.splitlines()][: count - len(lines)]
        if not lines:
            lines = self.lines[-3:]
        return [line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…" for line in lines]

    def called(self, leaves: str = "") -> str:
        """``bpf_map_lookup_elem()``, the last helper the trace calls before it fails; or "".

        :param leaves: what a register must be afterwards, if the log says that.
        """
        import re

        last = ""
        for line in reversed(self.lines):
            found = re.match(r"\d+: \(85\) call (bpf_\w+)#", line)
            if found:
                if not leaves or re.search(leaves, line):
                    return f"{found[1]}()"
                last = last or f"{found[1]}()"
        return last

    def call_at(self, slot: int) -> str:
        """The helper that instruction ``slot`` calls, or ""."""
        import re

        for line in reversed(self.lines):
            found = re.match(r"(\d+): \(85\) call (bpf_\w+)#", line)
            if found and int(found[1]) == slot:
                return f"{found[2]}()"
        return ""

    def acquired(self) -> int | None:
        """The instruction that took what was not given back."""
        import re

        found = re.search(r"alloc_insn=(\d+)|acquired at\s+instruction (\d+)", self.complaint)
        return int(found[1] or found[2]) if found else None

    def loops(self) -> str:
        """The instruction that jumps back in the end of the trace, or ""."""
        import re
        from collections import Counter

        jumps = Counter(
            found[1]
            for line in self.lines[-400:]
            if (found := re.match(r"(\d+): \(\w\w\) (?:if .* )?gotol? pc-\d", line))
        )
        most = jumps.most_common(1)
        return most[0][0] if most and most[0][1] > 2 else ""
