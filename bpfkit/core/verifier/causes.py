# SPDX-License-Identifier: Apache-2.0
"""The verifier's complaints, and the words for each: cause and hint.

To teach bpfkit a complaint, add a row to :data:`CAUSES`.
"""

from __future__ import annotations

from bpfkit.core.kernel.constants import PROG_TYPES
from bpfkit.core.kernel.helpers import helper_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Callable
    from typing import TypeAlias

    from bpfkit.core.verifier.trace import Trace

    Match: TypeAlias = re.Match[str]
    Words: TypeAlias = "tuple[str, str] | Callable[[Case], tuple[str, str] | None]"

__all__ = ["CAUSES", "HINT_COMPLEX", "MAX_INSNS", "Case", "context_field", "too_complex"]

MAX_INSNS = 1_000_000  # BPF_COMPLEXITY_LIMIT_INSNS


class Case:
    """A matched complaint with everything around it."""

    __slots__ = ("insn_count", "kind", "match", "trace")

    def __init__(self, match: Match, trace: Trace, kind: str, insn_count: int) -> None:
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


# --- the context structs -----------------------------------------------------------------------

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

_HINT_NULL = "Check the pointer before using it: if (!p) return ...;"
_HINT_BOUNDS = (
    "Compare with data_end first, on the same pointer: if (p + size > data_end) return ...; "
    "a variable length must be limited (len & 0x3c) before it is added, and compared again after."
)
_HINT_LOOP = (
    "Give the loop a constant limit the verifier can see (for (i = 0; i < 16; i++) ... break), "
    "or #pragma unroll; bpf_loop() for long ones."
)
HINT_COMPLEX = (
    "Split the program by tail calls, or reduce the branching: fewer loop rounds, "
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


def _packet_bounds(case: Case) -> tuple[str, str]:
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


def _nullable(case: Case) -> tuple[str, str]:
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


def _reference(case: Case) -> tuple[str, str]:
    taken = case.trace.acquired()
    called = (case.trace.call_at(taken) if taken is not None else "") or case.trace.called()
    what = f"what {called} returned" if called else "a reference"
    return f"{what} is not released on every path to the end of the program", _HINT_RELEASE


def too_complex(trace: Trace) -> str:
    import re

    found = re.search(r"Processed (\d+) insn", trace.complaint)
    many = f"{int(found[1]):,}" if found else f"{MAX_INSNS:,}"
    return (
        f"the verifier gave up after {many} instructions: the program is too large or too complex"
    )


def _complexity(case: Case) -> tuple[str, str]:
    return too_complex(case.trace), HINT_COMPLEX


def _endless(case: Case) -> tuple[str, str] | None:
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


def _helper_type(case: Case) -> tuple[str, str]:
    name = case.match["name"]
    hint = _INSTEAD.get(name, "bpf-helpers(7) says which program types may call it.")
    return f"{case.type_name} may not call bpf_{name}() on this kernel", hint


def _no_function(case: Case) -> tuple[str, str]:
    name = helper_name(int(case.match["id"]))
    known = "" if name == "unknown" else f", {name}(),"
    return (
        f"helper number {case.match['id']}{known} does not exist on this kernel",
        "It is newer than this kernel, or the program was built for another one; "
        "`python3 -m bpfkit doctor` shows what works here.",
    )


def _stack(case: Case) -> tuple[str, str] | None:
    off = case.number("off")
    if off >= -512:
        return None
    return f"it needs {-off} bytes of stack, the limit is 512", _HINT_STACK


def _context(case: Case) -> tuple[str, str]:
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


def _scalar(case: Case) -> tuple[str, str]:
    register = case.match["reg"]
    return (
        f"{register} is used as a pointer but holds a plain number",
        "Packet pointers are lost by helpers that may move the packet (skb_pull_data, "
        "xdp_adjust_head ...): load data and data_end again. Kernel memory is read by "
        "bpf_probe_read_kernel().",
    )


# (kind, pattern in the log, (cause, hint) or a function that returns them); the first match counts.
CAUSES: list[tuple[str, str, Words]] = [
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
        r"(?P<reg>R\d+) invalid zero-sized read: u64=",
        (
            "{called} gets a size ({reg}) that may be 0",
            "Check it first (if (!size) return ...), so that the verifier knows it is at least 1.",
        ),
    ),
    (
        "argument",
        r"invalid zero-sized read",
        (
            "{called} gets 0 bytes: a size that may be 0, or a map without keys or values",
            "Check the size first (if (!size) return ...); use the helpers of the map's own type.",
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
