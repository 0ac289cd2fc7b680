# SPDX-License-Identifier: Apache-2.0
"""The assembler's programs in the kernel: same text as its own disassembly, right results."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfkit.core.kernel import asm, syscall
from bpfkit.core.kernel.asm import (
    Code,
    Insn,
    assemble,
    call,
    call_local,
    exit_,
    jeq,
    jne,
    jset,
    label,
    ld_func,
    ld_imm64,
    ld_map_fd,
    ld_map_value,
    ldabs,
    ldind,
    ldx,
    mov,
    movsx,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r7,
    r10,
    s8,
    s16,
    s32,
    stx,
    u8,
    u16,
    u32,
    u64,
    w0,
    w1,
    w2,
)
from bpfkit.core.kernel.constants import map_type, prog_type
from bpfkit.core.kernel.disasm import disassemble

SOCKET_FILTER = prog_type("SOCKET_FILTER")
SYSCALL = prog_type("SYSCALL")
ARRAY = map_type("ARRAY")
M64 = (1 << 64) - 1


def load(code: bytes, kind: int = SOCKET_FILTER, level: int = 0) -> tuple[int, str]:
    log = syscall.ct.create_string_buffer(1 << 20)
    flags = 1 << 4 if kind == SYSCALL else 0  # BPF_F_SLEEPABLE
    try:
        fd = syscall.prog_load(
            kind, code, name=b"asm_test", log_level=level, log=log, prog_flags=flags
        )
    except OSError as error:
        if level:
            pytest.fail(f"{error}\n{log.value.decode()}")
        raise
    return fd, log.value.decode()


def run(code: bytes, packet: bytes = bytes(14)) -> int:
    """The program's r0 (32 bits) on ``packet``, of which the kernel strips 14 bytes."""
    fd, _ = load(code)
    try:
        return syscall.prog_test_run(fd, packet)[0]
    finally:
        os.close(fd)


def run64(*body: Insn) -> int:
    """All 64 bits that ``body`` leaves in r0."""
    low = run(assemble(body, exit_()))
    return low | run(assemble(body, asm.rsh(r0, 32), exit_())) << 32


@pytest.fixture
def array() -> object:
    fd = syscall.map_create(ARRAY, 4, 8, 1)
    yield fd
    os.close(fd)


def everything(array: int) -> Code:
    """A program that uses nearly every kind of instruction and that the verifier accepts."""
    return assemble(
        mov(r6, r1),
        ldabs(u8, 0),
        mov(r7, r0),
        ldind(u16, r7, 0),
        jset(r0, 0x10, "plain"),
        ldx(u32, r2, r6 + 4),
        jne(r2, 4, "plain"),
        asm.be(16, r2),
        asm.le(32, r2),
        asm.bswap(64, r2),
        label("plain"),
        ld_map_fd(r1, array),
        mov(r2, r10),
        asm.add(r2, -4),
        asm.st(u32, r10 - 4, 0),
        call("map_lookup_elem"),
        jeq(r0, 0, "out"),
        mov(r1, 1),
        asm.atomic_add(u64, r0 + 0, r1),
        asm.atomic_or(u32, r0 + 0, r1),
        asm.atomic_and(u64, r0 + 0, r1, fetch=True),
        asm.atomic_xor(u32, r0 + 4, r1, fetch=True),
        asm.xchg(u64, r0 + 0, r1),
        mov(r3, r0),
        asm.xchg(u32, r3 + 0, r1),
        ld_map_value(r4, array, 4),
        asm.st(u8, r4 + 1, 7),
        stx(u16, r4 + 2, r1),
        ldx(s16, r3, r4 + 2),
        asm.store_release(u32, r4 + 0, r1),
        asm.load_acquire(u32, r1, r4 + 0),
        ld_imm64(r1, 0x1122334455667788),
        mov(r2, 5),
        asm.div(r1, r2),
        asm.sdiv(r1, 3),
        asm.smod(w1, w2),
        asm.mul(w1, 3),
        asm.neg(r1),
        asm.neg(w1),
        asm.arsh(r1, 2),
        movsx(s8, r1, r2),
        movsx(s16, w1, w2),
        asm.jsgt(w1, w2, "far"),
        asm.jle(r1, 0x7FFFFFFF, "far"),
        asm.jal("far"),
        label("far"),
        mov(r1, 4),
        ld_func(r2, "callback"),
        mov(r3, 0),
        mov(r4, 0),
        call("loop"),
        call_local("sub"),
        label("out"),
        mov(r0, 0),
        asm.ja("end"),
        label("end"),
        exit_(),
        label("sub"),
        mov(w0, 1),
        exit_(),
        label("callback"),
        mov(r0, 0),
        exit_(),
    )


