# SPDX-License-Identifier: Apache-2.0
"""The arguments of USDT probes: from their text in the notes to what the BPF program reads.

Source: https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation; sys/sdt.h.
"""

from __future__ import annotations

import re
from struct import pack

from bpfkit.core.attach import usdt
from bpfkit.core.attach.symbols import Elf

__all__ = ["ARGUMENTS", "Argument", "Place", "places_of"]

#: Arguments of a probe, as sys/sdt.h limits them.
ARGUMENTS = 12
_ARGUMENT_SIZE = 24
_NONE, _CONSTANT, _REGISTER, _MEMORY = range(4)
_NO_REGISTER = 0xFFFF

_ORDER = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp"
#: Offsets in x86-64's struct pt_regs.
_FULL = {name: 8 * number for number, name in enumerate(_ORDER.split())}


def _registers() -> dict[str, int]:
    """Name of a register, or of a part of it -> offset in struct pt_regs."""
    found = {}
    for name, offset in _FULL.items():
        found[name] = offset
        if name[1:].isdigit():  # r8d, r8w, r8b
            found |= {f"{name}{size}": offset for size in "dwb"}
        elif name in ("rax", "rbx", "rcx", "rdx"):  # eax, ax, al, and ah beside it
            letter = name[1]
            found |= {f"e{letter}x": offset, f"{letter}x": offset, f"{letter}l": offset}
            found[f"{letter}h"] = offset + 1
        elif name in ("rsi", "rdi", "rbp", "rsp"):  # esi, si, sil
            found |= {f"e{name[1:]}": offset, name[1:]: offset, f"{name[1:]}l": offset}
    return found


_REGISTERS = _registers()
_NUMBER = r"[+-]?(?:0x[0-9a-fA-F]+|\d+)"
_MEMORY_FORM = re.compile(
    rf"(?P<offset>(?:{_NUMBER})*)\((?:%(?P<base>\w+))?(?:,%(?P<index>\w+)(?:,(?P<scale>[1248]))?)?\)"
)
_ARGUMENT = re.compile(r"(?:(?P<size>-?[1248])(?P<float>f)?@)?(?P<place>\S+)")


class Argument:
    """Where an argument is.

    :ivar text: as the note has it: ``-4@8(%rbp)``.
    :ivar size: bytes.
    :ivar is_signed: whether a negative number is meant.
    :ivar is_known: false for a form that is not decoded (floating point, ``symbol(%rip)``).
    """

    __slots__ = ("_packed", "is_known", "is_signed", "size", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.size, self.is_signed, self.is_known = 8, False, False
        self._packed = (0, 0, _NO_REGISTER, 0, _NONE)
        found = _ARGUMENT.fullmatch(text)
        if found is None:
            return
        size = int(found["size"] or 8)
        self.size, self.is_signed = abs(size), size < 0
        packed = None if found["float"] else _place(found["place"])
        if packed is not None:
            self._packed = packed
            self.is_known = True

    def pack(self, is_text: bool) -> bytes:
        """``struct argument`` of bpf_c/trace/usdt.bpf.c."""
        constant, base, index, shift, where = self._packed
        return pack(
            "<QHHBBBBB7x",
            constant & 0xFFFFFFFFFFFFFFFF,
            base,
            index,
            shift,
            where,
            64 - 8 * self.size,
            self.is_signed,
            is_text and self.is_known,
        )


def _place(text: str) -> tuple[int, int, int, int, int] | None:
    """(constant, base, index, shift, enum where) of an operand; None if it is another form."""
    if text.startswith("$"):
        try:
            return int(text[1:], 0), 0, _NO_REGISTER, 0, _CONSTANT
        except ValueError:
            return None
    if text.startswith("%"):
        register = _REGISTERS.get(text[1:])
        return None if register is None else (0, register, _NO_REGISTER, 0, _REGISTER)
    found = _MEMORY_FORM.fullmatch(text)
    if found is None or not (found["base"] or found["index"]):
        return None
    offset = sum(int(number, 0) for number in re.findall(_NUMBER, found["offset"]))
    numbers = []
    for name in (found["base"], found["index"]):
        if name is not None and name not in _FULL:
            return None
        numbers.append(_NO_REGISTER if name is None else _FULL[name])
    if found["base"] == "rip":
        return None
    shift = (1, 2, 4, 8).index(int(found["scale"] or 1))
    return offset, numbers[0], numbers[1], shift, _MEMORY


class Place(usdt.Place):
    """A place of a probe, with its :attr:`arguments`."""

    __slots__ = ("arguments",)

    def __init__(
        self, elf: Elf, provider: str, name: str, address: int, semaphore: int, text: str
    ) -> None:
        super().__init__(elf, provider, name, address, semaphore, text)
        self.arguments = [Argument(one) for one in _split(text)][:ARGUMENTS]

    def pack(self, texts: frozenset[int]) -> bytes:
        """``struct place``; ``texts`` are the numbers of the arguments that are strings, from 1."""
        packed = [a.pack(number in texts) for number, a in enumerate(self.arguments, 1)]
        return b"".join(packed).ljust(ARGUMENTS * _ARGUMENT_SIZE, b"\0")


def _split(text: str) -> list[str]:
    """The arguments of a note; blanks within parentheses do not part them."""
    return re.findall(r"(?:[^\s(\[]|\([^)]*\)|\[[^\]]*\])+", text)


def places_of(path: str) -> list[Place]:
    """The places of a file's probes; see :func:`bpfkit.core.attach.usdt.places_of`."""
    return usdt.places_of(path, Place)
