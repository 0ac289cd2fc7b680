# SPDX-License-Identifier: Apache-2.0
"""bpf(2), as the kernel has it: one thin function per command that bpfkit uses.

Everything here raises :class:`OSError` with the kernel's errno and nothing else; the layers
above turn that into words.  Attributes are packed by hand because ``union bpf_attr`` only ever
grows at its end: a shorter attr is the older ABI, and the kernel reads the rest as zero.

Source: ``include/uapi/linux/bpf.h``, ``Documentation/userspace-api/ebpf/syscall.rst``.
"""

from __future__ import annotations

import ctypes as ct
import os
import sys
from struct import Struct, pack_into, unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = [
    "TestRun",
    "addressof",
    "bpf",
    "btf_get_fd_by_id",
    "btf_load",
    "btf_raw",
    "buffer",
    "grace_period",
    "iter_create",
    "link_create",
    "link_detach",
    "link_get_fd_by_id",
    "link_update",
    "map_create",
    "map_delete",
    "map_delete_batch",
    "map_freeze",
    "map_get_fd_by_id",
    "map_info",
    "map_lookup",
    "map_lookup_and_delete",
    "map_lookup_batch",
    "map_next_key",
    "map_update",
    "map_update_batch",
    "next_id",
    "obj_get",
    "obj_info",
    "obj_pin",
    "perf_event_open",
    "prog_attach",
    "prog_detach",
    "prog_get_fd_by_id",
    "prog_info",
    "prog_load",
    "prog_map_ids",
    "prog_query",
    "prog_run_syscall",
    "prog_test_run",
    "raw_tracepoint_open",
]

_MACHINE = os.uname().machine
try:
    _NR_BPF, _NR_PERF_EVENT_OPEN = {
        "x86_64": (321, 298),
        "aarch64": (280, 241),
        "riscv64": (280, 241),
        "loongarch64": (280, 241),
        "ppc64le": (361, 319),
        "s390x": (351, 331),
    }[_MACHINE]
except KeyError:  # pragma: no cover - a machine nobody has tried
    raise ImportError(f"bpfkit does not know the number of bpf(2) on {_MACHINE}") from None

_libc = ct.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ct.c_long

# enum bpf_cmd
MAP_CREATE, MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, MAP_DELETE_ELEM, MAP_GET_NEXT_KEY = range(5)
PROG_LOAD, OBJ_PIN, OBJ_GET, PROG_ATTACH, PROG_DETACH, PROG_TEST_RUN = range(5, 11)
PROG_GET_NEXT_ID, MAP_GET_NEXT_ID, PROG_GET_FD_BY_ID, MAP_GET_FD_BY_ID = range(11, 15)
OBJ_GET_INFO_BY_FD, PROG_QUERY, RAW_TRACEPOINT_OPEN, BTF_LOAD, BTF_GET_FD_BY_ID = range(15, 20)
TASK_FD_QUERY, MAP_LOOKUP_AND_DELETE_ELEM, MAP_FREEZE, BTF_GET_NEXT_ID = range(20, 24)
MAP_LOOKUP_BATCH, MAP_LOOKUP_AND_DELETE_BATCH, MAP_UPDATE_BATCH, MAP_DELETE_BATCH = range(24, 28)
LINK_CREATE, LINK_UPDATE, LINK_GET_FD_BY_ID, LINK_GET_NEXT_ID, ENABLE_STATS = range(28, 33)
ITER_CREATE, LINK_DETACH, PROG_BIND_MAP, TOKEN_CREATE, PROG_STREAM_READ_BY_FD = range(33, 38)

BPF_ANY, BPF_NOEXIST, BPF_EXIST, BPF_F_LOCK = 0, 1, 2, 4

_ELEM = Struct("<i4xQQQ")
_BATCH = Struct("<QQQQIiQQ")
_MAP_CREATE = Struct("<IIIIIII16sIIIIIQii")
_PROG_LOAD = Struct("<IIQQIIQII16sIIIIQIIQIIi")


def buffer(data: bytes) -> ct.Array[ct.c_char]:
    """A C buffer that holds ``data``; keep a reference for as long as the kernel may read it."""
    return ct.create_string_buffer(data, len(data) or 1)