# What only the kernel knows: the address it put there, and names of functions.
ADDRESS = re.compile(r"(?<=\(18\) )r(\d+) = .*")


def comparable(line: str) -> str:
    return ADDRESS.sub(r"r\1 = ADDRESS", line)


def test_text_is_the_verifiers(array: int) -> None:
    """The verifier, at log level 2, names each instruction as our disassembly does."""
    code = everything(array)
    # callbacks need BTF (func_info), so the verifier sees the program without bpf_loop
    start = next(n for n, line in enumerate(disassemble(code)) if "call bpf_loop#181" in line)
    assert start
    code = without_callback(code)
    fd, log = load(code, level=2)
    os.close(fd)
    ours = dict(line.split(": ", 1) for line in disassemble(code))
    theirs = dict(re.findall(r"^(\d+): (\([0-9a-f]{2}\) .*?)(?: +;.*)?$", log, re.M))
    assert len(theirs) > 45
    for slot, text in theirs.items():
        assert comparable(text) == comparable(ours[slot]), (slot, text)
    # what the verifier did not see is what it proved unreachable
    assert len(ours) - len(theirs) <= 3


def without_callback(code: bytes) -> bytes:
    """``everything`` with the call of bpf_loop and its arguments turned into no-ops."""
    from bpfkit.core.kernel.disasm import decode

    out, insns = b"", decode(code)
    for insn in insns:
        if insn.code == 0x18 and insn.src == asm.PSEUDO_FUNC:
            insn = ld_imm64(r2, 0)
        elif insn.code == 0x85 and insn.imm == 181:
            insn = mov(r0, 0)
        out += insn.encode()
    return out[:-16]  # the callback itself


@pytest.mark.skipif(not shutil.which("bpftool"), reason="no bpftool")
def test_text_is_bpftools() -> None:
    """bpftool's dump of what the kernel keeps, where the kernel rewrites nothing."""
    code = assemble(
        mov(r1, 1),
        asm.st(u32, r10 - 4, 77),
        ldx(u32, r2, r10 - 4),
        stx(u64, r10 - 16, r2),
        asm.lsh(r2, 3),
        asm.atomic_add(u64, r10 - 16, r1),
        asm.atomic_add(u64, r10 - 16, r1, fetch=True),
        asm.jgt(r2, r1, "over"),
        asm.be(32, r1),
        label("over"),
        ld_imm64(r3, 0xAABBCCDDEE),
        asm.jslt(w2, -4, "end"),
        call_local("sub"),
        label("end"),
        mov(r0, 0),
        exit_(),
        label("sub"),
        mov(r0, 3),
        exit_(),
    )
    fd, _ = load(code)
    try:
        number = str(syscall.prog_info(fd)["id"])
        done = subprocess.run(
            ["bpftool", "-j", "prog", "dump", "xlated", "id", number],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        os.close(fd)
    theirs = [row["disasm"] for row in json.loads(done.stdout) if "disasm" in row]
    ours = [line.split(": ", 1)[1] for line in disassemble(code)]
    # bpftool appends the address of the function it found: pc+2#0x...
    assert [re.sub(r"(call pc[+-]\d+)#.*", r"\1", line) for line in theirs] == ours


def test_callback_distance() -> None:
    """ld_func counts from where the kernel counts: the callback's func_info offset matches."""
    from bpfkit.core.types.btf_writer import tiny_btf  # BTF with one int(void *) function

    code = assemble(
        mov(r1, 4),
        ld_func(r2, "callback"),
        mov(r3, 0),
        mov(r4, 0),
        call("loop"),
        exit_(),
        label("callback"),
        mov(r0, 0),
        exit_(),
    )
    blob, main, callback = tiny_btf()
    btf = syscall.btf_load(blob)
    try:
        offset = next(slot for slot, names in code.labels.items() if "callback" in names)
        info = b"".join(n.to_bytes(4, "little") for n in (0, main, offset, callback))
        fd = syscall.prog_load(SOCKET_FILTER, code, btf_fd=btf, func_info=info)
    finally:
        os.close(btf)
    try:
        assert syscall.prog_test_run(fd, bytes(14))[0] == 4  # bpf_loop says how often it called
    finally:
        os.close(fd)


def test_everything_else_runs(array: int) -> None:
    run(without_callback(everything(array)), bytes(20))
    value = syscall.map_lookup(array, bytes(4), 8)
    assert value[5] == 0  # store_release wrote all four bytes over the u8 store


# --- results: each operation against Python's arithmetic --------------------------------------


def signed(value: int, bits: int = 64) -> int:
    value &= (1 << bits) - 1
    return value - (value >> bits - 1 << bits)


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) if b else 0


