# SPDX-License-Identifier: Apache-2.0
"""Maps as Python sees them: dictionaries, queues and arrays with typed keys and values.

:func:`open_map` picks the class for a map type.  Keys and values are typed from BTF
(:mod:`bpfkit.core.types.btf` says what C becomes); where there is none, sizes 1, 2, 4 and 8 are
unsigned integers and everything else is bytes.  Whatever takes a key or value takes an int,
exactly the raw bytes, a tuple, a dict of fields, a struct value, or text for ``char[N]`` and
enums.

Reading a whole map (:meth:`Map.items` and its relatives) is a snapshot of each entry, not of the
map: programs and other processes go on adding and deleting.  What holds is this:

* an entry that is there all the time is returned, once;
* an entry that comes or goes meanwhile is returned or not, with a value it had;
* hash maps are read bucket by bucket under the bucket's lock (BPF_MAP_LOOKUP_BATCH, 5.6), so an
  entry never comes twice.  Types whose walk the kernel restarts when its current key vanishes
  (LPM tries; every hash before 5.6) are freed of repetitions here.  Under a storm of deletions such
  a walk is given up after four times ``max_entries`` steps, and what was seen is returned.

Errors: :class:`KeyError` for a key that is not there, :class:`MapFullError` when there is no
room, :class:`~bpfkit.core.errors.MapError` with the kernel's reason for everything else;
:class:`TypeError` and :class:`ValueError` for a key or value that does not fit the type.

Source: ``Documentation/bpf/map_*.rst``, ``kernel/bpf/{syscall,hashtab,arraymap,lpm_trie}.c``.
"""

from __future__ import annotations

import ctypes as ct
import errno
import gc
import os
import sys
from operator import add
from struct import Struct, calcsize