addressof = ct.addressof


def bpf(cmd: int, attr: Any) -> int:
    """Call bpf(2).  ``attr`` is bytes (copied in) or a ctypes buffer (also written back to)."""
    if isinstance(attr, (bytes, bytearray)):
        attr = ct.create_string_buffer(bytes(attr), len(attr))
    while True:
        result: int = _syscall(_NR_BPF, cmd, attr, ct.sizeof(attr))
        if result >= 0:
            return result
        number = ct.get_errno()
        # The verifier gives up with EAGAIN when a signal is pending (as libbpf: try again).
        if number == 11 and cmd == PROG_LOAD:
            continue
        raise OSError(number, os.strerror(number))


def raise_memlock() -> bool:
    """Lift RLIMIT_MEMLOCK, against which maps and programs count before 5.11.

    Returns False if there was no limit, or it cannot be lifted.
    """
    import resource

    try:
        if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
            return False
        resource.setrlimit(
            resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )
    except (OSError, ValueError):
        return False
    return True


def _bpf_charged(cmd: int, attr: bytes) -> int:
    """:func:`bpf` for what takes kernel memory: EPERM may be the limit, so once more without it."""
    try:
        return bpf(cmd, attr)
    except OSError as error:
        if error.errno != 1 or not raise_memlock():
            raise
    return bpf(cmd, attr)


# --- maps -----------------------------------------------------------------------------------


def map_create(
    map_type: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    map_flags: int = 0,
    name: bytes = b"",
    *,
    btf_fd: int = 0,
    btf_key_type_id: int = 0,
    btf_value_type_id: int = 0,
    btf_vmlinux_value_type_id: int = 0,
    inner_map_fd: int = 0,
    map_extra: int = 0,
    keep_limit: bool = False,
) -> int:
    """BPF_MAP_CREATE; returns the map's fd.  ``name`` is cut to the kernel's 15 bytes.

    ``keep_limit`` leaves RLIMIT_MEMLOCK as it is.
    """
    return (bpf if keep_limit else _bpf_charged)(
        MAP_CREATE,
        _MAP_CREATE.pack(
            map_type,
            key_size,
            value_size,
            max_entries,
            map_flags,
            inner_map_fd,
            0,
            name[:15],
            0,
            btf_fd,
            btf_key_type_id,
            btf_value_type_id,
            btf_vmlinux_value_type_id,
            map_extra,
            0,
            0,
        )[: 72 if map_extra else 64],
    )


def map_lookup(fd: int, key: bytes | None, value_size: int, flags: int = 0) -> bytes:
    """BPF_MAP_LOOKUP_ELEM.  ``value_size`` counts all possible CPUs for per-CPU maps."""
    value = ct.create_string_buffer(value_size or 1)
    k = buffer(key) if key is not None else None
    bpf(
        MAP_LOOKUP_ELEM,
        _ELEM.pack(fd, addressof(k) if k is not None else 0, addressof(value), flags),
    )
    return value.raw[:value_size]


def map_lookup_and_delete(fd: int, key: bytes | None, value_size: int, flags: int = 0) -> bytes:
    """BPF_MAP_LOOKUP_AND_DELETE_ELEM (queues and stacks 4.20, hashes 5.14)."""
    value = ct.create_string_buffer(value_size or 1)
    k = buffer(key) if key is not None else None
    bpf(
        MAP_LOOKUP_AND_DELETE_ELEM,
        _ELEM.pack(fd, addressof(k) if k is not None else 0, addressof(value), flags),
    )
    return value.raw[:value_size]


def map_update(fd: int, key: bytes | None, value: bytes, flags: int = BPF_ANY) -> None:
    """BPF_MAP_UPDATE_ELEM."""
    k = buffer(key) if key is not None else None
    v = buffer(value)
    bpf(MAP_UPDATE_ELEM, _ELEM.pack(fd, addressof(k) if k is not None else 0, addressof(v), flags))


