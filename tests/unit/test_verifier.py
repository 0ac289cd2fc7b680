# SPDX-License-Identifier: Apache-2.0
"""Verifier logs in words, from recorded logs.

The logs up to 6.18 are cut from real rejections.  Those of Linux 7.3 are not: there was no such
kernel to produce them.  The first is the example its first users reported (cilium/ebpf issue
2105), the others are constructed after the same layout.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfkit.core.verifier.causes import context_field
from bpfkit.core.verifier.explain import explain

TRAILER = (
    "processed 6 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 "
    "mark_read 0\n"
)

WITH_C = (
    """0: R1=ctx() R10=fp0
; int f(struct xdp_md *ctx) @ main.c:10
0: (b7) r1 = 0                        ; R1=0
; u64 *v = counts.lookup(&key); @ main.c:16
1: (63) *(u32 *)(r10 -4) = r1         ; R1=0 R10=fp0 fp-8=0000????
5: (85) call bpf_map_lookup_elem#1    ; R0=map_value_or_null(id=1,ks=4,vs=8)
; *v = 1; @ main.c:18
6: (7b) *(u64 *)(r0 +0) = r1
R0 invalid mem access 'map_value_or_null'
"""
    + TRAILER
)

OLD = """0: (b7) r1 = 0
; u64 *v = counts.lookup(&key);
1: (63) *(u32 *)(r10 -4) = r1
2: (85) call bpf_map_lookup_elem#1
 R0_w=map_value_or_null(id=1,off=0,ks=4,vs=8,imm=0) R10=fp0 fp-8=mmmm????
; *v = 1;
3: (7b) *(u64 *)(r0 +0) = r1
 R0_w=map_value_or_null(id=1,off=0,ks=4,vs=8,imm=0) R1_w=inv1 R10=fp0 fp-8=mmmm????
R0 invalid mem access 'map_value_or_null'
processed 4 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""

SEVEN = """0: R1=ctx() R10=fp0
0: (95) exit
R0 !read_ok

Verification failed: Register Type Safety: Unreadable register

Reason:
  R0 has never been initialized on this path, so the verifier cannot use it as an input.

At:
  insn 0
        | ^-- error: R0 is not readable
  Instruction context:
  >>> 0 | (95) exit

Causal path:
  no retained diagnostic events on this path

Suggestion:
  Initialize R0 on every path before this instruction.

processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""

SEVEN_WITH_C = """6: (7b) *(u64 *)(r0 +0) = r1
R0 invalid mem access 'map_value_or_null'

Verification failed: Register Type Safety: Invalid dereference

Reason:
  R0 may be NULL here (a nullable map value pointer). The program could dereference NULL on
  this path, so the verifier cannot prove this access is safe.

At:
  count @ main.c:18:5
  Source context:
       17 |     u64 *v = counts.lookup(&key);
  >>>  18 |     *v = 1;
          |     ^-- error: invalid dereference of R0 (a nullable map value pointer)
       19 |     return 0;
  Instruction context:
      5 | (85) call bpf_map_lookup_elem#1
  >>> 6 | (7b) *(u64 *)(r0 +0) = r1

Causal path:
  count @ main.c:17:14
  Source context:
  >>>  17 |     u64 *v = counts.lookup(&key);
          |     ^-- update: R0 changed from an uninitialized value to nullable map value

Suggestion:
  Add a NULL check before the access and dereference the pointer only on the non-NULL path.

processed 7 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""

SEVEN_UNKNOWN = """12: (85) call bpf_frobnicate#300

Verification failed: Execution Context Safety: Unmatched context exit

Reason:
  The operation bpf_frobnicate tries to leave a widget, but this path has no active widget to
  leave. The current depth is 0.

At:
  insn 12

Suggestion:
  Enter the widget first.
"""


def test_c_line_and_location() -> None:
    found = explain(WITH_C, prog_type_name="BPF_PROG_TYPE_XDP")
    assert found.kind == "null-map"
    assert (
        found.cause == "the map value from bpf_map_lookup_elem() may be NULL and is used unchecked"
    )
    assert (found.c_line, found.c_location) == ("*v = 1;", "main.c:18")
    assert found.insn == "6: (7b) *(u64 *)(r0 +0) = r1"
    assert found.log_lines == [found.insn, "R0 invalid mem access 'map_value_or_null'"]
    assert "if (!p) return" in found.hint


