# SPDX-License-Identifier: Apache-2.0
"""BTF: what the types in a BPF object look like, and turning their bytes into Python values.

:class:`Btf` reads a raw BTF blob (an artifact's, a map's, ``/sys/kernel/btf/vmlinux``).  Nothing
is decoded before it is asked for.  :meth:`Btf.layout` gives a
:class:`~bpfkit.core.types.layout.Layout`, which decodes and encodes values of one type; that module
says what C becomes in Python.

Source: ``Documentation/bpf/btf.rst``, ``include/uapi/linux/btf.h``.
"""

from __future__ import annotations

import sys
from struct import unpack_from

from bpfkit.core.types.layout import (
    ArrayLayout,
    BtfError,
    BytesLayout,
    CharsLayout,
    EnumLayout,
    Field,
    FloatLayout,
    IntLayout,
    Layout,
    StructLayout,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Btf",
    "BtfError",
    "BtfType",
    "Member",
    "vmlinux",
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


#: What the compile worker makes of SHOWN_AS(form), a tag that kernels before 5.16 refuse:
#: an int called "____bpfkit_show_STRUCT_MEMBER_form", with the struct's type id and the member's
#: number.
_SHOWN_AS = "____bpfkit_show_"


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


#: The kernel's KSYM_NAME_LEN: no name is longer.
_MAX_NAME = 512
#: Types within types (by value, or as C writes their names) beyond which a blob is hostile.
_MAX_DEPTH = 32
#: Unnamed structs and unions in one struct.
_MAX_UNNAMED = 1024
#: What the layouts of one blob may cost, in cells, members and characters of names: all types of a
#: vmlinux take a sixth of it.
_BUDGET = 1 << 26

_SIZED = (INT, STRUCT, UNION, ENUM, DATASEC, FLOAT, ENUM64)


class Btf:
    """A BTF blob.

    :param data: the raw blob.  It is kept, not copied.
    :param base: for split BTF (a kernel module's), the BTF it extends: vmlinux's.
    """

    __slots__ = (
        "_base",
        "_depth",
        "_first",
        "_forms",
        "_layouts",
        "_offsets",
        "_spent",
        "_strings",
        "_types",
        "_words",
        "data",
    )

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
        if (
            hdr < 24
            or type_len % 4
            or types + type_len > len(data)
            or strings + str_len > len(data)
        ):
            raise BtfError("BTF is truncated")
        self.data = data
        self._types = types
        self._words = memoryview(data)[types : types + type_len].cast("I")
        self._strings = (strings, str_len)
        self._base = base
        self._first = len(base) if base is not None else 1
        self._offsets: Sequence[int] | None = None
        self._layouts: dict[tuple[int, str], Layout] = {}
        self._forms: dict[tuple[int, int], str] | None = None
        self._depth = 0
        self._spent = 0

    @classmethod
    def from_file(cls, path: str, base: Btf | None = None) -> Btf:
        """Read a raw blob from a file (for instance below ``/sys/kernel/btf``)."""
        with open(path, "rb", buffering=0) as file:
            return cls(file.read(), base)

    @classmethod
    def vmlinux(cls) -> Btf:
        """The running kernel's types (CONFIG_DEBUG_INFO_BTF, 5.4); OSError where it has none."""
        return cls.from_file("/sys/kernel/btf/vmlinux")

    def with_global_functions(self) -> bytes:
        """The blob with every function's linkage global, as EXT programs and their targets need it;
        BCC makes all functions static."""
        blob = bytearray(self.data)
        for found in self.types():
            if found.kind == FUNC:
                # The second word of its header: kind, and in its lower half the linkage.
                at = self._types + 4 * (found.position - 2)
                blob[at : at + 2] = (1).to_bytes(2, sys.byteorder)
        return bytes(blob)

    # --- the type section -------------------------------------------------------------------

    def _index(self) -> Sequence[int]:
        """Word offset of every own type; built at the first use."""
        if self._offsets is None:
            words, at, end = self._words, 0, len(self._words)
            fixed, each = _WORDS, _WORDS_EACH
            offsets: list[int] = []
            append = offsets.append
            kind = 0
            if end and end < 3:
                raise BtfError("BTF is truncated")
            try:
                while at < end:
                    append(at)
                    info = words[at + 1]
                    kind = info >> 24 & 0x1F
                    at += 3 + fixed[kind] + each[kind] * (info & 0xFFFF)
            except IndexError:
                if kind < len(KINDS):
                    raise BtfError("BTF is truncated") from None
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
        end = self.data.find(b"\0", at, min(start + size, at + _MAX_NAME + 1))
        if end < 0:
            raise BtfError(f"the string at offset {offset} of the BTF does not end")
        return self.data[at:end].decode(errors="replace")

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

    def find(self, name: str, kind: int | str | None = None) -> int | None:
        """Id of the first type with this name, None if there is none.

        :param name: structs, unions and enums without their keyword.
        :param kind: one of this module's constants, or its name: ``"struct"``, ``"func"``, …
        """
        if isinstance(kind, str):
            kind = KINDS.index(kind.upper())
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
                    found_kind = self._words[word + 1] >> 24 & 0x1F
                    if kind is None or kind == found_kind:
                        return self._first + slot
            at = self.data.find(pattern, at + 1, last)
        return None

    def tagged(self, tag: str) -> list[int]:
        """Ids of the types that carry a declaration tag of this text (``bpf_kfunc``), in order."""
        start, size = self._strings
        at = self.data.find(b"\0" + tag.encode() + b"\0", start, start + size)
        if at < 0 or not tag:
            return []
        offset = at + 1 - start
        words, found = self._words, []
        for word in self._index():
            if words[word] == offset and words[word + 1] >> 24 & 0x1F == DECL_TAG:
                found.append(words[word + 2])
        return found

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

    def offset(self, struct: str, *path: str) -> int:
        """Bytes from the start of a struct to a member of it (of a member, …): "net", "ns", "inum".

        Members of unnamed structs and unions count as the struct's own.

        :raises KeyError: there is no such struct or member.
        """
        number = self.find(struct, STRUCT)
        bits = 0
        for name in path:
            found = None if number is None else self._member(number, name, 0, set())
            if found is None:
                raise KeyError(f"struct {struct} has no {'.'.join(path)}")
            number, more = found
            bits += more
        return bits // 8

    def _member(
        self, type_id: int, name: str, base: int, seen: set[int], depth: int = 0
    ) -> tuple[int, int] | None:
        """(type, bit offset) of a member; ``seen`` are the structs that do not have it."""
        found = self.resolve(type_id)
        if found.kind not in (STRUCT, UNION) or found.id in seen:
            return None
        if depth > _MAX_DEPTH:
            raise BtfError("BTF has a struct inside itself")
        seen.add(found.id)
        for member in self.members(found.id):
            at = base + member.bit_offset
            if member.name == name:
                return member.type_id, at
            if not member.name and (
                inside := self._member(member.type_id, name, at, seen, depth + 1)
            ):
                return inside
        return None

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
                (words[at], words[at + 1]) for at in range(t.position, t.position + 2 * t.vlen, 2)
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
        after = dims = ""
        for _ in range(2 * _MAX_DEPTH):
            t = self.type(type_id)
            if t.kind == ARRAY:
                type_id, count = self.array(t.id)
                dims += f"[{count}]"
                continue
            after, dims = dims + after, ""
            if t.kind == PTR:
                after = " *" + after
            elif t.kind not in (VOLATILE, CONST, RESTRICT, TYPE_TAG):
                return _PREFIX.get(t.kind, "") + (t.name or "(anonymous)") + after
            type_id = t.ref
        raise BtfError("BTF has a loop of types")

    # --- layouts ----------------------------------------------------------------------------

    def record_layout(self, name: str) -> Layout | None:
        """The type that ``EVENT_TYPE(name, …)`` of bpfkit.h gives to the records of a map or an
        iterator; None without it."""
        marker = self.find(f"____bpfkit_event_{name}")
        return None if marker is None else self.layout(self.members(marker)[0].type_id)

    def _shown_as(self) -> dict[tuple[int, int], str]:
        """(struct, number of a member) -> form, where the source says ``SHOWN_AS(form)``."""
        if self._forms is None:
            self._forms = {}
            start, size = self._strings
            if self.data.find(f"\0{_SHOWN_AS}".encode(), start, start + size) >= 0:
                for tag in self.types():
                    if tag.kind == INT and tag.name.startswith(_SHOWN_AS):
                        numbers = tag.name.removeprefix(_SHOWN_AS).split("_", 2)
                        if len(numbers) == 3 and (numbers[0] + numbers[1]).isdecimal():
                            self._forms[int(numbers[0]), int(numbers[1])] = numbers[2]
        return self._forms

    def layout(self, type_id: int, chars: str = "str") -> Layout:
        """The :class:`Layout` of a type.

        :param chars: what ``char[N]`` becomes: ``"str"`` text up to the first NUL (UTF-8, other
            bytes kept by surrogateescape); ``"exact"`` text without the NULs at the end, so that
            it encodes to the same bytes again (what map keys use); ``"bytes"`` all N bytes.
        """
        known = self._layouts.get((type_id, chars))
        if known is None:
            if self._depth > _MAX_DEPTH:
                raise BtfError("BTF has a struct inside itself")
            self._depth += 1
            try:
                known = self._make_layout(type_id, chars)
            finally:
                self._depth -= 1
            self._spend(known._n + len(known.fmt) // 4 + 16)
            self._layouts[type_id, chars] = known
        return known

    def _spend(self, cost: int) -> None:
        """Account for work; what costs too much is no real program's types."""
        self._spent += cost
        if self._spent > _BUDGET:
            raise BtfError("the types of this BTF are too large")

    def _make_layout(self, type_id: int, chars: str) -> Layout:
        name = ""
        swapped = False
        t = self.type(type_id)
        for _ in range(64):
            if t.kind not in _MODIFIERS and t.kind != VAR:
                break
            if t.kind == TYPEDEF:
                swapped = swapped or t.name in _BIG_ENDIAN
                name = name or t.name
            t = self.type(t.ref)
        else:
            raise BtfError("BTF has a loop of typedefs")
        kind = t.kind
        name = name or self.name_of(t.id)
        if kind == INT:
            encoding = self.int_encoding(t.id)[0]
            return IntLayout(name, t.size, bool(encoding & 1), bool(encoding & 4), swapped)
        if kind == PTR:
            return IntLayout(name, 8, False, False, False)
        if kind in (ENUM, ENUM64):
            values = self.enumerators(t.id)
            self._spend(sum([64 + len(label) for label, _ in values]))
            return EnumLayout(name, t.size, values)
        if kind == FLOAT:
            return FloatLayout(name, t.size) if t.size in (2, 4, 8) else BytesLayout(name, t.size)
        if kind == ARRAY:
            element, count = self.array(t.id)
            inner = self.resolve(element)
            if inner.kind == INT and inner.size == 1:
                encoding = self.int_encoding(inner.id)[0]
                if inner.name == "char" or encoding & 2:
                    return CharsLayout(f"char[{count}]", count, chars)
                if not encoding & 5:
                    return BytesLayout(self.name_of(t.id), count)
            return ArrayLayout(self.name_of(t.id), self.layout(element, chars), count)
        if kind in (STRUCT, UNION):
            if t.name in _OPAQUE:
                return BytesLayout(name, t.size, opaque=True)
            fields: list[Field] = []
            self._fields(t.id, 0, chars, fields, 0, [])
            return StructLayout(t.name or name.split()[-1].strip("()"), t.size, fields, name)
        raise BtfError(f"{self.name_of(type_id)} has no layout")

    def _fields(
        self,
        type_id: int,
        base: int,
        chars: str,
        fields: list[Field],
        depth: int,
        unnamed: list[int],
    ) -> None:
        unnamed.append(type_id)
        if depth > _MAX_DEPTH or len(unnamed) > _MAX_UNNAMED:
            raise BtfError("BTF has a struct inside itself")
        forms = self._shown_as()
        for number, member in enumerate(self.members(type_id)):
            self._spend(64 + len(member.name))
            bit = base + member.bit_offset
            bits = member.bit_size
            inner = self.resolve(member.type_id)
            if not member.name:
                if inner.kind in (STRUCT, UNION):
                    self._fields(inner.id, bit, chars, fields, depth + 1, unnamed)
                continue  # padding bit-fields have no name and no value
            if inner.kind == INT and not bits:  # bit-fields as pahole wrote them before kind_flag
                _, shift, width = self.int_encoding(inner.id)
                if shift or width != 8 * inner.size:
                    bit, bits = bit + shift, width
            if bits and inner.kind not in (INT, ENUM, ENUM64):
                raise BtfError(f"{member.name} is a bit-field of a type that has none")
            form = forms.get((type_id, number), "")
            fields.append(Field(member.name, bit, bits, self.layout(member.type_id, chars), form))


_vmlinux: Btf | None = None


def vmlinux() -> Btf | None:
    """The running kernel's types, read once; None where it has none (CONFIG_DEBUG_INFO_BTF)."""
    global _vmlinux
    if _vmlinux is None:
        try:
            _vmlinux = Btf.vmlinux()
        except OSError:
            return None
    return _vmlinux


def kernel_names(enum: str, number: int) -> bool:
    """Whether the kernel's own enum has a name for a number; True where there is no BTF to tell.

    The kernel may still refuse it: its configuration left it out.

    :param enum: ``bpf_map_type``, ``bpf_attach_type``.
    """
    btf = vmlinux()
    found = btf.find(enum, "enum") if btf is not None else None
    if btf is None or found is None:
        return True
    return any(
        value == number and not name.startswith("__MAX") for name, value in btf.enumerators(found)
    )
