# SPDX-License-Identifier: Apache-2.0
"""BTF: what the types in a BPF object look like, and turning their bytes into Python values.

:class:`Btf` reads a raw BTF blob (an artifact's, a map's, ``/sys/kernel/btf/vmlinux``).  Nothing
is decoded before it is asked for.  :meth:`Btf.layout` gives a :class:`Layout`, which decodes and
encodes values of one type:

==========================  ===================================================================
C                           Python
==========================  ===================================================================
integers, ``__int128``      :class:`int`; byte order is the machine's
``__be16/32/64``            :class:`int` in host terms: port 443 is 443 (bytes swapped on the way)
``bool``                    :class:`bool`
``enum``                    :class:`EnumValue`, an int with a ``name``; a name is accepted too
``float``, ``double``       :class:`float`
pointers                    :class:`int`
``char[N]``                 :class:`str` (see ``chars`` of :meth:`Btf.layout`)
``u8[N]``                   :class:`bytes` of length N, as stored (addresses stay network order)
other arrays                :class:`tuple`
``struct``, ``union``       :class:`StructValue`: a tuple with named fields
bit-fields                  :class:`int`
spin locks, timers, …       :class:`bytes` (the kernel shows them as zeros and ignores writes)
==========================  ===================================================================

Members of anonymous structs and unions are fields of the struct around them.  The members of a
union are all there, each reading the same bytes; give one of them when making a value.

Bit order of bit-fields is the C ABI's: on little-endian machines bit offset 0 is the least
significant bit of the first byte, on big-endian ones the most significant.

Source: ``Documentation/bpf/btf.rst``, ``include/uapi/linux/btf.h``.
"""

from __future__ import annotations

import sys
from struct import Struct, unpack_from
from struct import error as struct_error

try:  # what functools and namedtuple are made of, without importing collections
    from _collections import _tuplegetter as _getter
    from _functools import partial
except ImportError:  # pragma: no cover - not CPython
    from functools import partial

    def _getter(index: int, doc: str) -> property:  # type: ignore[no-redef]
        return property(lambda self: tuple.__getitem__(self, index), doc=doc)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, TypeAlias

    import numpy as np

    Buffer: TypeAlias = "bytes | bytearray | memoryview | Any"

__all__ = [
    "Btf",
    "BtfError",
    "BtfType",
    "EnumValue",
    "Field",
    "Layout",
    "Member",
    "StructValue",
    "bytes_layout",
    "int_layout",
    "struct_layout",
]

# enum btf_kind
KINDS = (
    "VOID INT PTR ARRAY STRUCT UNION ENUM FWD TYPEDEF VOLATILE CONST RESTRICT FUNC FUNC_PROTO "
    "VAR DATASEC FLOAT DECL_TAG TYPE_TAG ENUM64"
).split()
(
    VOID,
    INT,
    PTR,
    ARRAY,
    STRUCT,
    UNION,
    ENUM,
    FWD,
    TYPEDEF,
    VOLATILE,
    CONST,
    RESTRICT,
    FUNC,
    FUNC_PROTO,
    VAR,
    DATASEC,
    FLOAT,
    DECL_TAG,
    TYPE_TAG,
    ENUM64,
) = range(20)

# 32-bit words after the 12-byte header: once, and per vlen
_WORDS = (0, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0)
_WORDS_EACH = (0, 0, 0, 0, 3, 3, 2, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 0, 0, 3)
_MODIFIERS = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)
_PREFIX = {STRUCT: "struct ", UNION: "union ", ENUM: "enum ", ENUM64: "enum ", FWD: "struct "}

_BIG_ENDIAN = ("__be16", "__be32", "__be64")
# Fields that belong to the kernel: it hides them from user space (reads give zeros).
_OPAQUE = (
    "bpf_spin_lock bpf_res_spin_lock bpf_timer bpf_wq bpf_list_head bpf_list_node bpf_rb_root "
    "bpf_rb_node bpf_refcount bpf_task_work"
).split()

_INT_CODES = {1: "bB", 2: "hH", 4: "iI", 8: "qQ"}
_new_tuple = tuple.__new__


class BtfError(ValueError):
    """The blob is not BTF, or the type has no layout in memory."""


class BtfType:
    """One entry of the type section.

    ``ref`` is what the kernel calls ``type``: the type pointed to, wrapped or returned; ``size``
    is in bytes (structs, unions, enums, ints, floats, sections).  The one that does not apply is 0.
    """

    __slots__ = ("id", "kind", "kind_flag", "name", "position", "ref", "size", "vlen")

    def __init__(
        self,
        id: int,
        kind: int,
        name: str,
        size: int,
        ref: int,
        vlen: int,
        kind_flag: bool,
        position: int,
    ) -> None:
        self.id = id
        self.kind = kind
        self.name = name
        self.size = size
        self.ref = ref
        self.vlen = vlen
        self.kind_flag = kind_flag
        self.position = position

    def __repr__(self) -> str:
        return f"<BtfType {self.id} {KINDS[self.kind]} {self.name or '(anon)'}>"


class Member:
    """A member of a struct or union; offsets in bits, ``bit_size`` 0 unless it is a bit-field."""

    __slots__ = ("bit_offset", "bit_size", "name", "type_id")

    def __init__(self, name: str, type_id: int, bit_offset: int, bit_size: int) -> None:
        self.name = name
        self.type_id = type_id
        self.bit_offset = bit_offset
        self.bit_size = bit_size

    def __repr__(self) -> str:
        bits = f":{self.bit_size}" if self.bit_size else ""
        return f"<Member {self.name}{bits} at bit {self.bit_offset}, type {self.type_id}>"


_SIZED = (INT, STRUCT, UNION, ENUM, DATASEC, FLOAT, ENUM64)


