# SPDX-License-Identifier: Apache-2.0
"""Maps as Python sees them: dictionaries, queues and arrays with typed keys and values.

:func:`open_map` picks the class for a map type.  Keys and values are typed from BTF
(:mod:`bpfkit.core.types.btf` lists the types); without BTF, sizes 1, 2, 4 and 8 are
unsigned integers and other sizes are bytes.  A key or value is passed as an int,
the raw bytes (exactly as many), a tuple, a dict of fields, a struct value, or text for ``char[N]``
and enums.

Reading a whole map (:meth:`Map.items` and its relatives) is a snapshot of each entry, not of the
map: programs and other processes keep adding and deleting entries.  The guarantees are:

* an entry that exists during the whole read is returned once;
* an entry that is added or deleted during the read may be returned, with a value that it had;
* hash maps are read bucket by bucket under the bucket's lock (BPF_MAP_LOOKUP_BATCH, 5.6), so an
  entry is never returned twice.  For types whose walk the kernel restarts when its current key is
  deleted (LPM tries; every hash before 5.6) duplicates are removed here.  If deletions keep
  restarting the walk, it ends after four times ``max_entries`` steps with the entries found so far.

Errors: :class:`KeyError` for a key that does not exist, :class:`MapFullError` when the map is
full, :class:`~bpfkit.core.errors.MapError` with the kernel's reason for everything else;
:class:`TypeError` and :class:`ValueError` for a key or value that does not fit the type.

Source: ``Documentation/bpf/map_*.rst``, ``kernel/bpf/{syscall,hashtab,arraymap,lpm_trie}.c``.
"""

from __future__ import annotations

import ctypes as ct
import errno
import os
from operator import add
from struct import Struct

from bpfkit.core.closing import warn_unclosed
from bpfkit.core.compile.artifact import MapDef
from bpfkit.core.errors import MapError, UnsupportedError, errno_text, lacking
from bpfkit.core.kernel import syscall as sc
from bpfkit.core.kernel.constants import MAP_TYPES, map_type
from bpfkit.core.maps import kind_modules
from bpfkit.core.maps.batch import MISSING, NO_OPERATION, NoGc, Walk
from bpfkit.core.shown import Shown, notebook
from bpfkit.core.types.layout import bytes_layout, int_layout
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, NoReturn, TypeAlias

    import numpy as np

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
    "fd_of",
    "map_class",
    "map_memory",
    "open_map",
    "plain_layout",
]

#: Flags of updates (ANY, NOEXIST, EXIST) and of updates and lookups of values with a spin lock.
ANY, NOEXIST, EXIST, LOCK = 0, 1, 2, 4

#: The classes that registered themselves, by map type.
_kinds: dict[str, type[Map]] = {}


class MapFullError(MapError):
    """The map has no room for another entry."""


