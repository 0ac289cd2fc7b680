# SPDX-License-Identifier: Apache-2.0
"""The explanations, of rejections that this kernel's verifier makes on the spot."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bpfkit.core.errors import BpfkitError, VerifierError
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.asm import (
    add,
    assemble,
    call,
    call_kfunc,
    call_local,
    div,
    exit_,
    ja,
    jeq,
    jgt,
    jne,
    label,
    ld_map_fd,
    ldabs,
    ldx,
    mov,
    mul,
    r0,
    r1,
    r2,
    r3,
    r4,
    r5,
    r6,
    r7,
    r10,
    st,
    u8,
    u32,
    u64,
)
from bpfkit.core.kernel.constants import map_type, prog_type
from bpfkit.core.object import load
from bpfkit.core.program import Program
from bpfkit.core.verifier.explain import Explanation, explain

STRICT_ALIGNMENT = 1  # BPF_F_STRICT_ALIGNMENT: x86 takes misaligned accesses otherwise


@pytest.fixture(scope="module")
def maps() -> Iterator[dict[str, int]]:
    made = {
        "hash": syscall.map_create(map_type("HASH"), 4, 8, 1),
        "ring": syscall.map_create(map_type("RINGBUF"), 0, 0, 4096),
    }
    yield made
    for fd in made.values():
        os.close(fd)


def lookup(maps: dict[str, int]) -> list[object]:
    return [
        st(u32, r10 - 4, 0),
        ld_map_fd(r1, maps["hash"]),
        mov(r2, r10),
        add(r2, -4),
        call("map_lookup_elem"),
    ]


def reserve(maps: dict[str, int]) -> list[object]:
    return [ld_map_fd(r1, maps["ring"]), mov(r2, 8), mov(r3, 0), call("ringbuf_reserve")]


DONE = [mov(r0, 0), exit_()]
# expected kind, what the cause says, program type, instructions [, license [, flags]]
CASES: dict[str, tuple[object, ...]] = {
    # the ten most frequent
    "packet": (
        "packet-bounds",
        "reads 1 byte of the packet at offset 14",
        "xdp",
        lambda m: [ldx(u32, r2, r1), ldx(u8, r0, r2 + 14), exit_()],
    ),
    "packet-variable": (
        "packet-bounds",
        "after a computed position",
        "xdp",
        lambda m: [
            ldx(u32, r2, r1),
            ldx(u32, r3, r1 + 4),
            mov(r4, r2),
            add(r4, 14),
            jgt(r4, r3, "out"),
            ldx(u8, r5, r2 + 13),
            add(r2, r5),
            ldx(u8, r0, r2 + 14),
            label("out"),
            DONE,
        ],
    ),
    "null": (
        "null-map",
        "map value from bpf_map_lookup_elem() may be NULL",
        "xdp",
        lambda m: [lookup(m), ldx(u64, r0, r0), exit_()],
    ),
    "null-ring": (
        "null-map",
        "pointer from bpf_ringbuf_reserve() may be NULL",
        "xdp",
        lambda m: [reserve(m), st(u64, r0, 1), DONE],
    ),
    "loop": (
        "loop",
        "never ends",
        "xdp",
        lambda m: [call("get_prandom_u32"), label("again"), jeq(r0, 5, "again"), DONE],
    ),
    "helper-type": (
        "helper-type",
        "XDP programs may not call bpf_skb_load_bytes()",
        "xdp",
        lambda m: [mov(r2, 0), call("skb_load_bytes"), DONE],
    ),
    "stack": (
        "stack-size",
        "needs 520 bytes of stack",
        "xdp",
        lambda m: [st(u64, r10 - 520, 0), DONE],
    ),
    "stack-sum": (
        "stack-size",
        "2 functions that call each other need 1024 bytes",
        "xdp",
        lambda m: [
            st(u64, r10 - 512, 0),
            call_local("f"),
            DONE,
            label("f"),
            st(u64, r10 - 512, 0),
            DONE,
        ],
    ),
    "context": (
        "context",
        "may not read 4 bytes at offset 76 of struct __sk_buff->data",
        "socket_filter",
        lambda m: [ldx(u32, r0, r1 + 76), exit_()],
    ),
    "context-write": (
        "context",
        "may not write 4 bytes at offset 0 of struct __sk_buff->len",
        "socket_filter",
        lambda m: [st(u32, r1, 1), DONE],
    ),
    "reference": (
        "reference",
        "what bpf_ringbuf_reserve() returned is not released",
        "xdp",
        lambda m: [reserve(m), mov(r6, r0), call("ktime_get_ns"), DONE],
    ),
    "unknown-function": (
        "unknown-function",
        "helper number 4000 does not exist",
        "xdp",
        lambda m: [call(4000), DONE],
    ),
    "unknown-kfunc": (
        "unknown-function",
        "kernel function that this kernel does not have",
        "xdp",
        lambda m: [call_kfunc(99_999_999), DONE],
    ),
    "alignment": (
        "alignment",
        "an access of 8 bytes to the stack is not at a multiple of 8",
        "xdp",
        lambda m: [st(u64, r10 - 13, 0), DONE],
    ),
    "alignment-value": (
        "alignment",
        "to the value is not",
        "xdp",
        lambda m: [lookup(m), jeq(r0, 0, "out"), ldx(u32, r1, r0 + 2), label("out"), DONE],
        b"GPL",
        STRICT_ALIGNMENT,
    ),
    # and the others
    "map-bounds": (
        "map-bounds",
        "8 bytes at offset 8 of a map value of 8 bytes",
        "xdp",
        lambda m: [lookup(m), jeq(r0, 0, "out"), ldx(u64, r1, r0 + 8), label("out"), DONE],
    ),
    "unbounded": (
        "unbounded",
        "added to a map_value pointer",
        "xdp",
        lambda m: [
            call("get_prandom_u32"),
            mov(r6, r0),
            lookup(m),
            jeq(r0, 0, "out"),
            add(r0, r6),
            ldx(u8, r1, r0),
            label("out"),
            DONE,
        ],
    ),
    "uninitialised": (
        "uninitialised",
        "register (R3) is read before",
        "xdp",
        lambda m: [mov(r0, r3), exit_()],
    ),
    "no-result": ("return-value", "without a value in R0", "xdp", lambda m: [exit_()]),
    "result": ("return-value", "allowed is [0, 1]", "cgroup_sock", lambda m: [mov(r0, 7), exit_()]),
    "scalar": (
        "pointer",
        "R2 is used as a pointer but holds a plain number",
        "xdp",
        lambda m: [mov(r2, 7), ldx(u32, r0, r2), exit_()],
    ),
    "moved-packet": (
        "pointer",
        "R7 is used as a pointer",
        "sched_cls",
        lambda m: [
            mov(r6, r1),
            ldx(u32, r7, r1 + 76),
            ldx(u32, r3, r1 + 80),
            mov(r4, r7),
            add(r4, 14),
            jgt(r4, r3, "out"),
            mov(r1, r6),
            mov(r2, 20),
            call("skb_pull_data"),
            ldx(u8, r0, r7),
            label("out"),
            DONE,
        ],
    ),
    "pointer-math": ("pointer", "*=", "xdp", lambda m: [mul(r1, 2), DONE]),
    "gpl": (
        "gpl",
        "bpf_trace_printk() is for GPL-compatible",
        "xdp",
        lambda m: [
            st(u64, r10 - 8, 0),
            mov(r1, r10),
            add(r1, -8),
            mov(r2, 8),
            call("trace_printk"),
            DONE,
        ],
        b"BSD",
    ),
    "sleeps": (
        "sleepable",
        "bpf_copy_from_user() may sleep",
        "xdp",
        lambda m: [mov(r1, r10), add(r1, -8), mov(r2, 8), mov(r3, 0), call("copy_from_user"), DONE],
    ),
    "argument": (
        "argument",
        "gets 'ctx' as argument R1, it takes map_ptr",
        "xdp",
        lambda m: [mov(r2, r10), call("map_lookup_elem"), DONE],
    ),
    "unreachable": (
        "structure",
        "instruction 2 can never be reached",
        "xdp",
        lambda m: [label("x"), mov(r0, 0), ja("x"), exit_()],
    ),
    "no-end": ("structure", "runs over its last instruction", "xdp", lambda m: [mov(r0, 0)]),
    "jump-out": ("structure", "jumps out of the program", "xdp", lambda m: [ja(5), DONE]),
    "division": (
        "structure",
        "divisor is zero",
        "xdp",
        lambda m: [mov(r0, 0), div(r0, 0), exit_()],
    ),
    "recursion": (
        "structure",
        "more than 8 deep",
        "xdp",
        lambda m: [call_local("f"), DONE, label("f"), call_local("f"), exit_()],
    ),
    "ld_abs": ("uninitialised", "R6", "socket_filter", lambda m: [ldabs(u8, 0), exit_()]),
}


def rejected(
    maps: dict[str, int], name: str, log_size: int = 1 << 18
) -> tuple[Explanation, OSError]:
    _, _, kind, items, *rest = CASES[name]
    license_, flags = rest if len(rest) == 2 else (*rest, 0) if rest else (b"GPL", 0)
    code = assemble(items(maps))  # type: ignore[operator]
    log = syscall.ct.create_string_buffer(log_size)
    with pytest.raises(OSError) as caught:
        syscall.prog_load(
            prog_type(str(kind)),
            code,
            bytes(license_),
            log=log,
            log_level=1,
            prog_flags=int(flags),  # type: ignore[call-overload]
        )
    text = log.value.decode()
    return (
        explain(
            text,
            prog_type_name=str(kind),
            insn_count=len(code) // 8,
            number=caught.value.errno or 0,
        ),
        caught.value,
    )


@pytest.mark.parametrize("name", CASES)
def test_cause(maps: dict[str, int], name: str) -> None:
    found, _ = rejected(maps, name)
    kind, words = CASES[name][:2]
    if name == "sleeps" and found.kind == "helper-type":
        pytest.skip("this kernel offers sleeping helpers to no such type in the first place (6.12)")
    assert found.kind == kind, found
    assert str(words) in found.cause
    assert found.log_lines
    if name not in ("jump-out", "division"):
        assert found.hint


def test_the_ten_most_frequent_have_a_hint(maps: dict[str, int]) -> None:
    ten = {
        "packet-bounds", "null-map", "loop", "helper-type", "stack-size", "context", "reference",
        "unknown-function", "complexity", "alignment",
    }  # fmt: skip
    kinds = {str(CASES[name][0]) for name in CASES} | {"complexity"}
    assert ten <= kinds


@pytest.mark.parametrize("log_size", [128, 300, 700])
def test_a_log_too_long_for_its_buffer(maps: dict[str, int], log_size: int) -> None:
    found, error = rejected(maps, "packet-variable", log_size)
    assert error.errno == 28  # ENOSPC, from 6.4 on with the tail of the log, before with the head
    assert found.cause and found.log_lines


def counting_loop() -> bytes:
    """for (i = 0; i != random; i++): ends, but not within what the verifier will follow."""
    return assemble(
        call("get_prandom_u32"), mov(r6, r0), mov(r1, 0),
        label("again"), add(r1, 1), jne(r1, r6, "again"), DONE,
    )  # fmt: skip


def test_a_loop_it_follows_until_it_gives_up() -> None:
    """The log is tens of megabytes: what fits into the buffer has to be enough."""
    log = syscall.ct.create_string_buffer(1 << 20)
    with pytest.raises(OSError):
        syscall.prog_load(prog_type("xdp"), counting_loop(), log=log, log_level=1)
    found = explain(log.value.decode(), prog_type_name="xdp", number=7)
    assert found.kind in ("loop", "complexity")
    assert "1,000,00" in found.cause
    if found.kind == "loop":  # 6.4 and newer keep the tail
        assert "instruction 4 jumps back" in found.cause


def test_too_many_instructions() -> None:
    code = assemble([mov(r0, 0)] * 1_000_001, exit_())
    log = syscall.ct.create_string_buffer(4096)
    with pytest.raises(OSError) as caught:
        syscall.prog_load(prog_type("xdp"), code, log=log, log_level=1)
    found = explain(
        log.value.decode(),
        prog_type_name="xdp",
        insn_count=len(code) // 8,
        number=caught.value.errno or 0,
    )
    assert found.kind == "complexity"
    assert "1,000,002 instructions, the kernel takes 1,000,000" in found.cause


def test_what_a_user_sees(maps: dict[str, int]) -> None:
    """Through Program.from_insns: one error, the cause first, the whole log kept apart."""
    with pytest.raises(VerifierError) as caught:
        Program.from_insns("xdp", assemble(lookup(maps), ldx(u64, r0, r0), exit_()), name="count")
    text = str(caught.value)
    assert "'count'" in text and "may be NULL" in text and "if (!p) return" in text
    assert "processed" not in text and "processed" in caught.value.log
    assert caught.value.exit_status == 1


def test_what_a_user_sees_of_a_program_too_large() -> None:
    with pytest.raises(BpfkitError) as caught:
        Program.from_insns("xdp", assemble([mov(r0, 0)] * 1_000_001, exit_()), name="huge")
    assert "1,000,002 instructions" in str(caught.value)


# --- from C, through the engine: the line is the user's -------------------------------------

# words of the cause, the C text whose line must be named, the source
C_SOURCES = {
    "null-map": (
        "map value from bpf_map_lookup_elem() may be NULL",
        "*v = 1;",
        """
