# SPDX-License-Identifier: Apache-2.0
"""``FILE:FUNCTION``: the functions that the words of the command line name."""

from __future__ import annotations

from bpfkit.core.attach.symbols import NOP5, Elf, Symbol, nearest
from bpfkit.core.attach.uprobe import find_file
from bpfkit.core.errors import InputError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MOST", "Target", "find_targets"]

#: Functions of one run.
MOST = 1024
_WILD = "*?["


class Target:
    """A function, or a place in one, that is probed.

    :ivar file: the path of the ELF file.
    :ivar name: as it is shown: ``qsort``, ``main+0x12``, ``0x1139``.
    :ivar offset: in the file.
    :ivar is_entry: whether a function may begin there, so that its return can be probed.
    :ivar why: how the offset comes about.
    """

    __slots__ = ("file", "is_entry", "name", "offset", "why")

    def __init__(self, file: str, name: str, offset: int, is_entry: bool, why: str) -> None:
        self.file = file
        self.name = name
        self.offset = offset
        self.is_entry = is_entry
        self.why = why


def find_targets(words: Sequence[str]) -> list[Target]:
    """The functions that ``FILE:FUNCTION``, ``FILE:PATTERN`` and ``FILE:OFFSET`` name, each once.

    :raises InputError: no such file or function (offers the nearest names), or too many.
    """
    files: dict[str, _File] = {}
    found: dict[tuple[str, int], Target] = {}
    for word in words:
        name, colon, where = word.rpartition(":")
        if not colon or not name or not where:
            raise UsageError(
                f"{word!r} is no FILE:FUNCTION", hint="examples: c:malloc, /bin/bash:readline"
            )
        path = find_file(name)
        file = files.get(path) or files.setdefault(path, _File(path))
        for target in file.find(where):
            if not target.is_entry and file.elf.bytes_at(target.offset, 5) == NOP5:
                raise InputError(
                    f"{target.name} of {path} is a nop of 5 bytes",
                    why="kernels 6.18 to 7.1 overwrite data of a leaf function that has one",
                )
            found.setdefault((path, target.offset), target)
    if len(found) > MOST:
        raise InputError(f"{len(found)} functions are too many", why=f"{MOST} are probed at most")
    return list(found.values())


class _File:
    """An ELF file and its functions."""

    def __init__(self, path: str) -> None:
        self.elf = Elf(path)
        self.path = path
        #: Functions by name; of several of one name (static ones, versions) the first, but an IFUNC
        #: before others: it is the version that is linked today.
        self.functions: dict[str, Symbol] = {}
        for symbol in self.elf.functions():
            if symbol.is_indirect or symbol.name not in self.functions:
                self.functions[symbol.name] = symbol

    def find(self, where: str) -> list[Target]:
        if any(sign in where for sign in _WILD):
            return self._matching(where)
        name, _, more = where.partition("+")
        try:
            extra = int(more, 0) if more else 0
            if name[:1].isdigit():
                return [self._at(int(name, 0) + extra)]
        except ValueError:
            raise InputError(f"{where!r} is neither a function nor an offset") from None
        symbol = self.functions.get(name)
        if symbol is None:
            symbol = self.elf.function(name)  # raises with the reason
        if symbol.is_indirect:
            raise self._chosen_at_run_time(symbol)
        if extra >= max(symbol.size, 1):
            raise InputError(f"{where} is behind the end of {name}", why=f"{symbol.size} bytes")
        why = self.elf.arithmetic(symbol)
        if extra:
            why += f"; + {extra:#x} = {symbol.offset + extra:#x}"
        return [Target(self.path, where, symbol.offset + extra, not extra, why)]

    def _matching(self, pattern: str) -> list[Target]:
        from fnmatch import fnmatchcase

        found = [
            Target(self.path, symbol.name, symbol.offset, True, self.elf.arithmetic(symbol))
            for name, symbol in self.functions.items()
            if fnmatchcase(name, pattern) and not symbol.is_indirect
        ]
        if found:
            return found
        if not self.functions:
            self.elf.function(pattern)  # raises: stripped
        raise InputError(
            f"{self.path} has no function {pattern}",
            hint=nearest(pattern.strip("*?"), self.functions),
        )

    def _at(self, offset: int) -> Target:
        """A place given as an offset, with the name of the function that it is in."""
        inside = [
            symbol
            for symbol in self.functions.values()
            if symbol.offset <= offset < symbol.offset + max(symbol.size, 1)
        ]
        why = f"{offset:#x}: an offset in the file"
        if not any(first <= offset < first + size for _, first, size in self.elf.code):
            raise InputError(f"{self.path} has no code at offset {offset:#x}")
        if not inside:
            return Target(self.path, f"{offset:#x}", offset, True, why)
        symbol = min(inside, key=lambda symbol: offset - symbol.offset)
        more = offset - symbol.offset
        why += f", {symbol.name} + {more:#x}"
        name = f"{symbol.name}+{more:#x}" if more else symbol.name
        return Target(self.path, name, offset, not more, why)

    def _chosen_at_run_time(self, symbol: Symbol) -> InputError:
        near = [
            name
            for name, other in self.functions.items()
            if symbol.name in name and not other.is_indirect
        ]
        return InputError(
            f"{symbol.name} of {self.path} is chosen at run time (IFUNC)",
            why="the symbol is the function that chooses, not the one that is called",
            hint=f"functions of that name: {', '.join(near[:6])}" if near else "",
        )
