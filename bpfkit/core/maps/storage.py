# SPDX-License-Identifier: Apache-2.0
"""Values that the kernel keeps with an object: a socket, inode, task or cgroup."""

from __future__ import annotations

import os
from struct import Struct

from bpfkit.core.errors import MapError
from bpfkit.core.maps.base import ANY, EXIST, Map, fd_of, plain_layout
from bpfkit.core.maps.batch import MISSING
from bpfkit.core.maps.percpu import PerCpu
from bpfkit.core.types.layout import int_layout, struct_layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from bpfkit.core.types.layout import Layout

__all__ = ["CgroupStorage", "PerCpuCgroupStorage", "Storage"]


class Storage(Map, types=("SK_STORAGE", "INODE_STORAGE", "TASK_STORAGE", "CGRP_STORAGE")):
    """SK_STORAGE, INODE_STORAGE, TASK_STORAGE, CGRP_STORAGE: a value attached to an object.

    The key is the object: one with an fd (socket, file, pidfd, cgroup directory), the fd itself, or
    a path for inodes and cgroups.  The value is freed with the object.  User space cannot walk
    these maps; an iterator program can.
    """

    __slots__ = ()
    _exact_walk = False

    def _encode_key(self, key: Any) -> bytes:
        fd = fd_of(key)
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

    def pop(self, key: Any, default: Any = MISSING) -> Any:
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


class CgroupStorage(Map, types=("CGROUP_STORAGE",)):
    """CGROUP_STORAGE: a value per cgroup that a program is attached to, created by attaching.

    Keys are cgroup ids (u64), or (cgroup id, attach type) where they have 16 bytes.
    """

    __slots__ = ()

    def _plain_key(self) -> Layout:
        if self.key_size != 16:
            return plain_layout(self.key_size)
        return struct_layout(
            "bpf_cgroup_storage_key",
            [("cgroup_inode_id", int_layout(8)), ("attach_type", int_layout(4))],
            16,
        )

    def update_elem(self, key: Any, value: Any, flags: int = EXIST) -> None:
        Map.update_elem(self, key, value, flags)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.update_elem(key, value)


class PerCpuCgroupStorage(PerCpu, CgroupStorage, types=("PERCPU_CGROUP_STORAGE",)):
    """PERCPU_CGROUP_STORAGE."""

    __slots__ = ()