#include <bpfkit/bpfkit.h>
BPF_HASH(counts, u32, u64, 16);

SEC("socket")
int count(struct __sk_buff *skb)
{
	u32 key = 0;
	u64 *v = counts.lookup(&key);

	*v = 1;
	return 0;
}
""",
    ),
    "packet": (
        "reads 1 byte of the packet at offset 14",
        "return data[14] == 6 ? 1 : 2;",
        """
#include <bpfkit/bpfkit.h>
SEC("xdp")
int look(struct xdp_md *ctx)
{
	u8 *data = (u8 *)(long)ctx->data;

	return data[14] == 6 ? 1 : 2;
}
""",
    ),
    "loop": (
        "a loop has no end the verifier can see",
        "for (u32 i = 0; i < n; i++)",
        """
#include <bpfkit/bpfkit.h>
SEC("xdp")
int spin(struct xdp_md *ctx)
{
	u32 n = bpf_get_prandom_u32(), sum = 0;

	for (u32 i = 0; i < n; i++)
		sum += bpf_get_prandom_u32();
	return sum & 1;
}
""",
    ),
    "context": (
        "of struct __sk_buff->data_end",
        "total += *(u8 *)(long)skb->data_end;",
        """
#include <bpfkit/bpfkit.h>
SEC("socket")
int peek(struct __sk_buff *skb)
{
	int total = skb->len;

	total += *(u8 *)(long)skb->data_end;
	return total;
}
""",
    ),
    "reference": (
        "what bpf_ringbuf_reserve() returned is not released",
        "u64 *e = events.ringbuf_reserve(8);",
        """
