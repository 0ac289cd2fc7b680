# SPDX-License-Identifier: Apache-2.0
"""An assembler for eBPF: programs written instruction by instruction, in Python.

::

    code = assemble(
        mov(r6, r1),                        # keep the context: calls clobber r1-r5
        ldx(u32, r2, r6 + 4),               # r2 = *(u32 *)(r6 + 4)
        jne(r2, 4, "ignore"),               # if r2 != 4 goto ignore
        ld_map_fd(r1, counters.fd),
        mov(r2, r10), add(r2, -4),
        st(u32, r10 - 4, 0),
        call("map_lookup_elem"),
        jeq(r0, 0, "ignore"),
        mov(r1, 1), atomic_add(u64, r0 + 0, r1),
        label("ignore"),
        mov(r0, 0),
        exit_(),
    )

Registers: ``r0`` is the return value of helpers and of the program, ``r1``-``r5`` are a call's
arguments and lost by it, ``r6``-``r9`` survive calls, ``r10`` is the read-only frame pointer
(512 bytes of stack below it).  ``w0``-``w9`` are the lower halves: an operation on ``w1`` is
the 32-bit one and clears the upper half of ``r1``.  ``r6 + 4`` is a memory operand.

Every function returns an :class:`Insn`, :func:`assemble` puts them into the kernel's bytes and
resolves labels.  Immediates are 32 bits and sign-extended by 64-bit instructions; one that does
not fit is a :class:`AsmError`, never cut.  Disassembly: :mod:`bpfkit.core.kernel.disasm`.

Source: RFC 9669 (the instruction set), ``Documentation/bpf/standardization/
instruction-set.rst``; the kernel's own additions (LD_ABS, pseudo map loads, kfunc calls):
``include/uapi/linux/bpf.h``, ``Documentation/bpf/classic_vs_extended.rst``.
"""

from __future__ import annotations

from struct import Struct

from bpfkit.core.kernel.helpers import find_helper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    Item: TypeAlias = "Insn | Label | Iterable[Item]"
    Operand: TypeAlias = "Reg | int"
    Target: TypeAlias = "str | int"

# Instruction classes (RFC 9669, 3.): the low three bits of the opcode.
LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)
# Source of the second operand: the immediate (K) or the source register (X).
K, X = 0x00, 0x08
# Sizes of loads and stores, and their modes (RFC 9669, 5.).
W, H, B, DW = 0x00, 0x08, 0x10, 0x18
IMM, ABS, IND, MEM, MEMSX, ATOMIC = 0x00, 0x20, 0x40, 0x60, 0x80, 0xC0
# Arithmetic (4.1), by code >> 4.
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR, MOV, ARSH, END = range(14)
# Jumps (4.3), by code >> 4; JCOND is may_goto (6.9).
JA, JEQ, JGT, JGE, JSET, JNE, JSGT, JSGE, CALL, EXIT, JLT, JLE, JSLT, JSLE, JCOND = range(15)
# Atomic operations (5.3) in the immediate; plain ones share the ALU numbers (<< 4).
FETCH, XCHG, CMPXCHG, LOAD_ACQ, STORE_REL = 0x01, 0xE1, 0xF1, 0x100, 0x110
# src_reg of a 64-bit immediate load and of a call.
PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, PSEUDO_BTF_ID, PSEUDO_FUNC = 1, 2, 3, 4
PSEUDO_MAP_IDX, PSEUDO_MAP_IDX_VALUE = 5, 6
PSEUDO_CALL, PSEUDO_KFUNC_CALL = 1, 2

# code, registers (dst in the low four bits, src in the high four), offset, immediate
_SLOT = Struct("<BBhI")


class AsmError(ValueError):
    """The program cannot be assembled: operand out of range, unknown or doubled label."""


class Reg:
    """A register, ``r1`` (64 bits) or ``w1`` (its lower half)."""

    __slots__ = ("number", "wide")

    def __init__(self, number: int, wide: bool = True) -> None:
        self.number = number
        self.wide = wide

    def __add__(self, off: int) -> Mem:
        return Mem(self, off)

    def __sub__(self, off: int) -> Mem:
        return Mem(self, -off)

    def __repr__(self) -> str:
        return f"{'r' if self.wide else 'w'}{self.number}"