class Map(Walk, Shown):
    """A map, dict-like.  It owns ``fd`` and closes it with :meth:`close`.

    :ivar name: the map's name in C.
    :ivar type: the kernel's name without ``BPF_MAP_TYPE_``, lower case: ``"lru_hash"``.
    :ivar key_size, value_size: bytes; the value of one CPU.
    :ivar fd: file descriptor, -1 once closed.
    """

    __slots__ = (
        "_btf",
        "_id",
        "_key",
        "_key_id",
        "_owner",
        "_value",
        "_value_id",
        "flags",
        "map_extra",
        "type_number",
        "value_size",
    )

    #: why the kernel answers EINVAL to an update
    _invalid = "a flag or value this map type does not take"

    def __init_subclass__(cls, types: Iterable[str] = (), **options: Any) -> None:
        """Enter the class for the map types it handles.

        :param types: names of ``enum bpf_map_type`` without ``BPF_MAP_TYPE_``.
        """
        super().__init_subclass__(**options)
        for name in types:
            _kinds[name] = cls

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
        self._batch = None
        self._scratch = []
        self._id = 0
        #: The name of the object that it belongs to, which says that it was not closed.
        self._owner = ""

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
        """Create a map that no C source declares.

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
            lack = lacking(error, what)
            if lack is not None:
                raise lack from None
            if error.errno == errno.EPERM:
                from bpfkit.core.errors import PrivilegeError

                raise PrivilegeError(what, why="CAP_BPF is missing", hint="run as root") from None
            from bpfkit.core.types.btf import kernel_names

            if error.errno in NO_OPERATION or (
                error.errno == errno.EINVAL and not kernel_names("bpf_map_type", number)
            ):
                raise UnsupportedError(what, why="this kernel has no such map type") from None
            raise MapError(
                what,
                why=errno_text(error.errno or 0),
                hint=f"key {count_of(key_size, 'byte')}, value {value_size}, "
                f"max_entries {max_entries}, flags {flags:#x}",
            ) from None
        finally:
            if btf_fd:
                os.close(btf_fd)
        return open_map(definition, fd, btf)

    def twin(self) -> Map:
        """An empty map of the same name, type, sizes, flags and BTF.

        It can be put into a map of maps whose template is this map.  Kernels before 6.2 refuse
        a map without BTF there if the template has BTF.
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
        """The map with this id, created by any process (CAP_SYS_ADMIN)."""
        try:
            return cls.from_fd(sc.map_get_fd_by_id(number))
        except FileNotFoundError:
            raise MapError(f"no map with id {number}") from None

    def close(self) -> None:
        """Close the fd; the map exists as long as programs or other fds refer to it."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self._scratch.clear()
            os.close(fd)

    def __del__(self) -> None:
        try:
            if self.fd < 0:
                return
        except AttributeError:  # the constructor did not get far
            return
        if not self._owner:
            warn_unclosed(self)
        self.close()

    def __repr__(self) -> str:
        return (
            f"<Map {self.name or '(unnamed)'}: {self.type}, key {self.key_size}, "
            f"value {count_of(self.value_size, 'byte')}, max_entries {self.max_entries}>"
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
        """The memory layout of keys; can be set if there is no BTF."""
        if self._key is None:
            self._key = self._typed_key() or self._plain_key()
        return self._key

    @key_layout.setter
    def key_layout(self, layout: Layout) -> None:
        self._check_layout(layout, self.key_size)
        self._key = layout

    @property
    def value_layout(self) -> Layout:
        """The memory layout of one CPU's value; can be set if there is no BTF."""
        if self._value is None:
            self._value = self._typed_value() or self._plain_value()
        return self._value

    @value_layout.setter
    def value_layout(self, layout: Layout) -> None:
        self._check_layout(layout, self.value_size)
        self._value = layout

    def _check_layout(self, layout: Layout, size: int) -> None:
        if layout.size != size:
            raise ValueError(
                f"{layout.name} is {count_of(layout.size, 'byte')}, map '{self.name}' has {size}"
            )

    def _typed(self, type_id: int, size: int, chars: str) -> Layout | None:
        if not type_id:
            return None
        btf = self._btf() if callable(self._btf) else self._btf
        if btf is None:
            return None
        layout = btf.layout(type_id, chars)
        return layout if layout.size == size else None

    def event_layout(self) -> Layout | None:
        """The type of the records that programs send through the map, where ``EVENT_TYPE`` names
        it."""
        btf = self._btf() if callable(self._btf) else self._btf
        return None if btf is None else btf.record_layout(self.name)

    def _typed_key(self) -> Layout | None:
        return self._typed(self._key_id, self.key_size, "exact")

    def _plain_key(self) -> Layout:
        return plain_layout(self.key_size)

    def _typed_value(self) -> Layout | None:
        return self._typed(self._value_id, self.value_size, "str")

    def _plain_value(self) -> Layout:
        return plain_layout(self.value_size)

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

    def _fail(self, error: OSError, doing: str, key: Any = MISSING) -> NoReturn:
        number = error.errno or 0
        what = f"cannot {doing} map '{self.name}' ({self.type})"
        hint = ""
        if self.fd < 0:
            why = "it is closed"
        elif number == errno.ENOENT and key is not MISSING:
            raise KeyError(key) from None
        elif number in (errno.E2BIG, errno.ENOSPC):  # tries say ENOSPC
            self._full(what, key)
        elif number == errno.EEXIST:
            why = f"the key {key!r} is there already"
        elif number == errno.EPERM:
            why = "the map is frozen or not writable from user space, or CAP_BPF is missing"
        elif number in NO_OPERATION:
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
        lru = (
            ", or use an lru_hash, which evicts the least recently used entry"
            if "hash" in self.type
            else ""
        )
        raise MapFullError(
            what,
            why=f"the map is full: max_entries is {self.max_entries}",
            hint=f"increase max_entries{lru}",
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

    def pop(self, key: Any, default: Any = MISSING) -> Any:
        """Delete ``key`` and return the value it had, in one step where the kernel can (5.14)."""
        raw = self._encode_key(key)
        try:
            try:
                data = sc.map_lookup_and_delete(self.fd, raw, self._value_bytes)
            except OSError as error:
                if error.errno not in (*NO_OPERATION, errno.EINVAL):
                    raise
                data = sc.map_lookup(self.fd, raw, self._value_bytes)
                sc.map_delete(self.fd, raw)
        except OSError as error:
            if error.errno == errno.ENOENT and default is not MISSING:
                return default
            self._fail(error, "take from", key)
        return self._decode_value(data)

    # --- the whole map ----------------------------------------------------------------------

    def items(self) -> list[tuple[Any, Any]]:
        """All (key, value)."""
        return self._pairs(False)

    def drain(self) -> list[tuple[Any, Any]]:
        """Delete all entries and return them; no update is lost in between (hashes, 5.6)."""
        return self._pairs(True)

    def _pairs(self, delete: bool) -> list[tuple[Any, Any]]:
        pairs: list[tuple[Any, Any]] = []
        with NoGc():
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
        with NoGc():
            for count, keys, _ in self._chunks():
                result += self.key_layout.decode_many(keys, count)
        return result

    def values(self) -> list[Any]:
        """All values."""
        result: list[Any] = []
        with NoGc():
            for count, _, values in self._chunks():
                result += self._decode_values(values, count)
        return result

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def __len__(self) -> int:
        """The number of entries, found by reading the map: the kernel keeps no count."""
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
        with NoGc():
            for count, keys, values in self._chunks():
                result += map(
                    add, self.key_layout.rows(keys, count), self._value_rows(values, count)
                )
        return result

    def items_raw(self) -> tuple[int, memoryview, memoryview]:
        """(entries, their keys, their values) as the kernel wrote them, not copied.

        Keys are ``key_size`` bytes apart, values ``value_size``; per-CPU values are padded to a
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

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``: a column per field, addresses and protocols as text.

        :raises UnsupportedError: pandas is not installed.
        """
        return notebook("to_pandas")(self)

    def watch(self, seconds: float = 10.0, every: float = 1.0) -> list[tuple[float, Any]]:
        """Show the map in a notebook's cell (or as text) for some seconds, updated in place.

        :param every: seconds between two frames.
        :returns: (UNIX time, :meth:`rows`) of each frame; an interrupt ends it early.
        """
        frames: list[tuple[float, Any]] = notebook("watch")(self, seconds, every)
        return frames

    # --- writing many entries ---------------------------------------------------------------

    def update(
        self, entries: Mapping[Any, Any] | Iterable[tuple[Any, Any]], flags: int = ANY
    ) -> None:
        """Set many entries with one system call (5.6), else one each.

        Not atomic: the first entry that fails stops the update; the entries before it stay.
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
                if error.errno not in (*NO_OPERATION, errno.EINVAL):
                    # one by one from the entry that failed: that names it, and passing faults pass
                    start = min(Struct("<I").unpack_from(attr, 32)[0], len(pairs) - 1)
        for i in range(start, len(pairs)):
            try:
                sc.map_update(self.fd, keys[i], values[i], flags)
            except OSError as error:
                self._fail(error, "write to", pairs[i][0])

    def update_raw(self, keys: Any, values: Any, *, flags: int = ANY, step: int = 1 << 16) -> None:
        """Set many entries from memory in the kernel's format, without an object per entry.

        :param keys: the keys, ``key_size`` bytes each, one behind the other.
        :param values: as many values, or one for all of them (a per-CPU map's are padded).
        :param step: entries per system call.
        :raises MapFullError, MapError: an entry that fails stops it, and those before it stay.
        """
        count, width = len(keys) // self.key_size, self._value_bytes
        same = len(values) == width
        if len(keys) % self.key_size or (not same and len(values) != count * width):
            raise ValueError(f"map '{self.name}': keys and values do not match in number")
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
                if error.errno not in (*NO_OPERATION, errno.EINVAL):
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
        for key in self._keys_to_clear():
            try:
                sc.map_delete(self.fd, key)
            except OSError as error:
                if error.errno not in self._no_entry:
                    self._fail(error, "clear")

    #: the errnos by which deleting a key says that it has no entry
    _no_entry: tuple[int, ...] = (errno.ENOENT,)

    def _keys_to_clear(self) -> Iterable[bytes]:
        """The keys that :meth:`clear` deletes, in the kernel's form."""
        return self._raw_keys()

    #: BPF_MAP_LOOKUP_AND_DELETE_BATCH is there
    _taken_by_batch = False

    def freeze(self) -> None:
        """Forbid writes from user space for the rest of the map's life (BPF_MAP_FREEZE, 5.2)."""
        try:
            sc.map_freeze(self.fd)
        except OSError as error:
            self._fail(error, "freeze")

    def mmap(self, write: bool = True) -> mmap.mmap:
        """The map's memory, for arrays made with BPF_F_MMAPABLE (5.5) and arenas (6.9).

        Array elements are ``value_size`` rounded up to 8 bytes apart.
        """
        raise MapError(f"cannot map '{self.name}'", why=f"a {self.type} has no memory to share")


def _type_name(number: int) -> str:
    return MAP_TYPES[number].lower() if 0 < number < len(MAP_TYPES) else f"type {number}"


def plain_layout(size: int) -> Layout:
    """The layout of ``size`` bytes of which no type is known."""
    return int_layout(size) if size in (1, 2, 4, 8) else bytes_layout(size)


def fd_of(value: Any) -> int | None:
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


def map_memory(m: Map, size: int, write: bool) -> mmap.mmap:
    """The first ``size`` bytes of a map's memory, rounded up to whole pages."""
    import mmap

    page = mmap.PAGESIZE
    access = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
    try:
        return mmap.mmap(m.fd, (size + page - 1) // page * page, prot=access)
    except OSError as error:
        m._fail(error, "map the memory of")


def map_class(number: int) -> type[Map]:
    """The class for a number of ``enum bpf_map_type``; plain :class:`Map` for an unknown one."""
    name = MAP_TYPES[number] if 0 < number < len(MAP_TYPES) else ""
    if not name or name in _kinds:
        return _kinds.get(name, Map)
    for _ in kind_modules():
        if name in _kinds:
            return _kinds[name]
    return Map


def open_map(definition: MapDef | tuple[Any, ...], fd: int, btf: BtfSource = None) -> Map:
    """The :class:`Map` for a map that exists; it takes over ``fd``.

    :param definition: what the map was made from, as an artifact carries it.
    :param btf: the types that its key and value type ids refer to, or a function that returns
        them: called when the first key or value is decoded.
    """
    if not isinstance(definition, MapDef):
        definition = MapDef(*definition)
    return map_class(definition.type)(definition, fd, btf)