class Btf:
    """A BTF blob.

    :param data: the raw blob.  It is kept, not copied.
    :param base: for split BTF (a kernel module's), the BTF it extends: vmlinux's.
    """

    __slots__ = ("_base", "_first", "_layouts", "_offsets", "_strings", "_types", "_words", "data")

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        if len(data) < 24:
            raise BtfError(f"not BTF: {len(data)} bytes")
        magic, version, _, hdr, type_off, type_len, str_off, str_len = unpack_from(
            "=HBBIIIII", data
        )
        if magic != 0xEB9F:
            raise BtfError(
                "BTF of a machine with the other byte order"
                if magic == 0x9FEB
                else f"not BTF (magic {magic:#06x})"
            )
        if version != 1:
            raise BtfError(f"BTF version {version} is unknown")
        types = hdr + type_off
        strings = hdr + str_off
        if hdr < 24 or type_len % 4 or types + type_len > len(data) or strings + str_len > len(data):
            raise BtfError("BTF is truncated")
        self.data = data
        self._types = types
        self._words = memoryview(data)[types : types + type_len].cast("I")
        self._strings = (strings, str_len)
        self._base = base
        self._first = len(base) if base is not None else 1
        self._offsets: Sequence[int] | None = None
        self._layouts: dict[tuple[int, str], Layout] = {}

    @classmethod
    def from_file(cls, path: str, base: Btf | None = None) -> Btf:
        """Read a raw blob from a file (for instance below ``/sys/kernel/btf``)."""
        with open(path, "rb", buffering=0) as file:
            return cls(file.read(), base)

    @classmethod
    def vmlinux(cls) -> Btf:
        """The running kernel's types (CONFIG_DEBUG_INFO_BTF, 5.4); OSError where it has none."""
        return cls.from_file("/sys/kernel/btf/vmlinux")

    # --- the type section -------------------------------------------------------------------

    def _index(self) -> Sequence[int]:
        """Word offset of every own type; built at the first use."""
        if self._offsets is None:
            words, at, end = self._words, 0, len(self._words)
            fixed, each = _WORDS, _WORDS_EACH
            offsets = []
            append = offsets.append
            try:
                while at < end:
                    append(at)
                    info = words[at + 1]
                    kind = info >> 24 & 0x1F
                    at += 3 + fixed[kind] + each[kind] * (info & 0xFFFF)
            except IndexError:
                raise BtfError(f"BTF has a kind newer than this bpfkit ({kind})") from None
            if at != end:
                raise BtfError("BTF is truncated")
            self._offsets = offsets
        return self._offsets

    def __len__(self) -> int:
        """Number of types, void and those of the base included: ids are below it."""
        return self._first + len(self._index())

    def string(self, offset: int) -> str:
        """The string at an offset of the string section."""
        if self._base is not None:
            base_len = self._base._strings[1]
            if offset < base_len:
                return self._base.string(offset)
            offset -= base_len
        start, size = self._strings
        if offset >= size:
            raise BtfError(f"string offset {offset} is outside the BTF")
        at = start + offset
        return self.data[at : self.data.index(b"\0", at)].decode(errors="replace")

    def type(self, type_id: int) -> BtfType:
        """The type with this id; 0 is void."""
        if type_id < self._first:
            if type_id == 0:
                return BtfType(0, VOID, "void", 0, 0, 0, False, 0)
            if self._base is not None and type_id > 0:
                return self._base.type(type_id)
        try:
            if type_id < 0:
                raise IndexError
            at = self._index()[type_id - self._first]
        except IndexError:
            raise BtfError(f"no type {type_id} in this BTF") from None
        name_off, info, size = self._words[at : at + 3]
        kind = info >> 24 & 0x1F
        sized = kind in _SIZED
        return BtfType(
            type_id,
            kind,
            self.string(name_off) if name_off else "",
            size if sized else 0,
            0 if sized else size,
            info & 0xFFFF,
            bool(info >> 31),
            at + 3,
        )

    def types(self) -> Iterator[BtfType]:
        """Every type with its id, void and the base's left out."""
        for type_id in range(self._first, len(self)):
            yield self.type(type_id)

    def find(self, name: str, kind: int | None = None) -> int | None:
        """Id of the first type with this name (and :data:`kind`, one of this module's constants).

        Struct, union and enum names come without their keyword.
        """
        if self._base is not None:
            found = self._base.find(name, kind)
            if found is not None:
                return found
        start, size = self._strings
        wanted = name.encode() + b"\0"
        if self._base is not None and self.data.startswith(wanted, start):
            at = start - 1  # split BTF has no empty string in front
        else:
            at = self.data.find(b"\0" + wanted, start, start + size)
            if at < 0 or not name:
                return None
        from bisect import bisect_left

        offset = at + 1 - start + (self._base._strings[1] if self._base is not None else 0)
        pattern = offset.to_bytes(4, sys.byteorder)
        first, last = self._types, self._types + 4 * len(self._words)
        index = self._index()
        # Most words with this value are headers; members and enumerators are not in the index.
        at = self.data.find(pattern, first, last)
        while at >= 0:
            word, odd = divmod(at - first, 4)
            if not odd:
                slot = bisect_left(index, word)
                if slot < len(index) and index[slot] == word:
                    if kind is None or self._words[word + 1] >> 24 & 0x1F == kind:
                        return self._first + slot
            at = self.data.find(pattern, at + 1, last)
        return None

    def members(self, type_id: int) -> list[Member]:
        """The members of a struct or union, in the order of the declaration."""
        t = self.type(type_id)
        if t.kind not in (STRUCT, UNION):
            raise BtfError(f"{self.name_of(type_id)} has no members")
        words = self._owner(type_id)._words
        result = []
        for at in range(t.position, t.position + 3 * t.vlen, 3):
            name_off, member_type, offset = words[at : at + 3]
            bits = 0
            if t.kind_flag:
                offset, bits = offset & 0xFFFFFF, offset >> 24
            result.append(Member(self.string(name_off), member_type, offset, bits))
        return result

    def enumerators(self, type_id: int) -> list[tuple[str, int]]:
        """(name, value) of an enum.

        Clang before 15 does not say whether an enum is signed; small negative values then count
        as such.
        """
        t = self.type(type_id)
        words = self._owner(type_id)._words
        if t.kind == ENUM64:
            values = [
                (words[at], words[at + 1] | words[at + 2] << 32)
                for at in range(t.position, t.position + 3 * t.vlen, 3)
            ]
            bits, signed = 64, t.kind_flag
        elif t.kind == ENUM:
            values = [
                (words[at], words[at + 1])
                for at in range(t.position, t.position + 2 * t.vlen, 2)
            ]
            bits = 32
            signed = t.kind_flag or any(value > 0xFFFFF000 for _, value in values)
        else:
            raise BtfError(f"{self.name_of(type_id)} is no enum")
        sign = 1 << bits - 1 if signed else 0
        return [(self.string(name), (value ^ sign) - sign) for name, value in values]

    def params(self, type_id: int) -> list[tuple[str, int]]:
        """(name, type id) of the parameters of a FUNC_PROTO, or of the FUNC that has it."""
        t = self.type(type_id)
        if t.kind == FUNC:
            t = self.type(t.ref)
        if t.kind != FUNC_PROTO:
            raise BtfError(f"{self.name_of(type_id)} is no function")
        words = self._owner(t.id)._words
        return [
            (self.string(words[at]), words[at + 1])
            for at in range(t.position, t.position + 2 * t.vlen, 2)
        ]

    def variables(self, type_id: int) -> list[tuple[int, int, int]]:
        """(type id of the VAR, byte offset, size) of a DATASEC."""
        t = self.type(type_id)
        if t.kind != DATASEC:
            raise BtfError(f"{self.name_of(type_id)} is no section")
        words = self._owner(type_id)._words
        return [
            (words[at], words[at + 1], words[at + 2])
            for at in range(t.position, t.position + 3 * t.vlen, 3)
        ]

    def array(self, type_id: int) -> tuple[int, int]:
        """(element type id, number of elements) of an array."""
        t = self.type(type_id)
        if t.kind != ARRAY:
            raise BtfError(f"{self.name_of(type_id)} is no array")
        words = self._owner(type_id)._words
        return words[t.position], words[t.position + 2]

    def int_encoding(self, type_id: int) -> tuple[int, int, int]:
        """(encoding, bit offset, bits) of an INT; encoding 1 signed, 2 char, 4 bool."""
        t = self.type(type_id)
        if t.kind != INT:
            raise BtfError(f"{self.name_of(type_id)} is no integer")
        word = self._owner(type_id)._words[t.position]
        return word >> 24 & 0xF, word >> 16 & 0xFF, word & 0xFF

    def _owner(self, type_id: int) -> Btf:
        if self._base is not None and type_id < self._first:
            return self._base._owner(type_id)
        return self

    def resolve(self, type_id: int) -> BtfType:
        """The type without typedefs, const, volatile, restrict and type tags."""
        t = self.type(type_id)
        for _ in range(64):
            if t.kind not in _MODIFIERS:
                return t
            t = self.type(t.ref)
        raise BtfError("BTF has a loop of typedefs")

    def sizeof(self, type_id: int) -> int:
        """Size in bytes; BtfError for what has none (void, functions, incomplete types)."""
        factor = 1
        for _ in range(64):
            t = self.resolve(type_id)
            if t.kind == ARRAY:
                type_id, count = self.array(t.id)
                factor *= count
            elif t.kind == VAR:
                type_id = t.ref
            elif t.kind == PTR:
                return 8 * factor
            elif t.kind in _SIZED:
                return t.size * factor
            else:
                break
        raise BtfError(f"{self.name_of(type_id)} has no size")

    def name_of(self, type_id: int) -> str:
        """The type as C writes it, short: ``struct flow_key``, ``u8[16]``, ``char *``."""
        t = self.type(type_id)
        if t.kind == PTR:
            return f"{self.name_of(t.ref)} *"
        if t.kind == ARRAY:
            element, count = self.array(type_id)
            dims = f"[{count}]"
            while (inner := self.type(element)).kind == ARRAY:
                element, count = self.array(inner.id)
                dims += f"[{count}]"
            return self.name_of(element) + dims
        if t.kind in (VOLATILE, CONST, RESTRICT, TYPE_TAG):
            return self.name_of(t.ref)
        return _PREFIX.get(t.kind, "") + (t.name or "(anonymous)")

    # --- layouts ----------------------------------------------------------------------------

    def layout(self, type_id: int, chars: str = "str") -> Layout:
        """The :class:`Layout` of a type.

        :param chars: what ``char[N]`` becomes: ``"str"`` text up to the first NUL (UTF-8, other
            bytes kept by surrogateescape); ``"exact"`` text without the NULs at the end, so that
            it encodes to the same bytes again (what map keys use); ``"bytes"`` all N bytes.
        """
        known = self._layouts.get((type_id, chars))
        if known is None:
            known = self._layouts[type_id, chars] = self._make_layout(type_id, chars)
        return known

    def _make_layout(self, type_id: int, chars: str) -> Layout:
        name = ""
        swapped = False
        t = self.type(type_id)
        while t.kind in _MODIFIERS or t.kind == VAR:
            if t.kind == TYPEDEF:
                swapped = swapped or t.name in _BIG_ENDIAN
                name = name or t.name
            t = self.type(t.ref)
        kind = t.kind
        name = name or self.name_of(t.id)
        if kind == INT:
            encoding = self.int_encoding(t.id)[0]
            return _Int(name, t.size, bool(encoding & 1), bool(encoding & 4), swapped)
        if kind == PTR:
            return _Int(name, 8, False, False, False)
        if kind in (ENUM, ENUM64):
            return _Enum(name, t.size, self.enumerators(t.id))
        if kind == FLOAT:
            return _Float(name, t.size) if t.size in (2, 4, 8) else _Bytes(name, t.size)
        if kind == ARRAY:
            element, count = self.array(t.id)
            inner = self.resolve(element)
            if inner.kind == INT and inner.size == 1:
                encoding = self.int_encoding(inner.id)[0]
                if inner.name == "char" or encoding & 2:
                    return _Chars(f"char[{count}]", count, chars)
                if not encoding & 5:
                    return _Bytes(self.name_of(t.id), count)
            return _Array(self.name_of(t.id), self.layout(element, chars), count)
        if kind in (STRUCT, UNION):
            if t.name in _OPAQUE:
                return _Bytes(name, t.size, opaque=True)
            fields: list[Field] = []
            self._fields(t.id, 0, chars, fields, 0)
            return _Struct(t.name or name.split()[-1].strip("()"), t.size, fields, name)
        raise BtfError(f"{self.name_of(type_id)} has no layout")

    def _fields(
        self, type_id: int, base: int, chars: str, fields: list[Field], depth: int
    ) -> None:
        if depth > 32:
            raise BtfError("BTF has a struct inside itself")
        for member in self.members(type_id):
            bit = base + member.bit_offset
            bits = member.bit_size
            inner = self.resolve(member.type_id)
            if not member.name:
                if inner.kind in (STRUCT, UNION):
                    self._fields(inner.id, bit, chars, fields, depth + 1)
                continue  # padding bit-fields have no name and no value
            if inner.kind == INT and not bits:  # bit-fields as pahole wrote them before kind_flag
                _, shift, width = self.int_encoding(inner.id)
                if shift or width != 8 * inner.size:
                    bit, bits = bit + shift, width
            fields.append(Field(member.name, bit, bits, self.layout(member.type_id, chars)))


