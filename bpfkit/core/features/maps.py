# SPDX-License-Identifier: Apache-2.0
"""Which map types this kernel has, found out by creating one of each."""

from __future__ import annotations

import errno
import os

from bpfkit.core.errors import errno_text
from bpfkit.core.features import privileges
from bpfkit.core.features.answer import INCONCLUSIVE, NOT_SUPPORTED, WORKS, Feature
from bpfkit.core.features.probe import Probe
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import MAP_TYPES, map_type, map_type_name
from bpfkit.core.types.btf_writer import tiny_btf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = ["map_types", "probe_map_type"]

_NO_PREALLOC, _MMAPABLE = 1, 1 << 10
# name: (since, configuration, key size, value size, entries, flags, map_extra, what else it takes)
_MAPS: dict[str, tuple[str, str, int, int, int, int, int, str]] = {
    "HASH": ("3.19", "BPF_SYSCALL", 4, 4, 1, 0, 0, ""),
    "ARRAY": ("3.19", "BPF_SYSCALL", 4, 4, 1, 0, 0, ""),
    "PROG_ARRAY": ("4.2", "BPF_SYSCALL", 4, 4, 1, 0, 0, ""),
    "PERF_EVENT_ARRAY": ("4.3", "PERF_EVENTS", 4, 4, 1, 0, 0, ""),
    "PERCPU_HASH": ("4.6", "BPF_SYSCALL", 4, 4, 1, 0, 0, ""),
    "PERCPU_ARRAY": ("4.6", "BPF_SYSCALL", 4, 4, 1, 0, 0, ""),
    "STACK_TRACE": ("4.6", "PERF_EVENTS", 4, 8, 1, 0, 0, ""),
    "CGROUP_ARRAY": ("4.8", "CGROUPS", 4, 4, 1, 0, 0, ""),
    "LRU_HASH": ("4.10", "BPF_SYSCALL", 4, 4, 1, 0, 0, ""),
    "LRU_PERCPU_HASH": ("4.10", "BPF_SYSCALL", 4, 4, 1, 0, 0, ""),
    "LPM_TRIE": ("4.11", "BPF_SYSCALL", 8, 4, 1, _NO_PREALLOC, 0, ""),
    "ARRAY_OF_MAPS": ("4.12", "BPF_SYSCALL", 4, 4, 1, 0, 0, "inner"),
    "HASH_OF_MAPS": ("4.12", "BPF_SYSCALL", 4, 4, 1, 0, 0, "inner"),
    "DEVMAP": ("4.14", "NET", 4, 4, 1, 0, 0, ""),
    "SOCKMAP": ("4.14", "NET", 4, 4, 1, 0, 0, ""),
    "CPUMAP": ("4.15", "NET", 4, 4, 1, 0, 0, ""),
    "XSKMAP": ("4.18", "XDP_SOCKETS", 4, 4, 1, 0, 0, ""),
    "SOCKHASH": ("4.18", "NET", 4, 4, 1, 0, 0, ""),
    "CGROUP_STORAGE": ("4.19", "CGROUP_BPF", 16, 8, 0, 0, 0, ""),
    "REUSEPORT_SOCKARRAY": ("4.19", "INET", 4, 8, 1, 0, 0, ""),
    "PERCPU_CGROUP_STORAGE": ("4.20", "CGROUP_BPF", 16, 8, 0, 0, 0, ""),
    "QUEUE": ("4.20", "BPF_SYSCALL", 0, 4, 1, 0, 0, ""),
    "STACK": ("4.20", "BPF_SYSCALL", 0, 4, 1, 0, 0, ""),
    "SK_STORAGE": ("5.2", "NET", 4, 4, 0, _NO_PREALLOC, 0, "btf"),
    "DEVMAP_HASH": ("5.4", "NET", 4, 4, 1, 0, 0, ""),
    "STRUCT_OPS": ("5.6", "BPF_JIT", 4, 0, 1, 0, 0, "struct_ops"),
    "RINGBUF": ("5.8", "BPF_SYSCALL", 0, 0, 0, 0, 0, "page"),
    "INODE_STORAGE": ("5.10", "BPF_LSM", 4, 4, 0, _NO_PREALLOC, 0, "btf"),
    "TASK_STORAGE": ("5.11", "BPF_SYSCALL", 4, 4, 0, _NO_PREALLOC, 0, "btf"),
    "BLOOM_FILTER": ("5.16", "BPF_SYSCALL", 0, 4, 1, 0, 0, ""),
    "USER_RINGBUF": ("6.1", "BPF_SYSCALL", 0, 0, 0, 0, 0, "page"),
    "CGRP_STORAGE": ("6.2", "CGROUPS", 4, 4, 0, _NO_PREALLOC, 0, "btf"),
    "ARENA": ("6.9", "MMU", 0, 0, 1, _MMAPABLE, 0, ""),
    "INSN_ARRAY": ("6.19", "BPF_SYSCALL", 4, 16, 1, 0, 0, ""),
    "RHASH": ("7.2", "BPF_SYSCALL", 4, 4, 1, _NO_PREALLOC, 0, ""),
}


