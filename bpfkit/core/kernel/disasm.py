# SPDX-License-Identifier: Apache-2.0
"""eBPF instructions to text and back, in the words of the kernel's verifier log.

    0: (bf) r6 = r1
    1: (61) r2 = *(u32 *)(r6 +4)
    2: (55) if r2 != 0x4 goto pc+2

is what the verifier, ``bpftool prog dump xlated`` and :func:`disassemble` print.  Three things
the kernel does not spell out are added: ``map[fd:3]``, ``map[fd:3][0]+8``, ``map[idx:0]``,
``btf_id[7]`` and ``subprog[+5]`` for 64-bit loads of what is not a number (the kernel prints the
address it put there); ``kernel-function#7@1`` for a kfunc of the module whose BTF is
``fd_array[1]``; and ``.insn 0x...`` for a slot that is no valid instruction, so that
``parse(disassemble(x)) == x`` for any x.

Source of the notation: ``kernel/bpf/disasm.c``.
"""

from __future__ import annotations

from struct import Struct

from bpfkit.core.kernel import asm
from bpfkit.core.kernel.helpers import find_helper, helper_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import TypeAlias

    Fields: TypeAlias = dict[str, str]

__all__ = ["decode", "disassemble", "format_insn", "listing", "parse"]

_SLOT = Struct("<BBhI")
_ALU = "+= -= *= /= |= &= <<= >>= neg %= ^= = s>>=".split()
_JUMPS = {
    asm.JEQ: "==",
    asm.JGT: ">",
    asm.JGE: ">=",
    asm.JSET: "&",
    asm.JNE: "!=",
    asm.JSGT: "s>",
    asm.JSGE: "s>=",
    asm.JLT: "<",
    asm.JLE: "<=",
    asm.JSLT: "s<",
    asm.JSLE: "s<=",
}
_SIZES = {asm.W: "u32", asm.H: "u16", asm.B: "u8", asm.DW: "u64"}
_ATOMICS = {asm.ADD: "add", asm.OR: "or", asm.AND: "and", asm.XOR: "xor"}


def decode(code: bytes) -> list[asm.Insn]:
    """Bytes to instructions; a 64-bit load cut short is left as its lone first slot.

    :raises ValueError: the length is no multiple of 8.
    """
    if len(code) % 8:
        raise ValueError(f"{len(code)} bytes are no whole number of instructions")
    insns = []
    slots = _SLOT.iter_unpack(code)
    pending = next(slots, None)
    while pending is not None:
        opcode, regs, off, imm = pending
        insn = asm.Insn(opcode, regs & 15, regs >> 4, off, imm)
        pending = next(slots, None)
        if opcode == asm.LD | asm.IMM | asm.DW and pending and pending[:3] == (0, 0, 0):
            insn.imm_hi = pending[3]
            pending = next(slots, None)
        insns.append(insn)
    return insns


def disassemble(code: bytes) -> list[str]:
    """One line per instruction: ``slot: (opcode) text``, the slot counted as jumps count."""
    lines = []
    slot = 0
    for insn in decode(code):
        lines.append(f"{slot}: {format_insn(insn)}")
        slot += insn.slots
    return lines


def listing(code: bytes, labels: Mapping[int, Iterable[str]] | None = None) -> str:
    """The disassembly with labels (slot -> names) on lines of their own, for people."""
    lines = []
    slot = 0
    names = labels or {}
    for insn in decode(code):
        lines += [f"{name}:" for name in names.get(slot, ())]
        text = format_insn(insn)
        to = _target(insn, slot)
        if to in names:
            text = f"{text:<44} ; {next(iter(names[to]))}"
        lines.append(f"{slot:5}: {text}")
        slot += insn.slots
    lines += [f"{name}:" for name in names.get(slot, ())]
    return "\n".join(lines) + "\n"


def _target(insn: asm.Insn, slot: int) -> int:
    """The slot an instruction may go to, -1 for none."""
    kind, op = insn.code & 7, insn.code >> 4
    if kind not in (asm.JMP, asm.JMP32) or op == asm.EXIT:
        return -1
    if op == asm.CALL:
        return slot + 1 + insn.simm if insn.src == asm.PSEUDO_CALL else -1
    return slot + 1 + (insn.simm if insn.code == asm.JMP32 else insn.off)