def test_the_users_line_is_asked_for() -> None:
    asked = []

    def find_line(text: str, line: int) -> tuple[str, int] | None:
        asked.append((text, line))
        return "my/prog.bpf.c", 42

    assert explain(WITH_C, find_line=find_line).c_location == "my/prog.bpf.c:42"
    assert asked == [("*v = 1;", 18)]
    assert explain(WITH_C, find_line=lambda text, line: None).c_location == "main.c:18"


def test_before_5_18() -> None:
    """Register states on lines of their own, no file names, scalars called inv."""
    found = explain(OLD, find_line=lambda text, line: ("a.c", 7) if line == 0 else None)
    assert found.kind == "null-map"
    assert "bpf_map_lookup_elem()" in found.cause
    assert (found.c_line, found.c_location) == ("*v = 1;", "a.c:7")
    assert explain("3: (79) r1 = *(u64 *)(r2 +0)\nR2 invalid mem access 'inv'\n").kind == "pointer"


def test_linux_7_3() -> None:
    found = explain(SEVEN)
    assert found.kind == "return-value"
    assert found.insn == "0: (95) exit"
    assert any("never been initialized" in line for line in found.log_lines)
    found = explain(SEVEN_WITH_C)
    assert found.kind == "null-map"
    assert (found.c_line, found.c_location) == ("*v = 1;", "main.c:18")
    assert "bpf_map_lookup_elem" not in found.c_line


def test_linux_7_3_without_words_of_our_own() -> None:
    """The kernel's reason and suggestion are passed on, unwrapped."""
    found = explain(SEVEN_UNKNOWN)
    assert found.kind == "other"
    assert found.cause.startswith(
        "The operation bpf_frobnicate tries to leave a widget, but this path"
    )
    assert found.cause.endswith("leave. The current depth is 0.")
    assert found.hint == "Enter the widget first."
    # a cut report is still one
    cut = SEVEN_UNKNOWN.partition("At:")[0]
    assert explain(cut).cause == found.cause


def test_linux_7_3_report_alone_is_classified() -> None:
    """Should the terse line before the report go one day, the report says enough."""
    for log, kind in (
        (SEVEN_WITH_C.partition("\n\n")[2], "null-map"),
        (SEVEN.partition("R0 !read_ok\n")[2], "return-value"),
        (
            "Verification failed: Resource Lifetime Safety: Unreleased resource\n\nReason:\n"
            "  Owned resource (id=2) was acquired at\n  instruction 4 and still needs to be "
            "released before this exit path.\n",
            "reference",
        ),
        (
            "Verification failed: Memory Safety: Access outside bounds\n\nReason:\n  The verifier "
            "cannot prove offset + access_size <= object_size. Here, R0 ...\n",
            "map-bounds",
        ),
        (
            "Verification failed: Verifier Limit: Too many jumps\n\nReason:\n  Too much.\n",
            "complexity",
        ),
    ):
        assert explain(log).kind == kind, log


def test_reference_points_at_where_it_was_taken() -> None:
    log = (
        "; e = events.ringbuf_reserve(8); @ main.c:5\n"
        "4: (85) call bpf_ringbuf_reserve#131   ; R0=ringbuf_mem_or_null(id=2) refs=2\n"
        "; bpf_ktime_get_ns(); @ main.c:6\n"
        "5: (85) call bpf_ktime_get_ns#5\n"
        "; return 0; @ main.c:9\n"
        "6: (95) exit\n"
        "Unreleased reference id=2 alloc_insn=4\n"
        "BPF_EXIT instruction in main prog would lead to reference leak\n" + TRAILER
    )
    found = explain(log)
    assert found.kind == "reference"
    assert "bpf_ringbuf_reserve() returned" in found.cause
    assert (found.c_line, found.c_location) == ("e = events.ringbuf_reserve(8);", "main.c:5")