class Mem:
    """The memory at ``reg + off``; ``off`` in bytes, signed 16 bits."""

    __slots__ = ("off", "reg")

    def __init__(self, reg: Reg, off: int) -> None:
        self.reg = _r64(reg)
        self.off = _fits(off, 16, "offset")

    def __repr__(self) -> str:
        return f"({self.reg!r} {self.off:+d})"


class Size:
    """How much a load or store moves; signed ones extend the sign to 64 bits."""

    __slots__ = ("bits", "code", "name", "signed")

    def __init__(self, name: str, code: int, bits: int) -> None:
        self.name = name
        self.code = code
        self.bits = bits
        self.signed = name[0] == "s"

    def __repr__(self) -> str:
        return self.name


class Insn:
    """One instruction; ``imm`` and ``imm_hi`` are kept unsigned, as in the encoding.

    ``imm_hi`` is None but for the 16-byte ``ld_imm64``.  ``target`` is the label a jump still
    has to find; ``target_in_imm`` tells which field takes the distance.
    """

    __slots__ = ("code", "dst", "imm", "imm_hi", "off", "src", "target", "target_in_imm")

    def __init__(
        self,
        code: int,
        dst: int = 0,
        src: int = 0,
        off: int = 0,
        imm: int = 0,
        imm_hi: int | None = None,
        target: str | None = None,
        target_in_imm: bool = False,
    ) -> None:
        self.code = code
        self.dst = dst
        self.src = src
        self.off = off
        self.imm = imm & 0xFFFFFFFF
        self.imm_hi = imm_hi
        self.target = target
        self.target_in_imm = target_in_imm

    @property
    def slots(self) -> int:
        """How many 8-byte slots it takes: 2 for ``ld_imm64``, else 1."""
        return 1 if self.imm_hi is None else 2

    @property
    def simm(self) -> int:
        """The immediate as a signed number."""
        return self.imm - (self.imm >> 31 << 32)

    def encode(self) -> bytes:
        """The 8 (or 16) bytes the kernel reads, host byte order taken as little endian."""
        data = _SLOT.pack(self.code, self.src << 4 | self.dst, self.off, self.imm)
        return data if self.imm_hi is None else data + _SLOT.pack(0, 0, 0, self.imm_hi)

    def __repr__(self) -> str:
        target = f" -> {self.target}" if self.target else ""
        return f"<Insn {self.encode().hex()}{target}>"


class Label:
    """A place that jumps can name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Code(bytes):
    """Assembled instructions: plain bytes, with the labels remembered (slot -> names).

    ``disasm.listing(code, code.labels)`` is the disassembly with the labels.
    """

    labels: dict[int, list[str]]


r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10 = (Reg(number) for number in range(11))
w0, w1, w2, w3, w4, w5, w6, w7, w8, w9 = (Reg(number, False) for number in range(10))
u8, u16, u32, u64 = Size("u8", B, 8), Size("u16", H, 16), Size("u32", W, 32), Size("u64", DW, 64)
s8, s16, s32 = Size("s8", B, 8), Size("s16", H, 16), Size("s32", W, 32)


def assemble(*items: Item) -> Code:
    """Instructions and labels (also nested in lists) to the kernel's bytes.

    :raises AsmError: a label is missing or defined twice, or too far away.
    """
    flat: list[Insn] = []
    where: dict[str, int] = {}
    position = _flatten(items, flat, where, 0)
    out = bytearray()
    position = 0
    for insn in flat:
        position += insn.slots
        if insn.target is not None:
            try:
                distance = where[insn.target] - position
            except KeyError:
                known = ", ".join(where) or "none"
                raise AsmError(f"no label {insn.target!r} (labels: {known})") from None
            if insn.imm_hi is not None:
                distance += 1  # a function's distance counts from the first of the two slots
            if insn.target_in_imm:
                insn.imm = distance & 0xFFFFFFFF
            else:
                insn.off = _fits(distance, 16, f"distance to label {insn.target!r}")
        out += insn.encode()
    code = Code(out)
    code.labels = {}
    for name, slot in where.items():
        code.labels.setdefault(slot, []).append(name)
    return code


def _flatten(items: Iterable[Item], flat: list[Insn], where: dict[str, int], position: int) -> int:
    for item in items:
        if isinstance(item, Insn):
            flat.append(item)
            position += item.slots
        elif isinstance(item, Label):
            if item.name in where:
                raise AsmError(f"label {item.name!r} is defined twice")
            where[item.name] = position
        else:
            position = _flatten(item, flat, where, position)
    return position


def label(name: str) -> Label:
    """The place that jumps call ``name``: the next instruction."""
    return Label(name)


# --- arithmetic: dst = dst OP operand ---------------------------------------------------------


def add(dst: Reg, operand: Operand) -> Insn:
    """dst += operand"""
    return alu_insn(ADD, dst, operand)


def sub(dst: Reg, operand: Operand) -> Insn:
    """dst -= operand"""
    return alu_insn(SUB, dst, operand)


def mul(dst: Reg, operand: Operand) -> Insn:
    """dst \\*= operand"""
    return alu_insn(MUL, dst, operand)


def div(dst: Reg, operand: Operand) -> Insn:
    """dst /= operand, unsigned; by zero gives zero."""
    return alu_insn(DIV, dst, operand)


def sdiv(dst: Reg, operand: Operand) -> Insn:
    """dst s/= operand, signed, rounded towards zero (6.6)."""
    return alu_insn(DIV, dst, operand, 1)


def mod(dst: Reg, operand: Operand) -> Insn:
    """dst %= operand, unsigned; by zero leaves dst as it is."""
    return alu_insn(MOD, dst, operand)


def smod(dst: Reg, operand: Operand) -> Insn:
    """dst s%= operand: signed, the sign is the dividend's (6.6)."""
    return alu_insn(MOD, dst, operand, 1)