def format_insn(insn: asm.Insn) -> str:
    """``(opcode) text`` of one instruction."""
    text, shown = _TEXT[insn.code & 7](insn)
    # A field that the text does not show must be zero, else the text would be a lie.
    if (
        not text
        or (insn.dst and "d" not in shown)
        or (insn.src and "s" not in shown)
        or (insn.off and "o" not in shown)
        or (insn.imm and "i" not in shown)
    ):
        text = f".insn 0x{insn.encode().hex()}"
    return f"({insn.code:02x}) {text}"


def _alu_text(insn: asm.Insn) -> tuple[str, str]:
    op, wide = insn.code >> 4, insn.code & 7 == asm.ALU64
    from_reg = insn.code & asm.X
    letter = "r" if wide else "w"
    dst = f"{letter}{insn.dst}"
    if op == asm.END:
        if insn.imm not in (16, 32, 64) or (wide and from_reg):
            return "", ""
        order = "bswap" if wide else "be" if from_reg else "le"
        return f"r{insn.dst} = {order}{insn.imm} r{insn.dst}", "di"
    if op == asm.NEG:
        return ("" if from_reg else f"{dst} = -{dst}"), "d"
    if op > asm.ARSH:
        return "", ""
    how, sign, shown = _ALU[op], "", "d"
    if insn.off:
        if op in (asm.DIV, asm.MOD) and insn.off == 1:
            how = f"s{how}"
        elif op == asm.MOV and from_reg and insn.off in ((8, 16, 32) if wide else (8, 16)):
            sign = f"(s{insn.off})"
        elif op == asm.MOV and from_reg and wide and insn.off == 1:
            spaces = f"{insn.imm >> 16}, {insn.imm & 0xFFFF}"
            return f"{dst} = addr_space_cast(r{insn.src}, {spaces})", "dsoi"
        else:
            return "", ""
        shown = "do"
    if from_reg:
        return f"{dst} {how} {sign}{letter}{insn.src}", shown + "s"
    return f"{dst} {how} {insn.simm}", shown + "i"


def _jmp_text(insn: asm.Insn) -> tuple[str, str]:
    op, short = insn.code >> 4, insn.code & 7 == asm.JMP32
    from_reg = insn.code & asm.X
    if op in _JUMPS:
        letter = "w" if short else "r"
        operand = f"{letter}{insn.src}" if from_reg else f"0x{insn.imm:x}"
        text = f"if {letter}{insn.dst} {_JUMPS[op]} {operand} goto pc{insn.off:+d}"
        return text, "dos" if from_reg else "doi"
    if op == asm.JA:
        if from_reg:
            return ("" if short else f"gotox r{insn.dst}"), "d"
        return (f"gotol pc{insn.simm:+d}", "i") if short else (f"goto pc{insn.off:+d}", "o")
    if short or from_reg:
        return "", ""
    if op == asm.EXIT:
        return "exit", ""
    if op == asm.JCOND:
        return f"may_goto pc{insn.off:+d}", "o"
    if op == asm.CALL:
        if insn.src == asm.PSEUDO_CALL:
            return f"call pc{insn.simm:+d}", "si"
        if insn.src == asm.PSEUDO_KFUNC_CALL:
            module = f"@{insn.off}" if insn.off else ""
            return f"call kernel-function#{insn.simm}{module}", "sio"
        return f"call {helper_name(insn.simm)}#{insn.simm}", "i"
    return "", ""


def _ld_text(insn: asm.Insn) -> tuple[str, str]:
    mode, size = insn.code & 0xE0, _SIZES[insn.code & 0x18]
    if insn.code == asm.LD | asm.IMM | asm.DW and insn.imm_hi is not None:
        low, high = insn.imm, insn.imm_hi
        only_low = {
            asm.PSEUDO_MAP_FD: f"map[fd:{low}]",
            asm.PSEUDO_MAP_IDX: f"map[idx:{low}]",
            asm.PSEUDO_FUNC: f"subprog[{insn.simm:+d}]",
        }
        if insn.src in only_low:
            return ("" if high else f"r{insn.dst} = {only_low[insn.src]}"), "dsi"
        what = {
            0: f"0x{high << 32 | low:x}",
            asm.PSEUDO_MAP_VALUE: f"map[fd:{low}][0]+{high}",
            asm.PSEUDO_MAP_IDX_VALUE: f"map[idx:{low}][0]+{high}",
            asm.PSEUDO_BTF_ID: f"btf_id[{low}]" + (f"@{high}" if high else ""),
        }.get(insn.src)
        return (f"r{insn.dst} = {what}" if what else ""), "dsi"
    if size == "u64":
        return "", ""
    if mode == asm.ABS:
        return f"r0 = *({size} *)skb[{insn.simm}]", "i"
    if mode == asm.IND:
        return f"r0 = *({size} *)skb[r{insn.src} + {insn.simm}]", "si"
    return "", ""


