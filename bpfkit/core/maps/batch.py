# SPDX-License-Identifier: Apache-2.0
"""Reading whole maps: by BPF_MAP_LOOKUP_BATCH where the kernel has it, else key by key.

:class:`Walk` is the part of :class:`~bpfkit.core.maps.base.Map` that finds all entries.  Its
results are raw memory; the map decodes them.
"""

from __future__ import annotations

import ctypes as ct
import errno
import gc
from struct import Struct

from bpfkit.core.closing import Held
from bpfkit.core.errors import MapError
from bpfkit.core.kernel import syscall as sc

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

__all__ = ["ENTRY", "MISSING", "NO_OPERATION", "Bulk", "NoGc", "Walk"]

_ENOTSUPP = 524  # the kernel's own; not in errno
#: The errnos that mean "this map type has no such operation".
NO_OPERATION = (_ENOTSUPP, errno.EOPNOTSUPP)
#: ``union bpf_attr`` for one entry: map fd, addresses of key and value (or next key), flags.
ENTRY = Struct("<i4xQQQ")
MISSING: Any = object()  # no argument given


class Bulk:
    """Room for a whole map: anonymous memory, so that only what the kernel fills is real."""

    __slots__ = ("capacity", "key_address", "keys", "value_address", "values")

    def __init__(self, key_size: int, value_size: int, capacity: int) -> None:
        self.capacity = capacity
        self.keys, self.key_address = _anonymous(key_size * capacity)
        self.values, self.value_address = _anonymous(value_size * capacity)


