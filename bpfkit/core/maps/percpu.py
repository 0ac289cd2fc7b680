# SPDX-License-Identifier: Apache-2.0
"""Maps with a value per CPU, and adding those values up."""

from __future__ import annotations

import sys
from struct import calcsize

from bpfkit.core.cpus import possible_cpus
from bpfkit.core.maps.base import Map
from bpfkit.core.maps.batch import NoGc
from bpfkit.core.maps.keyed import ArrayMap, HashMap
from bpfkit.core.types.layout import BytesLayout, StructValue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    import numpy as np

__all__ = ["PerCpu", "PerCpuArray", "PerCpuHash", "PerCpuValue"]


class PerCpuValue(tuple):  # type: ignore[type-arg]
    """One value per possible CPU, in the order of the CPUs."""

    __slots__ = ()

    def sum(self) -> Any:
        """The values added up, structs field by field.

        What cannot be added (bytes, text, enums) is taken from the first CPU that has any.
        """
        return _total(self)


def _total(values: Any) -> Any:
    first = values[0]
    if isinstance(first, StructValue):
        return tuple.__new__(type(first), [_total(column) for column in zip(*values, strict=True)])
    if isinstance(first, tuple):
        return tuple([_total(column) for column in zip(*values, strict=True)])
    if type(first) is int or isinstance(first, float):
        return sum(values)
    return next((v for v in values if (any(v) if isinstance(v, bytes) else v)), first)


