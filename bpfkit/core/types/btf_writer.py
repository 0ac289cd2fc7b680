# SPDX-License-Identifier: Apache-2.0
"""BTF made by hand, for maps and programs that the kernel takes only with BTF.

Source: ``Documentation/bpf/btf.rst``.
"""

from __future__ import annotations

from struct import Struct, pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BtfBuilder", "tiny_btf", "xdp_btf"]

_HEADER = Struct("<HBBIIIII")


class BtfBuilder:
    """Writes a BTF blob: enough for maps with BTF and programs with functions."""

    __slots__ = ("_count", "_strings", "_types")

    def __init__(self) -> None:
        self._types = bytearray()
        self._strings = bytearray(b"\0")
        self._count = 0

    def string(self, text: str) -> int:
        """Offset of a string in the string section."""
        at = len(self._strings)
        self._strings += text.encode() + b"\0"
        return at if text else 0

    def add(
        self, kind: int, name: str = "", size_or_type: int = 0, vlen: int = 0, data: bytes = b""
    ) -> int:
        """Append a type (``struct btf_type`` and what follows it); returns its id."""
        self._types += pack("<III", self.string(name), kind << 24 | vlen, size_or_type) + data
        self._count += 1
        return self._count

    def int_(self, name: str, size: int, signed: bool = True) -> int:
        """An integer of ``size`` bytes."""
        return self.add(1, name, size, 0, pack("<I", signed << 24 | size * 8))

    def pointer(self, to: int) -> int:
        """A pointer; 0 is void."""
        return self.add(2, "", to)

    def function(
        self, name: str, returns: int, args: Sequence[tuple[str, int]], linkage: int
    ) -> int:
        """A function (its prototype is added first); linkage 0 static, 1 global."""
        data = b"".join(pack("<II", self.string(arg), kind) for arg, kind in args)
        return self.add(12, name, self.add(13, "", returns, len(args), data), linkage)

    def blob(self) -> bytes:
        """Header, types and strings: what BPF_BTF_LOAD takes."""
        size = len(self._types)
        head = _HEADER.pack(0xEB9F, 1, 0, _HEADER.size, 0, size, size, len(self._strings))
        return head + bytes(self._types) + bytes(self._strings)


def tiny_btf() -> tuple[bytes, int, int]:
    """A blob with ``int`` (type 1) and two static functions ``int main(void *)``, ``callback``.

    Returns (blob, id of main, id of callback).
    """
    btf = BtfBuilder()
    number = btf.int_("int", 4)
    pointer = btf.pointer(0)
    main = btf.function("main", number, [("ctx", pointer)], 0)
    callback = btf.function("callback", number, [("index", number), ("ctx", pointer)], 0)
    return btf.blob(), main, callback


def xdp_btf() -> tuple[bytes, int]:
    """A blob with a global ``int main(struct xdp_md *)``, and the id of main."""
    btf = BtfBuilder()
    number = btf.int_("int", 4)
    context = btf.add(4, "xdp_md", 4, 1, pack("<III", btf.string("data"), number, 0))
    main = btf.function("main", number, [("ctx", btf.pointer(context))], 1)
    return btf.blob(), main
