# SPDX-License-Identifier: Apache-2.0
"""A verifier log in words: the cause in a sentence, the C line, what to do about it.

The log is a trace of the rejected path: instructions, register states, C lines from BTF
(``; *v = 1; @ main.c:18``), then one or two lines of complaint and a trailer ``processed N
insns``.  Since Linux 7.3 a report follows the complaint: ``Verification failed: category:
problem`` and the blocks ``Reason:``, ``At:``, ``Causal path:``, ``Suggestion:``.  Both are
read; where this module knows no better words, the kernel's own are passed on.

Logs are cut off where the buffer ends (from 6.4 on the kernel keeps the tail, before that the
head), so nothing here relies on a line being there.

Sources: the messages of ``kernel/bpf/verifier.c``, 5.4 to 6.18, as produced by real rejections
(``tests/packet/test_verifier_live.py``); the 7.3 layout from the reports of its first users
(cilium/ebpf issue 2105), there was no such kernel to try.
"""

from __future__ import annotations

from bpfkit.core.kernel.constants import PROG_TYPES

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Callable
    from typing import TypeAlias

    FindLine: TypeAlias = Callable[[str, int], "tuple[str, int] | None"]
    Match: TypeAlias = re.Match[str]
    Words: TypeAlias = "tuple[str, str] | Callable[[_Case], tuple[str, str] | None]"

__all__ = ["Explanation", "context_field", "explain"]

_TAIL = 1 << 18  # characters of a log that are looked at: the end is where the reason is
_WIDTH = 160
_MAX_INSNS = 1_000_000  # BPF_COMPLEXITY_LIMIT_INSNS


class Explanation:
    """What a verifier log says.

    :ivar kind: a short name of the cause (``"packet-bounds"``), ``"other"`` if it is not known.
    :ivar cause: one sentence.
    :ivar c_line: the C text the kernel quotes for the failing instruction, "" without BTF.
    :ivar c_location: ``file:line`` of it, "" if not known.
    :ivar insn: the failing instruction as the verifier prints it, "" if the log has none.
    :ivar log_lines: the last relevant lines of the log, shortened.
    :ivar hint: what to do, one line; may be empty.
    """

    __slots__ = ("c_line", "c_location", "cause", "hint", "insn", "kind", "log_lines")

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
    trace = _Trace(log)
    for name, pattern, words in _CAUSES:
        match = re.search(pattern, trace.complaint, re.M)
        if match is None:
            continue
        case = _Case(match, trace, kind, insn_count)
        made = words(case) if callable(words) else (words[0].format(**case.groups()), words[1])
        if made is None:
            continue
        found = Explanation(name, made[0], made[1])
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


def _unknown(trace: _Trace, insn_count: int, number: int) -> Explanation:
    if trace.reason:
        return Explanation("other", trace.reason, trace.suggestion)
    if insn_count > _MAX_INSNS or (number == 7 and not trace.lines):  # E2BIG
        return Explanation(
            "complexity",
            f"the program has {insn_count:,} instructions, the kernel takes {_MAX_INSNS:,}",
            _HINT_COMPLEX,
        )
    if trace.complaint:
        return Explanation("other", trace.complaint.splitlines()[-1].strip())
    if number == 7:
        return Explanation("complexity", _too_complex(trace), _HINT_COMPLEX)
    return Explanation("other", "the verifier's log ends before it says why (it was cut off)")


class _Trace:
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


class _Case:
    """A matched complaint with everything around it."""

    __slots__ = ("insn_count", "kind", "match", "trace")

    def __init__(self, match: Match, trace: _Trace, kind: str, insn_count: int) -> None:
        self.match = match
        self.trace = trace
        self.kind = kind
        self.insn_count = insn_count

    @property
    def type_name(self) -> str:
        return f"{self.kind} programs" if self.kind in PROG_TYPES else "programs of this type"

    def groups(self) -> dict[str, str]:
        groups = {key: value or "" for key, value in self.match.groupdict().items()}
        groups.update(type=self.type_name, called=self.trace.called() or "a helper")
        return groups

    def number(self, group: str, default: int = 0) -> int:
        value = self.match.groupdict().get(group)
        return int(value, 0) if value else default


# --- what the context structs are called ------------------------------------------------------

