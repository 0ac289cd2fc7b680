# SPDX-License-Identifier: Apache-2.0
"""Bytes of C values as Python values, and back.

A :class:`Layout` comes from BTF (:meth:`bpfkit.core.types.btf.Btf.layout`) or, where there is none,
from :func:`int_layout`, :func:`bytes_layout` and :func:`struct_layout`.

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
"""

from __future__ import annotations

import sys
from struct import Struct
from struct import error as struct_error

from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, TypeAlias

    import numpy as np

    Buffer: TypeAlias = "bytes | bytearray | memoryview | Any"

__all__ = [
    "BtfError",
    "EnumValue",
    "Field",
    "Layout",
    "StructValue",
    "bytes_layout",
    "int_layout",
    "struct_layout",
]

#: No value is larger, nor made of more cells, than this: what says so is damaged or hostile.
MAX_SIZE = 1 << 28
MAX_CELLS = 1 << 20
#: Terms of the expression that makes a value (each takes 1 KB to compile), and how deep they nest.
MAX_TERMS = 1 << 15
MAX_LEVELS = 32

_INT_CODES = {1: "bB", 2: "hH", 4: "iI", 8: "qQ"}
_new_tuple = tuple.__new__
#: Sizes of a flexible array whose decoders are kept: to make one takes longer than to use it.
_MAX_TAILS = 512


def _field_getter() -> Callable[[int, str], Any]:
    """(index, docstring) -> a property that returns an element of a tuple."""
    try:  # named tuples have it: three times as fast as a property
        from collections import _tuplegetter  # type: ignore[attr-defined]
    except ImportError:  # pragma: no cover - not CPython
        return lambda index, doc: property(lambda self: tuple.__getitem__(self, index), doc=doc)
    getter: Callable[[int, str], Any] = _tuplegetter
    return getter


class BtfError(ValueError):
    """The blob is not BTF, or the type has no layout in memory."""