def _ldx_text(insn: asm.Insn) -> tuple[str, str]:
    mode, size = insn.code & 0xE0, _SIZES[insn.code & 0x18]
    if mode == asm.MEMSX and size != "u64":
        size = f"s{size[1:]}"
    elif mode != asm.MEM:
        return "", ""
    return f"r{insn.dst} = *({size} *)(r{insn.src} {insn.off:+d})", "dso"


def _st_text(insn: asm.Insn) -> tuple[str, str]:
    if insn.code & 0xE0 != asm.MEM:
        return "", ""
    size = _SIZES[insn.code & 0x18]
    return f"*({size} *)(r{insn.dst} {insn.off:+d}) = {insn.simm}", "doi"


def _stx_text(insn: asm.Insn) -> tuple[str, str]:
    mode, size = insn.code & 0xE0, _SIZES[insn.code & 0x18]
    to, src, op = f"({size} *)(r{insn.dst} {insn.off:+d})", f"r{insn.src}", insn.imm
    if mode == asm.MEM:
        return f"*{to} = {src}", "dso"
    if mode != asm.ATOMIC:
        return "", ""
    if op == asm.LOAD_ACQ:
        return f"r{insn.dst} = load_acquire(({size} *)({src} {insn.off:+d}))", "dsoi"
    if op == asm.STORE_REL:
        return f"store_release({to}, {src})", "dsoi"
    if size not in ("u32", "u64"):
        return "", ""
    wide = "64" if size == "u64" else ""
    if op == asm.CMPXCHG:
        return f"r0 = atomic{wide}_cmpxchg({to}, r0, {src})", "dsoi"
    if op == asm.XCHG:
        return f"{src} = atomic{wide}_xchg({to}, {src})", "dsoi"
    if op >> 4 in _ATOMICS and op & 15 == asm.FETCH:
        return f"{src} = atomic{wide}_fetch_{_ATOMICS[op >> 4]}({to}, {src})", "dsoi"
    if op >> 4 in _ATOMICS and not op & 15:
        return f"lock *{to} {_ALU[op >> 4]} {src}", "dsoi"
    return "", ""


_TEXT = {
    asm.LD: _ld_text,
    asm.LDX: _ldx_text,
    asm.ST: _st_text,
    asm.STX: _stx_text,
    asm.ALU: _alu_text,
    asm.ALU64: _alu_text,
    asm.JMP: _jmp_text,
    asm.JMP32: _jmp_text,
}


# --- text to instructions ---------------------------------------------------------------------

_MEM = r"\((?P<size>[us]\d+) \*\)\(r(?P<base>\d+) (?P<off>[+-]\d+)\)"


def parse(text: str | Iterable[str]) -> bytes:
    """Lines as :func:`disassemble` or the verifier print them, back to instructions.

    ``slot:`` and ``(opcode)`` may be missing, ``;`` starts a comment, empty lines are skipped.
    Without the opcode ``r1 = 5`` is a move, ``r1 = 0x5`` a 64-bit load: as the kernel writes it.

    :raises asm.AsmError: a line that is no instruction; the message quotes it.
    """
    import re

    lines = text.splitlines() if isinstance(text, str) else text
    prefix = re.compile(r"\s*(?:\d+:)?\s*(?:\([0-9a-f]{2}\)\s*)?")
    patterns = [(re.compile(pattern), build) for pattern, build in _PATTERNS]
    out = bytearray()
    for line in lines:
        body = line.partition(";")[0].rstrip()
        found = prefix.match(body)
        body = body[found.end() :] if found else body
        if not body:
            continue
        for pattern, build in patterns:
            match = pattern.fullmatch(body)
            if match:
                made = build(match.groupdict())
                out += made if isinstance(made, bytes) else made.encode()
                break
        else:
            raise asm.AsmError(f"not an instruction: {line.strip()!r}")
    return bytes(out)