_SK_BUFF_TYPES = (
    "SOCKET_FILTER SCHED_CLS SCHED_ACT CGROUP_SKB LWT_IN LWT_OUT LWT_XMIT LWT_SEG6LOCAL SK_SKB "
    "FLOW_DISSECTOR"
).split()
_CONTEXTS = {
    "XDP": "xdp_md",
    "CGROUP_SOCK": "bpf_sock",
    "SOCK_OPS": "bpf_sock_ops",
    "CGROUP_DEVICE": "bpf_cgroup_dev_ctx",
    "SK_MSG": "sk_msg_md",
    "CGROUP_SOCK_ADDR": "bpf_sock_addr",
    "SK_REUSEPORT": "sk_reuseport_md",
    "CGROUP_SYSCTL": "bpf_sysctl",
    "CGROUP_SOCKOPT": "bpf_sockopt",
    "SK_LOOKUP": "bpf_sk_lookup",
    "KPROBE": "pt_regs",
    "PERF_EVENT": "bpf_perf_event_data",
    "NETFILTER": "bpf_nf_ctx",
    **dict.fromkeys(_SK_BUFF_TYPES, "__sk_buff"),
}
# name=offset in bytes, in order; a field reaches to the next one
_FIELDS = {
    "__sk_buff": (
        "len=0 pkt_type=4 mark=8 queue_mapping=12 protocol=16 vlan_present=20 vlan_tci=24 "
        "vlan_proto=28 priority=32 ingress_ifindex=36 ifindex=40 tc_index=44 cb=48 hash=68 "
        "tc_classid=72 data=76 data_end=80 napi_id=84 family=88 remote_ip4=92 local_ip4=96 "
        "remote_ip6=100 local_ip6=116 remote_port=132 local_port=136 data_meta=140 flow_keys=144 "
        "tstamp=152 wire_len=160 gso_segs=164 sk=168 gso_size=176 tstamp_type=180 hwtstamp=184 =192"
    ),
    "xdp_md": (
        "data=0 data_end=4 data_meta=8 ingress_ifindex=12 rx_queue_index=16 egress_ifindex=20 =24"
    ),
}


def context_field(struct: str, offset: int) -> str:
    """The field of a context struct (``__sk_buff``, ``xdp_md``) at a byte offset, "" if none."""
    name = ""
    for entry in _FIELDS.get(struct, "").split():
        field, _, at = entry.partition("=")
        if int(at) > offset >= 0:
            return name
        name = field
    return ""


# --- the causes -------------------------------------------------------------------------------

_HINT_NULL = "Check it first: if (!p) return ...; and use it only where it is not NULL."
_HINT_BOUNDS = (
    "Compare with data_end first, on the same pointer: if (p + size > data_end) return ...; "
    "a variable length must be limited (len & 0x3c) before it is added, and compared again after."
)
_HINT_LOOP = (
    "Give the loop a constant limit the verifier can see (for (i = 0; i < 16; i++) ... break), "
    "or #pragma unroll; bpf_loop() for long ones."
)
_HINT_COMPLEX = (
    "Split it by tail calls, or shorten what branches multiply: fewer loop rounds, "
    "fewer states carried along, bpf_loop() instead of an unrolled loop."
)
_HINT_STACK = (
    "The stack holds 512 bytes, all called functions together (256 with tail calls): put large "
    "structs and buffers into a per-CPU array of one entry."
)
_HINT_ALIGN = (
    "Access fields at multiples of their size, mark packed structs __attribute__((packed)), "
    "or copy with __builtin_memcpy / bpf_skb_load_bytes."
)
_HINT_RELEASE = (
    "Every path, the error paths too, must release it: bpf_ringbuf_submit/discard, bpf_sk_release, "
    "bpf_spin_unlock."
)
_HINT_LIMIT = (
    "Limit it so that the verifier sees it: if (n > MAX) return ...; or n &= MAX - 1; (n unsigned)."
)


def _packet_bounds(case: _Case) -> tuple[str, str]:
    size, off, proven = case.number("size"), case.number("off"), case.number("r")
    what = "writes" if case.trace.insn.partition(") ")[2].startswith("*(") else "reads"
    variable = case.match["id"] not in (None, "0")
    where = f"{off} bytes after a computed position" if variable else f"at offset {off}"
    return (
        f"it {what} {size} byte{'s' * (size != 1)} of the packet {where}, where "
        f"{proven if proven else 'no'} byte{'s' * (proven != 1)} "
        f"{'is' if proven == 1 else 'are'} proven to be inside it",
        _HINT_BOUNDS,
    )