class Field:
    """A field of a struct's :class:`Layout`; offsets from its start."""

    __slots__ = ("bit_offset", "bit_size", "form", "layout", "name")

    def __init__(
        self, name: str, bit_offset: int, bit_size: int, layout: Layout, form: str = ""
    ) -> None:
        self.name = name
        self.bit_offset = bit_offset
        #: 0 unless it is a bit-field
        self.bit_size = bit_size
        self.layout = layout
        #: How the C source says that it is shown, by ``SHOWN_AS(form)``.
        self.form = form

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
    _layout: StructLayout

    def __new__(cls, *args: Any, **kwargs: Any) -> StructValue:
        layout = cls._layout
        if args:
            if len(args) > len(cls._fields):
                raise TypeError(
                    f"{cls.__name__} has {count_of(len(cls._fields), 'field')}, got {len(args)}"
                )
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
        "_cost",
        "_env",
        "_levels",
        "_make_",
        "_make_row_",
        "_n",
        "_native",
        "_ops",
        "_swaps",
        "_terms",
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
        terms: int = 1,
        cost: int = 1,
        levels: int = 0,
    ) -> None:
        if size > MAX_SIZE or max(n, cost) > MAX_CELLS or terms > MAX_TERMS:
            raise BtfError(f"{name} is too large: {size} bytes, {max(n, cost)} values")
        if levels > MAX_LEVELS:
            raise BtfError(f"{name} has more than {MAX_LEVELS} types in one another")
        #: the type as C writes it
        self.name = name
        #: bytes
        self.size = size
        #: cells in the terms of :mod:`struct`, without byte order
        self.fmt = fmt
        self._n = n
        self._terms = terms
        self._cost = cost  # steps of making a value
        self._levels = levels
        self._native = native  # cells whose bytes depend on the machine's byte order
        self._swaps = swaps  # (offset, size) of big-endian integers
        self._ops: tuple[Struct, tuple[tuple[int, int], ...]] | None = None
        self._make_: Callable[[tuple[Any, ...]], Any] | None = None
        self._make_row_: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None

    def __repr__(self) -> str:
        return f"<Layout {self.name}, {count_of(self.size, 'byte')}>"

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

    def _is_flat(self) -> bool:
        """Is a row of this type just its cells?"""
        return self._identity

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
                f"{self.name} is {count_of(self.size, 'byte')}, there are {len(data) - offset}"
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

        dtype: np.dtype[Any] = np.dtype(self._dtype())
        return dtype

    def bit_field(self, array: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        """One bit-field of an array of :meth:`numpy_dtype`."""
        raise KeyError(name)


def _swap(data: bytearray, swaps: tuple[tuple[int, int], ...]) -> None:
    for offset, size in swaps:
        data[offset : offset + size] = data[offset : offset + size][::-1]


class IntLayout(Layout):
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
                raise ValueError(f"{self.name} is {count_of(self.size, 'byte')}, got {len(value)}")
            order = "big" if self._swaps else sys.byteorder
            value = int.from_bytes(value, order, signed=self.signed)
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


class EnumLayout(Layout):
    __slots__ = ("by_name", "by_value", "signed")

    def __init__(self, name: str, size: int, values: list[tuple[str, int]]) -> None:
        self.signed = any(value < 0 for _, value in values)
        self.by_name = dict(values)
        self.by_value: dict[int, EnumValue] = {}
        for label, value in reversed(values):  # of two names for one value the first wins
            self._know(value, label)
        if size not in _INT_CODES:
            raise BtfError(f"{name} has {count_of(size, 'byte')}, which no enum has")
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


class FloatLayout(Layout):
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


class BytesLayout(Layout):
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
            raise TypeError(f"{self.name} takes {count_of(self.size, 'byte')}, got {value!r}")
        if len(value) != self.size:
            raise ValueError(f"{self.name} is {count_of(self.size, 'byte')}, got {len(value)}")
        out.append(bytes(value))

    def _dtype(self) -> Any:
        return f"V{self.size}" if self.opaque else ("u1", (self.size,))


class CharsLayout(Layout):
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


class ArrayLayout(Layout):
    __slots__ = ("_inline", "count", "element")

    def __init__(self, name: str, element: Layout, count: int) -> None:
        self.element = element
        self.count = count
        cells = max(element._n, 1) * count
        if element.size * count > MAX_SIZE or cells > MAX_CELLS:
            raise BtfError(f"{name} is too large: {element.size * count} bytes, {cells} values")
        if len(element.fmt) * count > 16 * MAX_CELLS:  # padding is no value
            raise BtfError(f"{name} is too large: {count} elements")
        if element._identity and element.fmt in "bBhHiIqQ?efd":
            fmt = f"{count}{element.fmt}" if count else ""
        else:
            fmt = element.fmt * count
        swaps = tuple(
            [
                (i * element.size + offset, size)
                for i in range(count if element._swaps else 0)
                for offset, size in element._swaps
            ]
        )
        self._inline = count <= 8
        super().__init__(
            name,
            element.size * count,
            fmt,
            element._n * count,
            element._native * count,
            swaps,
            terms=element._terms * (count if self._inline and not element._identity else 1),
            cost=1 if element._identity else element._cost * count,
            levels=element._levels + 1,
        )

    def _expr(self, at: int, env: dict[str, Any]) -> str:
        n = self.element._n
        if self.element._identity:
            return f"t[{at}:{at + self.count}]"
        if self._inline:
            return (
                "("
                + "".join(f"{self.element._expr(at + i * n, env)}," for i in range(self.count))
                + ")"
            )
        env[label := f"a{id(self)}"] = self.element._maker()
        if not n:
            return f"({label}(()),) * {self.count}"
        return f"tuple([{label}(t[i:i + {n}]) for i in range({at}, {at + n * self.count}, {n})])"

    def _cells(self, value: Any, out: list[Any]) -> None:
        element = self.element
        if value is None:
            value = (None,) * self.count
        elif _is_bytes(value) and len(value) == self.size:
            value = element.decode_many(value)
        elif isinstance(value, (str, int)) or not hasattr(value, "__len__"):
            raise TypeError(f"{self.name} takes {count_of(self.count, 'value')}, got {value!r}")
        if len(value) != self.count:
            raise ValueError(f"{self.name} takes {count_of(self.count, 'value')}, got {len(value)}")
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


class StructLayout(Layout):
    """Structs and unions.

    Fields that share bytes (union members, bit-fields) form a group with one raw cell between
    them; every other field has cells of its own.
    """

    __slots__ = ("_fields", "_flat", "_groups", "_index", "_tails", "_type", "type_name")

    def __init__(self, type_name: str, size: int, fields: list[Field], name: str = "") -> None:
        self.type_name = type_name
        self._tails: dict[int, Layout] = {}  # bytes -> the flexible array at that size
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
            if groups and groups[-1][1] > start:  # of no size too: it splits no bit-fields
                first, last, members, _ = groups[-1]
                members.append(i)
                groups[-1] = first, max(last, end), members, False
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
        inner = [field.layout for field in fields if not field.bit_size]
        super().__init__(
            name or type_name,
            size,
            "".join(fmt),
            n,
            native,
            tuple(swaps),
            terms=len(fields) + sum([layout._terms for layout in inner]),
            cost=len(fields) + sum([layout._cost for layout in inner]),
            levels=1 + max([layout._levels for layout in inner], default=0),
        )

    @property
    def fields(self) -> tuple[Field, ...]:
        return self._fields

    @property
    def value_class(self) -> type[StructValue]:
        """The class of the values."""
        if self._type is None:
            getter = _field_getter()
            body: dict[str, Any] = {
                field.name: getter(i, field.layout.name) for i, field in enumerate(self._fields)
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
        if isinstance(layout, IntLayout) and layout.boolean:
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
                    if isinstance(field.layout, EnumLayout):
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
            from functools import partial

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
                    f"{self.name} has {count_of(len(self._fields), 'field')} ({names}), "
                    f"got {len(value)}"
                )
            return value
        if hasattr(value, "keys"):
            values: list[Any] = [None] * len(self._fields)
            for name in value:
                i = self._index.get(name)
                if i is None:
                    raise ValueError(f"{self.name} has no field {name!r}: {', '.join(self._index)}")
                values[i] = value[name]
            return values
        raise TypeError(f"{value!r} is no {self.name}")

    def _cells(self, value: Any, out: list[Any]) -> None:
        if _is_bytes(value):
            if len(value) != self.size:
                raise ValueError(f"{self.name} is {count_of(self.size, 'byte')}, got {len(value)}")
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
            # A value of our own agrees with itself; a stranger's must be checked.
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
        order = sorted(members, key=lambda i: not isinstance(self._fields[i].layout, CharsLayout))
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
            if isinstance(layout, (StructLayout, ArrayLayout)):
                # not its padding: in a union that may be another member's
                mask = int.from_bytes(layout._mask(), "little")
                old = int.from_bytes(raw[at : at + layout.size], "little")
                new = old & ~mask | int.from_bytes(data, "little") & mask
                data = new.to_bytes(layout.size, "little")
            raw[at : at + layout.size] = data
            return
        number = layout._number(value) if isinstance(layout, EnumLayout) else value
        try:
            number = number.__index__()
        except AttributeError:
            raise TypeError(f"{self.type_name}.{field.name}: {value!r} is no number") from None
        bits = field.bit_size
        low, high = (
            (-(1 << bits - 1), 1 << bits - 1)
            if getattr(layout, "signed", False)
            else (0, 1 << bits)
        )
        if not low <= number < high:
            raise ValueError(
                f"{self.type_name}.{field.name}: {number} does not fit into {bits} bits"
            )
        width = field.end - field.offset
        if sys.byteorder == "little":
            shift = field.bit_offset - 8 * field.offset
        else:
            shift = 8 * width - (field.bit_offset - 8 * field.offset) - bits
        mask = (1 << bits) - 1
        whole = int.from_bytes(raw[at : at + width], sys.byteorder)
        whole = whole & ~(mask << shift) | (number & mask) << shift
        raw[at : at + width] = whole.to_bytes(width, sys.byteorder)

    def _agree(self, values: Sequence[Any], raw: bytearray, start: int, members: list[int]) -> None:
        given = [i for i in members if values[i] is not None]
        if len(given) < 2:
            return
        for i in given:
            field = self._fields[i]
            check = bytearray(raw)
            self._put(check, start, field, values[i])
            if check != raw and not isinstance(field.layout, CharsLayout):
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
        whole = self._tails.get(rest)
        if whole is None:
            whole = self._tail(last.layout, rest)
            if whole is None:
                return value
            if len(self._tails) >= _MAX_TAILS:
                self._tails.clear()
            self._tails[rest] = whole
        return _new_tuple(self.value_class, (*value[:-1], whole.decode(data, last.offset)))

    @staticmethod
    def _tail(tail: Layout, size: int) -> Layout | None:
        """A flexible array at a size in bytes."""
        if isinstance(tail, CharsLayout):
            return CharsLayout(tail.name, size, tail.mode)
        if isinstance(tail, ArrayLayout) and tail.element.size:
            return ArrayLayout(tail.name, tail.element, size // tail.element.size)
        if isinstance(tail, BytesLayout):
            return BytesLayout(tail.name, size)
        return None

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

    def _is_flat(self) -> bool:
        return self._flat

    def _leaves(self) -> list[tuple[int, str]] | None:
        result = []
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
                    raise TypeError(
                        f"{name} lies in {last - first} bytes; NumPy has no such integer"
                    )
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
    return IntLayout(name or f"{'s' if signed else 'u'}{8 * size}", size, signed, False, False)


def bytes_layout(size: int, name: str = "") -> Layout:
    """``size`` bytes as they are."""
    return BytesLayout(name or f"u8[{size}]", size)


def struct_layout(name: str, fields: Iterable[tuple[str, Layout]], size: int = 0) -> StructLayout:
    """A struct where there is no BTF: fields one behind the other, without padding."""
    at = 0
    made = []
    for label, layout in fields:
        made.append(Field(label, 8 * at, 0, layout))
        at += layout.size
    return StructLayout(name, size or at, made)