def and_(dst: Reg, operand: Operand) -> Insn:
    """dst &= operand"""
    return alu_insn(AND, dst, operand)


def or_(dst: Reg, operand: Operand) -> Insn:
    """dst \\|= operand"""
    return alu_insn(OR, dst, operand)


def xor(dst: Reg, operand: Operand) -> Insn:
    """dst ^= operand"""
    return alu_insn(XOR, dst, operand)


def lsh(dst: Reg, operand: Operand) -> Insn:
    """dst <<= operand"""
    return alu_insn(LSH, dst, operand)


def rsh(dst: Reg, operand: Operand) -> Insn:
    """dst >>= operand, zeroes come in."""
    return alu_insn(RSH, dst, operand)


def arsh(dst: Reg, operand: Operand) -> Insn:
    """dst s>>= operand, the sign comes in."""
    return alu_insn(ARSH, dst, operand)


def neg(dst: Reg) -> Insn:
    """dst = -dst"""
    return Insn((ALU64 if dst.wide else ALU) | NEG << 4, dst.number)


def mov(dst: Reg, operand: Operand) -> Insn:
    """dst = operand"""
    return alu_insn(MOV, dst, operand)


def movsx(size: Size, dst: Reg, src: Reg) -> Insn:
    """dst = (s8, s16 or s32)src: the low bits of src, sign-extended (6.6)."""
    if not size.signed or size.bits >= (64 if dst.wide else 32):
        raise AsmError(f"movsx takes s8, s16 or (for a 64-bit register) s32, not {size!r}")
    return alu_insn(MOV, dst, src, size.bits)


def be(bits: int, dst: Reg) -> Insn:
    """dst = the low 16, 32 or 64 bits of dst, host order to big endian (and back)."""
    return Insn(ALU | END << 4 | X, _r64(dst).number, imm=_swap_bits(bits))


def le(bits: int, dst: Reg) -> Insn:
    """dst = the low 16, 32 or 64 bits of dst, host order to little endian (and back)."""
    return Insn(ALU | END << 4 | K, _r64(dst).number, imm=_swap_bits(bits))


def bswap(bits: int, dst: Reg) -> Insn:
    """dst = the low 16, 32 or 64 bits of dst, bytes reversed (6.6)."""
    return Insn(ALU64 | END << 4, _r64(dst).number, imm=_swap_bits(bits))


def addr_space_cast(dst: Reg, src: Reg, to_space: int, from_space: int) -> Insn:
    """dst = src in another address space: (0, 1) makes an arena pointer usable here (6.9)."""
    imm = to_space << 16 | from_space
    return Insn(ALU64 | MOV << 4 | X, _r64(dst).number, _r64(src).number, 1, imm)


# --- jumps ------------------------------------------------------------------------------------
# ``to`` is a label, or the number of slots to skip (0 is the next instruction).