MODEL: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, n: a + b,
    "sub": lambda a, b, n: a - b,
    "mul": lambda a, b, n: a * b,
    "div": lambda a, b, n: a // b if b else 0,
    "mod": lambda a, b, n: a % b if b else a,
    "sdiv": lambda a, b, n: quotient(signed(a, n), signed(b, n)),
    "smod": lambda a, b, n: signed(a, n) - signed(b, n) * quotient(signed(a, n), signed(b, n)),
    "and_": lambda a, b, n: a & b,
    "or_": lambda a, b, n: a | b,
    "xor": lambda a, b, n: a ^ b,
    "lsh": lambda a, b, n: a << b % n,
    "rsh": lambda a, b, n: a >> b % n,
    "arsh": lambda a, b, n: signed(a, n) >> b % n,
    "mov": lambda a, b, n: b,
}
numbers = st.one_of(
    st.integers(0, M64), st.sampled_from([0, 1, 2, 63, 1 << 31, 1 << 63, M64, 0xFFFFFFFF])
)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(MODEL)), numbers, numbers, st.booleans())
def test_arithmetic(name: str, a: int, b: int, wide: bool) -> None:
    dst, src = (r1, r2) if wide else (w1, w2)
    bits = 64 if wide else 32
    operation = getattr(asm, name)(dst, src)
    got = run64(ld_imm64(r1, a), ld_imm64(r2, b), operation, mov(r0, r1))
    mask = (1 << bits) - 1
    assert got == MODEL[name](a & mask, b & mask, bits) & mask


JUMPS: dict[str, Callable[[int, int, int], bool]] = {
    "jeq": lambda a, b, n: a == b,
    "jne": lambda a, b, n: a != b,
    "jgt": lambda a, b, n: a > b,
    "jge": lambda a, b, n: a >= b,
    "jlt": lambda a, b, n: a < b,
    "jle": lambda a, b, n: a <= b,
    "jset": lambda a, b, n: bool(a & b),
    "jsgt": lambda a, b, n: signed(a, n) > signed(b, n),
    "jsge": lambda a, b, n: signed(a, n) >= signed(b, n),
    "jslt": lambda a, b, n: signed(a, n) < signed(b, n),
    "jsle": lambda a, b, n: signed(a, n) <= signed(b, n),
}


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(JUMPS)), numbers, numbers, st.booleans())
def test_jumps(name: str, a: int, b: int, wide: bool) -> None:
    dst, src = (r1, r2) if wide else (w1, w2)
    bits = 64 if wide else 32
    code = assemble(
        ld_imm64(r1, a),
        ld_imm64(r2, b),
        mov(r0, 1),
        getattr(asm, name)(dst, src, "yes"),
        mov(r0, 0),
        label("yes"),
        exit_(),
    )
    mask = (1 << bits) - 1
    assert run(code) == JUMPS[name](a & mask, b & mask, bits)


def test_bytes_and_signs() -> None:
    value = 0x1122334455667788
    swapped = int.from_bytes(value.to_bytes(8, "little"), "big")
    assert run64(ld_imm64(r0, value), asm.bswap(64, r0)) == swapped
    assert run64(ld_imm64(r0, value), asm.be(16, r0)) == 0x8877
    assert run64(ld_imm64(r0, value), asm.le(32, r0)) == 0x55667788
    assert run64(ld_imm64(r1, 0x80), movsx(s8, r0, r1)) == -0x80 & M64
    assert run64(ld_imm64(r1, 0x8000), movsx(s16, w0, w1)) == 0xFFFF8000
    assert run64(ld_imm64(r1, 1 << 31), movsx(s32, r0, r1)) == -(1 << 31) & M64
    assert run64(asm.st(u64, r10 - 8, -2), ldx(s8, r0, r10 - 8)) == -2 & M64
    assert run64(asm.st(u64, r10 - 8, -2), ldx(u8, r0, r10 - 8)) == 0xFE


def test_packet_loads() -> None:
    """LD_ABS and LD_IND read in host order, and end the program past the packet's end."""
    packet = bytes(14) + bytes(range(1, 21))
    for insn, expected in (
        (ldabs(u8, 3), 4),
        (ldabs(u16, 0), 0x0102),
        (ldabs(u32, 16), 0x11121314),
        (ldabs(u32, 17), 0),
        (ldind(u16, r7, 2), 0x0506),
    ):
        code = assemble(mov(r6, r1), mov(r7, 2), insn, exit_())
        assert run(code, packet) == expected, insn