class Field:
    """A field of a struct's :class:`Layout`; offsets from its start."""

    __slots__ = ("bit_offset", "bit_size", "layout", "name")

    def __init__(self, name: str, bit_offset: int, bit_size: int, layout: Layout) -> None:
        self.name = name
        self.bit_offset = bit_offset
        #: 0 unless it is a bit-field
        self.bit_size = bit_size
        self.layout = layout

    @property
    def offset(self) -> int:
        """Offset in bytes; of a bit-field, the byte with its first bit."""
        return self.bit_offset // 8

    @property
    def end(self) -> int:
        """Byte behind the field."""
        if self.bit_size:
            return (self.bit_offset + self.bit_size + 7) // 8
        return self.offset + self.layout.size

    def __repr__(self) -> str:
        bits = f":{self.bit_size}" if self.bit_size else ""
        return f"<Field {self.layout.name} {self.name}{bits} at {self.bit_offset / 8:g}>"


class EnumValue(int):
    """A value of a C enum: an int with the enumerator's name (None where it has none).

    ``str()`` is the name, else the number; JSON carries the number.
    """

    name: str | None

    def __str__(self) -> str:
        return self.name or int.__repr__(self)

    def __repr__(self) -> str:
        return f"<{self.name}: {int.__repr__(self)}>" if self.name else int.__repr__(self)