@pytest.mark.parametrize(
    ("complaint", "function"),
    [
        ("unknown func bpf_skb_load_bytes#26", "bpf_skb_load_bytes()"),
        ("program of this type cannot use helper bpf_get_netns_cookie#1", "bpf_get_netns_cookie()"),
        ("calling kernel function tcp_slow_start is not allowed", "tcp_slow_start()"),
        ("invalid func unknown#174", "bpf_get_attach_cookie()"),
        ("invalid func unknown#4000", "a function"),
        ("infinite loop detected at insn 3", ""),
    ],
)
def test_the_refused_function_is_named(complaint: str, function: str) -> None:
    assert explain(f"3: (bf) r1 = r2\n{complaint}\n{TRAILER}").function == function


@pytest.mark.parametrize(
    ("complaint", "kind"),
    [
        ("unknown func bpf_skb_load_bytes#26", "helper-type"),  # before 6.9
        ("back-edge from insn 7 to 2", "loop"),  # before 5.3
        ("infinite loop detected at insn 3", "loop"),
        ("The sequence of 8193 jumps is too complex.", "complexity"),
        ("cannot call GPL-only function from proprietary program", "gpl"),
        ("calling kernel function bpf_x is not allowed", "helper-type"),
        ("invalid stack type R1 off=-516 access_size=8", "stack-size"),
        ("invalid read from stack R10 off=0 size=8", "stack-bounds"),
        ("invalid indirect read from stack R2 off -16+4 size 16", "uninitialised"),
        ("misaligned packet access off (0x0; 0xff)+0+14 size 4", "alignment"),
        ("misaligned value access off (0x0; 0x0)+0+3 size 8", "alignment"),
        ("dereference of modified ctx ptr R1 off=8 disallowed", "context"),
        (
            "At program exit the register R0 has value (0x7; 0x0) should have been in (0x0; 0x1)",
            "return-value",
        ),
        ("cannot pass map_type 27 into func bpf_map_lookup_elem#1", "argument"),
        ("R1 unbounded memory access, use 'var &= const' or 'if (var < const)'", "unbounded"),
        ("something nobody has seen", "other"),
    ],
)
def test_complaints(complaint: str, kind: str) -> None:
    found = explain(f"3: (bf) r1 = r2\n{complaint}\n{TRAILER}", prog_type_name="xdp")
    assert found.kind == kind
    if kind == "other":
        assert found.cause == complaint
    else:
        assert found.hint


def test_logs_that_are_cut_off() -> None:
    assert "cut off" in explain("").cause
    head = WITH_C[: WITH_C.index("R0 invalid")]
    found = explain(head)
    assert "cut off" in found.cause and found.c_line == "*v = 1;"
    assert explain(head, number=7).kind == "complexity"
    assert explain("", insn_count=1_000_001, number=7).cause == (
        "the program has 1,000,001 instructions, the kernel takes 1,000,000"
    )
    for cut in range(0, len(WITH_C), 7):
        assert explain(WITH_C[cut:]).cause and explain(WITH_C[:cut]).cause


def test_large_logs_are_read_from_the_end() -> None:
    noise = "".join(f"{i % 9}: (bf) r1 = r2   ; R1=ctx() R2=ctx()\n" for i in range(400_000))
    start = time.perf_counter()
    found = explain(noise + WITH_C)
    assert found.kind == "null-map" and found.c_location == "main.c:18"
    assert time.perf_counter() - start < 1


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200), st.sampled_from([WITH_C, OLD, SEVEN, SEVEN_WITH_C]), st.data())
def test_nothing_in_a_log_breaks_it(junk: str, log: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(log)))
    for text in (junk, log[:at] + junk, junk + log[at:], log[:at] + junk + log[at:]):
        found = explain(text, prog_type_name=junk)
        assert found.cause


def test_context_fields() -> None:
    assert context_field("__sk_buff", 76) == "data"
    assert context_field("__sk_buff", 52) == "cb"
    assert context_field("xdp_md", 20) == "egress_ifindex"
    assert context_field("xdp_md", 24) == context_field("sk_msg_md", 0) == ""