def map_delete(fd: int, key: bytes) -> None:
    """BPF_MAP_DELETE_ELEM."""
    k = buffer(key)
    bpf(MAP_DELETE_ELEM, _ELEM.pack(fd, addressof(k), 0, 0))


def map_next_key(fd: int, key: bytes | None, key_size: int) -> bytes | None:
    """BPF_MAP_GET_NEXT_KEY: the key after ``key`` (the first one after None), None at the end."""
    k = buffer(key) if key is not None else None
    out = ct.create_string_buffer(key_size)
    try:
        bpf(
            MAP_GET_NEXT_KEY,
            _ELEM.pack(fd, addressof(k) if k is not None else 0, addressof(out), 0),
        )
    except FileNotFoundError:
        return None
    return out.raw


def map_freeze(fd: int) -> None:
    """BPF_MAP_FREEZE: no more writes from user space (5.2)."""
    bpf(MAP_FREEZE, fd.to_bytes(4, "little", signed=True))


def map_lookup_batch(
    fd: int,
    in_cursor: int,
    out_cursor: int,
    keys: int,
    values: int,
    count: int,
    *,
    elem_flags: int = 0,
    flags: int = 0,
    delete: bool = False,
) -> tuple[int, int]:
    """BPF_MAP_LOOKUP[_AND_DELETE]_BATCH (5.6); all pointers are addresses, 0 = NULL.

    Returns (entries read, errno): ENOENT is the end of the map *with* the entries counted,
    ENOSPC a bucket that does not fit into ``count``; other errors have count 0.
    """
    attr = ct.create_string_buffer(
        _BATCH.pack(in_cursor, out_cursor, keys, values, count, fd, elem_flags, flags), _BATCH.size
    )
    cmd = MAP_LOOKUP_AND_DELETE_BATCH if delete else MAP_LOOKUP_BATCH
    number = 0
    if _syscall(_NR_BPF, cmd, attr, _BATCH.size) < 0:
        number = ct.get_errno()
        if number == 14:  # EFAULT: the kernel does not vouch for count
            return 0, number
    return unpack_from("<I", attr, 32)[0], number


def map_update_batch(fd: int, keys: int, values: int, count: int, elem_flags: int = 0) -> int:
    """BPF_MAP_UPDATE_BATCH (5.6); returns the number of entries written, raises if not all."""
    attr = ct.create_string_buffer(
        _BATCH.pack(0, 0, keys, values, count, fd, elem_flags, 0), _BATCH.size
    )
    bpf(MAP_UPDATE_BATCH, attr)
    done: int = unpack_from("<I", attr, 32)[0]
    return done


def map_delete_batch(fd: int, keys: int, count: int, elem_flags: int = 0) -> int:
    """BPF_MAP_DELETE_BATCH (5.6); returns the number of entries deleted."""
    attr = ct.create_string_buffer(
        _BATCH.pack(0, 0, keys, 0, count, fd, elem_flags, 0), _BATCH.size
    )
    bpf(MAP_DELETE_BATCH, attr)
    done: int = unpack_from("<I", attr, 32)[0]
    return done


# --- BTF ------------------------------------------------------------------------------------


def btf_load(data: bytes, log_size: int = 0) -> int:
    """BPF_BTF_LOAD; with ``log_size`` an OSError carries the kernel's text as ``.log``."""
    d = buffer(data)
    log = ct.create_string_buffer(log_size) if log_size else None
    attr = Struct("<QQIII").pack(
        addressof(d), addressof(log) if log else 0, len(data), log_size, 1 if log else 0
    )
    try:
        return bpf(BTF_LOAD, attr)
    except OSError as error:
        if log is not None:
            error.log = log.value.decode(errors="replace")  # type: ignore[attr-defined]
        raise


def btf_raw(fd: int) -> bytes:
    """The BTF blob behind a BTF fd."""
    info = obj_info(fd, 32)
    size = unpack_from("<I", info, 8)[0]
    data = ct.create_string_buffer(size)
    request = bytearray(32)
    pack_into("<QI", request, 0, addressof(data), size)
    obj_info(fd, 32, bytes(request))
    return data.raw


# --- programs -------------------------------------------------------------------------------