class StructValue(tuple):  # type: ignore[type-arg]
    """A struct or union: a tuple with named fields, made by a :class:`Layout`.

    Equal to, and hashed like, the plain tuple of its fields.  ``Type(a=1)`` fills what is not
    given with zeros; positional arguments follow the order of the declaration.
    """

    __slots__ = ()
    _fields: tuple[str, ...] = ()
    _layout: _Struct

    def __new__(cls, *args: Any, **kwargs: Any) -> StructValue:
        layout = cls._layout
        if args:
            if len(args) > len(cls._fields):
                raise TypeError(f"{cls.__name__} has {len(cls._fields)} fields, got {len(args)}")
            for name, value in zip(cls._fields, args, strict=False):
                if name in kwargs:
                    raise TypeError(f"{cls.__name__}.{name} is given twice")
                kwargs[name] = value
        made: StructValue = layout.decode(layout.encode(kwargs))
        return made

    def _asdict(self) -> dict[str, Any]:
        """Fields by name; structs inside become dicts too."""
        return {name: _plain(value) for name, value in zip(self._fields, self, strict=True)}

    def _replace(self, **kwargs: Any) -> StructValue:
        """A copy with some fields changed; in a union the member given wins."""
        layout = self._layout
        return layout.decode(layout.overlay(layout.encode(self), kwargs))  # type: ignore[no-any-return]

    def __bytes__(self) -> bytes:
        return self._layout.encode(self)

    def __repr__(self) -> str:
        inner = ", ".join(f"{n}={v!r}" for n, v in zip(self._fields, self, strict=True))
        return f"{type(self).__name__}({inner})"

    def __copy__(self) -> StructValue:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> StructValue:
        return self  # nothing inside can change

    def __reduce__(self) -> tuple[Any, ...]:
        # The class exists only here; what travels to another process is the plain tuple.
        return tuple, (tuple(self),)


def _plain(value: Any) -> Any:
    if isinstance(value, StructValue):
        return value._asdict()
    if type(value) is tuple:
        return tuple([_plain(item) for item in value])
    return value


def _is_bytes(value: Any) -> bool:
    return isinstance(value, (bytes, bytearray, memoryview))


