# SPDX-License-Identifier: Apache-2.0
"""A kernel function as BTF describes it: its parameters and the values in their slots.

The context of fentry, fexit and fmod_ret programs is an array of u64: the arguments, a slot for
each 8 bytes, then the result.  Source: Documentation/bpf/btf.rst; bpf_trampoline in kernel/bpf.
"""

from __future__ import annotations

from bpfkit.core.errors import InputError, UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.core.types.btf import Btf

__all__ = ["SLOTS", "Function", "Parameter"]

#: Slots of a trampoline's context (MAX_BPF_FUNC_ARGS of the kernel).
SLOTS = 12


class Parameter:
    """A parameter of a function, or its result.

    :ivar name: in the kernel's source.
    :ivar type: as C writes it.
    :ivar size: bytes.
    :ivar slots: of 8 bytes.
    :ivar is_text: it is a ``char *``.
    """

    __slots__ = ("_btf", "_id", "is_text", "name", "size", "slots", "type")

    def __init__(self, btf: Btf, name: str, type_id: int) -> None:
        from bpfkit.core.types.btf import PTR, VOID

        self._btf = btf
        self._id = type_id
        self.name = name
        self.type = btf.name_of(type_id)
        found = btf.resolve(type_id)
        self.size = 0 if found.kind == VOID else btf.sizeof(type_id)
        self.slots = -(-self.size // 8)
        self.is_text = found.kind == PTR and btf.resolve(found.ref).name == "char"

    def value(self, words: list[int]) -> Any:
        """The value of its slots: a number, an enumerator's name, an address as text."""
        from bpfkit.core.types.btf import ENUM, ENUM64, INT, PTR

        found = self._btf.resolve(self._id)
        word = words[0]
        if found.kind == PTR:
            return f"{word:#x}"
        if found.kind not in (INT, ENUM, ENUM64) or self.slots > 1:
            return " ".join(f"{word:#x}" for word in words)
        bits = 8 * found.size
        number = word & (1 << bits) - 1
        signed = number - (number >> bits - 1 << bits)
        if found.kind == INT:
            encoding = self._btf.int_encoding(found.id)[0]
            if encoding & 4:
                return bool(number & 1)
            return signed if encoding & 1 else number
        names = {value: name for name, value in self._btf.enumerators(found.id)}
        return names.get(signed, names.get(number, signed))

    def result(self, word: int) -> Any:
        """The value as a result: the address, or the errno's name where one is in its place."""
        import errno

        from bpfkit.core.types.btf import PTR

        low = word - (1 << 64)
        if self._btf.resolve(self._id).kind == PTR and -4095 <= low < 0:
            return errno.errorcode.get(-low, low)
        return self.value([word])


class Function:
    """A kernel function by BTF.

    :raises InputError: BTF has none of this name (offers the nearest), or it has too many slots.
    :raises UnsupportedError: the kernel has no BTF.
    """

    def __init__(self, name: str) -> None:
        from bpfkit.core.types.btf import vmlinux

        btf = vmlinux()
        if btf is None:
            raise UnsupportedError(
                "arguments cannot be typed",
                why="the kernel has no BTF",
                hint="it needs CONFIG_DEBUG_INFO_BTF",
            )
        number = btf.find(name, "func")
        if number is None:
            from bpfkit.core.attach.symbols import kernel_functions, nearest

            known = kernel_functions()
            inlined = name in known
            raise InputError(
                f"the kernel has no function {name}"
                if not inlined
                else f"{name} cannot be hooked by fexit",
                why="it is not in the kernel's BTF" if inlined else "",
                hint="" if inlined else nearest(name, dict.fromkeys(known)),
            )
        self.name = name
        self.id = number
        self.parameters = [
            Parameter(btf, parameter or f"arg{i}", type_id)
            for i, (parameter, type_id) in enumerate(btf.params(number), 1)
            if parameter or type_id
        ]
        self.result = Parameter(btf, "ret", btf.type(btf.type(number).ref).ref)
        self.slots = sum(parameter.slots for parameter in self.parameters)
        if self.slots > SLOTS:
            raise InputError(f"{name} has too many arguments", why=f"at most {SLOTS} are read")

    def __str__(self) -> str:
        words = []
        for parameter in self.parameters:
            gap = "" if parameter.type.endswith("*") else " "
            words.append(f"{parameter.type}{gap}{parameter.name}")
        gap = "" if self.result.type.endswith("*") else " "
        return f"{self.result.type}{gap}{self.name}({', '.join(words) or 'void'})"

    @property
    def texts(self) -> int:
        """A bit for each slot that points to text."""
        bits = slot = 0
        for parameter in self.parameters:
            bits |= int(parameter.is_text) << slot
            slot += parameter.slots
        return bits
