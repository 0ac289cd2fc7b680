# SPDX-License-Identifier: Apache-2.0
"""Symbols of ELF files and of the kernel, as probes need them.

A uprobe is put at an offset in a *file*.  A symbol's value is a virtual address, so the offset is
``value - address of the section + offset of the section`` (of the segment, where the file has no
section headers): the same arithmetic for executables, PIE and libraries.

Source: elf(5); Documentation/trace/uprobetracer.rst.
"""

from __future__ import annotations

import os
from struct import error as StructError
from struct import unpack_from

from bpfkit.core.errors import InputError, errno_text, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

__all__ = [
    "NOP5",
    "Elf",
    "Symbol",
    "hookable_functions",
    "kernel_functions",
    "matching_functions",
    "nearest",
]

#: x86's nop of 5 bytes.  Kernels 6.18 to 7.1 replace it by a call if it is probed, which overwrites
#: what a leaf function keeps below its stack pointer.
NOP5 = b"\x0f\x1f\x44\x00\x00"

_FUNC, _IFUNC = 2, 10  # STT_FUNC, STT_GNU_IFUNC
_LOAD, _EXEC = 1, 1  # PT_LOAD, PF_X
_SYMTAB, _DYNSYM = 2, 11  # SHT_SYMTAB, SHT_DYNSYM


class Symbol:
    """A function of an ELF file.

    :ivar name: as in the file, without its version.
    :ivar value: virtual address.
    :ivar size: bytes.
    :ivar offset: in the file.
    :ivar is_indirect: an IFUNC: the function that chooses the one that is called.
    """

    __slots__ = ("is_indirect", "name", "offset", "size", "value")

    def __init__(
        self, name: str, value: int, size: int, offset: int, is_indirect: bool = False
    ) -> None:
        self.name = name
        self.value = value
        self.size = size
        self.offset = offset
        self.is_indirect = is_indirect

    def __repr__(self) -> str:
        return f"<Symbol {self.name} {self.value:#x}>"