def ja(to: Target) -> Insn:
    """goto to"""
    return _jump(JMP | JA << 4, 0, 0, 0, to)


def jal(to: Target) -> Insn:
    """gotol to: a jump over any distance (6.6)."""
    if isinstance(to, str):
        return Insn(JMP32 | JA << 4, target=to, target_in_imm=True)
    return Insn(JMP32 | JA << 4, imm=_fits(to, 32, "distance"))


def may_goto(to: Target) -> Insn:
    """Leave a loop once the kernel's iteration budget is spent, else go on (6.9)."""
    return _jump(JMP | JCOND << 4, 0, 0, 0, to)


def jeq(dst: Reg, operand: Operand, to: Target) -> Insn:
    """if dst == operand goto to"""
    return cond_insn(JEQ, dst, operand, to)


def jne(dst: Reg, operand: Operand, to: Target) -> Insn:
    """if dst != operand goto to"""
    return cond_insn(JNE, dst, operand, to)


def jgt(dst: Reg, operand: Operand, to: Target) -> Insn:
    """if dst > operand goto to, unsigned"""
    return cond_insn(JGT, dst, operand, to)


def jge(dst: Reg, operand: Operand, to: Target) -> Insn:
    """if dst >= operand goto to, unsigned"""
    return cond_insn(JGE, dst, operand, to)


def jlt(dst: Reg, operand: Operand, to: Target) -> Insn:
    """if dst < operand goto to, unsigned"""
    return cond_insn(JLT, dst, operand, to)


def jle(dst: Reg, operand: Operand, to: Target) -> Insn:
    """if dst <= operand goto to, unsigned"""
    return cond_insn(JLE, dst, operand, to)


def jset(dst: Reg, operand: Operand, to: Target) -> Insn:
    """if dst & operand goto to"""
    return cond_insn(JSET, dst, operand, to)


def jsgt(dst: Reg, operand: Operand, to: Target) -> Insn:
    """if dst s> operand goto to, signed"""
    return cond_insn(JSGT, dst, operand, to)


def jsge(dst: Reg, operand: Operand, to: Target) -> Insn:
    """if dst s>= operand goto to, signed"""
    return cond_insn(JSGE, dst, operand, to)


def jslt(dst: Reg, operand: Operand, to: Target) -> Insn:
    """if dst s< operand goto to, signed"""
    return cond_insn(JSLT, dst, operand, to)


def jsle(dst: Reg, operand: Operand, to: Target) -> Insn:
    """if dst s<= operand goto to, signed"""
    return cond_insn(JSLE, dst, operand, to)


def call(helper: str | int) -> Insn:
    """Call a helper by name (``"map_lookup_elem"``, with or without ``bpf_``) or by number."""
    if isinstance(helper, str):
        try:
            helper = find_helper(helper)
        except KeyError as error:
            raise AsmError(error.args[0]) from None
    return Insn(JMP | CALL << 4, imm=_fits(helper, 32, "helper"))


def call_local(to: Target) -> Insn:
    """Call a function of this program: a label, or the number of slots to skip (4.16)."""
    if isinstance(to, str):
        return Insn(JMP | CALL << 4, src=PSEUDO_CALL, target=to, target_in_imm=True)
    return Insn(JMP | CALL << 4, src=PSEUDO_CALL, imm=_fits(to, 32, "distance"))


def call_kfunc(btf_id: int, fd_index: int = 0) -> Insn:
    """Call a kernel function by its BTF id (5.13); ``fd_index``: a module's BTF in fd_array."""
    off = _fits(fd_index, 16, "fd_array index")
    return Insn(JMP | CALL << 4, src=PSEUDO_KFUNC_CALL, off=off, imm=_fits(btf_id, 32, "BTF id"))


def exit_() -> Insn:
    """Return r0 to the caller."""
    return Insn(JMP | EXIT << 4)


# --- loads and stores -------------------------------------------------------------------------


def ldabs(size: Size, offset: int) -> Insn:
    """r0 = packet[offset], in host order; needs the context in r6, clobbers r1-r5.

    Past the end of the packet the program ends and returns 0.  Socket filters and tc only;
    u8, u16 and u32.  Negative offsets are SKF_NET_OFF, SKF_LL_OFF and SKF_AD_OFF areas.
    """
    return Insn(LD | ABS | _packet_size(size), imm=_fits(offset, 32, "offset"))


