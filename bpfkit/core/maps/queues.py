# SPDX-License-Identifier: Apache-2.0
"""Maps without keys: queues, stacks, Bloom filters, ring buffers and arenas."""

from __future__ import annotations

import ctypes as ct
import errno

from bpfkit.core.errors import MapError
from bpfkit.core.kernel import syscall as sc
from bpfkit.core.maps.base import ANY, EXIST, Map, MapFullError, map_memory
from bpfkit.core.maps.batch import ENTRY, MISSING

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable, Mapping
    from typing import Any, NoReturn

    from bpfkit.core.maps.buffers import RingBuffer, UserRingBuffer
    from bpfkit.core.types.layout import Layout

__all__ = ["Arena", "BloomFilter", "Queue", "RingBuf", "UserRingBuf"]

_nothing: Any = object()


class _Keyless(Map):
    """Types without keys."""

    __slots__ = ()
    _exact_walk = False

    def _no(self, what: str) -> NoReturn:
        raise MapError(
            f"cannot {what} map '{self.name}' ({self.type})", why="this map type has no keys"
        )

    def lookup(self, key: Any, flags: int = 0) -> Any:
        self._no("look up in")

    def update_elem(self, key: Any, value: Any, flags: int = ANY) -> None:
        self._no("write a key to")

    def __delitem__(self, key: Any) -> None:
        self._no("delete from")

    def __contains__(self, key: Any) -> bool:
        self._no("look up in")

    def _read(self, delete: bool = False) -> tuple[int, Any, Any]:
        self._no("read all of")

    def keys(self) -> list[Any]:
        self._no("walk")

    def __len__(self) -> int:
        self._no("count the entries of")

    def update(
        self, entries: Mapping[Any, Any] | Iterable[tuple[Any, Any]], flags: int = ANY
    ) -> None:
        self._no("write keys to")

    def clear(self) -> None:
        self._no("clear")


class Queue(_Keyless, types=("QUEUE", "STACK")):
    """QUEUE (first in, first out) and STACK (last in, first out)."""

    __slots__ = ()

    def push(self, value: Any, replace: bool = False) -> None:
        """Add a value.  A full map raises MapFullError; with ``replace`` it drops the oldest."""
        try:
            sc.map_update(self.fd, None, self._encode_value(value), EXIST if replace else ANY)
        except OSError as error:
            self._fail(error, "push to")

    def _full(self, what: str, key: Any) -> NoReturn:
        raise MapFullError(
            what,
            why=f"the map is full: max_entries is {self.max_entries}",
            hint="push(value, replace=True) drops the oldest value",
        ) from None

    def pop(self, default: Any = MISSING) -> Any:  # type: ignore[override]
        """Take the next value; IndexError if there is none, or ``default``."""
        try:
            data = sc.map_lookup_and_delete(self.fd, None, self._value_bytes)
        except OSError as error:
            return self._empty(error, "pop from", default)
        return self._decode_value(data)

    def peek(self, default: Any = MISSING) -> Any:
        """The next value, left where it is; IndexError if there is none, or ``default``."""
        try:
            data = sc.map_lookup(self.fd, None, self._value_bytes)
        except OSError as error:
            return self._empty(error, "peek into", default)
        return self._decode_value(data)

    def _empty(self, error: OSError, doing: str, default: Any) -> Any:
        if error.errno != errno.ENOENT:
            self._fail(error, doing)
        if default is MISSING:
            raise IndexError(f"map '{self.name}' ({self.type}) is empty") from None
        return default

    def drain(self) -> list[Any]:
        """Take all values, at most ``max_entries``."""
        result = []
        for _ in range(self.max_entries):
            value = self.pop(_nothing)
            if value is _nothing:
                break
            result.append(value)
        return result

    def clear(self) -> None:
        """Drop all values."""
        self.drain()


class BloomFilter(_Keyless, types=("BLOOM_FILTER",)):
    """BLOOM_FILTER (5.16): ``value in m`` may be wrongly true, never wrongly false.

    Values cannot be removed.  ``map_extra`` is the number of hash functions.
    """

    __slots__ = ()

    def add(self, value: Any) -> None:
        """Put a value in."""
        try:
            sc.map_update(self.fd, None, self._encode_value(value))
        except OSError as error:
            self._fail(error, "add to")

    def update(self, values: Iterable[Any], flags: int = ANY) -> None:
        """Put many values in."""
        for value in values:
            self.add(value)

    def __contains__(self, value: Any) -> bool:
        # Peeking reads the value it is asked for from where it would write one.
        buffer = sc.buffer(self._encode_value(value))
        try:
            sc.bpf(sc.MAP_LOOKUP_ELEM, ENTRY.pack(self.fd, 0, ct.addressof(buffer), 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            self._fail(error, "look up in")
        return True


class RingBuf(_Keyless, types=("RINGBUF",)):
    """RINGBUF (5.8): :meth:`open` reads what programs send.  ``max_entries`` is in bytes."""

    __slots__ = ()

    def open(self, layout: Layout | None = None) -> RingBuffer:
        """A consumer; see :class:`bpfkit.core.maps.buffers.RingBuffer`.

        :param layout: the records' type; default: the one that ``EVENT_TYPE`` names, else bytes.
        """
        from bpfkit.core.maps.buffers import RingBuffer

        return RingBuffer(self, layout or self.event_layout())


class UserRingBuf(_Keyless, types=("USER_RINGBUF",)):
    """USER_RINGBUF (6.1): :meth:`open` sends to a program that drains it."""

    __slots__ = ()

    def open(self, layout: Layout | None = None) -> UserRingBuffer:
        """A producer; see :class:`bpfkit.core.maps.buffers.UserRingBuffer`."""
        from bpfkit.core.maps.buffers import UserRingBuffer

        return UserRingBuffer(self, layout)


class Arena(_Keyless, types=("ARENA",)):
    """ARENA (6.9): memory shared with programs; ``max_entries`` is its size in pages."""

    __slots__ = ()

    def mmap(self, write: bool = True) -> mmap.mmap:
        import mmap

        return map_memory(self, self.max_entries * mmap.PAGESIZE, write)