class Layout:
    """How values of one type lie in memory.

    A layout is a :mod:`struct` format over *cells* (integers, floats, byte strings) and an
    expression that makes the value from the unpacked cells, so that decoding 100 000 of them
    stays in C wherever the type allows it.
    """

    __slots__ = (
        "_code",
        "_env",
        "_make_",
        "_make_row_",
        "_n",
        "_native",
        "_ops",
        "_swaps",
        "fmt",
        "name",
        "size",
    )

    #: True where the value *is* its single cell
    _identity = False

    def __init__(
        self,
        name: str,
        size: int,
        fmt: str,
        n: int,
        native: int = 0,
        swaps: tuple[tuple[int, int], ...] = (),
    ) -> None:
        #: the type as C writes it
        self.name = name
        #: bytes
        self.size = size
        #: cells in the terms of :mod:`struct`, without byte order
        self.fmt = fmt
        self._n = n
        self._native = native  # cells whose bytes depend on the machine's byte order
        self._swaps = swaps  # (offset, size) of big-endian integers
        self._ops: tuple[Struct, tuple[tuple[int, int], ...]] | None = None
        self._make_: Callable[[tuple[Any, ...]], Any] | None = None
        self._make_row_: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None

    def __repr__(self) -> str:
        return f"<Layout {self.name}, {self.size} bytes>"

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a struct or union, empty for other types."""
        return ()

    # Subclasses say how cells become a value, and a value cells.

    def _expr(self, at: int, env: dict[str, Any]) -> str:
        """Python source that makes the value from the cells ``t[at:]``."""
        raise NotImplementedError

    def _row_expr(self, env: dict[str, Any]) -> str:
        return f"({self._expr(0, env)},)"

    def _cells(self, value: Any, out: list[Any]) -> None:
        """Append the cells of ``value`` (None: of zeros)."""
        raise NotImplementedError

    def _dtype(self) -> Any:
        raise NotImplementedError

    def _leaves(self) -> list[tuple[int, str]] | None:
        """(offset, struct code) of each cell if all are machine-order integers, else None."""
        return None

    def _mask(self) -> bytes:
        """Ones where a value has bits, zeros where there is padding."""
        return b"\xff" * self.size

    # What users call.

    def _prepare(self) -> tuple[Struct, tuple[tuple[int, int], ...]]:
        if self._swaps and not self._native:
            self._ops = Struct(">" + self.fmt), ()
        else:
            self._ops = Struct("=" + self.fmt), self._swaps
        return self._ops

    def _maker(self) -> Callable[[tuple[Any, ...]], Any]:
        if self._make_ is None:
            env: dict[str, Any] = {"N": _new_tuple, "F": int.from_bytes}
            self._make_ = eval(f"lambda t: {self._expr(0, env)}", env)
        return self._make_

    def _row_maker(self) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
        if self._make_row_ is None:
            env: dict[str, Any] = {"N": _new_tuple, "F": int.from_bytes}
            self._make_row_ = eval(f"lambda t: {self._row_expr(env)}", env)
        return self._make_row_

    def decode(self, data: Buffer, offset: int = 0) -> Any:
        """The value in ``data[offset:]``; ValueError when there are fewer than ``size`` bytes."""
        form, swaps = self._ops or self._prepare()
        if swaps:
            data = bytearray(data[offset : offset + self.size])
            offset = 0
            _swap(data, swaps)
        try:
            cells = form.unpack_from(data, offset)
        except struct_error:
            raise ValueError(
                f"{self.name} is {self.size} bytes, there are {len(data) - offset}"
            ) from None
        return (self._make_ or self._maker())(cells)

    def encode(self, value: Any) -> bytes:
        """``value`` as ``size`` bytes.

        Exactly ``size`` raw bytes pass unchanged; None gives zeros.

        :raises TypeError, ValueError: naming the field that does not fit.
        """
        if _is_bytes(value) and len(value) == self.size:
            return bytes(value)
        form, swaps = self._ops or self._prepare()
        cells: list[Any] = []
        self._cells(value, cells)
        try:
            data = form.pack(*cells)
        except struct_error as error:
            raise self._misfit(value, error) from None
        if swaps:
            changed = bytearray(data)
            _swap(changed, swaps)
            return bytes(changed)
        return data

    def decode_all(self, data: Buffer) -> Any:
        """Like :meth:`decode`, but a flexible array at the end takes what ``data`` has left."""
        return self.decode(data)

    def _misfit(self, value: Any, error: Exception) -> Exception:
        if isinstance(value, int):
            return ValueError(f"{value} does not fit into {self.name}")
        return TypeError(f"{value!r} is no {self.name}: {error}")

    def _unpacked(self, data: Buffer, count: int | None) -> Iterator[tuple[Any, ...]]:
        """Cells of each of ``count`` values that lie one behind the other."""
        form, swaps = self._ops or self._prepare()
        view = memoryview(data)
        if count is not None:
            view = view[: count * self.size]
        if swaps:
            changed = bytearray(view)
            for offset, size in swaps:
                for low in range(size // 2):
                    a = slice(offset + low, None, self.size)
                    b = slice(offset + size - 1 - low, None, self.size)
                    changed[a], changed[b] = changed[b], changed[a]
            return form.iter_unpack(changed)
        return form.iter_unpack(view)

    def decode_many(self, data: Buffer, count: int | None = None) -> list[Any]:
        """Values that lie one behind the other: all of ``data``, or its first ``count``."""
        return list(map(self._make_ or self._maker(), self._unpacked(data, count)))

    def rows(self, data: Buffer, count: int | None = None) -> Iterator[tuple[Any, ...]]:
        """Like :meth:`decode_many`, each value a plain tuple of its fields (one if no struct)."""
        return map(self._make_row_ or self._row_maker(), self._unpacked(data, count))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the elements of a row; empty where the type has no fields."""
        return tuple([field.name for field in self.fields])

    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of the same bytes: structured, with C's offsets and size.

        ``__be16`` is ``>u2``, ``char[N]`` ``SN``, ``u8[N]`` a subarray; enums are integers,
        128-bit integers two u8.  Members of unions overlap.  Bit-fields come as the whole bytes
        that hold them, under ``bits@OFFSET``; :meth:`bit_field` takes one out.
        """
        import numpy as np

        return np.dtype(self._dtype())

    def bit_field(self, array: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        """One bit-field of an array of :meth:`numpy_dtype`."""
        raise KeyError(name)


def _swap(data: bytearray, swaps: tuple[tuple[int, int], ...]) -> None:
    for offset, size in swaps:
        data[offset : offset + size] = data[offset : offset + size][::-1]


class _Int(Layout):
    __slots__ = ("boolean", "signed")

    def __init__(self, name: str, size: int, signed: bool, boolean: bool, swapped: bool) -> None:
        self.signed = signed
        self.boolean = boolean
        multi = size > 1
        codes = _INT_CODES.get(size)
        if codes is None or (boolean and size > 1):
            fmt = f"{size}s"
            swapped = multi = False
            codes = None
        else:
            fmt = "?" if boolean else codes[not signed]
        self._code = "" if codes is None else fmt
        swaps = ((0, size),) if swapped and multi else ()
        super().__init__(name, size, fmt, 1, int(multi and not swaps), swaps)

    @property
    def _identity(self) -> bool:  # type: ignore[override]
        return bool(self._code)

    def _expr(self, at: int, env: dict[str, Any]) -> str:
        if self._code:
            return f"t[{at}]"
        text = f"F(t[{at}], {sys.byteorder!r}, signed={self.signed})"
        return f"{text} != 0" if self.boolean else text

    def _cells(self, value: Any, out: list[Any]) -> None:
        if value is None:
            value = 0
        elif _is_bytes(value):
            if len(value) != self.size:
                raise ValueError(f"{self.name} is {self.size} bytes, got {len(value)}")
            order = "big" if self._swaps else sys.byteorder
            value = int.from_bytes(value, order, signed=self.signed)  # type: ignore[arg-type]
        if not self._code:
            try:
                value = int(value).to_bytes(self.size, sys.byteorder, signed=self.signed)
            except OverflowError:
                raise ValueError(f"{value} does not fit into {self.name}") from None
        elif type(value) is float or isinstance(value, str):
            raise TypeError(f"{value!r} is no {self.name}")
        out.append(value)

    def _leaves(self) -> list[tuple[int, str]] | None:
        return [(0, self.fmt)] if self._code and not self.boolean and not self._swaps else None

    def _dtype(self) -> Any:
        if self.boolean and self.size == 1:
            return "?"
        if self.size == 16:
            return ("u8", (2,))
        if self.size not in _INT_CODES:
            return f"V{self.size}"
        order = ">" if self._swaps else "="
        return f"{order}{'i' if self.signed else 'u'}{self.size}"

    def decode_many(self, data: Buffer, count: int | None = None) -> list[Any]:
        if self._code and not self._swaps:
            view = memoryview(data)
            if count is not None:
                view = view[: count * self.size]
            return view.cast("B").cast(self._code).tolist()  # type: ignore[call-overload,no-any-return]
        return Layout.decode_many(self, data, count)


class _Enum(Layout):
    __slots__ = ("by_name", "by_value", "signed")

    def __init__(self, name: str, size: int, values: list[tuple[str, int]]) -> None:
        self.signed = any(value < 0 for _, value in values)
        self.by_name = dict(values)
        self.by_value: dict[int, EnumValue] = {}
        for label, value in reversed(values):  # of two names for one value the first wins
            self._know(value, label)
        super().__init__(name, size, _INT_CODES[size][not self.signed], 1, int(size > 1))

    def _know(self, value: int, label: str | None) -> EnumValue:
        made = EnumValue(value)
        made.name = label
        if label is not None or len(self.by_value) < 65536:
            self.by_value[value] = made
        return made

    def _expr(self, at: int, env: dict[str, Any]) -> str:
        env[label := f"e{id(self)}"] = self._lookup
        return f"{label}(t[{at}])"

    def _lookup(self, number: int) -> EnumValue:
        found = self.by_value.get(number)
        return self._know(number, None) if found is None else found

    def _number(self, value: Any) -> int:
        if isinstance(value, str):
            try:
                return self.by_name[value]
            except KeyError:
                raise ValueError(f"{self.name} has no {value!r}") from None
        if _is_bytes(value):
            return int.from_bytes(value, sys.byteorder, signed=self.signed)
        return value or 0

    def _cells(self, value: Any, out: list[Any]) -> None:
        out.append(self._number(value))

    def _dtype(self) -> Any:
        return f"={'i' if self.signed else 'u'}{self.size}"


class _Float(Layout):
    __slots__ = ()
    _identity = True

    def __init__(self, name: str, size: int) -> None:
        super().__init__(name, size, {2: "e", 4: "f", 8: "d"}[size], 1, 1)

    def _expr(self, at: int, env: dict[str, Any]) -> str:
        return f"t[{at}]"

    def _cells(self, value: Any, out: list[Any]) -> None:
        out.append(0.0 if value is None else value)

    def _dtype(self) -> Any:
        return f"=f{self.size}"


class _Bytes(Layout):
    """``u8[N]``, what has no BTF, and what belongs to the kernel (``opaque``)."""

    __slots__ = ("opaque",)
    _identity = True

    def __init__(self, name: str, size: int, opaque: bool = False) -> None:
        self.opaque = opaque
        super().__init__(name, size, f"{size}s", 1)

    def _expr(self, at: int, env: dict[str, Any]) -> str:
        return f"t[{at}]"

    def _cells(self, value: Any, out: list[Any]) -> None:
        if value is None:
            value = bytes(self.size)
        elif isinstance(value, (tuple, list)):
            value = bytes(value)
        elif not _is_bytes(value):
            raise TypeError(f"{self.name} takes {self.size} bytes, got {value!r}")
        if len(value) != self.size:
            raise ValueError(f"{self.name} is {self.size} bytes, got {len(value)}")
        out.append(bytes(value))

    def _dtype(self) -> Any:
        return f"V{self.size}" if self.opaque else ("u1", (self.size,))


class _Chars(Layout):
    __slots__ = ("mode",)

    def __init__(self, name: str, size: int, mode: str) -> None:
        if mode not in ("str", "exact", "bytes"):
            raise ValueError(f"chars is 'str', 'exact' or 'bytes', not {mode!r}")
        self.mode = mode
        super().__init__(name, size, f"{size}s", 1)

    @property
    def _identity(self) -> bool:  # type: ignore[override]
        return self.mode == "bytes"

    def _expr(self, at: int, env: dict[str, Any]) -> str:
        if self.mode == "bytes":
            return f"t[{at}]"
        cut = "partition(b'\\0')[0]" if self.mode == "str" else "rstrip(b'\\0')"
        return f"t[{at}].{cut}.decode('utf-8', 'surrogateescape')"

    def _cells(self, value: Any, out: list[Any]) -> None:
        if value is None:
            value = b""
        elif isinstance(value, str):
            value = value.encode("utf-8", "surrogateescape")
        elif not _is_bytes(value):
            raise TypeError(f"{self.name} takes text, got {value!r}")
        if len(value) > self.size:
            raise ValueError(f"{value!r} is longer than {self.name}")
        out.append(bytes(value))

    def _dtype(self) -> Any:
        return f"S{self.size}"


class _Array(Layout):
    __slots__ = ("count", "element")

    def __init__(self, name: str, element: Layout, count: int) -> None:
        self.element = element
        self.count = count
        if element._identity and element.fmt in "bBhHiIqQ?efd":
            fmt = f"{count}{element.fmt}" if count else ""
        else:
            fmt = element.fmt * count
        swaps = tuple(
            [
                (i * element.size + offset, size)
                for i in range(count)
                for offset, size in element._swaps
            ]
        )
        super().__init__(
            name, element.size * count, fmt, element._n * count, element._native * count, swaps
        )

    def _expr(self, at: int, env: dict[str, Any]) -> str:
        n = self.element._n
        if self.element._identity:
            return f"t[{at}:{at + self.count}]"
        if self.count <= 8:
            return "(" + "".join(f"{self.element._expr(at + i * n, env)}," for i in range(self.count)) + ")"
        env[label := f"a{id(self)}"] = self.element._maker()
        return f"tuple([{label}(t[i:i + {n}]) for i in range({at}, {at + n * self.count}, {n})])"

    def _cells(self, value: Any, out: list[Any]) -> None:
        element = self.element
        if value is None:
            value = (None,) * self.count
        elif _is_bytes(value) and len(value) == self.size:
            value = element.decode_many(value)
        elif isinstance(value, (str, int)) or not hasattr(value, "__len__"):
            raise TypeError(f"{self.name} takes {self.count} values, got {value!r}")
        if len(value) != self.count:
            raise ValueError(f"{self.name} takes {self.count} values, got {len(value)}")
        for item in value:
            element._cells(item, out)

    def _mask(self) -> bytes:
        return self.element._mask() * self.count

    def _leaves(self) -> list[tuple[int, str]] | None:
        inner = self.element._leaves()
        if inner is None:
            return None
        size = self.element.size
        return [(i * size + offset, code) for i in range(self.count) for offset, code in inner]

    def _dtype(self) -> Any:
        return (self.element._dtype(), (self.count,))


class _Struct(Layout):
    """Structs and unions.

    Fields that share bytes (union members, bit-fields) form a group with one raw cell between
    them; every other field has cells of its own.
    """

    __slots__ = ("_fields", "_flat", "_groups", "_index", "_type", "type_name")

    def __init__(self, type_name: str, size: int, fields: list[Field], name: str = "") -> None:
        self.type_name = type_name
        self._fields = tuple(fields)
        self._index = {field.name: i for i, field in enumerate(fields)}
        self._type: type[StructValue] | None = None
        # (offset, end, [field numbers], is the cell an integer)
        groups: list[tuple[int, int, list[int], bool]] = []
        for i in sorted(range(len(fields)), key=lambda i: fields[i].offset):
            field = fields[i]
            start, end = field.offset, field.end
            if end > size:
                raise BtfError(f"{name or type_name}.{field.name} lies outside the struct")
            if groups and end > start and groups[-1][1] > start:
                first, last, members, _ = groups[-1]
                groups[-1] = first, max(last, end), [*members, i], False
            else:
                groups.append((start, end, [i], False))
        fmt: list[str] = []
        at = n = native = 0
        swaps: list[tuple[int, int]] = []
        flat = True
        for g, (start, end, members, _) in enumerate(groups):
            if start > at:
                fmt.append(f"{start - at}x")
            layout = fields[members[0]].layout
            if len(members) == 1 and not fields[members[0]].bit_size:
                fmt.append(layout.fmt)
                n += layout._n
                native += layout._native
                swaps += [(start + offset, width) for offset, width in layout._swaps]
                flat = flat and layout._identity
            else:
                flat = False
                width = end - start
                integer = width in _INT_CODES and all(fields[i].bit_size for i in members)
                groups[g] = start, end, members, integer
                fmt.append(_INT_CODES[width][1] if integer else f"{width}s")
                n += 1
                native += integer and width > 1
            at = max(at, end)
        if size > at:
            fmt.append(f"{size - at}x")
        self._groups = groups
        # one cell a field, in the order of the fields
        self._flat = flat and [g[2][0] for g in groups] == list(range(len(fields)))
        super().__init__(name or type_name, size, "".join(fmt), n, native, tuple(swaps))

    @property
    def fields(self) -> tuple[Field, ...]:
        return self._fields

    @property
    def value_class(self) -> type[StructValue]:
        """The class of the values."""
        if self._type is None:
            body: dict[str, Any] = {
                field.name: _getter(i, field.layout.name) for i, field in enumerate(self._fields)
            }
            body["__slots__"] = ()
            body["_fields"] = tuple([field.name for field in self._fields])
            body["_layout"] = self
            self._type = type(self.type_name, (StructValue,), body)
        return self._type

    def __call__(self, *args: Any, **kwargs: Any) -> StructValue:
        """Make a value: fields by position or name, the rest zeros."""
        return self.value_class(*args, **kwargs)

    # --- cells to value

    def _bits_expr(self, field: Field, cell: str, start: int, width: int) -> str:
        if sys.byteorder == "little":
            shift = field.bit_offset - 8 * start
        else:
            shift = 8 * width - (field.bit_offset - 8 * start) - field.bit_size
        text = f"{cell} >> {shift} & {(1 << field.bit_size) - 1}"
        layout = field.layout
        if isinstance(layout, _Int) and layout.boolean:
            return f"({text}) != 0"
        if getattr(layout, "signed", False):
            sign = 1 << field.bit_size - 1
            text = f"(({text}) ^ {sign}) - {sign}"
        return text

    def _parts(self, at: int, env: dict[str, Any]) -> str:
        parts = [""] * len(self._fields)
        for start, end, members, integer in self._groups:
            first = self._fields[members[0]]
            if len(members) == 1 and not first.bit_size:
                parts[members[0]] = first.layout._expr(at, env)
                at += first.layout._n
                continue
            cell = f"t[{at}]"
            for i in members:
                field = self._fields[i]
                if field.bit_size:
                    whole = cell if integer else self._slice(cell, field, start, end)
                    if integer:
                        text = self._bits_expr(field, whole, start, end - start)
                    else:
                        text = self._bits_expr(field, whole, field.offset, field.end - field.offset)
                    if isinstance(field.layout, _Enum):
                        env[label := f"e{id(field.layout)}"] = field.layout._lookup
                        text = f"{label}({text})"
                    parts[i] = text
                else:
                    env[label := f"u{id(field.layout)}"] = field.layout.decode
                    parts[i] = f"{label}({cell}, {field.offset - start})"
            at += 1
        return "(" + "".join([part + "," for part in parts]) + ")"

    @staticmethod
    def _slice(cell: str, field: Field, start: int, end: int) -> str:
        return f"F({cell}[{field.offset - start}:{field.end - start}], {sys.byteorder!r})"

    def _expr(self, at: int, env: dict[str, Any]) -> str:
        env[label := f"s{id(self)}"] = self.value_class
        if self._flat:
            return f"N({label}, t[{at}:{at + self._n}])"
        return f"N({label}, {self._parts(at, env)})"

    def _row_expr(self, env: dict[str, Any]) -> str:
        return self._parts(0, env)

    def _maker(self) -> Callable[[tuple[Any, ...]], Any]:
        if self._make_ is None and self._flat:
            self._make_ = partial(_new_tuple, self.value_class)
            return self._make_
        return Layout._maker(self)

    def rows(self, data: Buffer, count: int | None = None) -> Iterator[tuple[Any, ...]]:
        if self._flat:
            return self._unpacked(data, count)
        return Layout.rows(self, data, count)

    # --- value to cells

    def _values(self, value: Any) -> Sequence[Any]:
        """One value a field; None for what is not given."""
        if value is None:
            return (None,) * len(self._fields)
        if isinstance(value, (tuple, list)):
            if len(value) != len(self._fields):
                names = ", ".join(self._index)
                raise ValueError(
                    f"{self.name} has {len(self._fields)} fields ({names}), got {len(value)}"
                )
            return value
        if hasattr(value, "keys"):
            values: list[Any] = [None] * len(self._fields)
            for name in value.keys():
                i = self._index.get(name)
                if i is None:
                    raise ValueError(f"{self.name} has no field {name!r}: {', '.join(self._index)}")
                values[i] = value[name]
            return values
        raise TypeError(f"{value!r} is no {self.name}")

    def _cells(self, value: Any, out: list[Any]) -> None:
        if _is_bytes(value):
            if len(value) != self.size:
                raise ValueError(f"{self.name} is {self.size} bytes, got {len(value)}")
            value = self.decode(value)
        values = self._values(value)
        for start, end, members, integer in self._groups:
            field = self._fields[members[0]]
            if len(members) == 1 and not field.bit_size:
                try:
                    field.layout._cells(values[members[0]], out)
                except (TypeError, ValueError) as error:
                    raise type(error)(f"{self.type_name}.{field.name}: {error}") from None
                continue
            raw = self._overlap(values, start, end, members)
            # A value of our own agrees with itself, whatever wrote it; a stranger's must be checked.
            if not isinstance(value, StructValue) and not all(
                self._fields[i].bit_size for i in members
            ):
                self._agree(values, raw, start, members)
            out.append(int.from_bytes(raw, sys.byteorder) if integer else bytes(raw))

    def _overlap(
        self, values: Sequence[Any], start: int, end: int, members: list[int]
    ) -> bytearray:
        raw = bytearray(end - start)
        # char arrays decode with loss (what follows the NUL): the others come after and win
        order = sorted(members, key=lambda i: not isinstance(self._fields[i].layout, _Chars))
        for i in order:
            if values[i] is not None:
                self._put(raw, start, self._fields[i], values[i])
        return raw

    def _put(self, raw: bytearray, start: int, field: Field, value: Any) -> None:
        """Write one field into bytes that begin at offset ``start``."""
        at = field.offset - start
        layout = field.layout
        if not field.bit_size:
            try:
                data = layout.encode(value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{self.type_name}.{field.name}: {error}") from None
            if isinstance(layout, (_Struct, _Array)):
                # not its padding: in a union that may be another member's
                mask = int.from_bytes(layout._mask(), "little")
                old = int.from_bytes(raw[at : at + layout.size], "little")
                new = old & ~mask | int.from_bytes(data, "little") & mask
                data = new.to_bytes(layout.size, "little")
            raw[at : at + layout.size] = data
            return
        number = layout._number(value) if isinstance(layout, _Enum) else value
        try:
            number = number.__index__()
        except AttributeError:
            raise TypeError(f"{self.type_name}.{field.name}: {value!r} is no number") from None
        bits = field.bit_size
        low, high = (
            (-(1 << bits - 1), 1 << bits - 1) if getattr(layout, "signed", False) else (0, 1 << bits)
        )
        if not low <= number < high:
            raise ValueError(f"{self.type_name}.{field.name}: {number} does not fit into {bits} bits")
        width = field.end - field.offset
        if sys.byteorder == "little":
            shift = field.bit_offset - 8 * field.offset
        else:
            shift = 8 * width - (field.bit_offset - 8 * field.offset) - bits
        mask = (1 << bits) - 1
        whole = int.from_bytes(raw[at : at + width], sys.byteorder)
        whole = whole & ~(mask << shift) | (number & mask) << shift
        raw[at : at + width] = whole.to_bytes(width, sys.byteorder)

    def _agree(
        self, values: Sequence[Any], raw: bytearray, start: int, members: list[int]
    ) -> None:
        given = [i for i in members if values[i] is not None]
        if len(given) < 2:
            return
        for i in given:
            field = self._fields[i]
            check = bytearray(raw)
            self._put(check, start, field, values[i])
            if check != raw and not isinstance(field.layout, _Chars):
                names = ", ".join([self._fields[k].name for k in given])
                raise ValueError(f"{self.name}: {names} share bytes and disagree; give one of them")

    def encode(self, value: Any) -> bytes:
        if self._flat and isinstance(value, tuple) and not self._swaps:
            try:
                return (self._ops or self._prepare())[0].pack(*value)
            except struct_error:
                pass  # None, bytes for a number …: the long way, with its checks and messages
        return Layout.encode(self, value)

    def decode_all(self, data: Buffer) -> Any:
        value = self.decode(data)
        last = self._fields[-1] if self._fields else None
        rest = len(data) - last.offset if last is not None else 0
        if last is None or last.layout.size or last.bit_size or rest <= 0:
            return value
        tail = last.layout
        whole: Layout
        if isinstance(tail, _Chars):
            whole = _Chars(tail.name, rest, tail.mode)
        elif isinstance(tail, _Array) and tail.element.size:
            whole = _Array(tail.name, tail.element, rest // tail.element.size)
        elif isinstance(tail, _Bytes):
            whole = _Bytes(tail.name, rest)
        else:
            return value
        return _new_tuple(
            self.value_class, (*value[:-1], whole.decode(data, last.offset))
        )

    def _mask(self) -> bytes:
        mask = bytearray(self.size)
        for field in self._fields:
            if field.bit_size:
                signed = getattr(field.layout, "signed", False)
                self._put(mask, 0, field, -1 if signed else (1 << field.bit_size) - 1)
            else:
                end = field.offset + field.layout.size
                inner = field.layout._mask()
                mask[field.offset : end] = bytes(
                    [a | b for a, b in zip(mask[field.offset : end], inner, strict=True)]
                )
        return bytes(mask)

    def overlay(self, data: bytes, values: Mapping[str, Any]) -> bytes:
        """``data`` with the fields of ``values`` written over it."""
        raw = bytearray(data)
        for name, value in values.items():
            if name not in self._index:
                raise ValueError(f"{self.name} has no field {name!r}: {', '.join(self._index)}")
            self._put(raw, 0, self._fields[self._index[name]], value)
        return bytes(raw)

    def _misfit(self, value: Any, error: Exception) -> Exception:
        # struct says only that some cell is bad: find out which.
        for field, item in zip(self._fields, self._values(value), strict=True):
            if not field.bit_size:
                try:
                    field.layout.encode(item)
                except (TypeError, ValueError) as inner:
                    return type(inner)(f"{self.type_name}.{field.name}: {inner}")
        return TypeError(f"{value!r} is no {self.name}: {error}")

    # --- numbers

    def _leaves(self) -> list[tuple[int, str]] | None:
        result = []
        if not self._flat:
            # nested structs and arrays of counters are fine as long as no byte is shared
            if any(len(members) > 1 or integer for _, _, members, integer in self._groups):
                return None
        for field in self._fields:
            inner = None if field.bit_size else field.layout._leaves()
            if inner is None:
                return None
            result += [(field.offset + offset, code) for offset, code in inner]
        return sorted(result)  # the order of the cells

    def _window(self, members: list[int]) -> tuple[list[Field], int, int]:
        """The bit-fields among ``members``, and the (first, last) byte NumPy reads them from."""
        bits = [self._fields[i] for i in members if self._fields[i].bit_size]
        if not bits:
            return bits, 0, 0
        first, last = bits[0].offset, max([field.end for field in bits])
        for width in (1, 2, 4, 8):
            if last - first <= width <= self.size - first:
                return bits, first, first + width
        return bits, first, last

    def _dtype(self) -> Any:
        names: list[str] = []
        formats: list[Any] = []
        offsets: list[int] = []
        for _, _, members, _ in self._groups:
            bits, first, last = self._window(members)
            if bits:
                names.append(f"bits@{first}")
                width = last - first
                formats.append(f"=u{width}" if width in _INT_CODES else f"V{width}")
                offsets.append(first)
            for i in members:
                field = self._fields[i]
                if not field.bit_size:
                    names.append(field.name)
                    formats.append(field.layout._dtype())
                    offsets.append(field.offset)
        return {"names": names, "formats": formats, "offsets": offsets, "itemsize": self.size}

    def bit_field(self, array: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        field = self._fields[self._index[name]]
        if not field.bit_size:
            return array[name]
        for _, _, members, _ in self._groups:
            bits, first, last = self._window(members)
            if field in bits:
                if last - first not in _INT_CODES:
                    raise TypeError(f"{name} lies in {last - first} bytes; NumPy has no such integer")
                shift = field.bit_offset - 8 * first
                if sys.byteorder != "little":
                    shift = 8 * (last - first) - shift - field.bit_size
                whole = array[f"bits@{first}"].astype("u8")
                result: np.ndarray[Any, Any] = whole >> shift & ((1 << field.bit_size) - 1)
                if getattr(field.layout, "signed", False):
                    sign = 1 << field.bit_size - 1
                    result = (result ^ sign).astype("i8") - sign
                return result
        raise KeyError(name)


def int_layout(size: int, signed: bool = False, name: str = "") -> Layout:
    """An integer of 1, 2, 4, 8 or 16 bytes in the machine's byte order, where there is no BTF."""
    return _Int(name or f"{'s' if signed else 'u'}{8 * size}", size, signed, False, False)


def bytes_layout(size: int, name: str = "") -> Layout:
    """``size`` bytes as they are."""
    return _Bytes(name or f"u8[{size}]", size)


def struct_layout(name: str, fields: Iterable[tuple[str, Layout]], size: int = 0) -> _Struct:
    """A struct where there is no BTF: fields one behind the other, without padding."""
    at = 0
    made = []
    for label, layout in fields:
        made.append(Field(label, 8 * at, 0, layout))
        at += layout.size
    return _Struct(name, size or at, made)