class PerCpu(Map):
    """Base of the per-CPU maps.

    A value is a :class:`PerCpuValue`.  To set one, give a list (or PerCpuValue) with one value per
    possible CPU, or a single value for all of them.
    """

    __slots__ = ()

    def _entry_size(self) -> int:
        return (self.value_size + 7 & ~7) * possible_cpus()

    def _encode_value(self, value: Any) -> bytes:
        if isinstance(value, (bytes, bytearray, memoryview)) and len(value) == self._value_bytes:
            return bytes(value)
        cpus = possible_cpus()
        pad = bytes(-self.value_size % 8)
        if isinstance(value, (list, PerCpuValue)):
            if len(value) != cpus:
                raise ValueError(
                    f"value of map '{self.name}': {len(value)} values for {cpus} possible CPUs"
                )
            return b"".join([Map._encode_value(self, item) + pad for item in value])
        return (Map._encode_value(self, value) + pad) * cpus

    def _decode_value(self, data: bytes) -> Any:
        layout = self.value_layout
        stride = self.value_size + 7 & ~7
        return PerCpuValue([layout.decode(data, at) for at in range(0, len(data), stride)])

    def _packed(self, data: Any, count: int) -> Any:
        """The values one behind the other, without padding."""
        stride = self.value_size + 7 & ~7
        size = self.value_size
        if stride == size:
            return data
        total = count * possible_cpus()
        packed = bytearray(total * size)
        view = memoryview(data)
        for i in range(size):  # a strided copy per byte of the value runs in C
            packed[i::size] = view[i : total * stride : stride]
        return packed

    def _decode_values(self, data: Any, count: int) -> list[Any]:
        cpus = possible_cpus()
        each = iter(self.value_layout.decode_many(self._packed(data, count), count * cpus))
        return [tuple.__new__(PerCpuValue, group) for group in zip(*[each] * cpus, strict=True)]

    def sum(self, key: Any) -> Any:
        """The values of ``key`` on all CPUs added up, structs field by field."""
        return self.lookup(key).sum()

    def sums(self) -> list[tuple[Any, Any]]:
        """All (key, value) with the values of all CPUs added up."""
        result: list[tuple[Any, Any]] = []
        with NoGc():
            for count, keys, values in self._chunks():
                result += zip(
                    self.key_layout.decode_many(keys, count),
                    self._summed(values, count),
                    strict=True,
                )
        return result

    def _summed(self, data: Any, count: int) -> list[Any]:
        columns = self._sum_columns(data, count)
        if columns is None:
            return [_total(value) for value in self._decode_values(data, count)]
        layout = self.value_layout
        if not layout.fields and len(columns) == 1 and layout._identity:
            return columns[0]
        return list(map(layout._maker(), zip(*columns, strict=True)))

    def _value_rows(self, data: Any, count: int) -> Iterable[tuple[Any, ...]]:
        layout = self.value_layout
        if layout._is_flat():
            columns = self._sum_columns(data, count)
            if columns is not None:
                return zip(*columns, strict=True)
        summed = self._summed(data, count)
        return summed if layout.fields else [(value,) for value in summed]

    def _sum_columns(self, data: Any, count: int) -> list[list[int]] | None:
        """Sums over the CPUs, a list per integer in the value; None if it has anything else.

        A column of one CPU is one long integer with a counter in each 64-bit (32-bit, …) lane, so
        that adding the columns of two CPUs is one addition.  No sum may cross into the next lane:
        where a counter is so large that it could, its column is added number by number.
        """
        leaves = self.value_layout._leaves()
        if leaves is None:
            return None
        cpus = possible_cpus()
        stride = self.value_size + 7 & ~7
        view = memoryview(data)[: count * self._value_bytes]
        order: Any = sys.byteorder
        columns: list[list[int]] = []
        for offset, code in leaves:
            size = calcsize("=" + code)
            if offset % size:
                return None
            lanes = view.cast(code)  # type: ignore[call-overload]
            step = stride // size
            parts = [
                lanes[cpu * step + offset // size :: step * cpus].tobytes() for cpu in range(cpus)
            ]
            total = seen = 0
            for part in parts:
                number = int.from_bytes(part, order)
                total += number
                seen |= number
            spare = (cpus - 1).bit_length() + code.islower()  # and the sign
            guard = ((1 << spare) - 1) << 8 * size - spare if spare <= 8 * size else -1
            mask = int.from_bytes(
                (guard & (1 << 8 * size) - 1).to_bytes(size, order) * count, order
            )
            if seen & mask:
                each = [memoryview(part).cast(code).tolist() for part in parts]  # type: ignore[call-overload]
                columns.append(list(map(sum, zip(*each, strict=True))))
            else:
                whole = total.to_bytes(size * count, order)
                columns.append(memoryview(whole).cast(code).tolist())  # type: ignore[call-overload]
        return columns

    def sums_arrays(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """(keys, values added up over the CPUs) as NumPy arrays; counters are widened to 64 bits.

        :raises TypeError: the value has something that cannot be added.
        """
        import numpy as np

        keys, values = self.items_arrays()
        if values.dtype.names is None:
            return keys, values.sum(axis=1)
        if any(values.dtype[name].base.kind not in "iuf" for name in values.dtype.names) or any(
            isinstance(field.layout, BytesLayout) for field in self.value_layout.fields
        ):
            raise TypeError(f"map '{self.name}': {self.value_layout.name} is not made of numbers")
        summed = {name: values[name].sum(axis=1) for name in values.dtype.names}
        kinds = [(name, column.dtype, column.shape[1:]) for name, column in summed.items()]
        result = np.empty(len(keys), kinds)
        for name, column in summed.items():
            result[name] = column
        return keys, result

    def _value_array(self, data: Any, count: int) -> np.ndarray[Any, Any]:
        import numpy as np

        stride = self.value_size + 7 & ~7
        dtype = self.value_layout.numpy_dtype()
        array: np.ndarray[Any, Any] = np.ndarray(
            (count, possible_cpus()), dtype, data, 0, (self._value_bytes, stride)
        )
        return array


class PerCpuHash(PerCpu, HashMap, types=("PERCPU_HASH", "LRU_PERCPU_HASH")):
    """PERCPU_HASH and LRU_PERCPU_HASH."""

    __slots__ = ()


class PerCpuArray(PerCpu, ArrayMap, types=("PERCPU_ARRAY",)):
    """PERCPU_ARRAY."""

    __slots__ = ()