#: Programs loaded since the kernel was last given time to free what was closed.
_loaded = 0
_BURST = 200
_NR_MEMBARRIER = 324 if _MACHINE == "x86_64" else 283


def _pace() -> None:
    """Keep bursts of short-lived programs small: a kernel that frees too many at once hangs.

    A closed program is freed by a work item after an RCU grace period.  A thousand that one grace
    period sets free fill the kernel's shared work queue (1024 items a CPU), all waiting for the
    mutex of the JIT's memory, whose holder waits for an item that then never gets its turn: every
    later load on the machine hangs in state D until a reboot (seen on 6.18: bpf_prog_pack_free() ->
    vfree() -> flush_work()).  Probing every helper of every type is such a burst.  So a process
    that has loaded many waits for a grace period, and a moment for what it sets free.
    """
    import time

    try:
        grace_period()
    except OSError:
        time.sleep(0.1)  # only a pause, which a grace period rarely exceeds
    time.sleep(0.02)


def grace_period() -> None:
    """Wait until every program that was running on any CPU has ended (an RCU grace period).

    membarrier(2) does just that, except on kernels with CPUs in ``nohz_full`` (EINVAL) or without
    it (ENOSYS); there an update of a map of maps waits as long, so that the map that was in it is
    not in use any more when bpf(2) returns (``maybe_wait_bpf_programs()``, Linux 4.20).

    :raises OSError: neither is possible.
    """
    if _syscall(_NR_MEMBARRIER, ct.c_int(1), ct.c_uint(0), ct.c_int(0)) < 0:  # CMD_GLOBAL
        _update_map_of_maps()


def _update_map_of_maps() -> None:
    inner = outer = -1
    try:
        inner = map_create(2, 4, 4, 1)  # ARRAY
        outer = map_create(12, 4, 4, 1, inner_map_fd=inner)  # ARRAY_OF_MAPS
        map_update(outer, bytes(4), inner.to_bytes(4, sys.byteorder))
    finally:
        for fd in (inner, outer):
            if fd >= 0:
                os.close(fd)


def prog_load(
    prog_type: int,
    insns: bytes,
    license: bytes = b"GPL",
    name: bytes = b"",
    *,
    expected_attach_type: int = 0,
    prog_flags: int = 0,
    kern_version: int = 0,
    prog_ifindex: int = 0,
    btf_fd: int = 0,
    func_info: bytes = b"",
    func_info_rec_size: int = 8,
    line_info: bytes = b"",
    line_info_rec_size: int = 16,
    attach_btf_id: int = 0,
    attach_prog_fd: int = 0,
    fd_array: Sequence[int] = (),
    log_level: int = 0,
    log: ct.Array[ct.c_char] | None = None,
) -> int:
    """BPF_PROG_LOAD; returns the program's fd.

    ``log`` receives the verifier's text when ``log_level`` is set.  ENOSPC then means that
    the log, not the program, was too large.
    """
    global _loaded
    _loaded += 1
    if not _loaded % _BURST:
        _pace()
    i = buffer(insns)
    lic = ct.create_string_buffer(license)
    fi = buffer(func_info)
    li = buffer(line_info)
    fds = (ct.c_int * len(fd_array))(*fd_array) if fd_array else None
    has_fi = bool(btf_fd and func_info)
    has_li = bool(btf_fd and line_info)
    attr = _PROG_LOAD.pack(
        prog_type,
        len(insns) // 8,
        addressof(i),
        addressof(lic),
        log_level if log is not None else 0,
        ct.sizeof(log) if log is not None and log_level else 0,
        addressof(log) if log is not None and log_level else 0,
        kern_version,
        prog_flags,
        name[:15],
        prog_ifindex,
        expected_attach_type,
        btf_fd if has_fi else 0,
        func_info_rec_size if has_fi else 0,
        addressof(fi) if has_fi else 0,
        len(func_info) // func_info_rec_size if has_fi else 0,
        line_info_rec_size if has_li else 0,
        addressof(li) if has_li else 0,
        len(line_info) // line_info_rec_size if has_li else 0,
        attach_btf_id,
        attach_prog_fd,
    )
    if fds is not None:
        attr += Struct("<4xQ").pack(addressof(fds))
    return _bpf_charged(PROG_LOAD, attr)