def _anonymous(size: int) -> tuple[mmap.mmap, int]:
    import mmap

    # private, anonymous, no reserve: capacity costs nothing until it is used
    memory = mmap.mmap(-1, size or 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    if size >= 1 << 22:
        try:
            memory.madvise(14)  # MADV_HUGEPAGE: a tenth of the page faults
        except OSError:
            pass
    return memory, ct.addressof(ct.c_char.from_buffer(memory))


# Room for one batch: what the second-level cache holds, some thousand entries.
_CHUNK_BYTES = 1 << 21
# Room for a whole map at first.
_FIRST_BYTES = 1 << 30


class NoGc:
    """No collections while a hundred thousand new tuples are made: none of them is garbage.

    The first collection afterwards would look at each of them (6 ms).  Freezing and unfreezing
    moves them to the oldest generation, where they will be looked at when all objects are.
    """

    __slots__ = ("_enabled",)

    def __enter__(self) -> None:
        self._enabled = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            if gc.get_count()[0] > 10000 and not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.enable()


class Walk(Held):
    """All entries of a map, as the kernel copies them."""

    __slots__ = (
        "_batch",
        "_scratch",
        "_value_bytes",
        "fd",
        "key_size",
        "max_entries",
        "name",
    )

    _batch: bool | None  # whether the kernel reads this map by batch; None: not tried yet
    _scratch: list[Bulk]  # at most one; popping is atomic
    _value_bytes: int
    fd: int
    key_size: int
    max_entries: int
    name: str

    #: the kernel's walk of this type returns no entry twice
    _exact_walk = True

    def _fail(self, error: OSError, doing: str, key: Any = MISSING) -> NoReturn:
        raise NotImplementedError

    def _chunks(self, delete: bool = False) -> Iterator[tuple[int, Any, Any]]:
        """(entries, their keys, their values) of all entries, some at a time.

        The memory is the same each time.  Pieces that stay in the processor's cache while they are
        read and decoded are faster than one large buffer, and smaller.
        """
        if not self._exact_walk or self._batch is False:
            yield self._read(delete)
            return
        size = self.key_size + self._value_bytes
        try:
            room = self._scratch.pop()
        except IndexError:
            entries = min(self._capacity(), max(_CHUNK_BYTES // size, 64))
            room = Bulk(self.key_size, self._value_bytes, entries)
        step = self._batches(delete)
        try:
            count, number = step(room, 0)
            if number < 0:
                yield self._read_each(delete)
                return
            total, limit = 0, 64 * (self.max_entries + 64)
            while True:
                total += count
                if total > limit:  # each bucket is read once: this cannot be
                    raise MapError(f"map '{self.name}' has no end", why=f"{total} entries so far")
                if count:
                    yield count, room.keys, room.values
                if number == errno.ENOENT:
                    return
                if number == errno.ENOSPC and not count:
                    room = self._grow(room, 0)
                count, number = step(room, 0)
        finally:
            if not self._scratch and self.fd >= 0:
                self._scratch.append(room)

    def _read(self, delete: bool = False) -> tuple[int, Any, Any]:
        """(entries, their keys, their values) of all entries in memory of their own."""
        if self._batch is False:
            return self._read_each(delete)
        room = Bulk(self.key_size, self._value_bytes, self._capacity())
        step = self._batches(delete)
        count = 0
        limit = 0 if self._exact_walk else 4 * self.max_entries + 65536
        while True:
            got, number = step(room, count)
            if number < 0:
                return self._read_each(delete)
            count += got
            if number == errno.ENOENT or (limit and count > limit):
                break
            if number == errno.ENOSPC or count >= room.capacity:
                room = self._grow(room, count)
        keys = memoryview(room.keys)[: count * self.key_size]
        values = memoryview(room.values)[: count * self._value_bytes]
        return (count, keys, values) if self._exact_walk else self._distinct(count, keys, values)

    def _capacity(self) -> int:
        # Some more than max_entries: while buckets are read one after the other, deleted entries
        # make room for others; and the kernel says "end" only when there is room left.
        wanted = self.max_entries + self.max_entries // 16 + 64
        return max(min(wanted, _FIRST_BYTES // (self.key_size + self._value_bytes)), 64)

    def _batches(self, delete: bool) -> Callable[[Bulk, int], tuple[int, int]]:
        """A function that reads on: behind the first ``at`` entries of ``room``.

        It returns (entries, errno): 0, ENOENT at the end, ENOSPC when the next bucket needs more
        room, or -1 when the kernel cannot do it for this type.
        """
        # The cursor is the kernel's: a bucket number for hashes, a whole key for other types.
        cursor = ct.create_string_buffer(max(self.key_size, 8))
        started = False

        def step(room: Bulk, at: int) -> tuple[int, int]:
            nonlocal started
            place = ct.addressof(cursor)  # here, so that the cursor lives as long as step()
            for _ in range(10000):
                got, number = sc.map_lookup_batch(
                    self.fd,
                    place if started else 0,
                    place,
                    room.key_address + at * self.key_size,
                    room.value_address + at * self._value_bytes,
                    room.capacity - at,
                    delete=delete,
                )
                if number in (0, errno.ENOENT, errno.ENOSPC):
                    started = True
                    if not delete:
                        self._batch = True
                    return got, number
                if number not in (errno.EINTR, errno.EAGAIN, errno.EBUSY):
                    break
                if got:  # what was copied counts, and the cursor stands behind it
                    started = True
                    return got, 0
            if not started and number in (*NO_OPERATION, errno.EINVAL):
                if not delete:  # some types can read by batch but not take
                    self._batch = False
                return 0, -1
            self._fail(OSError(number, ""), "read")

        return step

    def _grow(self, room: Bulk, count: int) -> Bulk:
        larger = Bulk(self.key_size, self._value_bytes, 2 * room.capacity)
        for old, new, size in (
            (room.keys, larger.keys, self.key_size),
            (room.values, larger.values, self._value_bytes),
        ):
            new[: count * size] = old[: count * size]
        return larger

    def _distinct(self, count: int, keys: Any, values: Any) -> tuple[int, Any, Any]:
        size, width = self.key_size, self._value_bytes
        latest = {bytes(keys[i * size : (i + 1) * size]): i for i in range(count)}
        if len(latest) == count:
            return count, keys, values
        joined = b"".join([values[i * width : (i + 1) * width] for i in latest.values()])
        return len(latest), memoryview(b"".join(latest)), memoryview(joined)

    def _raw_keys(self) -> list[bytes]:
        """All keys by BPF_MAP_GET_NEXT_KEY.

        The kernel starts again at the first key when the current one has vanished.  What was seen
        is passed over, and the number of such steps has a bound.
        """
        seen: dict[bytes, None] = {}
        size = self.key_size
        repeats, limit = 0, 4 * self.max_entries + 1024
        here = ct.create_string_buffer(size)
        following = ct.create_string_buffer(size)
        attr = ENTRY.pack(self.fd, 0, ct.addressof(following), 0)
        onward = ENTRY.pack(self.fd, ct.addressof(here), ct.addressof(following), 0)
        while True:
            try:
                sc.bpf(sc.MAP_GET_NEXT_KEY, attr)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return list(seen)
                self._fail(error, "walk")
            key = following.raw
            if key in seen:
                repeats += 1
                if repeats > limit:
                    return list(seen)
            else:
                seen[key] = None
            here.raw = key
            attr = onward

    def _read_each(self, delete: bool) -> tuple[int, Any, Any]:
        keys, values = [], []
        for key in self._raw_keys():
            try:
                values.append(sc.map_lookup(self.fd, key, self._value_bytes))
                if delete:
                    sc.map_delete(self.fd, key)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue  # gone since, or an empty slot
                self._fail(error, "read")
            keys.append(key)
        return len(keys), memoryview(b"".join(keys)), memoryview(b"".join(values))