def _reg(name: str) -> asm.Reg:
    return asm.Reg(int(name[1:]), name[0] == "r")


def _size(name: str) -> asm.Size:
    found = getattr(asm, name, None)
    if not isinstance(found, asm.Size):
        raise asm.AsmError(f"no such size: {name}")
    return found


def _at(f: Fields) -> asm.Mem:
    return asm.Reg(int(f["base"])) + int(f["off"])


def _parse_alu(f: Fields) -> asm.Insn:
    dst, how = _reg(f["dst"]), f["op"]
    off = 0
    if how in ("s/=", "s%="):
        how, off = how[1:], 1
    operand = _reg(f["src"]) if f["src"][0] in "rw" else int(f["src"], 0)
    return asm.alu_insn(_ALU.index(how), dst, operand, off)


def _parse_jump(f: Fields) -> asm.Insn:
    op = next(number for number, text in _JUMPS.items() if text == f["op"])
    dst = _reg(f["dst"])
    if f["src"][0] in "rw":
        return asm.cond_insn(op, dst, _reg(f["src"]), int(f["off"]))
    imm = int(f["src"], 0)  # the kernel prints it unsigned also for 64-bit compares
    return asm.cond_insn(op, dst, imm - (imm >> 31 << 32) if imm > 0 else imm, int(f["off"]))


def _parse_wide(f: Fields) -> asm.Insn:
    dst, low, high = _reg(f["dst"]), int(f["low"]), int(f.get("high") or 0)
    values = {"fd": asm.PSEUDO_MAP_VALUE, "idx": asm.PSEUDO_MAP_IDX_VALUE}
    maps = {"fd": asm.PSEUDO_MAP_FD, "idx": asm.PSEUDO_MAP_IDX}
    return asm.wide_insn(dst, (values if f.get("high") else maps)[f["kind"]], low, high)


def _parse_atomic(f: Fields) -> asm.Insn:
    size, at, src = _size(f["size"]), _at(f), _reg(f["src"])
    name = f["name"]
    if name == "xchg":
        return asm.xchg(size, at, src)
    if name == "cmpxchg":
        return asm.cmpxchg(size, at, src)
    op = next(number for number, text in _ATOMICS.items() if name == f"fetch_{text}")
    return asm.atomic_insn(size, at, src, op << 4 | asm.FETCH)


def _parse_lock(f: Fields) -> asm.Insn:
    return asm.atomic_insn(_size(f["size"]), _at(f), _reg(f["src"]), _ALU.index(f["op"]) << 4)


def _parse_swap(f: Fields) -> asm.Insn:
    swap = {"be": asm.be, "le": asm.le, "bswap": asm.bswap}[f["op"]]
    return swap(int(f["bits"]), _reg(f["dst"]))


def _parse_call(f: Fields) -> asm.Insn:
    if f["number"] is not None:
        return asm.call(int(f["number"]))
    try:
        return asm.call(find_helper(f["name"]))
    except KeyError as error:
        raise asm.AsmError(error.args[0]) from None