_TEST_RUN = Struct("<IIIIQQIIIIQQIII4x")


class TestRun:
    """One prepared BPF_PROG_TEST_RUN: buffers are made once, so a run is one system call."""

    __test__ = False  # not a pytest class, whatever its name
    __slots__ = ("attr", "ctx_in", "ctx_out", "data_in", "data_out", "fd")

    def __init__(self, fd: int, size_in: int, size_out: int, ctx_size: int = 0) -> None:
        self.fd = fd
        self.data_in = ct.create_string_buffer(size_in or 1)
        self.data_out = ct.create_string_buffer(size_out) if size_out else None
        self.ctx_in = ct.create_string_buffer(ctx_size) if ctx_size else None
        self.ctx_out = ct.create_string_buffer(ctx_size) if ctx_size else None
        self.attr = ct.create_string_buffer(_TEST_RUN.size)

    def run(
        self,
        size_in: int,
        *,
        repeat: int = 1,
        flags: int = 0,
        cpu: int = 0,
        batch_size: int = 0,
        want_ctx: bool = False,
    ) -> tuple[int, int, int, int]:
        """Run over ``data_in[:size_in]``; returns (retval, ns per run, size out, ctx size out)."""
        ctx_in, ctx_out, out = self.ctx_in, self.ctx_out if want_ctx else None, self.data_out
        _TEST_RUN.pack_into(
            self.attr,
            0,
            self.fd,
            0,
            size_in,
            ct.sizeof(out) if out is not None else 0,
            addressof(self.data_in) if size_in else 0,
            addressof(out) if out is not None else 0,
            repeat,
            0,
            ct.sizeof(ctx_in) if ctx_in is not None else 0,
            ct.sizeof(ctx_out) if ctx_out is not None else 0,
            addressof(ctx_in) if ctx_in is not None else 0,
            addressof(ctx_out) if ctx_out is not None else 0,
            flags,
            cpu,
            batch_size,
        )
        bpf(PROG_TEST_RUN, self.attr)
        values = _TEST_RUN.unpack_from(self.attr)
        return values[1], values[7], values[3], values[9]


def prog_test_run(
    fd: int,
    data: bytes = b"",
    *,
    repeat: int = 1,
    size_out: int = 0,
    ctx: bytes = b"",
    flags: int = 0,
    cpu: int = 0,
) -> tuple[int, bytes, int, bytes]:
    """BPF_PROG_TEST_RUN once: (retval, output data, ns per run, output context)."""
    run = TestRun(fd, len(data), size_out, len(ctx))
    ct.memmove(run.data_in, data, len(data))
    if run.ctx_in is not None:
        run.ctx_in.raw = ctx
    retval, duration, out, ctx_out = run.run(
        len(data), repeat=repeat, flags=flags, cpu=cpu, want_ctx=bool(ctx)
    )
    return (
        retval,
        run.data_out.raw[:out] if run.data_out is not None else b"",
        duration,
        run.ctx_out.raw[:ctx_out] if run.ctx_out is not None else b"",
    )


def prog_run_syscall(fd: int, ctx: bytes = b"") -> tuple[int, bytes]:
    """BPF_PROG_TEST_RUN of a SYSCALL program: (retval, the context as the program left it).

    That type takes nothing but the context, which comes back in the same memory.
    """
    run = TestRun(fd, 0, 0, len(ctx))
    if run.ctx_in is not None:
        run.ctx_in.raw = ctx
    retval, _, _, _ = run.run(0, repeat=0)
    return retval, run.ctx_in.raw if run.ctx_in is not None else b""


# --- attaching ------------------------------------------------------------------------------


def prog_attach(
    target_fd: int, prog_fd: int, attach_type: int, flags: int = 0, replace_fd: int = 0
) -> None:
    """BPF_PROG_ATTACH (cgroups, sockmaps, flow dissector)."""
    bpf(PROG_ATTACH, Struct("<IIIII").pack(target_fd, prog_fd, attach_type, flags, replace_fd))