class Elf:
    """Sections, segments and symbols of an ELF file of this machine's byte order.

    :raises InputError: there is no such file, or it is no 64-bit ELF file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._data = _contents(file)
        except OSError as error:
            raise InputError(f"cannot read {path}", why=errno_text(error.errno or 0)) from None
        if self._data[:6] != b"\x7fELF\x02\x01":
            raise InputError(f"{path} is not a 64-bit little-endian ELF file")
        try:
            self._read_headers()
        except (ValueError, IndexError, StructError) as error:
            raise InputError(f"{path} is a damaged ELF file", why=str(error)) from None

    def _read_headers(self) -> None:
        data = self._data
        phoff, shoff = unpack_from("<QQ", data, 32)
        phsize, phnum, shsize, shnum, shstr = unpack_from("<HHHHH", data, 54)
        #: (virtual address, offset, bytes in the file) of the executable segments.
        self.code: list[tuple[int, int, int]] = []
        for i in range(phnum):
            kind, flags, offset, vaddr, _, filesz = unpack_from("<IIQQQQ", data, phoff + i * phsize)
            if kind == _LOAD and flags & _EXEC:
                self.code.append((vaddr, offset, filesz))
        #: (name, type, virtual address, offset, size, link, entry size) of each section.
        self.sections: list[tuple[str, int, int, int, int, int, int]] = []
        raw = [unpack_from("<IIQQQQIIQQ", data, shoff + i * shsize) for i in range(shnum)]
        names = raw[shstr][4] if shstr < len(raw) else 0
        for entry in raw:
            name = self._text(names + entry[0]) if names else ""
            self.sections.append((name, entry[1], *entry[3:6], entry[6], entry[9]))

    def _text(self, at: int) -> str:
        end = self._data.find(b"\0", at)
        return bytes(self._data[at:end]).decode(errors="surrogateescape")

    def section(self, name: str) -> bytes:
        """The contents of a section; b"" if there is none of this name."""
        for found, _, _, offset, size, _, _ in self.sections:
            if found == name:
                return bytes(self._data[offset : offset + size])
        return b""

    def bytes_at(self, offset: int, size: int) -> bytes:
        """What is at an offset of the file; shorter at its end."""
        return bytes(self._data[offset : offset + size])

    def offset_of(self, address: int) -> int:
        """The offset in the file of a virtual address of code.

        :raises InputError: the address is in no executable segment.
        """
        for vaddr, offset, size in self.code:
            if vaddr <= address < vaddr + size:
                return address - vaddr + offset
        raise InputError(f"{self.path} has no code at {address:#x}")

    def arithmetic(self, symbol: Symbol) -> str:
        """How a symbol's offset comes about, for people."""
        for name, _, address, offset, size, _, _ in self.sections:
            if address and address <= symbol.value < address + size:
                return (
                    f"{symbol.name}: {symbol.value:#x} - {address:#x} ({name} address) + "
                    f"{offset:#x} ({name} offset) = {symbol.offset:#x}"
                )
        return f"{symbol.name}: {symbol.value:#x} is at offset {symbol.offset:#x}"

    def functions(self) -> Iterator[Symbol]:
        """The functions of the symbol tables, those of .symtab first; undefined ones left out."""
        tables = sorted(
            (section for section in self.sections if section[1] in (_SYMTAB, _DYNSYM)),
            key=lambda section: section[1],
        )
        for _, _, _, offset, size, link, each in tables:
            strings = self.sections[link][3]
            for at in range(offset, offset + size - 23, each or 24):
                name, info, _, where, value, length = unpack_from("<IBBHQQ", self._data, at)
                if where == 0 or info & 15 not in (_FUNC, _IFUNC):
                    continue
                try:
                    place = self.offset_of(value)
                except InputError:
                    continue
                text = self._text(strings + name).partition("@")[0]
                yield Symbol(text, value, length, place, info & 15 == _IFUNC)

    def function(self, name: str) -> Symbol:
        """A function by its name.

        :raises InputError: the file has no such function; offers the nearest names.
        """
        known = []
        for symbol in self.functions():
            if symbol.name == name:
                return symbol
            known.append(symbol.name)
        if not known:
            raise InputError(
                f"{self.path} has no symbol {name}",
                why="it is stripped: it has no names of functions",
                hint="give the function's offset in the file, such as 0x1139",
            )
        raise InputError(
            f"{self.path} has no function {name}", hint=nearest(name, dict.fromkeys(known))
        )


def _contents(file: Any) -> Any:
    import mmap

    if os.fstat(file.fileno()).st_size == 0:
        return b""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return file.read()


def kernel_functions() -> list[str]:
    """Names of the functions in /proc/kallsyms, modules' included."""
    found = []
    with open("/proc/kallsyms", encoding="utf-8", errors="replace") as symbols:
        for line in symbols:
            fields = line.split()
            if fields[1] in "tTwW":
                found.append(fields[2])
    return found


def hookable_functions() -> list[str]:
    """Functions that the kernel lets be hooked; each name once.

    From available_filter_functions of tracefs, which leaves out what cannot be; else all of
    /proc/kallsyms.
    """
    from bpfkit.core.errors import UnsupportedError
    from bpfkit.core.features.pseudofs import read_tracefs

    try:
        lines = read_tracefs("available_filter_functions").splitlines()
        return list(dict.fromkeys(line.split()[0] for line in lines if line))
    except (OSError, UnsupportedError):
        return list(dict.fromkeys(kernel_functions()))


def matching_functions(patterns: Iterable[str], most: int = 10_000) -> list[str]:
    """The functions that the patterns match, each once.

    :raises InputError: a pattern matches none (offers the nearest names), or there are too many.
    """
    from fnmatch import fnmatchcase

    known = hookable_functions()
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [name for name in known if fnmatchcase(name, pattern)]
        if not names:
            every = dict.fromkeys(kernel_functions())
            why = "the kernel does not let it be hooked" if pattern in every else ""
            raise InputError(
                f"no function {pattern} to hook",
                why=why,
                hint="" if why else nearest(pattern.strip("*?"), dict.fromkeys(known)),
            )
        found.update(dict.fromkeys(names))
    if len(found) > most:
        raise InputError(f"{len(found)} functions are too many", why=f"{most} at most")
    return list(found)