def _nullable(case: _Case) -> tuple[str, str]:
    kind = case.match["kind"]
    called = case.trace.called(r"R0(?:_\w+)?=\w*_or_null")
    if kind.startswith("map_value"):
        return (
            f"the map value {called and f'from {called} '}may be NULL and is used unchecked",
            _HINT_NULL,
        )
    return (
        f"the pointer {called and f'from {called} '}may be NULL ({kind}) and is used unchecked",
        _HINT_NULL,
    )


def _reference(case: _Case) -> tuple[str, str]:
    taken = case.trace.acquired()
    called = (case.trace.call_at(taken) if taken is not None else "") or case.trace.called()
    what = f"what {called} returned" if called else "a reference"
    return f"{what} is not released on every path to the end of the program", _HINT_RELEASE


def _too_complex(trace: _Trace) -> str:
    import re

    found = re.search(r"Processed (\d+) insn", trace.complaint)
    many = f"{int(found[1]):,}" if found else f"{_MAX_INSNS:,}"
    return (
        f"the verifier gave up after {many} instructions: the program is too large or too complex"
    )


def _complexity(case: _Case) -> tuple[str, str]:
    return _too_complex(case.trace), _HINT_COMPLEX


def _endless(case: _Case) -> tuple[str, str] | None:
    """The verifier gave up, and the end of its trace goes round in a circle."""
    jump = case.trace.loops()
    if not jump:
        return None
    many = case.number("many")
    after = f"; it gave up after {many:,} instructions" if many else ""
    return (
        f"a loop has no end the verifier can see (instruction {jump} jumps back{after})",
        _HINT_LOOP,
    )


_NO_PROCESS = (
    "Packets are not processed on behalf of the current process: take it where the process acts "
    "(cgroup/connect, sock_ops, kprobe) and pass it by a map."
)
_INSTEAD = {
    "skb_load_bytes": "XDP reads packets directly (data, data_end) or by bpf_xdp_load_bytes().",
    "skb_store_bytes": "XDP writes packets directly (data, data_end) or by bpf_xdp_store_bytes().",
    "xdp_load_bytes": "Programs with an sk_buff use bpf_skb_load_bytes().",
    "xdp_store_bytes": "Programs with an sk_buff use bpf_skb_store_bytes().",
    "redirect_map": "bpf_redirect_map() is XDP's; tc programs use bpf_redirect().",
    "get_current_pid_tgid": _NO_PROCESS,
    "get_current_comm": _NO_PROCESS,
    "get_current_uid_gid": _NO_PROCESS,
    "get_current_task": _NO_PROCESS,
    "get_current_cgroup_id": _NO_PROCESS,
    "copy_from_user": "It may sleep: only sleepable programs (SEC names ending in .s) may call it.",
}


def _helper_type(case: _Case) -> tuple[str, str]:
    name = case.match["name"]
    hint = _INSTEAD.get(name, "bpf-helpers(7) says which program types may call it.")
    return f"{case.type_name} may not call bpf_{name}() on this kernel", hint


def _no_function(case: _Case) -> tuple[str, str]:
    return (
        f"helper number {case.match['id']} does not exist on this kernel",
        "It is newer than this kernel, or the program was built for another one; "
        "`python -m bpfkit doctor` shows what works here.",
    )


def _stack(case: _Case) -> tuple[str, str] | None:
    off = case.number("off")
    if off >= -512:
        return None
    return f"it needs {-off} bytes of stack, the limit is 512", _HINT_STACK