def prog_detach(target_fd: int, prog_fd: int, attach_type: int) -> None:
    """BPF_PROG_DETACH."""
    bpf(PROG_DETACH, Struct("<IIIII").pack(target_fd, prog_fd, attach_type, 0, 0))


def prog_query(target: int, attach_type: int, query_flags: int = 0) -> list[int]:
    """BPF_PROG_QUERY: ids of the programs attached to a cgroup, netns or device."""
    ids = (ct.c_uint32 * 128)()
    attr = ct.create_string_buffer(
        Struct("<IIIIQI4x").pack(target, attach_type, query_flags, 0, addressof(ids), 128), 32
    )
    bpf(PROG_QUERY, attr)
    return list(ids[: unpack_from("<I", attr, 24)[0]])


def link_create(
    prog_fd: int, target: int, attach_type: int, flags: int = 0, extra: bytes = b""
) -> int:
    """BPF_LINK_CREATE; ``target`` is an fd or an ifindex, ``extra`` the type's own union member."""
    return bpf(LINK_CREATE, Struct("<IIII").pack(prog_fd, target, attach_type, flags) + extra)


def link_update(link_fd: int, new_prog_fd: int, flags: int = 0, old_prog_fd: int = 0) -> None:
    """BPF_LINK_UPDATE (5.7)."""
    bpf(LINK_UPDATE, Struct("<IIII").pack(link_fd, new_prog_fd, flags, old_prog_fd))


def link_detach(link_fd: int) -> None:
    """BPF_LINK_DETACH (5.9)."""
    bpf(LINK_DETACH, link_fd.to_bytes(4, "little"))


def iter_create(link_fd: int) -> int:
    """BPF_ITER_CREATE (5.8): an fd to read the iterator's text from."""
    return bpf(ITER_CREATE, Struct("<II").pack(link_fd, 0))


def raw_tracepoint_open(prog_fd: int, name: bytes | None = None, cookie: int = 0) -> int:
    """BPF_RAW_TRACEPOINT_OPEN; no name for fentry, LSM and tp_btf."""
    n = ct.create_string_buffer(name) if name else None
    attr = Struct("<QI4x").pack(addressof(n) if n else 0, prog_fd)
    if cookie:
        attr += cookie.to_bytes(8, "little")
    return bpf(RAW_TRACEPOINT_OPEN, attr)


def obj_pin(fd: int, path: str) -> None:
    """BPF_OBJ_PIN."""
    p = ct.create_string_buffer(os.fsencode(path))
    bpf(OBJ_PIN, Struct("<QII").pack(addressof(p), fd, 0))


def obj_get(path: str) -> int:
    """BPF_OBJ_GET."""
    p = ct.create_string_buffer(os.fsencode(path))
    return bpf(OBJ_GET, Struct("<QII").pack(addressof(p), 0, 0))


# --- what exists ----------------------------------------------------------------------------


def obj_info(fd: int, size: int, request: bytes = b"") -> bytes:
    """BPF_OBJ_GET_INFO_BY_FD: ``size`` bytes of the object's info struct, zero-padded."""
    info = ct.create_string_buffer(request.ljust(size, b"\0"), size)
    bpf(OBJ_GET_INFO_BY_FD, Struct("<iIQ").pack(fd, size, addressof(info)))
    return info.raw


def map_info(fd: int) -> dict[str, Any]:
    """``struct bpf_map_info`` as a dict."""
    b = obj_info(fd, 88)
    names = ("type", "id", "key_size", "value_size", "max_entries", "map_flags")
    info: dict[str, Any] = dict(zip(names, unpack_from("<IIIIII", b), strict=True))
    info["name"] = b[24:40].rstrip(b"\0").decode(errors="replace")
    info["btf_id"], info["btf_key_type_id"], info["btf_value_type_id"] = unpack_from("<III", b, 64)
    (info["map_extra"],) = unpack_from("<Q", b, 80)
    return info