def ldind(size: Size, src: Reg, offset: int = 0) -> Insn:
    """r0 = packet[src + offset]; everything else as :func:`ldabs`."""
    code = LD | IND | _packet_size(size)
    return Insn(code, src=_r64(src).number, imm=_fits(offset, 32, "offset"))


def ldx(size: Size, dst: Reg, src: Mem | Reg) -> Insn:
    """dst = \\*(size \\*)(src + off); zero-extended, or sign-extended for s8, s16, s32 (6.6)."""
    where = src if isinstance(src, Mem) else src + 0
    mode = MEMSX if size.signed else MEM
    return Insn(LDX | mode | size.code, _r64(dst).number, where.reg.number, where.off)


def stx(size: Size, dst: Mem | Reg, src: Reg) -> Insn:
    """\\*(size \\*)(dst + off) = src"""
    where = dst if isinstance(dst, Mem) else dst + 0
    return Insn(STX | MEM | _unsigned(size).code, where.reg.number, _r64(src).number, where.off)


def st(size: Size, dst: Mem | Reg, value: int) -> Insn:
    """\\*(size \\*)(dst + off) = value (a u64 store sign-extends it)"""
    where = dst if isinstance(dst, Mem) else dst + 0
    imm = _fits(value, 32, "value", unsigned=size.bits <= 32)
    return Insn(ST | MEM | _unsigned(size).code, where.reg.number, 0, where.off, imm)


def ld_imm64(dst: Reg, value: int) -> Insn:
    """dst = value, all 64 bits; two slots."""
    if not -(1 << 63) <= value < 1 << 64:
        raise AsmError(f"{value:#x} does not fit into 64 bits")
    return wide_insn(dst, 0, value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF)


def ld_map_fd(dst: Reg, fd: int) -> Insn:
    """dst = the map behind ``fd``, to be handed to a map helper."""
    return wide_insn(dst, PSEUDO_MAP_FD, fd)


def ld_map_value(dst: Reg, fd: int, offset: int = 0) -> Insn:
    """dst = the address of byte ``offset`` of an array map's only value (5.2)."""
    return wide_insn(dst, PSEUDO_MAP_VALUE, fd, offset)


def ld_map_index(dst: Reg, index: int) -> Insn:
    """dst = the map whose fd is ``fd_array[index]`` (5.14)."""
    return wide_insn(dst, PSEUDO_MAP_IDX, index)


def ld_map_index_value(dst: Reg, index: int, offset: int = 0) -> Insn:
    """As :func:`ld_map_value`, the map named by its place in fd_array (5.14)."""
    return wide_insn(dst, PSEUDO_MAP_IDX_VALUE, index, offset)


def ld_btf_id(dst: Reg, btf_id: int, btf_fd: int = 0) -> Insn:
    """dst = the address of a kernel variable (ksym) by its BTF id (5.10)."""
    return wide_insn(dst, PSEUDO_BTF_ID, btf_id, btf_fd)


def ld_func(dst: Reg, to: Target) -> Insn:
    """dst = the address of a function of this program, for callbacks (5.13)."""
    insn = wide_insn(dst, PSEUDO_FUNC, to if isinstance(to, int) else 0)
    if isinstance(to, str):
        insn.target, insn.target_in_imm = to, True
    return insn


# --- atomic operations: u32 and u64 (RFC 9669, 5.3; all but add since 5.12) -------------------


def atomic_add(size: Size, dst: Mem, src: Reg, *, fetch: bool = False) -> Insn:
    """\\*dst += src; with ``fetch`` src becomes the old value."""
    return atomic_insn(size, dst, src, ADD << 4 | fetch)


def atomic_or(size: Size, dst: Mem, src: Reg, *, fetch: bool = False) -> Insn:
    """\\*dst \\|= src; with ``fetch`` src becomes the old value."""
    return atomic_insn(size, dst, src, OR << 4 | fetch)


def atomic_and(size: Size, dst: Mem, src: Reg, *, fetch: bool = False) -> Insn:
    """\\*dst &= src; with ``fetch`` src becomes the old value."""
    return atomic_insn(size, dst, src, AND << 4 | fetch)


def atomic_xor(size: Size, dst: Mem, src: Reg, *, fetch: bool = False) -> Insn:
    """\\*dst ^= src; with ``fetch`` src becomes the old value."""
    return atomic_insn(size, dst, src, XOR << 4 | fetch)