from bpfkit.core.closing import Closing
from bpfkit.core.compile.artifact import MapDef
from bpfkit.core.errors import MapError, UnsupportedError, errno_text
from bpfkit.core.kernel import syscall as sc
from bpfkit.core.kernel.constants import MAP_TYPES, map_type
from bpfkit.core.types.layout import (
    BytesLayout,
    StructValue,
    bytes_layout,
    int_layout,
    struct_layout,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, NoReturn, TypeAlias

    import numpy as np

    from bpfkit.core.maps.buffers import PerfBuffer, RingBuffer, UserRingBuffer
    from bpfkit.core.types.btf import Btf
    from bpfkit.core.types.layout import Layout

    BtfSource: TypeAlias = "Btf | Callable[[], Btf | None] | None"

__all__ = [
    "ANY",
    "EXIST",
    "LOCK",
    "NOEXIST",
    "Map",
    "MapFullError",
    "PerCpuValue",
    "open_map",
    "possible_cpus",
]

#: Flags of updates (ANY, NOEXIST, EXIST) and of updates and lookups of values with a spin lock.
ANY, NOEXIST, EXIST, LOCK = 0, 1, 2, 4

MMAPABLE = 1 << 10  # BPF_F_MMAPABLE

_ENOTSUPP = 524  # the kernel's own; not in errno
_NO_OPERATION = (_ENOTSUPP, errno.EOPNOTSUPP)
_ENTRY = Struct("<i4xQQQ")
_missing: Any = object()  # no argument given
_nothing: Any = object()


class MapFullError(MapError):
    """There is no room for another entry."""


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


_cpus = 0


def possible_cpus() -> int:
    """Number of possible CPUs: that many values a per-CPU map has, whatever is online."""
    global _cpus
    if not _cpus:
        fd = os.open("/sys/devices/system/cpu/possible", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 4096).decode()
        finally:
            os.close(fd)
        # "0-3,8-11": the kernel sizes by the number of CPUs, not by the highest
        for part in text.strip().split(","):
            low, _, high = part.partition("-")
            _cpus += int(high or low) - int(low) + 1
    return _cpus


class _Bulk:
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


class _NoGc:
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


class Map(Closing):
    """A map, dict-like.  It owns ``fd`` and closes it with :meth:`close`.

    :ivar name: the map's name in C.
    :ivar type: the kernel's name without ``BPF_MAP_TYPE_``, lower case: ``"lru_hash"``.
    :ivar key_size, value_size: bytes; the value of one CPU.
    :ivar fd: file descriptor, -1 once closed.
    """

    __slots__ = (
        "_batch",
        "_btf",
        "_id",
        "_key",
        "_key_id",
        "_scratch",
        "_value",
        "_value_bytes",
        "_value_id",
        "fd",
        "flags",
        "key_size",
        "map_extra",
        "max_entries",
        "name",
        "type_number",
        "value_size",
    )

    #: the kernel's walk of this type returns no entry twice
    _exact_walk = True
    #: why the kernel answers EINVAL to an update
    _invalid = "a flag or value this map type does not take"

    def __init__(self, definition: MapDef, fd: int, btf: BtfSource = None) -> None:
        self.fd = fd
        self.name = definition.name
        self.type_number = definition.type
        self.key_size = definition.key_size
        self.value_size = definition.value_size
        self.max_entries = definition.max_entries
        self.flags = definition.map_flags
        self.map_extra = definition.map_extra
        self._btf = btf
        self._key_id = definition.btf_key_type_id
        self._value_id = definition.btf_value_type_id
        self._key: Layout | None = None
        self._value: Layout | None = None
        self._value_bytes = self._entry_size()
        self._batch: bool | None = None  # None: not tried yet
        self._scratch: list[_Bulk] = []  # at most one; popping is atomic
        self._id = 0

    def _entry_size(self) -> int:
        """Bytes of one entry's value as the kernel copies it."""
        return self.value_size

    # --- making -----------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        type: str | int,
        key_size: int,
        value_size: int,
        max_entries: int,
        *,
        name: str = "",
        flags: int = 0,
        map_extra: int = 0,
        inner: Map | None = None,
        btf: Btf | None = None,
        key_type_id: int = 0,
        value_type_id: int = 0,
    ) -> Map:
        """Make a map that no C source declares.

        :param type: ``"hash"``, ``"percpu_array"``, … or the number.
        :param inner: the template of the maps inside, for ``array_of_maps`` and ``hash_of_maps``.
        :param btf: types of keys and values, with their ids (needed by ``*_storage``).
        :raises UnsupportedError: this kernel has no such type.
        :raises MapError: the kernel refuses the sizes or flags.
        """
        number = map_type(type) if isinstance(type, str) else type
        definition = MapDef(
            name,
            number,
            key_size,
            value_size,
            max_entries,
            flags,
            map_extra,
            key_type_id,
            value_type_id,
        )
        btf_fd = 0
        try:
            if btf is not None and value_type_id:
                btf_fd = sc.btf_load(bytes(btf.data))
            fd = sc.map_create(
                number,
                key_size,
                value_size,
                max_entries,
                flags,
                name.encode(),
                btf_fd=btf_fd,
                btf_key_type_id=key_type_id if btf_fd else 0,
                btf_value_type_id=value_type_id if btf_fd else 0,
                inner_map_fd=inner.fd if inner is not None else 0,
                map_extra=map_extra,
            )
        except OSError as error:
            what = f"cannot create {_type_name(number)} map '{name}'"
            if error.errno == errno.EPERM:
                from bpfkit.core.errors import PrivilegeError

                raise PrivilegeError(what, why="CAP_BPF is missing", hint="run as root") from None
            if error.errno in _NO_OPERATION or (
                error.errno == errno.EINVAL and not _type_exists(number)
            ):
                raise UnsupportedError(what, why="this kernel has no such map type") from None
            raise MapError(
                what,
                why=errno_text(error.errno or 0),
                hint=f"key {key_size} bytes, value {value_size}, max_entries {max_entries}, "
                f"flags {flags:#x}",
            ) from None
        finally:
            if btf_fd:
                os.close(btf_fd)
        return open_map(definition, fd, btf)

    def twin(self) -> Map:
        """An empty map of the same name, type, sizes, flags and BTF.

        It goes where this one does: into a map of maps that has this one as its template.  Kernels
        before 6.2 do not take a map there that has no BTF where the template has.
        """
        return Map.create(
            self.type_number,
            self.key_size,
            self.value_size,
            self.max_entries,
            name=self.name,
            flags=self.flags,
            map_extra=self.map_extra,
            btf=self._btf() if callable(self._btf) else self._btf,
            key_type_id=self._key_id,
            value_type_id=self._value_id,
        )

    @classmethod
    def from_fd(cls, fd: int) -> Map:
        """The map behind ``fd``, typed by the BTF the kernel keeps for it; takes over ``fd``."""
        info = sc.map_info(fd)
        definition = MapDef(
            info["name"],
            info["type"],
            info["key_size"],
            info["value_size"],
            info["max_entries"],
            info["map_flags"],
            info["map_extra"],
            info["btf_key_type_id"],
            info["btf_value_type_id"],
        )
        btf_id = info["btf_id"]

        def types() -> Btf | None:
            from bpfkit.core.types.btf import Btf

            btf_fd = sc.btf_get_fd_by_id(btf_id)
            try:
                return Btf(sc.btf_raw(btf_fd))
            finally:
                os.close(btf_fd)

        return open_map(definition, fd, types if btf_id else None)

    @classmethod
    def from_id(cls, number: int) -> Map:
        """The map with this id, whoever made it (CAP_SYS_ADMIN)."""
        try:
            return cls.from_fd(sc.map_get_fd_by_id(number))
        except FileNotFoundError:
            raise MapError(f"no map with id {number}") from None

    def close(self) -> None:
        """Let go of the map; it lives on as long as programs or other fds refer to it."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self._scratch.clear()
            os.close(fd)

    def __repr__(self) -> str:
        return (
            f"<Map {self.name or '(unnamed)'}: {self.type}, key {self.key_size}, "
            f"value {self.value_size} bytes, max_entries {self.max_entries}>"
        )

    # --- facts ------------------------------------------------------------------------------

    @property
    def type(self) -> str:
        """``"hash"``, ``"lpm_trie"``, …"""
        return _type_name(self.type_number)

    @property
    def id(self) -> int:
        """The kernel's number of this map, as ``bpftool map`` shows it."""
        if not self._id:
            self._id = sc.map_info(self.fd)["id"]
        return self._id

    @property
    def key_layout(self) -> Layout:
        """How keys lie in memory; may be set where there is no BTF."""
        if self._key is None:
            self._key = self._typed_key() or self._plain_key()
        return self._key

    @key_layout.setter
    def key_layout(self, layout: Layout) -> None:
        self._check_layout(layout, self.key_size)
        self._key = layout

    @property
    def value_layout(self) -> Layout:
        """How the value of one CPU lies in memory; may be set where there is no BTF."""
        if self._value is None:
            self._value = self._typed_value() or self._plain_value()
        return self._value

    @value_layout.setter
    def value_layout(self, layout: Layout) -> None:
        self._check_layout(layout, self.value_size)
        self._value = layout

    def _check_layout(self, layout: Layout, size: int) -> None:
        if layout.size != size:
            raise ValueError(f"{layout.name} is {layout.size} bytes, map '{self.name}' has {size}")

    def _typed(self, type_id: int, size: int, chars: str) -> Layout | None:
        if not type_id:
            return None
        btf = self._btf() if callable(self._btf) else self._btf
        if btf is None:
            return None
        layout = btf.layout(type_id, chars)
        return layout if layout.size == size else None

    def _typed_key(self) -> Layout | None:
        return self._typed(self._key_id, self.key_size, "exact")

    def _plain_key(self) -> Layout:
        return _plain_layout(self.key_size)

    def _typed_value(self) -> Layout | None:
        return self._typed(self._value_id, self.value_size, "str")

    def _plain_value(self) -> Layout:
        return _plain_layout(self.value_size)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the elements of :meth:`rows`: the key's fields, then the value's."""
        return (self.key_layout.columns or ("key",)) + (self.value_layout.columns or ("value",))

    # --- bytes ------------------------------------------------------------------------------

    def _encode_key(self, key: Any) -> bytes:
        try:
            return (self._key or self.key_layout).encode(key)
        except (TypeError, ValueError) as error:
            raise type(error)(f"key of map '{self.name}': {error}") from None

    def _encode_value(self, value: Any) -> bytes:
        try:
            return (self._value or self.value_layout).encode(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"value of map '{self.name}': {error}") from None

    def _decode_value(self, data: bytes) -> Any:
        return (self._value or self.value_layout).decode(data)

    def _decode_values(self, data: Any, count: int) -> list[Any]:
        return self.value_layout.decode_many(data, count)

    def _value_rows(self, data: Any, count: int) -> Iterable[tuple[Any, ...]]:
        return self.value_layout.rows(data, count)

    # --- errors -----------------------------------------------------------------------------

    def _fail(self, error: OSError, doing: str, key: Any = _missing) -> NoReturn:
        number = error.errno or 0
        what = f"cannot {doing} map '{self.name}' ({self.type})"
        hint = ""
        if self.fd < 0:
            why = "it is closed"
        elif number == errno.ENOENT and key is not _missing:
            raise KeyError(key) from None
        elif number in (errno.E2BIG, errno.ENOSPC):  # tries say ENOSPC
            self._full(what, key)
        elif number == errno.EEXIST:
            why = f"the key {key!r} is there already"
        elif number == errno.EPERM:
            why = "it is frozen, not open to user space, or CAP_BPF is missing"
        elif number in _NO_OPERATION:
            why = "this map type does not let user space do that"
            hint = self._unsupported_hint(doing)
        elif number == errno.EINVAL:
            why = f"{errno_text(number)}: {self._invalid}"
        else:
            why = errno_text(number)
        failure = MapError(what, why=why, hint=hint)
        failure.errno = number
        raise failure from None

    def _full(self, what: str, key: Any) -> NoReturn:
        lru = ", or use an lru_hash, which drops the oldest entry" if "hash" in self.type else ""
        raise MapFullError(
            what,
            why=f"it is full: max_entries is {self.max_entries}",
            hint=f"give it more max_entries{lru}",
        ) from None

    def _unsupported_hint(self, doing: str) -> str:
        return ""

    # --- one entry --------------------------------------------------------------------------

    def lookup(self, key: Any, flags: int = 0) -> Any:
        """The value of ``key``; KeyError if there is none.  ``flags`` may be LOCK (5.1)."""
        try:
            data = sc.map_lookup(self.fd, self._encode_key(key), self._value_bytes, flags)
        except OSError as error:
            self._fail(error, "look up in", key)
        return self._decode_value(data)

    def __getitem__(self, key: Any) -> Any:
        return self.lookup(key)

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of ``key``, or ``default``."""
        try:
            return self.lookup(key)
        except KeyError:
            return default

    def __contains__(self, key: Any) -> bool:
        try:
            sc.map_lookup(self.fd, self._encode_key(key), self._value_bytes)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            self._fail(error, "look up in", key)
        return True

    def update_elem(self, key: Any, value: Any, flags: int = ANY) -> None:
        """Set ``key`` to ``value``.

        :param flags: ANY; NOEXIST: only if it is new (MapError otherwise); EXIST: only if it is
            there (KeyError otherwise).
        """
        try:
            sc.map_update(self.fd, self._encode_key(key), self._encode_value(value), flags)
        except OSError as error:
            self._fail(error, "write to", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.update_elem(key, value)

    def __delitem__(self, key: Any) -> None:
        try:
            sc.map_delete(self.fd, self._encode_key(key))
        except OSError as error:
            self._fail(error, "delete from", key)

    def pop(self, key: Any, default: Any = _missing) -> Any:
        """Delete ``key`` and return the value it had, in one step where the kernel can (5.14)."""
        raw = self._encode_key(key)
        try:
            try:
                data = sc.map_lookup_and_delete(self.fd, raw, self._value_bytes)
            except OSError as error:
                if error.errno not in (*_NO_OPERATION, errno.EINVAL):
                    raise
                data = sc.map_lookup(self.fd, raw, self._value_bytes)
                sc.map_delete(self.fd, raw)
        except OSError as error:
            if error.errno == errno.ENOENT and default is not _missing:
                return default
            self._fail(error, "take from", key)
        return self._decode_value(data)

    # --- the whole map ----------------------------------------------------------------------

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
            room = _Bulk(self.key_size, self._value_bytes, entries)
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
        room = _Bulk(self.key_size, self._value_bytes, self._capacity())
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

    def _batches(self, delete: bool) -> Callable[[_Bulk, int], tuple[int, int]]:
        """A function that reads on: behind the first ``at`` entries of ``room``.

        It returns (entries, errno): 0, ENOENT at the end, ENOSPC when the next bucket needs more
        room, or -1 when the kernel cannot do it for this type.
        """
        # The cursor is the kernel's: a bucket number for hashes, a whole key for other types.
        cursor = ct.create_string_buffer(max(self.key_size, 8))
        started = False

        def step(room: _Bulk, at: int) -> tuple[int, int]:
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
            if not started and number in (*_NO_OPERATION, errno.EINVAL):
                if not delete:  # some types can read by batch but not take
                    self._batch = False
                return 0, -1
            self._fail(OSError(number, ""), "read")

        return step

    def _grow(self, room: _Bulk, count: int) -> _Bulk:
        larger = _Bulk(self.key_size, self._value_bytes, 2 * room.capacity)
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
        attr = _ENTRY.pack(self.fd, 0, ct.addressof(following), 0)
        onward = _ENTRY.pack(self.fd, ct.addressof(here), ct.addressof(following), 0)
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

    def items(self) -> list[tuple[Any, Any]]:
        """All (key, value)."""
        return self._pairs(False)

    def drain(self) -> list[tuple[Any, Any]]:
        """Delete all entries and return them; no update is lost in between (hashes, 5.6)."""
        return self._pairs(True)

    def _pairs(self, delete: bool) -> list[tuple[Any, Any]]:
        pairs: list[tuple[Any, Any]] = []
        with _NoGc():
            for count, keys, values in self._chunks(delete):
                pairs += zip(
                    self.key_layout.decode_many(keys, count),
                    self._decode_values(values, count),
                    strict=True,
                )
        return pairs

    def keys(self) -> list[Any]:
        """All keys."""
        if self._batch is False:
            return self.key_layout.decode_many(b"".join(self._raw_keys()))
        result: list[Any] = []
        with _NoGc():
            for count, keys, _ in self._chunks():
                result += self.key_layout.decode_many(keys, count)
        return result

    def values(self) -> list[Any]:
        """All values."""
        result: list[Any] = []
        with _NoGc():
            for count, _, values in self._chunks():
                result += self._decode_values(values, count)
        return result

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def __len__(self) -> int:
        """The number of entries, by reading them: the kernel keeps no count."""
        if self._batch is False:
            return len(self._raw_keys())
        return sum([count for count, _, _ in self._chunks()])

    def __bool__(self) -> bool:
        return True  # an empty map is still a map, and finding out would read all of it

    def rows(self) -> list[tuple[Any, ...]]:
        """All entries as plain tuples: the key's fields, then the value's; see :attr:`columns`.

        Per-CPU values are summed.  The fastest way to all entries without NumPy.
        """
        result: list[tuple[Any, ...]] = []
        with _NoGc():
            for count, keys, values in self._chunks():
                result += map(
                    add, self.key_layout.rows(keys, count), self._value_rows(values, count)
                )
        return result

    def items_raw(self) -> tuple[int, memoryview, memoryview]:
        """(entries, their keys, their values) as the kernel wrote them, not copied.

        Keys lie ``key_size`` apart, values ``value_size``; per-CPU values are padded to a
        multiple of 8 bytes, and an entry has one for each possible CPU.
        """
        return self._read()

    def items_arrays(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """(keys, values) as NumPy arrays: structured, typed as ``Layout.numpy_dtype`` says.

        Per-CPU values have a second axis, one element per possible CPU.
        """
        import numpy as np

        count, keys, values = self._read()
        return (
            np.frombuffer(keys, self.key_layout.numpy_dtype(), count),
            self._value_array(values, count),
        )

    def _value_array(self, data: Any, count: int) -> np.ndarray[Any, Any]:
        import numpy as np

        return np.frombuffer(data, self.value_layout.numpy_dtype(), count)

    # --- writing much -----------------------------------------------------------------------

    def update(
        self, entries: Mapping[Any, Any] | Iterable[tuple[Any, Any]], flags: int = ANY
    ) -> None:
        """Set many entries with one system call (5.6), else one each.

        Not atomic: an entry that fails stops it, and those before it stay.
        """
        pairs = list(entries.items() if hasattr(entries, "items") else entries)
        if not pairs:
            return
        keys = [self._encode_key(key) for key, _ in pairs]
        values = [self._encode_value(value) for _, value in pairs]
        start = 0
        if len(pairs) > 1:
            kb, vb = sc.buffer(b"".join(keys)), sc.buffer(b"".join(values))
            attr = ct.create_string_buffer(
                Struct("<QQQQIiQQ").pack(
                    0, 0, ct.addressof(kb), ct.addressof(vb), len(pairs), self.fd, flags, 0
                ),
                56,
            )
            try:
                sc.bpf(sc.MAP_UPDATE_BATCH, attr)
                return
            except OSError as error:
                if error.errno not in (*_NO_OPERATION, errno.EINVAL):
                    # one by one from the entry that failed: that names it, and passing faults pass
                    start = min(Struct("<I").unpack_from(attr, 32)[0], len(pairs) - 1)
        for i in range(start, len(pairs)):
            try:
                sc.map_update(self.fd, keys[i], values[i], flags)
            except OSError as error:
                self._fail(error, "write to", pairs[i][0])

    def update_raw(self, keys: Any, values: Any, *, flags: int = ANY, step: int = 1 << 16) -> None:
        """Set many entries from memory as the kernel takes it; no object is made per entry.

        :param keys: the keys, ``key_size`` bytes each, one behind the other.
        :param values: as many values, or one for all of them (a per-CPU map's are padded).
        :param step: entries per system call.
        :raises MapFullError, MapError: an entry that fails stops it, and those before it stay.
        """
        count, width = len(keys) // self.key_size, self._value_bytes
        same = len(values) == width
        if len(keys) % self.key_size or (not same and len(values) != count * width):
            raise ValueError(f"map '{self.name}': keys and values do not go together")
        repeated = sc.buffer(bytes(values) * min(step, count)) if same else None
        view, rest = memoryview(keys).cast("B"), memoryview(values).cast("B")
        for at in range(0, count, step):
            size = min(step, count - at)
            k = sc.buffer(bytes(view[at * self.key_size : (at + size) * self.key_size]))
            v = repeated
            if v is None:
                v = sc.buffer(bytes(rest[at * width : (at + size) * width]))
            try:
                sc.map_update_batch(self.fd, ct.addressof(k), ct.addressof(v), size, flags)
                continue
            except OSError as error:
                if error.errno not in (*_NO_OPERATION, errno.EINVAL):
                    self._fail(error, "write to")
            for i in range(size):  # before 5.6, and types that know no batches
                key = k.raw[i * self.key_size : (i + 1) * self.key_size]
                try:
                    sc.map_update(self.fd, key, v.raw[i * width : (i + 1) * width], flags)
                except OSError as error:
                    self._fail(error, "write to", key)

    def clear(self) -> None:
        """Delete every entry that is there now."""
        if self._taken_by_batch:
            for _ in self._chunks(delete=True):
                pass
            return
        for key in self._raw_keys():
            try:
                sc.map_delete(self.fd, key)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    self._fail(error, "clear")

    #: BPF_MAP_LOOKUP_AND_DELETE_BATCH is there
    _taken_by_batch = False

    def freeze(self) -> None:
        """No more writes from user space, for good (BPF_MAP_FREEZE, 5.2)."""
        try:
            sc.map_freeze(self.fd)
        except OSError as error:
            self._fail(error, "freeze")

    def mmap(self, write: bool = True) -> mmap.mmap:
        """The map's memory, for arrays made with BPF_F_MMAPABLE (5.5) and arenas (6.9).

        Array elements lie ``value_size`` rounded up to 8 apart.
        """
        raise MapError(f"cannot map '{self.name}'", why=f"a {self.type} has no memory to share")


def _type_name(number: int) -> str:
    return MAP_TYPES[number].lower() if 0 < number < len(MAP_TYPES) else f"type {number}"


def _type_exists(number: int) -> bool:
    """Does this kernel know the map type?  EINVAL does not tell; the kernel's own enum does."""
    from bpfkit.core.types.btf import vmlinux

    btf = vmlinux()
    found = btf.find("bpf_map_type", "enum") if btf is not None else None
    if btf is None or found is None:
        return True
    return any(value == number for _, value in btf.enumerators(found))


def _plain_layout(size: int) -> Layout:
    return int_layout(size) if size in (1, 2, 4, 8) else bytes_layout(size)


def _fd_of(value: Any) -> int | None:
    """The fd of a Program, Map, Link, socket or file; an int is one itself."""
    if isinstance(value, int):
        return int(value)
    fd = getattr(value, "fd", None)
    if isinstance(fd, int):
        return fd
    if hasattr(value, "fileno"):
        number: int = value.fileno()
        return number
    return None


# --- hashes and arrays --------------------------------------------------------------------------


class HashMap(Map):
    """HASH and LRU_HASH."""

    __slots__ = ()
    _taken_by_batch = True


class ArrayMap(Map):
    """ARRAY: every index below ``max_entries`` is there, and cannot be deleted."""

    __slots__ = ()
    _invalid = "entries of an array cannot be deleted, only overwritten"

    def __len__(self) -> int:
        return self.max_entries

    def keys(self) -> list[Any]:
        return list(range(self.max_entries))

    def _full(self, what: str, key: Any) -> NoReturn:
        raise KeyError(key) from None  # E2BIG: an index behind the end

    def clear(self) -> None:
        """Set every entry to zero."""
        zero = bytes(self._value_bytes)
        self.update([(i, zero) for i in range(self.max_entries)])

    def mmap(self, write: bool = True) -> mmap.mmap:
        if not self.flags & MMAPABLE:
            raise MapError(f"cannot map '{self.name}'", why="it was made without BPF_F_MMAPABLE")
        return _mapped(self, (self.value_size + 7 & ~7) * self.max_entries, write)


def _mapped(m: Map, size: int, write: bool) -> mmap.mmap:
    import mmap

    page = mmap.PAGESIZE
    access = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
    try:
        return mmap.mmap(m.fd, (size + page - 1) // page * page, prot=access)
    except OSError as error:
        m._fail(error, "map the memory of")


class _PerCpu(Map):
    """What per-CPU maps share.

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
        with _NoGc():
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


class PerCpuHash(_PerCpu, HashMap):
    """PERCPU_HASH and LRU_PERCPU_HASH."""

    __slots__ = ()


class PerCpuArray(_PerCpu, ArrayMap):
    """PERCPU_ARRAY."""

    __slots__ = ()


class LpmTrie(Map):
    """LPM_TRIE: looking up finds the longest prefix that matches.

    Keys are also taken as text, ``"10.0.0.0/8"`` or ``"2001:db8::/32"`` (without a length: the one
    address; host bits are cleared), and as ``(prefix length, bytes)``.  In a trie of 16-byte
    addresses an IPv4 prefix stands for its IPv4-mapped form, 96 bits longer.
    """

    __slots__ = ()
    _exact_walk = False
    _invalid = "the prefix length is larger than the key"

    def _plain_key(self) -> Layout:
        return struct_layout(
            "bpf_lpm_trie_key",
            [("prefixlen", int_layout(4)), ("data", bytes_layout(self.key_size - 4))],
        )

    def _encode_key(self, key: Any) -> bytes:
        if isinstance(key, str):
            return _lpm_key(key, self.key_size - 4, self.name)
        if (
            isinstance(key, tuple)
            and len(key) == 2
            and isinstance(key[1], (bytes, bytearray, memoryview))
        ):
            length, data = key
            if len(data) > self.key_size - 4:
                raise ValueError(f"key of map '{self.name}': more than {self.key_size - 4} bytes")
            return Struct("=I").pack(length) + bytes(data).ljust(self.key_size - 4, b"\0")
        return Map._encode_key(self, key)

    def prefix(self, key: Any) -> str:
        """A key as text: ``10.0.0.0/8``."""
        raw = self._encode_key(key)
        length = Struct("=I").unpack_from(raw)[0]
        from _socket import AF_INET, AF_INET6, inet_ntop

        if len(raw) == 8:
            return f"{inet_ntop(AF_INET, raw[4:])}/{length}"
        if len(raw) == 20:
            return f"{inet_ntop(AF_INET6, raw[4:])}/{length}"
        return f"{raw[4:].hex()}/{length}"


def _lpm_key(text: str, size: int, name: str) -> bytes:
    from _socket import AF_INET, AF_INET6, inet_pton

    address, slash, digits = text.partition("/")
    if size not in (4, 16):
        raise ValueError(f"map '{name}' has keys of {size} bytes, not addresses")
    try:
        if ":" in address:
            if size == 4:
                raise ValueError(f"'{text}': map '{name}' has IPv4 addresses")
            data, extra = inet_pton(AF_INET6, address), 0
        else:
            data, extra = inet_pton(AF_INET, address), 0
            if size == 16:
                data, extra = b"\0" * 10 + b"\xff\xff" + data, 96
        bits = 8 * size - extra
        length = int(digits) if slash else bits
        if (slash and not digits.isdecimal()) or length > bits:
            raise ValueError(f"'{text}' has a prefix length that is not 0 to {bits}")
    except OSError:
        raise ValueError(f"'{text}' is no address") from None
    length += extra
    number = int.from_bytes(data, "big") >> 8 * size - length << 8 * size - length
    return Struct("=I").pack(length) + number.to_bytes(size, "big")


# --- queues -------------------------------------------------------------------------------------


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


class Queue(_Keyless):
    """QUEUE (first in, first out) and STACK (last in, first out)."""

    __slots__ = ()

    def push(self, value: Any, replace: bool = False) -> None:
        """Add a value.  When it is full: MapFullError, or with ``replace`` the oldest goes."""
        try:
            sc.map_update(self.fd, None, self._encode_value(value), EXIST if replace else ANY)
        except OSError as error:
            self._fail(error, "push to")

    def _full(self, what: str, key: Any) -> NoReturn:
        raise MapFullError(
            what,
            why=f"it is full: max_entries is {self.max_entries}",
            hint="push(value, replace=True) drops the oldest",
        ) from None

    def pop(self, default: Any = _missing) -> Any:  # type: ignore[override]
        """Take the next value; IndexError if there is none, or ``default``."""
        try:
            data = sc.map_lookup_and_delete(self.fd, None, self._value_bytes)
        except OSError as error:
            return self._empty(error, "pop from", default)
        return self._decode_value(data)

    def peek(self, default: Any = _missing) -> Any:
        """The next value, left where it is; IndexError if there is none, or ``default``."""
        try:
            data = sc.map_lookup(self.fd, None, self._value_bytes)
        except OSError as error:
            return self._empty(error, "peek into", default)
        return self._decode_value(data)

    def _empty(self, error: OSError, doing: str, default: Any) -> Any:
        if error.errno != errno.ENOENT:
            self._fail(error, doing)
        if default is _missing:
            raise IndexError(f"map '{self.name}' ({self.type}) is empty") from None
        return default

    def drain(self) -> list[Any]:
        """Take all values, at most as many as were there at once."""
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


class BloomFilter(_Keyless):
    """BLOOM_FILTER (5.16): ``value in m`` may be wrongly true, never wrongly false.

    Nothing can be taken out.  ``map_extra`` of its making is the number of hash functions.
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
            sc.bpf(sc.MAP_LOOKUP_ELEM, _ENTRY.pack(self.fd, 0, ct.addressof(buffer), 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            self._fail(error, "look up in")
        return True


# --- values that are file descriptors -----------------------------------------------------------


class _Refers(Map):
    """Values are references to other objects: given as an object with an fd, read as an id."""

    __slots__ = ()
    _what = "a file descriptor"

    def _encode_value(self, value: Any) -> bytes:
        if isinstance(value, (bytes, bytearray, memoryview)):
            return Map._encode_value(self, value)
        fd = _fd_of(value)
        if fd is None:
            raise TypeError(f"value of map '{self.name}': {value!r} is not {self._what}")
        if fd < 0:
            raise ValueError(f"value of map '{self.name}': {value!r} is closed")
        return fd.to_bytes(self.value_size, sys.byteorder)

    def _plain_value(self) -> Layout:
        return int_layout(self.value_size)

    def _typed_value(self) -> Layout | None:
        return None  # its C type is what the program sees (a map, a socket), not what is read here

    def _fail(self, error: OSError, doing: str, key: Any = _missing) -> NoReturn:
        wrong = (errno.EBADF, errno.ENOTSOCK, errno.EOPNOTSUPP, errno.EPROTOTYPE)
        if error.errno in wrong and self.fd >= 0 and doing == "write to":
            raise MapError(
                f"cannot write to map '{self.name}' ({self.type})",
                why=f"the value is not {self._what}",
            ) from None
        Map._fail(self, error, doing, key)


class _RefersArray(_Refers, ArrayMap):
    """References by index; an empty slot is a missing key."""

    __slots__ = ()

    def keys(self) -> list[Any]:
        """The indexes that are in use."""
        return [key for key, _ in self.items()]

    def __len__(self) -> int:
        """The number of slots in use."""
        return len(self.keys())

    def clear(self) -> None:
        """Empty every slot."""
        for index in range(self.max_entries):
            try:
                sc.map_delete(self.fd, self._encode_key(index))
            except OSError as error:
                if error.errno != errno.ENOENT:
                    self._fail(error, "clear")


class ProgArray(_RefersArray):
    """PROG_ARRAY: programs for tail calls, all of one type.

    Set to a Program or its fd; reads as the program's id.  The kernel empties the array when the
    last fd or pin of *the map* goes, even if programs still use it.
    """

    __slots__ = ()
    _what = "a BPF program"
    _invalid = "the program's type or attributes differ from those this array is used with"


class MapOfMaps(_Refers):
    """HASH_OF_MAPS: set to a Map like the template, or its fd; reads as the inner map's id."""

    __slots__ = ()
    _what = "a BPF map"
    _invalid = "the map differs from the template in type, key, value, flags or max_entries"


class ArrayOfMaps(_RefersArray):
    """ARRAY_OF_MAPS: set to a Map like the template, or its fd; reads as the inner map's id."""

    __slots__ = ()
    _what = "a BPF map"
    _invalid = MapOfMaps._invalid


class PerfEventArray(_RefersArray):
    """PERF_EVENT_ARRAY: a perf event fd per CPU, set only; :meth:`open` reads what arrives."""

    __slots__ = ()
    _what = "a perf event"

    def _unsupported_hint(self, doing: str) -> str:
        return "open() reads the events that programs send"

    def open(self, layout: Layout | None = None, pages: int = 16) -> PerfBuffer:
        """A consumer on every CPU; see :class:`bpfkit.core.maps.buffers.PerfBuffer`."""
        from bpfkit.core.maps.buffers import PerfBuffer

        return PerfBuffer(self, layout, pages)


class CgroupArray(_RefersArray):
    """CGROUP_ARRAY: cgroup directories, by fd or path; set only."""

    __slots__ = ()
    _what = "a cgroup directory"

    def update_elem(self, key: Any, value: Any, flags: int = ANY) -> None:
        if isinstance(value, (str, os.PathLike)):
            fd = os.open(value, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _RefersArray.update_elem(self, key, fd, flags)
            finally:
                os.close(fd)
        else:
            _RefersArray.update_elem(self, key, value, flags)


class XskMap(_RefersArray):
    """XSKMAP: AF_XDP sockets, by the queue that packets are redirected from; set only."""

    __slots__ = ()
    _what = "an AF_XDP socket"


class _Sockets(_Refers):
    """Sockets: set to a socket or fd; reads as the socket's cookie where values have 8 bytes."""

    __slots__ = ()
    _what = "a socket"
    _invalid = "this socket's kind or state does not fit (TCP must be established or listening)"

    def _fail(self, error: OSError, doing: str, key: Any = _missing) -> NoReturn:
        if error.errno == errno.ENOSPC and self.value_size != 8:
            raise MapError(
                f"cannot {doing} map '{self.name}' ({self.type})",
                why=f"its values have {self.value_size} bytes, and socket cookies 8",
                hint="give the map u64 values",
            ) from None
        if error.errno == errno.EINVAL and doing == "delete from":
            raise KeyError(key) from None
        if error.errno == errno.EOPNOTSUPP and doing == "write to":
            error = OSError(errno.EINVAL, "")
        _Refers._fail(self, error, doing, key)

    def __contains__(self, key: Any) -> bool:
        if self.value_size == 8:
            return Map.__contains__(self, key)
        return self._encode_key(key) in self._raw_keys()

    def keys(self) -> list[Any]:
        return self.key_layout.decode_many(b"".join(self._raw_keys()))

    def __len__(self) -> int:
        return len(self._raw_keys())


class SockHash(_Sockets):
    """SOCKHASH."""

    __slots__ = ()
    _exact_walk = False


class SockMap(_Sockets, _RefersArray):
    """SOCKMAP."""

    __slots__ = ()

    def keys(self) -> list[Any]:
        """The indexes that are in use; all of them where values have 4 bytes."""
        if self.value_size == 8:
            return _RefersArray.keys(self)
        return list(range(self.max_entries))

    def __contains__(self, key: Any) -> bool:
        return Map.__contains__(self, key)

    def __len__(self) -> int:
        return _RefersArray.__len__(self)

    def clear(self) -> None:
        """Take every socket out."""
        for index in range(self.max_entries):
            try:
                sc.map_delete(self.fd, self._encode_key(index))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL):  # both: nothing there
                    self._fail(error, "clear")


class ReuseportSockArray(_Sockets, _RefersArray):
    """REUSEPORT_SOCKARRAY: sockets of one SO_REUSEPORT group."""

    __slots__ = ()
    _invalid = "the socket has no SO_REUSEPORT, or is not bound (UDP) or listening (TCP)"

    def keys(self) -> list[Any]:
        return _RefersArray.keys(self)

    def __contains__(self, key: Any) -> bool:
        return Map.__contains__(self, key)

    def __len__(self) -> int:
        return _RefersArray.__len__(self)


class _WithProgram(Map):
    """A number and, where the value has 8 bytes, a program that runs there.

    Set to a number or ``(number, program)``; reads as (number, the program's id).
    """

    __slots__ = ()
    _fields = ("value", "prog")

    def _number(self, value: Any) -> int:
        return int(value)

    def _typed_value(self) -> Layout | None:
        return None  # struct bpf_devmap_val and its sister hold an fd or an id in a union: read one

    def _plain_value(self) -> Layout:
        if self.value_size != 8:
            return int_layout(self.value_size)
        first, second = self._fields
        return struct_layout(
            f"bpf_{self.type.partition('_')[0]}_val",
            [(first, int_layout(4)), (second, int_layout(4))],
        )

    def _encode_value(self, value: Any) -> bytes:
        if isinstance(value, (bytes, bytearray, memoryview, dict)):
            return Map._encode_value(self, value)
        program: Any = None
        if isinstance(value, (tuple, list)):
            value, program = value
        number = self._number(value)
        if self.value_size == 4:
            if program is not None:
                raise ValueError(
                    f"value of map '{self.name}': u32 values have no room for a program"
                )
            return Struct("=I").pack(number)
        fd = -1 if program is None else _fd_of(program)
        if fd is None:
            raise TypeError(f"value of map '{self.name}': {program!r} is no program")
        # 0 and -1 both are "no program", but 0 is also what reading shows
        return Struct("=Ii").pack(number, fd or -1)

    def keys(self) -> list[Any]:
        return [key for key, _ in self.items()]

    def __len__(self) -> int:
        return len(self.keys())

    def clear(self) -> None:
        """Delete every entry."""
        for key in self._raw_keys():
            try:
                sc.map_delete(self.fd, key)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    self._fail(error, "clear")


class DevMapHash(_WithProgram):
    """DEVMAP_HASH: devices to redirect to, by index or name *in the caller's namespace*."""

    __slots__ = ()
    _fields = ("ifindex", "prog")
    _exact_walk = False
    _invalid = "no such device here, or a program of another type than XDP for devmaps"

    def _number(self, value: Any) -> int:
        if isinstance(value, str):
            from _socket import if_nametoindex

            try:
                return if_nametoindex(value)
            except OSError:
                raise ValueError(f"value of map '{self.name}': no interface '{value}'") from None
        return int(value)


class DevMap(DevMapHash):
    """DEVMAP: like DEVMAP_HASH, by index."""

    __slots__ = ()
    _exact_walk = True

    def _full(self, what: str, key: Any) -> NoReturn:
        raise KeyError(key) from None


class CpuMap(_WithProgram):
    """CPUMAP: CPUs to redirect to; the number is the length of the CPU's queue."""

    __slots__ = ()
    _fields = ("qsize", "prog")

    def _full(self, what: str, key: Any) -> NoReturn:
        raise KeyError(key) from None


# --- storage ------------------------------------------------------------------------------------


class Storage(Map):
    """SK_STORAGE, INODE_STORAGE, TASK_STORAGE, CGRP_STORAGE: a value that hangs on an object.

    The key is the object: something with an fd (socket, file, pidfd, cgroup directory), the fd, or
    a path for inodes and cgroups.  The value goes when the object goes.  User space cannot walk
    them: that takes an iterator program.
    """

    __slots__ = ()
    _exact_walk = False

    def _encode_key(self, key: Any) -> bytes:
        fd = _fd_of(key)
        if fd is None:
            if isinstance(key, (bytes, bytearray)):
                return Map._encode_key(self, key)
            raise TypeError(f"key of map '{self.name}': {key!r} has no file descriptor")
        return Struct("=i").pack(fd)

    def _by_path(self, key: Any) -> int | None:
        if isinstance(key, (str, os.PathLike)):
            return os.open(key, os.O_RDONLY | os.O_CLOEXEC)
        return None

    def _call(self, method: Callable[..., Any], key: Any, *args: Any) -> Any:
        fd = self._by_path(key)
        if fd is None:
            return method(self, key, *args)
        try:
            return method(self, fd, *args)
        except KeyError:
            raise KeyError(key) from None
        finally:
            os.close(fd)

    def lookup(self, key: Any, flags: int = 0) -> Any:
        return self._call(Map.lookup, key, flags)

    def __contains__(self, key: Any) -> bool:
        return bool(self._call(Map.__contains__, key))

    def update_elem(self, key: Any, value: Any, flags: int = ANY) -> None:
        self._call(Map.update_elem, key, value, flags)

    def __delitem__(self, key: Any) -> None:
        self._call(Map.__delitem__, key)

    def pop(self, key: Any, default: Any = _missing) -> Any:
        return self._call(Map.pop, key, default)

    def _cannot_walk(self) -> NoReturn:
        raise MapError(
            f"cannot walk map '{self.name}' ({self.type})",
            why="the kernel does not let user space walk storage",
            hint="look up one object, or use an iterator program (bpf_sk_storage_map …)",
        )

    def _read(self, delete: bool = False) -> tuple[int, Any, Any]:
        self._cannot_walk()

    def _raw_keys(self) -> list[bytes]:
        self._cannot_walk()


class CgroupStorage(Map):
    """CGROUP_STORAGE: a value per cgroup that a program is attached to, made by attaching.

    Keys are cgroup ids (u64), or (cgroup id, attach type) where they have 16 bytes.
    """

    __slots__ = ()

    def _plain_key(self) -> Layout:
        if self.key_size != 16:
            return _plain_layout(self.key_size)
        return struct_layout(
            "bpf_cgroup_storage_key",
            [("cgroup_inode_id", int_layout(8)), ("attach_type", int_layout(4))],
            16,
        )

    def update_elem(self, key: Any, value: Any, flags: int = EXIST) -> None:
        Map.update_elem(self, key, value, flags)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.update_elem(key, value)


class PerCpuCgroupStorage(_PerCpu, CgroupStorage):
    """PERCPU_CGROUP_STORAGE."""

    __slots__ = ()


# --- the rest -----------------------------------------------------------------------------------


class StackTrace(Map):
    """STACK_TRACE: stacks by the id that ``bpf_get_stackid`` gave; innermost address first."""

    __slots__ = ()
    _exact_walk = False

    def _plain_value(self) -> Layout:
        return bytes_layout(self.value_size)

    def _typed_value(self) -> Layout | None:
        return None  # often declared shorter than it is; _decode_value knows

    def _decode_value(self, data: bytes) -> Any:
        if self.flags & 1 << 5:  # BPF_F_STACK_BUILD_ID: struct bpf_stack_build_id, 32 bytes each
            return data
        addresses = memoryview(data).cast("Q").tolist()
        while addresses and not addresses[-1]:
            addresses.pop()
        return tuple(addresses)

    def _decode_values(self, data: Any, count: int) -> list[Any]:
        size = self.value_size
        return [self._decode_value(bytes(data[i * size : (i + 1) * size])) for i in range(count)]

    def walk(self, stack_id: int) -> tuple[int, ...]:
        """The addresses of one stack; empty for the negative ids that mean an error."""
        if stack_id < 0:
            return ()
        result: tuple[int, ...] = self.lookup(stack_id)
        return result


class RingBuf(_Keyless):
    """RINGBUF (5.8): :meth:`open` reads what programs send.  ``max_entries`` is in bytes."""

    __slots__ = ()

    def open(self, layout: Layout | None = None) -> RingBuffer:
        """A consumer; see :class:`bpfkit.core.maps.buffers.RingBuffer`."""
        from bpfkit.core.maps.buffers import RingBuffer

        return RingBuffer(self, layout)


class UserRingBuf(_Keyless):
    """USER_RINGBUF (6.1): :meth:`open` sends to a program that drains it."""

    __slots__ = ()

    def open(self, layout: Layout | None = None) -> UserRingBuffer:
        """A producer; see :class:`bpfkit.core.maps.buffers.UserRingBuffer`."""
        from bpfkit.core.maps.buffers import UserRingBuffer

        return UserRingBuffer(self, layout)


class StructOps(Map):
    """STRUCT_OPS: one kernel struct of function pointers, as bytes; setting key 0 registers it."""

    __slots__ = ()

    def _plain_value(self) -> Layout:
        return bytes_layout(self.value_size)

    def _typed_value(self) -> Layout | None:
        return None  # its type is vmlinux's, not the object's


class Arena(_Keyless):
    """ARENA (6.9): memory shared with programs; ``max_entries`` is its size in pages."""

    __slots__ = ()

    def mmap(self, write: bool = True) -> mmap.mmap:
        import mmap

        return _mapped(self, self.max_entries * mmap.PAGESIZE, write)


_CLASSES: dict[str, type[Map]] = {
    "HASH": HashMap,
    "ARRAY": ArrayMap,
    "PROG_ARRAY": ProgArray,
    "PERF_EVENT_ARRAY": PerfEventArray,
    "PERCPU_HASH": PerCpuHash,
    "PERCPU_ARRAY": PerCpuArray,
    "STACK_TRACE": StackTrace,
    "CGROUP_ARRAY": CgroupArray,
    "LRU_HASH": HashMap,
    "LRU_PERCPU_HASH": PerCpuHash,
    "LPM_TRIE": LpmTrie,
    "ARRAY_OF_MAPS": ArrayOfMaps,
    "HASH_OF_MAPS": MapOfMaps,
    "DEVMAP": DevMap,
    "SOCKMAP": SockMap,
    "CPUMAP": CpuMap,
    "XSKMAP": XskMap,
    "SOCKHASH": SockHash,
    "CGROUP_STORAGE": CgroupStorage,
    "REUSEPORT_SOCKARRAY": ReuseportSockArray,
    "PERCPU_CGROUP_STORAGE": PerCpuCgroupStorage,
    "QUEUE": Queue,
    "STACK": Queue,
    "SK_STORAGE": Storage,
    "DEVMAP_HASH": DevMapHash,
    "STRUCT_OPS": StructOps,
    "RINGBUF": RingBuf,
    "INODE_STORAGE": Storage,
    "TASK_STORAGE": Storage,
    "BLOOM_FILTER": BloomFilter,
    "USER_RINGBUF": UserRingBuf,
    "CGRP_STORAGE": Storage,
    "ARENA": Arena,
}


def open_map(definition: MapDef | tuple[Any, ...], fd: int, btf: BtfSource = None) -> Map:
    """The :class:`Map` for a map that exists; it takes over ``fd``.

    :param definition: what the map was made from, as an artifact carries it.
    :param btf: the types that its key and value type ids refer to, or a function that returns
        them: called when the first key or value is decoded.
    """
    if not isinstance(definition, MapDef):
        definition = MapDef(*definition)
    number = definition.type
    name = MAP_TYPES[number] if 0 < number < len(MAP_TYPES) else ""
    return _CLASSES.get(name, Map)(definition, fd, btf)