def prog_info(fd: int) -> dict[str, Any]:
    """The plain figures of ``struct bpf_prog_info`` as a dict; ``tag`` as hexadecimal text."""
    b = obj_info(fd, 232)
    kind, number = unpack_from("<II", b)
    jited, xlated = unpack_from("<II", b, 16)
    return {
        "type": kind,
        "id": number,
        "tag": b[8:16].hex(),
        "jited_prog_len": jited,
        "xlated_prog_len": xlated,
        "load_time": unpack_from("<Q", b, 40)[0],
        "created_by_uid": unpack_from("<I", b, 48)[0],
        "nr_map_ids": unpack_from("<I", b, 52)[0],
        "name": b[64:80].rstrip(b"\0").decode(errors="replace"),
        "btf_id": unpack_from("<I", b, 128)[0],
        "run_time_ns": unpack_from("<Q", b, 192)[0],
        "run_cnt": unpack_from("<Q", b, 200)[0],
        "recursion_misses": unpack_from("<Q", b, 208)[0],
        "verified_insns": unpack_from("<I", b, 216)[0],
    }


def prog_map_ids(fd: int) -> list[int]:
    """Ids of the maps that a program uses."""
    count = prog_info(fd)["nr_map_ids"]
    ids = (ct.c_uint32 * (count or 1))()
    request = bytearray(232)
    pack_into("<IQ", request, 52, count, addressof(ids))
    obj_info(fd, 232, bytes(request))
    return list(ids[:count])


def enable_stats() -> int:
    """Have the kernel count runs and run time of all programs while the returned fd is open (5.8).

    Source: BPF_ENABLE_STATS, BPF_STATS_RUN_TIME in include/uapi/linux/bpf.h.
    """
    return bpf(ENABLE_STATS, Struct("<I").pack(0))


def next_id(cmd: int, start: int) -> int | None:
    """The id after ``start`` for one of the ``*_GET_NEXT_ID`` commands, None at the end."""
    attr = ct.create_string_buffer(Struct("<III").pack(start, 0, 0), 12)
    try:
        bpf(cmd, attr)
    except FileNotFoundError:
        return None
    found: int = unpack_from("<I", attr, 4)[0]
    return found


def prog_stream_read(prog_fd: int, stream: int, size: int) -> bytes:
    """BPF_PROG_STREAM_READ_BY_FD (6.17): what a program, or the kernel about it, has written.

    :param stream: 1: standard output, 2: standard error.  What is read is taken.
    """
    out = ct.create_string_buffer(size)
    attr = Struct("<QIII4x").pack(addressof(out), size, stream, prog_fd)
    count = bpf(PROG_STREAM_READ_BY_FD, attr)
    return out.raw[:count]


def _by_id(cmd: int, number: int) -> int:
    return bpf(cmd, Struct("<III").pack(number, 0, 0))


def prog_get_fd_by_id(number: int) -> int:
    """BPF_PROG_GET_FD_BY_ID."""
    return _by_id(PROG_GET_FD_BY_ID, number)


def map_get_fd_by_id(number: int) -> int:
    """BPF_MAP_GET_FD_BY_ID."""
    return _by_id(MAP_GET_FD_BY_ID, number)


def btf_get_fd_by_id(number: int) -> int:
    """BPF_BTF_GET_FD_BY_ID."""
    return _by_id(BTF_GET_FD_BY_ID, number)


def link_get_fd_by_id(number: int) -> int:
    """BPF_LINK_GET_FD_BY_ID."""
    return _by_id(LINK_GET_FD_BY_ID, number)


# --- perf_event_open(2), the carrier of perf buffers and tracing programs ---------------------


def perf_event_open(attr: bytes, pid: int, cpu: int, group_fd: int = -1, flags: int = 8) -> int:
    """perf_event_open(2); ``flags`` 8 is PERF_FLAG_FD_CLOEXEC."""
    a = ct.create_string_buffer(attr, len(attr))
    fd: int = _syscall(
        _NR_PERF_EVENT_OPEN, a, ct.c_int(pid), ct.c_int(cpu), ct.c_int(group_fd), ct.c_ulong(flags)
    )
    if fd < 0:
        number = ct.get_errno()
        raise OSError(number, os.strerror(number))
    return fd