def _context(case: _Case) -> tuple[str, str]:
    off, size = case.number("off"), case.number("size")
    struct = _CONTEXTS.get(case.kind, "")
    field = context_field(struct, off)
    what = "write" if case.trace.insn.partition(") ")[2].startswith("*(") else "read"
    where = f"struct {struct}" if struct else "the context"
    named = f"->{field}" if field else ""
    hint = (
        "Only the fields of the type's context struct, whole and at their own offset, can be used"
    )
    if field in ("data", "data_end", "data_meta") and case.kind == "SOCKET_FILTER":
        hint = "Socket filters read the packet by bpf_skb_load_bytes(), not by pointers"
    elif what == "write":
        hint = "Most context fields are read-only: linux/bpf.h and bpf-helpers(7) say which are not"
    return (
        f"{case.type_name} may not {what} {size} bytes at offset {off} of {where}{named}",
        f"{hint}.",
    )


def _scalar(case: _Case) -> tuple[str, str]:
    register = case.match["reg"]
    return (
        f"{register} is used as a pointer but holds a plain number",
        "Packet pointers are lost by helpers that may move the packet (skb_pull_data, "
        "xdp_adjust_head ...): load data and data_end again. Kernel memory is read by "
        "bpf_probe_read_kernel().",
    )


# (kind, what the log says, (cause, hint) or a function that makes them); the first match counts.
_CAUSES: list[tuple[str, str, Words]] = [
    (
        "packet-bounds",
        r"invalid access to packet, off=(?P<off>-?\d+) size=(?P<size>\d+), "
        r"R\d+\(id=(?P<id>\d+),off=-?\d+,r=(?P<r>\d+)\)",
        _packet_bounds,
    ),
    (
        "packet-bounds",
        r"offset is outside of the packet",
        ("it accesses the packet beyond what is proven to be inside it", _HINT_BOUNDS),
    ),
    ("null-map", r"R\d+ invalid mem access '(?P<kind>\w*_or_null)'", _nullable),
    ("null-map", r"R\d+ type=(?P<kind>\w*_or_null) expected=", _nullable),
    (
        "null-map",
        r"may be NULL here \((?P<kind>[^)]*)\)|nullable (?P<other>map value)",
        ("the pointer from {called} may be NULL and is used unchecked", _HINT_NULL),
    ),
    (
        "loop",
        r"infinite loop detected at insn (?P<at>\d+)",
        (
            "a loop never ends: nothing changes from one round to the next (instruction {at})",
            _HINT_LOOP,
        ),
    ),
    (
        "loop",
        r"back-edge from insn (?P<from>\d+) to (?P<to>\d+)",
        (
            "a loop (instruction {from} jumps back to {to}); kernels before 5.3 take none",
            "#pragma unroll, or a newer kernel.",
        ),
    ),
    ("loop", r"BPF program is too large\. Processed (?P<many>\d+) insn", _endless),
    ("loop", r"The sequence of \d+ jumps is too complex", _endless),
    (
        "loop",
        r"(?i)loop.*(?:not bounded|unbounded)|unbounded loop",
        ("a loop has no end the verifier can see", _HINT_LOOP),
    ),
    (
        "complexity",
        r"BPF program is too large|is too complex|too many (?:states|subprogs|instructions)"
        r"|Verifier Limit",
        _complexity,
    ),
    (
        "gpl",
        r"cannot call GPL-(?:restricted|only) function",
        (
            "{called} is for GPL-compatible programs only, and the program's license is not",
            'Declare LICENSE("GPL") or LICENSE("Dual BSD/GPL").',
        ),
    ),
    (
        "sleepable",
        r"helper call might sleep in a non-sleepable prog|must be sleepable to call"
        r"|sleepable (?:helper|kfunc).*non-sleepable|in a non-sleepable",
        (
            "{called} may sleep, and this program may not",
            "Use the sleepable kind of the program (SEC names ending in .s), if there is one.",
        ),
    ),
    (
        "sleepable",
        r"operations? (?:that may|\S+ cannot be used in).*(?:sleep|region)",
        ("{called} may sleep, and here nothing may", "Move the call out of the locked region."),
    ),
    ("helper-type", r"program of this type cannot use helper bpf_(?P<name>\w+)#\d+", _helper_type),
    ("helper-type", r"unknown func bpf_(?P<name>\w+)#\d+", _helper_type),
    (
        "helper-type",
        r"calling kernel function (?P<name>\w+) is not allowed",
        (
            "{type} may not call the kernel function {name}() on this kernel",
            "Kernel functions are registered per program type; this one is not for yours.",
        ),
    ),
    ("unknown-function", r"(?:invalid|unknown) func \w+#(?P<id>-?\d+)", _no_function),
    (
        "unknown-function",
        r"kernel btf_id (?P<id>\d+) is not a function|kfunc btf_id (?P<id2>\d+)",
        (
            "it calls a kernel function that this kernel does not have",
            "BTF ids are one kernel's own: look the function up on the kernel that runs it.",
        ),
    ),
    (
        "unknown-function",
        r"invalid destination|call to invalid destination",
        (
            "it calls a function that is not in the program",
            "A static function that is not inlined must be defined in the same source.",
        ),
    ),
    (
        "stack-size",
        r"combined stack size of (?P<calls>\d+) calls is (?P<size>\d+)\. Too large",
        (
            "{calls} functions that call each other need {size} bytes of stack, the limit is 512",
            _HINT_STACK,
        ),
    ),
    (
        "stack-size",
        r"stack size (?:of \d+ )?(?:is )?(?P<size>\d+).*(?:exceeds|too large)",
        ("it needs {size} bytes of stack, the limit is 512", _HINT_STACK),
    ),
    (
        "stack-size",
        r"invalid (?:write to|read from|unbounded \S+|indirect access to|\S+ access to) stack "
        r"R\d+ off=(?P<off>-?\d+) (?:access_)?size=(?P<size>\d+)",
        _stack,
    ),
    ("stack-size", r"invalid stack (?:type R\d+ )?off=(?P<off>-\d+) (?:access_)?size=\d+", _stack),
    (
        "stack-bounds",
        r"(?:invalid|misaligned)? ?(?:write to|read from|access to|indirect access to) "
        r"stack R\d+ off=(?P<off>-?\d+) (?:access_)?size=(?P<size>\d+)",
        (
            "it accesses {size} bytes of the stack at offset {off}, outside of its frame",
            "An index or a length runs over the end of a local array.",
        ),
    ),
    (
        "alignment",
        r"misaligned (?P<what>\w+) access off (?P<off>.*) size (?P<size>\d+)",
        ("an access of {size} bytes to the {what} is not at a multiple of {size}", _HINT_ALIGN),
    ),
    ("context", r"invalid bpf_context access off=(?P<off>-?\d+) size=(?P<size>\d+)", _context),
    (
        "context",
        r"dereference of modified ctx ptr R\d+ off=(?P<off>-?\d+)",
        (
            "the context pointer was changed (by {off}) before it was used",
            "Read context fields as ctx->field, not by a pointer into it.",
        ),
    ),
    (
        "reference",
        r"Unreleased reference id=\d+|would lead to reference leak|BPF_EXIT instruction .*lock"
        r"|Unreleased resource|unreleased resource",
        _reference,
    ),
    (
        "map-bounds",
        r"invalid access to map value, value_size=(?P<vs>\d+) off=(?P<off>-?\d+) "
        r"size=(?P<size>\d+)",
        ("it accesses {size} bytes at offset {off} of a map value of {vs} bytes", _HINT_LIMIT),
    ),
    (
        "map-bounds",
        r"invalid access to memory, mem_size=(?P<vs>\d+) off=(?P<off>-?\d+) size=(?P<size>\d+)",
        ("it accesses {size} bytes at offset {off} of an object of {vs} bytes", _HINT_LIMIT),
    ),
    (
        "map-bounds",
        r"cannot prove offset \+ access_size <= object_size",
        ("it may access memory outside of the object", _HINT_LIMIT),
    ),
    (
        "unbounded",
        r"math between (?P<what>\S+) pointer and register with unbounded",
        ("a number without known limits is added to a {what} pointer", _HINT_LIMIT),
    ),
    (
        "unbounded",
        r"(?P<reg>R\d+) (?:min value is negative|unbounded memory access)",
        ("a length or an index ({reg}) has no limit the verifier can see", _HINT_LIMIT),
    ),
    (
        "unbounded",
        r"(?:value|var_off|offset) (?P<reg>\S+).* makes (?P<what>\S+) pointer be out of bounds",
        ("an index runs out of the {what}", _HINT_LIMIT),
    ),
    (
        "return-value",
        r"At program exit the register R0 has (?P<has>.*?) should have been in (?P<want>.*)",
        (
            "the program returns a value {type} may not: {has}, allowed is {want}",
            "Return one of the type's verdicts on every path.",
        ),
    ),
    (
        "return-value",
        r"^R0 !read_ok|R0 (?:is not readable|has never been initialized)",
        (
            "the program ends (or calls on) without a value in R0 on some path",
            "Every path needs a return value.",
        ),
    ),
    (
        "uninitialised",
        r"^(?P<reg>R\d+) !read_ok|(?P<reg2>R\d+) (?:is not readable|has never been)",
        (
            "a register ({reg}{reg2}) is read before anything was put into it",
            "Initialise the variable on every path; helper calls destroy R1 to R5.",
        ),
    ),
    (
        "uninitialised",
        r"invalid (?:indirect )?read from stack",
        (
            "bytes of the stack are used before they were written",
            "Initialise the whole struct, its padding too: struct key k = {}; or __builtin_memset.",
        ),
    ),
    (
        "pointer",
        r"(?P<reg>R\d+) (?:invalid mem access '(?:scalar|inv)'|is an integer scalar here)",
        _scalar,
    ),
    (
        "pointer",
        r"(?P<reg>R\d+) invalid mem access '(?P<what>\w+)'",
        ("memory behind a pointer of kind '{what}' ({reg}) cannot be accessed this way", ""),
    ),
    (
        "pointer",
        r"(?P<reg>R\d+) pointer arithmetic (?:with (?P<op>\S+) operator|on (?P<what>\S+)) "
        r"prohibited",
        (
            "arithmetic on a pointer ({reg}) that the verifier does not follow: {op}{what}",
            "Add and subtract only; check for NULL before adding to a pointer.",
        ),
    ),
    (
        "argument",
        r"(?P<reg>R\d+) type=(?P<has>\S+) expected=(?P<want>.*)",
        (
            "{called} gets '{has}' as argument {reg}, it takes {want}",
            "Arguments are R1 to R5 in order; buffers must be on the stack or in a map value.",
        ),
    ),
    (
        "argument",
        r"cannot pass map_type (?P<type_>\d+) into func (?P<name>bpf_\w+)#\d+",
        (
            "{name}() does not take this type of map",
            "bpf-helpers(7) and the map's documentation say which helpers it has.",
        ),
    ),
    (
        "argument",
        r"invalid zero-sized read",
        (
            "{called} does not take this type of map (it has no keys or values)",
            "Use the helpers of the map's own type.",
        ),
    ),
    (
        "structure",
        r"unreachable insn (?P<at>\d+)",
        (
            "instruction {at} can never be reached (dead code, or a loop before it without exit)",
            _HINT_LOOP,
        ),
    ),
    (
        "structure",
        r"jump out of range from insn (?P<from>\d+) to (?P<to>\d+)",
        ("instruction {from} jumps out of the program (to {to})", ""),
    ),
    (
        "structure",
        r"last insn is not an exit or jmp",
        ("the program runs over its last instruction", "End it with exit_()."),
    ),
    (
        "structure",
        r"unknown opcode (?P<op>\w+)|BPF_\w+ uses reserved fields",
        (
            "an instruction is none that this kernel knows",
            "It may be newer than the kernel: build for -mcpu=v2 or v3.",
        ),
    ),
    (
        "structure",
        r"the call stack of (?P<n>\d+) frames is too deep|recursive call",
        (
            "functions call each other more than 8 deep, or themselves",
            "Recursion is not possible; use a loop.",
        ),
    ),
    ("structure", r"frame pointer is read only", ("it writes to R10, the frame pointer", "")),
    (
        "structure",
        r"div by zero|invalid shift (?P<n>-?\d+)",
        ("a constant divisor is zero, or a shift is wider than the register", ""),
    ),
    (
        "btf",
        r"has to have BTF|no BTF|missing (?:btf|BTF)|func_info|line_info",
        (
            "the kernel needs BTF for this, and the map or program has none (or none that fits)",
            "Declare the map with its key and value types (BPFKIT_MAP, BPF_TABLE).",
        ),
    ),
    (
        "privilege",
        r"R\d+ leaks addr|pointer comparison prohibited|(?:allowed|not supported) for "
        r"(?:non-)?(?:root|privileged)",
        ("without CAP_PERFMON a program may not see kernel addresses", "Run it with sudo."),
    ),
]
