# SPDX-License-Identifier: Apache-2.0
"""Maps whose values refer to something else: programs, maps, sockets, devices, CPUs …"""

from __future__ import annotations

import errno
import os
import sys
from struct import Struct

from bpfkit.core.errors import MapError
from bpfkit.core.maps.base import ANY, Map, fd_of
from bpfkit.core.maps.batch import MISSING
from bpfkit.core.maps.keyed import ArrayMap
from bpfkit.core.types.layout import int_layout, struct_layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, NoReturn

    from bpfkit.core.maps.buffers import PerfBuffer
    from bpfkit.core.types.layout import Layout

__all__ = [
    "ArrayOfMaps",
    "CgroupArray",
    "CpuMap",
    "DevMap",
    "DevMapHash",
    "MapOfMaps",
    "PerfEventArray",
    "ProgArray",
    "ReuseportSockArray",
    "SockHash",
    "SockMap",
    "XskMap",
]


class _Refers(Map):
    """Values are references to other objects: given as an object with an fd, read as an id."""

    __slots__ = ()
    _what = "a file descriptor"

    def _encode_value(self, value: Any) -> bytes:
        if isinstance(value, (bytes, bytearray, memoryview)):
            return Map._encode_value(self, value)
        fd = fd_of(value)
        if fd is None:
            raise TypeError(f"value of map '{self.name}': {value!r} is not {self._what}")
        if fd < 0:
            raise ValueError(f"value of map '{self.name}': {value!r} is closed")
        return fd.to_bytes(self.value_size, sys.byteorder)

    def _plain_value(self) -> Layout:
        return int_layout(self.value_size)

    def _typed_value(self) -> Layout | None:
        return None  # its C type is what the program sees (a map, a socket), not what is read here

    def _fail(self, error: OSError, doing: str, key: Any = MISSING) -> NoReturn:
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

    def _keys_to_clear(self) -> Iterable[bytes]:
        return [self._encode_key(index) for index in range(self.max_entries)]

    clear = Map.clear  # slots can be emptied; an array's entries can only be set to zero


class ProgArray(_RefersArray, types=("PROG_ARRAY",)):
    """PROG_ARRAY: programs for tail calls, all of one type.

    Set to a Program or its fd; reads as the program's id.  The kernel empties the array when the
    last fd or pin of *the map* goes, even if programs still use it.
    """

    __slots__ = ()
    _what = "a BPF program"
    _invalid = "the program's type or attributes differ from those this array is used with"


class MapOfMaps(_Refers, types=("HASH_OF_MAPS",)):
    """HASH_OF_MAPS: set to a Map like the template, or its fd; reads as the inner map's id."""

    __slots__ = ()
    _what = "a BPF map"
    _invalid = "the map differs from the template in type, key, value, flags or max_entries"


class ArrayOfMaps(_RefersArray, types=("ARRAY_OF_MAPS",)):
    """ARRAY_OF_MAPS: set to a Map like the template, or its fd; reads as the inner map's id."""

    __slots__ = ()
    _what = "a BPF map"
    _invalid = MapOfMaps._invalid


class PerfEventArray(_RefersArray, types=("PERF_EVENT_ARRAY",)):
    """PERF_EVENT_ARRAY: a perf event fd per CPU, set only; :meth:`open` reads what arrives."""

    __slots__ = ()
    _what = "a perf event"

    def _unsupported_hint(self, doing: str) -> str:
        return "open() reads the events that programs send"

    def open(self, layout: Layout | None = None, pages: int = 16) -> PerfBuffer:
        """A consumer on every CPU; see :class:`bpfkit.core.maps.buffers.PerfBuffer`.

        :param layout: the records' type; default: the one that ``EVENT_TYPE`` names, else bytes.
        """
        from bpfkit.core.maps.buffers import PerfBuffer

        return PerfBuffer(self, layout or self.event_layout(), pages)


class CgroupArray(_RefersArray, types=("CGROUP_ARRAY",)):
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


class XskMap(_RefersArray, types=("XSKMAP",)):
    """XSKMAP: AF_XDP sockets, by the queue that packets are redirected from; set only."""

    __slots__ = ()
    _what = "an AF_XDP socket"


class _Sockets(_Refers):
    """Sockets: set to a socket or fd; reads as the socket's cookie where values have 8 bytes."""

    __slots__ = ()
    _what = "a socket"
    _invalid = "this socket's kind or state does not fit (TCP must be established or listening)"

    def _fail(self, error: OSError, doing: str, key: Any = MISSING) -> NoReturn:
        if error.errno == errno.ENOSPC and self.value_size != 8:
            raise MapError(
                f"cannot {doing} map '{self.name}' ({self.type})",
                why=f"the map's values have {self.value_size} bytes, and socket cookies have 8",
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


class SockHash(_Sockets, types=("SOCKHASH",)):
    """SOCKHASH."""

    __slots__ = ()
    _exact_walk = False


class SockMap(_Sockets, _RefersArray, types=("SOCKMAP",)):
    """SOCKMAP."""

    __slots__ = ()
    _no_entry = (errno.ENOENT, errno.EINVAL)

    def keys(self) -> list[Any]:
        """The indexes that are in use; all of them where values have 4 bytes."""
        if self.value_size == 8:
            return _RefersArray.keys(self)
        return list(range(self.max_entries))

    def __contains__(self, key: Any) -> bool:
        return Map.__contains__(self, key)

    def __len__(self) -> int:
        return _RefersArray.__len__(self)


class ReuseportSockArray(_Sockets, _RefersArray, types=("REUSEPORT_SOCKARRAY",)):
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
        fd = -1 if program is None else fd_of(program)
        if fd is None:
            raise TypeError(f"value of map '{self.name}': {program!r} is no program")
        # 0 and -1 both are "no program", but 0 is also what reading shows
        return Struct("=Ii").pack(number, fd or -1)

    def keys(self) -> list[Any]:
        return [key for key, _ in self.items()]

    def __len__(self) -> int:
        return len(self.keys())


class DevMapHash(_WithProgram, types=("DEVMAP_HASH",)):
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


class DevMap(DevMapHash, types=("DEVMAP",)):
    """DEVMAP: like DEVMAP_HASH, by index."""

    __slots__ = ()
    _exact_walk = True

    def _full(self, what: str, key: Any) -> NoReturn:
        raise KeyError(key) from None


class CpuMap(_WithProgram, types=("CPUMAP",)):
    """CPUMAP: CPUs to redirect to; the number is the length of the CPU's queue."""

    __slots__ = ()
    _fields = ("qsize", "prog")

    def _full(self, what: str, key: Any) -> NoReturn:
        raise KeyError(key) from None
