# SPDX-License-Identifier: Apache-2.0
"""The assembler against the text it stands for, against LLVM, and there and back again."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfkit.core.kernel import asm
from bpfkit.core.kernel.asm import (
    AsmError,
    assemble,
    call,
    exit_,
    jne,
    label,
    mov,
    r0,
    r1,
    r2,
    r3,
    r6,
    r10,
    s8,
    s16,
    s32,
    u8,
    u16,
    u32,
    u64,
    w0,
    w1,
    w2,
)
from bpfkit.core.kernel.disasm import decode, disassemble, format_insn, listing, parse
from bpfkit.core.kernel.helpers import HELPERS, find_helper, helper_name, nearest_helpers

# (instruction, its bytes by RFC 9669 worked out by hand, its text in the verifier's words)
TABLE = [
    (asm.add(r1, r2), "0f21000000000000", "(0f) r1 += r2"),
    (asm.add(w1, -1), "04010000ffffffff", "(04) w1 += -1"),
    (asm.sub(r1, 8), "1701000008000000", "(17) r1 -= 8"),
    (asm.mul(w1, w2), "2c21000000000000", "(2c) w1 *= w2"),
    (asm.div(r1, 3), "3701000003000000", "(37) r1 /= 3"),
    (asm.sdiv(r1, r2), "3f21010000000000", "(3f) r1 s/= r2"),
    (asm.or_(r1, 1), "4701000001000000", "(47) r1 |= 1"),
    (asm.and_(w1, 0xFFFF0000), "540100000000ffff", "(54) w1 &= -65536"),
    (asm.lsh(r1, 32), "6701000020000000", "(67) r1 <<= 32"),
    (asm.rsh(r1, r2), "7f21000000000000", "(7f) r1 >>= r2"),
    (asm.neg(r1), "8701000000000000", "(87) r1 = -r1"),
    (asm.neg(w1), "8401000000000000", "(84) w1 = -w1"),
    (asm.mod(r1, r2), "9f21000000000000", "(9f) r1 %= r2"),
    (asm.smod(w1, 7), "9401010007000000", "(94) w1 s%= 7"),
    (asm.xor(r1, r1), "af11000000000000", "(af) r1 ^= r1"),
    (mov(r6, r1), "bf16000000000000", "(bf) r6 = r1"),
    (mov(r0, 0), "b700000000000000", "(b7) r0 = 0"),
    (mov(w0, -7), "b4000000f9ffffff", "(b4) w0 = -7"),
    (asm.movsx(s8, r1, r2), "bf21080000000000", "(bf) r1 = (s8)r2"),
    (asm.movsx(s16, w1, w2), "bc21100000000000", "(bc) w1 = (s16)w2"),
    (asm.movsx(s32, r1, r2), "bf21200000000000", "(bf) r1 = (s32)r2"),
    (asm.arsh(r1, 63), "c70100003f000000", "(c7) r1 s>>= 63"),
    (asm.be(16, r1), "dc01000010000000", "(dc) r1 = be16 r1"),
    (asm.le(64, r1), "d401000040000000", "(d4) r1 = le64 r1"),
    (asm.bswap(32, r1), "d701000020000000", "(d7) r1 = bswap32 r1"),
    (asm.addr_space_cast(r1, r2, 0, 1), "bf21010001000000", "(bf) r1 = addr_space_cast(r2, 0, 1)"),
    (asm.ja(-3), "0500fdff00000000", "(05) goto pc-3"),
    (asm.jal(70000), "0600000070110100", "(06) gotol pc+70000"),
    (asm.may_goto(2), "e500020000000000", "(e5) may_goto pc+2"),
    (asm.jeq(r1, 0, 5), "1501050000000000", "(15) if r1 == 0x0 goto pc+5"),
    (asm.jne(r2, 4, 5), "5502050004000000", "(55) if r2 != 0x4 goto pc+5"),
    (asm.jgt(r1, r2, 1), "2d21010000000000", "(2d) if r1 > r2 goto pc+1"),
    (asm.jge(w1, 0x80000000, 1), "3601010000000080", "(36) if w1 >= 0x80000000 goto pc+1"),
    (asm.jset(r1, 16, 1), "4501010010000000", "(45) if r1 & 0x10 goto pc+1"),
    (asm.jsgt(r1, -1, 0), "65010000ffffffff", "(65) if r1 s> 0xffffffff goto pc+0"),
    (asm.jsge(w1, w2, 1), "7e21010000000000", "(7e) if w1 s>= w2 goto pc+1"),
    (asm.jlt(r1, r2, 1), "ad21010000000000", "(ad) if r1 < r2 goto pc+1"),
    (asm.jle(r1, 9, 1), "b501010009000000", "(b5) if r1 <= 0x9 goto pc+1"),
    (asm.jslt(r1, 0, 1), "c501010000000000", "(c5) if r1 s< 0x0 goto pc+1"),
    (asm.jsle(r1, r2, -1), "dd21ffff00000000", "(dd) if r1 s<= r2 goto pc-1"),
    (call("map_lookup_elem"), "8500000001000000", "(85) call bpf_map_lookup_elem#1"),
    (call(26), "850000001a000000", "(85) call bpf_skb_load_bytes#26"),
    (call(4000), "85000000a00f0000", "(85) call unknown#4000"),
    (asm.call_local(2), "8510000002000000", "(85) call pc+2"),
    (asm.call_kfunc(1234), "85200000d2040000", "(85) call kernel-function#1234"),
    (asm.call_kfunc(7, 1), "8520010007000000", "(85) call kernel-function#7@1"),
    (exit_(), "9500000000000000", "(95) exit"),
    (asm.ldabs(u8, 23), "3000000017000000", "(30) r0 = *(u8 *)skb[23]"),
    (asm.ldabs(u32, -0x100000), "200000000000f0ff", "(20) r0 = *(u32 *)skb[-1048576]"),
    (asm.ldind(u16, r2, 4), "4820000004000000", "(48) r0 = *(u16 *)skb[r2 + 4]"),
    (asm.ldx(u32, r2, r6 + 4), "6162040000000000", "(61) r2 = *(u32 *)(r6 +4)"),
    (asm.ldx(u64, r2, r6), "7962000000000000", "(79) r2 = *(u64 *)(r6 +0)"),
    (asm.ldx(s16, r2, r10 - 2), "89a2feff00000000", "(89) r2 = *(s16 *)(r10 -2)"),
    (asm.stx(u16, r10 - 8, r3), "6b3af8ff00000000", "(6b) *(u16 *)(r10 -8) = r3"),
    (asm.st(u8, r10 - 1, 255), "720affffff000000", "(72) *(u8 *)(r10 -1) = 255"),
    (asm.st(u64, r10 - 8, -1), "7a0af8ffffffffff", "(7a) *(u64 *)(r10 -8) = -1"),
    (
        asm.ld_imm64(r1, 0x1122334455667788),
        "18010000887766550000000044332211",
        "(18) r1 = 0x1122334455667788",
    ),
    (asm.ld_imm64(r1, -1), "18010000ffffffff00000000ffffffff", "(18) r1 = 0xffffffffffffffff"),
    (asm.ld_map_fd(r1, 5), "18110000050000000000000000000000", "(18) r1 = map[fd:5]"),
    (asm.ld_map_value(r1, 5, 8), "18210000050000000000000008000000", "(18) r1 = map[fd:5][0]+8"),
    (asm.ld_btf_id(r1, 9), "18310000090000000000000000000000", "(18) r1 = btf_id[9]"),
    (asm.ld_btf_id(r1, 9, 4), "18310000090000000000000004000000", "(18) r1 = btf_id[9]@4"),
    (asm.ld_func(r1, 3), "18410000030000000000000000000000", "(18) r1 = subprog[+3]"),
    (asm.ld_map_index(r1, 0), "18510000000000000000000000000000", "(18) r1 = map[idx:0]"),
    (
        asm.ld_map_index_value(r1, 2, 0),
        "18610000020000000000000000000000",
        "(18) r1 = map[idx:2][0]+0",
    ),
    (asm.atomic_add(u64, r0 + 0, r1), "db10000000000000", "(db) lock *(u64 *)(r0 +0) += r1"),
    (asm.atomic_or(u32, r0 + 4, r1), "c310040040000000", "(c3) lock *(u32 *)(r0 +4) |= r1"),
    (asm.atomic_and(u64, r0 + 0, r1), "db10000050000000", "(db) lock *(u64 *)(r0 +0) &= r1"),
    (asm.atomic_xor(u64, r0 + 0, r1), "db100000a0000000", "(db) lock *(u64 *)(r0 +0) ^= r1"),
    (
        asm.atomic_add(u64, r0 + 8, r1, fetch=True),
        "db10080001000000",
        "(db) r1 = atomic64_fetch_add((u64 *)(r0 +8), r1)",
    ),
    (
        asm.atomic_xor(u32, r0 + 8, r1, fetch=True),
        "c3100800a1000000",
        "(c3) r1 = atomic_fetch_xor((u32 *)(r0 +8), r1)",
    ),
    (asm.xchg(u64, r2 + 0, r1), "db120000e1000000", "(db) r1 = atomic64_xchg((u64 *)(r2 +0), r1)"),
    (
        asm.cmpxchg(u32, r2 + 0, r1),
        "c3120000f1000000",
        "(c3) r0 = atomic_cmpxchg((u32 *)(r2 +0), r0, r1)",
    ),
    (
        asm.load_acquire(u16, r2, r1 + 6),
        "cb12060000010000",
        "(cb) r2 = load_acquire((u16 *)(r1 +6))",
    ),
    (
        asm.store_release(u8, r2 + 1, r1),
        "d312010010010000",
        "(d3) store_release((u8 *)(r2 +1), r1)",
    ),
]


@pytest.mark.parametrize(("insn", "code", "text"), TABLE, ids=[row[2] for row in TABLE])
def test_table(insn: asm.Insn, code: str, text: str) -> None:
    assert insn.encode().hex() == code
    assert format_insn(insn) == text
    assert parse(text).hex() == code
    assert [i.encode() for i in decode(bytes.fromhex(code))] == [insn.encode()]


@pytest.mark.parametrize("text", [row[2] for row in TABLE])
def test_parse_needs_no_opcode(text: str) -> None:
    bare = text.split(") ", 1)[1]
    assert parse(f"  7: {text}   ; R1=ctx() R10=fp0") == parse(bare) == parse(text)


def test_labels() -> None:
    code = assemble(
        label("top"),
        [jne(r1, 1, "end"), [asm.ld_imm64(r2, 1), asm.ja("top")]],
        asm.jal("end"),
        asm.call_local("sub"),
        asm.ld_func(r2, "sub"),
        label("end"),
        label("finish"),
        exit_(),
        label("sub"),
        mov(r0, 0),
        exit_(),
    )
    assert [line.split(") ")[1] for line in disassemble(code)] == [
        "if r1 != 0x1 goto pc+7",
        "r2 = 0x1",
        "goto pc-4",
        "gotol pc+3",
        "call pc+3",
        "r2 = subprog[+2]",  # counts from the slot after the first of its two
        "exit",
        "r0 = 0",
        "exit",
    ]
    text = listing(code, code.labels).splitlines()
    assert text[0] == "top:"
    assert "if r1 != 0x1 goto pc+7" in text[1] and text[1].endswith("; end")
    assert text[7:9] == ["end:", "finish:"]
    assert parse([line for line in text if not line.endswith(":")]) == code
    assert listing(code).count("\n") == 9


def test_label_errors() -> None:
    with pytest.raises(AsmError, match=r"no label 'nowhere' \(labels: here\)"):
        assemble(label("here"), asm.ja("nowhere"))
    with pytest.raises(AsmError, match="'a' is defined twice"):
        assemble(label("a"), exit_(), label("a"))
    far = [mov(r0, 0)] * 33000
    with pytest.raises(AsmError, match="distance to label 'far' 33000 does not fit into 16 bits"):
        assemble(asm.ja("far"), far, label("far"), exit_())
    assert assemble(asm.jal("far"), far, label("far"), exit_())[:8].hex() == "06000000e8800000"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mov(r0, 0xFFFFFFFF), "immediate 4294967295 does not fit"),
        (lambda: mov(w0, 1 << 32), "does not fit into 32 bits"),
        (lambda: asm.st(u64, r10 - 8, 1 << 31), "does not fit"),
        (lambda: asm.ld_imm64(r0, 1 << 64), "does not fit into 64 bits"),
        (lambda: asm.ldx(u32, r0, r1 + 40000), "offset 40000 does not fit into 16 bits"),
        (lambda: asm.ldx(u32, w0, r1 + 0), "w0 cannot stand here, r0 can"),
        (lambda: mov(r0, w1), "of different widths"),
        (lambda: jne(w1, r2, 0), "of different widths"),
        (lambda: asm.stx(s32, r10 - 8, r0), "u32, not s32"),
        (lambda: asm.atomic_add(u16, r10 - 8, r0), "u32 or u64"),
        (lambda: asm.ldabs(u64, 0), "no u64"),
        (lambda: asm.be(24, r0), "16, 32 or 64"),
        (lambda: asm.movsx(s32, w0, w1), "movsx takes"),
        (lambda: call("map_lokup_elem"), "nearest: bpf_map_lookup_elem"),
        (lambda: parse("r1 <- r2"), "not an instruction"),
        (lambda: parse("r1 = *(u24 *)(r2 +0)"), "no such size"),
        (lambda: parse("call bpf_nonsense"), "no helper"),
    ],
)
def test_refused(make: object, says: str) -> None:
    with pytest.raises(AsmError) as caught:
        make()  # type: ignore[operator]
    assert says in str(caught.value)


def test_decode_refuses_half_instructions() -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        decode(bytes(12))


slot = st.binary(min_size=8, max_size=8)
plausible = st.builds(
    lambda code, regs, off, imm: bytes([code, regs]) + off.to_bytes(2, "little", signed=True) + imm,
    st.integers(0, 255),
    st.integers(0, 0xAA),
    st.sampled_from([0, 1, -1, 8, 16, 32, 32767, -32768]),
    st.one_of(
        st.binary(min_size=4, max_size=4),
        st.sampled_from([0, 1, 16, 32, 64, 0x41, 0xE1, 0xF1, 0x100, 0x110]).map(
            lambda n: n.to_bytes(4, "little")
        ),
    ),
)
second_slot = st.binary(min_size=4, max_size=4).map(lambda imm: bytes(4) + imm)


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.one_of(plausible, second_slot, slot), max_size=8).map(b"".join))
def test_round_trip(code: bytes) -> None:
    """Text loses nothing, whatever the bytes are."""
    assert parse(disassemble(code)) == code
    assert b"".join(insn.encode() for insn in decode(code)) == code


def test_helper_names() -> None:
    assert len(HELPERS) == 212
    assert (
        find_helper("bpf_cgrp_storage_delete") == find_helper("BPF_FUNC_cgrp_storage_delete") == 211
    )
    assert helper_name(12) == "bpf_tail_call"
    assert helper_name(-1) == helper_name(212) == "unknown"
    assert nearest_helpers("get_smp_procesor_id")[0] == "bpf_get_smp_processor_id"
    assert len(set(HELPERS)) == len(HELPERS)


def test_helper_numbers_are_the_headers() -> None:
    try:
        with open("/usr/include/linux/bpf.h") as file:
            text = file.read()
    except OSError:
        pytest.skip("no linux/bpf.h on this machine (Debian: linux-libc-dev)")
    mapper = text[text.index("BPF_FUNC_MAPPER(FN") :]
    listed = re.findall(r"FN\((\w+)(?:, (\d+))?", mapper[: mapper.index("/* */")])[1:]
    assert len(listed) > 150
    for place, (name, number) in enumerate(listed, 1 if listed[0][0] != "unspec" else 0):
        if name != "FN" and int(number or place) < len(HELPERS):
            assert HELPERS[int(number or place)] == name


# --- an independent assembler: LLVM ---------------------------------------------------------------

llvm_mc = next(
    (
        t
        for v in ("-14", "", *(f"-{n}" for n in range(15, 24)))
        if (t := shutil.which(f"llvm-mc{v}"))
    ),
    None,
)
needs_llvm = pytest.mark.skipif(llvm_mc is None, reason="no llvm-mc (Debian: llvm)")

# What LLVM 14 has no name for: newer instructions, and the kernel's own pseudo loads.
AFTER_LLVM_14 = re.compile(
    r"s[/%]=|\(s\d+\)|\*\(s\d|bswap|gotol|may_goto|addr_space_cast|load_acquire|store_release"
    r"|map\[|btf_id|subprog|kernel-function"
)


def llvm_text(text: str) -> str:
    """The verifier's words in LLVM's: ``(r6 + 4)``, decimal numbers, ``ll``, atomics."""
    body = text.split(") ", 1)[1]
    body = re.sub(r"\((r\d+) ([+-])(\d+)\)", r"(\1 \2 \3)", body)
    body = re.sub(r"goto pc", "goto ", body)
    body = re.sub(r"call pc[+]?(-?\d+)", r"call \1", body)
    body = re.sub(r"call \w+#(\d+)", r"call \1", body)
    body = re.sub(
        r"0x[0-9a-f]+(?= goto)", lambda m: str(int(m[0], 16) - (int(m[0], 16) >> 31 << 32)), body
    )
    if text.startswith("(18)"):
        value = int(body.split("0x")[1], 16)
        body = f"{body.split(' = ')[0]} = {value - (value >> 63 << 64)} ll"
    body = re.sub(r"atomic(64)?_(x|cmpx)chg\(\(u(32|64) \*\)\((.*?)\)", r"\2chg\1_\3(\4", body)
    body = body.replace("xchg64_64", "xchg_64").replace("xchg_32", "xchg32_32")
    body = re.sub(r"atomic(64)?_(fetch_\w+)\((.*)\)\)?$", r"atomic_\2(\3)", body)
    return re.sub(r"skb\[(r\d+) \+ \d+\]", r"skb[\1]", body)  # LLVM drops the offset


@needs_llvm
def test_llvm_reads_the_same() -> None:
    """LLVM's disassembly of our bytes is our text, modulo spelling."""
    rows = [row for row in TABLE if not AFTER_LLVM_14.search(row[2])]
    assert len(rows) > 40
    data = "\n".join(" ".join(f"0x{b:02x}" for b in row[0].encode()) for row in rows)
    done = subprocess.run(
        [str(llvm_mc), "-disassemble", "-triple=bpfel", "-mcpu=v3"],
        input=data, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seen = [line.strip() for line in done.stdout.splitlines() if line.strip() not in ("", ".text")]
    unknown = {int(line) - 1 for line in re.findall(r"<stdin>:(\d+):\d+: warning", done.stderr)}
    for place in unknown:  # LLVM 14 cannot read %, &, immediate stores and 32-bit atomics
        assert re.search(r"%=|&|xor|= -?\d+$|\(u32 \*\)", rows[place][2]), rows[place][2]
    known = [row for place, row in enumerate(rows) if place not in unknown]
    assert len(known) == len(seen) > 40
    for (_, _, text), theirs in zip(known, seen, strict=True):
        assert same(llvm_text(text), theirs), (text, llvm_text(text), theirs)


def same(ours: str, theirs: str) -> bool:
    def plain(text: str) -> str:
        text = text.replace(" ", "").replace("+-", "-").replace("(u32*)", "").replace("(u64*)", "")
        text = re.sub(r"0x[0-9a-f]+", lambda m: str(int(m[0], 16)), text)
        return re.sub(r"w(\d)", r"r\1", text) if "atomic" in text or "xchg" in text else text

    # LLVM writes w registers for 32-bit atomics and prints all-ones stores unsigned
    return plain(ours) == plain(theirs)