def map_types(names: Iterable[str] | None = None) -> list[Feature]:
    """Every map type of ``enum bpf_map_type`` (or those named), probed by creating one."""
    chosen = MAP_TYPES[1:] if names is None else names
    probe = _MapProbe()
    return [probe.probe(name) for name in chosen]


def probe_map_type(name: str) -> Feature:
    """One map type, by any of its names (``lru_hash``, ``BPF_MAP_TYPE_LRU_HASH``)."""
    return _MapProbe().probe(name)


def _map_feature(number: int, state: str, why: str = "") -> Feature:
    return Feature(MAP_TYPES[number].lower(), state, why, kernel_name=map_type_name(number))


class _MapProbe(Probe):
    """Probes one map type after the other."""

    __slots__ = ()

    def probe(self, name: str) -> Feature:
        number = map_type(name)
        name = MAP_TYPES[number]
        since, option, key, value, entries, flags, extra, special = _MAPS.get(
            name, ("", "", 4, 4, 1, 0, 0, "")
        )
        fds: list[int] = []
        how: dict[str, Any] = {"map_extra": extra}
        try:
            if special == "btf":
                fds.append(syscall.btf_load(tiny_btf()[0]))
                how.update(btf_fd=fds[0], btf_key_type_id=1, btf_value_type_id=1)
            elif special == "inner":
                fds.append(syscall.map_create(map_type("ARRAY"), 4, 4, 1))
                how["inner_map_fd"] = fds[0]
            elif special == "struct_ops":
                from bpfkit.core.types.btf import STRUCT

                target = "bpf_struct_ops_tcp_congestion_ops"
                btf_id, missing = self._target("load", STRUCT, target)
                btf = self.btf()
                if missing is not None or btf is None:
                    why = missing.why if missing else self._no_btf
                    return _map_feature(number, NOT_SUPPORTED, why)
                fds.append(syscall.btf_load(tiny_btf()[0]))
                how.update(btf_fd=fds[0], btf_vmlinux_value_type_id=btf_id)
                value = btf.sizeof(btf_id)
            elif special == "page":
                entries = os.sysconf("SC_PAGE_SIZE")
            fds.append(syscall.map_create(number, key, value, entries, flags, **how))
        except OSError as error:
            code = error.errno or 0
            if code == errno.EPERM:
                held = privileges.capabilities()
                if "CAP_SYS_ADMIN" in held or {"CAP_BPF", "CAP_NET_ADMIN"} <= held:
                    why = "EPERM with all capabilities: seccomp, or (before 5.11) RLIMIT_MEMLOCK"
                else:
                    why = "missing privilege: CAP_BPF (some types also CAP_NET_ADMIN)"
                return _map_feature(number, INCONCLUSIVE, why)
            if code in (errno.EINVAL, errno.E2BIG, errno.EOPNOTSUPP, 524):
                return _map_feature(number, NOT_SUPPORTED, self._missing(since, option))
            return _map_feature(number, INCONCLUSIVE, errno_text(code))
        finally:
            for fd in fds:
                os.close(fd)
        return _map_feature(number, WORKS)