_PATTERNS: list[tuple[str, Callable[[Fields], asm.Insn | bytes]]] = [
    (r"(?P<dst>[rw]\d+) (?P<op>s?[-+*/|&%^]?=|<<=|s?>>=) (?P<src>-?\d+|[rw]\d+)", _parse_alu),
    (
        r"if (?P<dst>[rw]\d+) (?P<op>[!=]=|s?[<>]=?|&) (?P<src>-?(0x)?[0-9a-f]+|[rw]\d+) "
        r"goto (pc)?(?P<off>[+-]\d+)",
        _parse_jump,
    ),
    (
        rf"(?P<dst>r\d+) = \*{_MEM}",
        lambda f: asm.ldx(_size(f["size"]), _reg(f["dst"]), _at(f)),
    ),
    (
        rf"\*{_MEM} = (?P<src>r\d+)",
        lambda f: asm.stx(_size(f["size"]), _at(f), _reg(f["src"])),
    ),
    (
        rf"\*{_MEM} = (?P<imm>-?\d+)",
        lambda f: asm.st(_size(f["size"]), _at(f), int(f["imm"])),
    ),
    (
        r"(?P<dst>r\d+) = (?P<imm>0x[0-9a-f]+)",
        lambda f: asm.ld_imm64(_reg(f["dst"]), int(f["imm"], 16)),
    ),
    (r"(?P<dst>r\d+) = map\[(?P<kind>fd|idx):(?P<low>\d+)\](\[0\]\+(?P<high>\d+))?", _parse_wide),
    (
        r"(?P<dst>r\d+) = btf_id\[(?P<low>\d+)\](@(?P<high>\d+))?",
        lambda f: asm.ld_btf_id(_reg(f["dst"]), int(f["low"]), int(f["high"] or 0)),
    ),
    (
        r"(?P<dst>r\d+) = subprog\[(?P<low>[+-]\d+)\]",
        lambda f: asm.ld_func(_reg(f["dst"]), int(f["low"])),
    ),
    (r"call pc(?P<to>[+-]\d+)", lambda f: asm.call_local(int(f["to"]))),
    (
        r"call kernel-function#(?P<id>-?\d+)(@(?P<fd>-?\d+))?",
        lambda f: asm.call_kfunc(int(f["id"]), int(f["fd"] or 0)),
    ),
    (r"call (?P<name>\w+)(#(?P<number>-?\d+))?", _parse_call),
    (r"goto (pc)?(?P<off>[+-]\d+)", lambda f: asm.ja(int(f["off"]))),
    (r"gotol (pc)?(?P<off>[+-]\d+)", lambda f: asm.jal(int(f["off"]))),
    (r"gotox r(?P<dst>\d+)", lambda f: asm.Insn(asm.JMP | asm.X, int(f["dst"]))),
    (r"may_goto (pc)?(?P<off>[+-]\d+)", lambda f: asm.may_goto(int(f["off"]))),
    (r"exit", lambda f: asm.exit_()),
    (r"(?P<dst>[rw]\d+) = -(?P=dst)", lambda f: asm.neg(_reg(f["dst"]))),
    (r"(?P<dst>r\d+) = (?P<op>be|le|bswap)(?P<bits>\d\d) (?P=dst)", _parse_swap),
    (
        r"(?P<dst>[rw]\d+) = \((?P<size>s\d+)\)(?P<src>[rw]\d+)",
        lambda f: asm.movsx(_size(f["size"]), _reg(f["dst"]), _reg(f["src"])),
    ),
    (
        r"(?P<dst>r\d+) = addr_space_cast\((?P<src>r\d+), (?P<to>\d+), (?P<from>\d+)\)",
        lambda f: asm.addr_space_cast(_reg(f["dst"]), _reg(f["src"]), int(f["to"]), int(f["from"])),
    ),
    (
        r"r0 = \*\((?P<size>u\d+) \*\)skb\[(?P<off>-?\d+)\]",
        lambda f: asm.ldabs(_size(f["size"]), int(f["off"])),
    ),
    (
        r"r0 = \*\((?P<size>u\d+) \*\)skb\[(?P<src>r\d+) \+ (?P<off>-?\d+)\]",
        lambda f: asm.ldind(_size(f["size"]), _reg(f["src"]), int(f["off"])),
    ),
    (rf"lock \*{_MEM} (?P<op>[+|&^]=) (?P<src>r\d+)", _parse_lock),
    (rf"r\d+ = atomic(64)?_(?P<name>\w+)\({_MEM}, (r0, )?(?P<src>r\d+)\)", _parse_atomic),
    (
        rf"(?P<dst>r\d+) = load_acquire\({_MEM}\)",
        lambda f: asm.load_acquire(_size(f["size"]), _reg(f["dst"]), _at(f)),
    ),
    (
        rf"store_release\({_MEM}, (?P<src>r\d+)\)",
        lambda f: asm.store_release(_size(f["size"]), _at(f), _reg(f["src"])),
    ),
    (r"\.insn 0x(?P<hex>([0-9a-f]{16}){1,2})", lambda f: bytes.fromhex(f["hex"])),
]