def xchg(size: Size, dst: Mem, src: Reg) -> Insn:
    """Swap \\*dst and src."""
    return atomic_insn(size, dst, src, XCHG)


def cmpxchg(size: Size, dst: Mem, src: Reg) -> Insn:
    """If \\*dst == r0, \\*dst = src; r0 becomes the old value either way."""
    return atomic_insn(size, dst, src, CMPXCHG)


def load_acquire(size: Size, dst: Reg, src: Mem) -> Insn:
    """dst = \\*src, before every later access; any unsigned size (6.15)."""
    code = STX | ATOMIC | _unsigned(size).code
    return Insn(code, _r64(dst).number, src.reg.number, src.off, LOAD_ACQ)


def store_release(size: Size, dst: Mem, src: Reg) -> Insn:
    """\\*dst = src, after every earlier access; any unsigned size (6.15)."""
    code = STX | ATOMIC | _unsigned(size).code
    return Insn(code, dst.reg.number, _r64(src).number, dst.off, STORE_REL)


# --- checks and encodings ---------------------------------------------------------------------


def _fits(value: int, bits: int, what: str, *, unsigned: bool = False) -> int:
    top = 1 << bits if unsigned else 1 << bits - 1
    if not -(1 << bits - 1) <= value < top:
        raise AsmError(f"{what} {value} does not fit into {bits} bits")
    return value


def _r64(reg: Reg) -> Reg:
    if not reg.wide:
        raise AsmError(f"{reg!r} cannot stand here, r{reg.number} can")
    return reg


def _unsigned(size: Size) -> Size:
    if size.signed:
        raise AsmError(f"only loads have a sign: u{size.bits}, not {size!r}")
    return size


def _packet_size(size: Size) -> int:
    if size.bits == 64:
        raise AsmError("packet loads have no u64")
    return _unsigned(size).code


def _swap_bits(bits: int) -> int:
    if bits not in (16, 32, 64):
        raise AsmError(f"bytes are swapped in 16, 32 or 64 bits, not {bits}")
    return bits


def alu_insn(op: int, dst: Reg, operand: Operand, off: int = 0) -> Insn:
    """An arithmetic instruction by its operation, as the named ones above are made."""
    code = (ALU64 if dst.wide else ALU) | op << 4
    if isinstance(operand, int):
        # A 32-bit operation may be told 0xffffffff; a 64-bit one would make -1 of it.
        imm = _fits(operand, 32, "immediate", unsigned=not dst.wide)
        return Insn(code | K, dst.number, 0, off, imm)
    _same_width(dst, operand)
    return Insn(code | X, dst.number, operand.number, off)


def cond_insn(op: int, dst: Reg, operand: Operand, to: Target) -> Insn:
    """A conditional jump by its operation."""
    code = (JMP if dst.wide else JMP32) | op << 4
    if isinstance(operand, int):
        imm = _fits(operand, 32, "immediate", unsigned=not dst.wide)
        return _jump(code | K, dst.number, 0, imm, to)
    _same_width(dst, operand)
    return _jump(code | X, dst.number, operand.number, 0, to)


def _same_width(dst: Reg, src: Reg) -> None:
    if dst.wide != src.wide:
        raise AsmError(f"{dst!r} and {src!r} are of different widths")


def _jump(code: int, dst: int, src: int, imm: int, to: Target) -> Insn:
    if isinstance(to, str):
        return Insn(code, dst, src, 0, imm, target=to)
    return Insn(code, dst, src, _fits(to, 16, "distance"), imm)


def wide_insn(dst: Reg, src: int, low: int, high: int = 0) -> Insn:
    """An instruction of two slots: a 64-bit constant, a map, an address; ``src`` says which."""
    _fits(low, 32, "immediate", unsigned=True)
    _fits(high, 32, "immediate", unsigned=True)
    return Insn(LD | IMM | DW, _r64(dst).number, src, 0, low, high & 0xFFFFFFFF)


def atomic_insn(size: Size, dst: Mem, src: Reg, op: int) -> Insn:
    """An atomic operation by its code."""
    if size.signed or size.bits < 32:
        raise AsmError(f"atomic operations are u32 or u64, not {size!r}")
    return Insn(STX | ATOMIC | size.code, dst.reg.number, _r64(src).number, dst.off, op)