#include <bpfkit/bpfkit.h>
BPF_RINGBUF_OUTPUT(events, 8);
SEC("xdp")
int leak(struct xdp_md *ctx)
{
	u64 *e = events.ringbuf_reserve(8);

	if (!e)
		return 1;
	*e = 5;
	return 2;
}
""",
    ),
    "size of 0": (
        "that may be 0",
        "bpf_skb_load_bytes(skb, 0, bytes, skb->len & 63);",
        """
#include <bpfkit/bpfkit.h>
SEC("socket")
int read(struct __sk_buff *skb)
{
	char bytes[64] = {};

	bpf_skb_load_bytes(skb, 0, bytes, skb->len & 63);
	return bytes[0];
}
""",
    ),
    "helper-type": (
        "XDP programs may not call bpf_skb_load_bytes()",
        "bpf_skb_load_bytes((void *)ctx, 0, &byte, 1);",
        """
#include <bpfkit/bpfkit.h>
SEC("xdp")
int wrong(struct xdp_md *ctx)
{
	u8 byte = 0;

	bpf_skb_load_bytes((void *)ctx, 0, &byte, 1);
	return byte;
}
""",
    ),
}


@pytest.mark.parametrize("name", C_SOURCES)
def test_from_c(name: str) -> None:
    words, text, source = C_SOURCES[name]
    line = next(n for n, found in enumerate(source.splitlines(), 1) if found.strip() == text)
    with pytest.raises(VerifierError) as caught:
        load(source, cache=False)
    message = str(caught.value)
    assert words in message
    assert f":{line}: {text}" in message
    assert len(message.splitlines()) <= 7
