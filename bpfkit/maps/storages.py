# SPDX-License-Identifier: Apache-2.0
"""Values that the kernel keeps with a socket, inode, task or cgroup, and frees with it."""

from __future__ import annotations

import os
from struct import pack

from bpfkit.core.errors import BpfkitError, UnsupportedError
from bpfkit.core.kernel import syscall as sc
from bpfkit.maps.cgroup_storages import connect
from bpfkit.maps.tour import Trial, failure, stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.kernel.asm import Item
    from bpfkit.core.maps.base import Map

_NO_PREALLOC = 1
_CREATE = 1


def _storage(t: Trial) -> Map:
    """A map of the stop's type, int -> u64; the kernel takes these only with BTF."""
    from bpfkit.core.types.btf import Btf
    from bpfkit.core.types.btf_writer import BtfBuilder

    types = BtfBuilder()
    integer = types.int_("int", 4)
    value = types.int_("long", 8, signed=False)
    return t.map(
        4,
        8,
        0,
        flags=_NO_PREALLOC,
        btf=Btf(types.blob()),
        key_type_id=integer,
        value_type_id=value,
    )


def _same_rules(t: Trial, m: Map, owner: int, other: int) -> None:
    """Updates from Python: the errnos are those of a hash.

    :param owner: an fd of an object that has a value.
    :param other: one of an object that has none.
    """
    have, none = pack("=i", owner), pack("=i", other)
    t.equal(failure(sc.map_lookup, m.fd, none, 8), "ENOENT", "an object without a value: ENOENT")
    t.equal(
        (
            failure(sc.map_update, m.fd, have, bytes(8), 1),
            failure(sc.map_update, m.fd, none, bytes(8), 2),
        ),
        ("EEXIST", "ENOENT"),
        "BPF_NOEXIST where there is one: EEXIST; BPF_EXIST where there is none: ENOENT",
    )
    t.equal(
        failure(sc.map_update, m.fd, pack("=i", 1 << 20), bytes(8)),
        "EBADF",
        "a key that is no open descriptor: EBADF",
    )
    t.equal(failure(sc.map_next_key, m.fd, None, 4), "ENOTSUPP", "user space cannot walk it")


@stop("sk_storage", "a value that lives with a socket")
def sk_storage(t: Trial) -> None:
    m = _storage(t)
    side = t.load(m, "of_socket")
    t.keep(side.programs["of_socket"].attach_cgroup(t.tour.group().path))
    sock, other = connect(t), connect(t)
    t.equal((m[sock], m[other]), (1, 1), "the program gave each connecting socket a value")
    with t.tour.group().entered():
        sock.connect(("127.0.0.1", 10))
    t.equal((m[sock], m[other]), (2, 1), "a second connect counts for that socket only")
    m[sock] = 40
    with t.tour.group().entered():
        sock.connect(("127.0.0.1", 11))
    t.equal(m[sock], 41, "the program goes on from the value that Python wrote")
    del m[other]
    _same_rules(t, m, sock.fileno(), other.fileno())
    number = sock.fileno()
    sock.close()
    t.equal(failure(sc.map_lookup, m.fd, pack("=i", number), 8), "EBADF", "gone with its socket")
    _vanish(t, m)


def _vanish(t: Trial, m: Map) -> None:
    """A socket that takes the number of a closed one has no value."""
    import socket

    first = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    m[first] = 5
    number = first.fileno()
    first.close()
    second = t.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    if second.fileno() == number:
        t.check(second not in m, "a new socket with the same descriptor has no value")


@stop("task_storage", "a value that lives with a task")
def task_storage(t: Trial) -> None:
    m = _storage(t)
    side = t.load(m, "of_task")
    me = os.pidfd_open(os.getpid())
    try:
        t.equal(side.run("of_task"), -1, "without CREATE: NULL, this task has no value")
        side.run("of_task", flags=_CREATE)
        side.run("of_task")
        t.equal(m[me], 2, "created by the program and counted to 2; Python reads it by pidfd")
        m[me] = 10
        side.run("of_task")
        t.equal(m[me], 11, "the program goes on from the value that Python wrote")
        child = os.fork()
        if not child:
            import signal

            signal.pause()
            os._exit(0)
        other = os.pidfd_open(child)
        try:
            t.check(other not in m, "a child does not inherit it")
            _same_rules(t, m, me, other)
            m[other] = 3
            t.equal(m[other], 3, "Python gives the child a value")
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
            gone = failure(sc.map_lookup, m.fd, pack("=i", other), 8)
            os.close(other)
        t.check(gone in ("ENOENT", "ESRCH"), f"the child ends, and its value with it: {gone}")
        del m[me]
        t.equal(side.run("of_task"), -1, "deleted: NULL again")
    finally:
        os.close(me)


def _task_cgroup() -> list[Item]:
    """r2 = the cgroup of the current task: task->cgroups->dfl_cgrp, at this kernel's offsets."""
    from bpfkit.core.kernel.asm import call, ldx, r0, r1, r2, u64
    from bpfkit.core.types.btf import vmlinux

    btf = vmlinux()
    if btf is None:
        raise UnsupportedError("cannot find a task's cgroup", why="the kernel has no BTF")
    return [
        call("get_current_task_btf"),
        ldx(u64, r1, r0 + btf.offset("task_struct", "cgroups")),
        ldx(u64, r2, r1 + btf.offset("css_set", "dfl_cgrp")),
    ]


@stop("cgrp_storage", "a value that lives with a cgroup")
def cgrp_storage(t: Trial) -> None:
    from bpfkit.core.kernel.asm import (
        assemble,
        atomic_add,
        call,
        exit_,
        jeq,
        ld_map_fd,
        mov,
        r0,
        r1,
        r3,
        r4,
        u64,
    )

    m = _storage(t)
    # Reads of kernel structs by typed pointers; BCC would make bpf_probe_read() of them.
    program = t.assembled(
        "raw_tracepoint",
        assemble(
            _task_cgroup(),
            ld_map_fd(r1, m.fd),
            mov(r3, 0),
            mov(r4, _CREATE),
            call("cgrp_storage_get"),
            jeq(r0, 0, 2),
            mov(r1, 1),
            atomic_add(u64, r0 + 0, r1),
            mov(r0, 0),
            exit_(),
        ),
    )
    from bpfkit.core.cgroups import Cgroup

    group = t.tour.group()
    with group.entered():
        program.run(repeat=0)
        program.run(repeat=0)
    t.equal(m[group.path], 2, "two runs of the program, counted for the cgroup of its task")
    m[group.path] = 20
    with group.entered():
        program.run(repeat=0)
    t.equal(m[group.path], 21, "the program goes on from the value that Python wrote")
    inner = Cgroup.new("inner", parent=group.path)
    try:
        t.check(inner.path not in m, "a cgroup below has no value of its own")
        _same_rules(t, m, group.fd, inner.fd)
        m[inner.path] = 5
        number = inner.id
    finally:
        inner.close()
    again = t.keep(Cgroup.new("inner", parent=group.path))
    t.check(again.path not in m, f"the cgroup {number} is removed, and its value with it")


@stop("inode_storage", "a value that lives with a file")
def inode_storage(t: Trial) -> None:
    m = _storage(t)
    one, two = (os.memfd_create(name) for name in ("one", "two"))
    try:
        m[one] = 1
        t.equal(m[one], 1, "Python gives a file a value and reads it")
        path = f"/proc/self/fd/{one}"
        t.equal(m[path], 1, "through another descriptor of the same file: the same value")
        _same_rules(t, m, one, two)
        _counted_opens(t, m, one, path)
        del m[one]
        t.check(one not in m, "deleted")
        m[two] = 7
    finally:
        os.close(one)
        os.close(two)
    fresh = os.memfd_create("fresh")
    try:
        t.check(fresh not in m, "closed for good, a file takes its value with it")
    finally:
        os.close(fresh)


def _counted_opens(t: Trial, m: Map, owner: int, path: str) -> None:
    """An LSM program at file_open adds to files that have a value, and only to those."""
    from bpfkit.core.kernel.asm import (
        assemble,
        atomic_add,
        call,
        exit_,
        jeq,
        ld_map_fd,
        ldx,
        mov,
        r0,
        r1,
        r2,
        r3,
        r4,
        u64,
    )
    from bpfkit.core.kernel.sections import resolve
    from bpfkit.core.loading import load_program
    from bpfkit.core.program import Program
    from bpfkit.core.types.btf import vmlinux

    btf = vmlinux()
    hook = btf.find("bpf_lsm_file_open", "func") if btf is not None else None
    if btf is None or hook is None:
        t.partly("used from Python only: this kernel's BTF has no LSM hooks")
        return
    code = assemble(
        ldx(u64, r1, r1 + 0),  # the file
        ldx(u64, r2, r1 + btf.offset("file", "f_inode")),
        ld_map_fd(r1, m.fd),
        mov(r3, 0),
        mov(r4, 0),
        call("inode_storage_get"),
        jeq(r0, 0, 2),
        mov(r1, 1),
        atomic_add(u64, r0 + 0, r1),
        mov(r0, 0),
        exit_(),
    )
    section = resolve("lsm/file_open")
    try:
        fd = load_program("opened", section, code, attach_btf_id=hook)
        program = t.keep(Program("opened", section, fd, code))
        t.keep(program.attach_raw_tracepoint())
    except BpfkitError as error:
        t.partly(f"used from Python only, its helper is for LSM programs: {error.why}")
        return
    before = m[owner]
    for _ in range(3):
        os.close(os.open(path, os.O_RDONLY))
    if m[owner] == before:
        # The list in securityfs is often not mounted; what does not run needs no list.
        t.partly("used from Python only: LSM programs do not run, bpf is not in the lsm= list")
        return
    t.equal(m[owner], before + 3, "the LSM program counted three opens of that file")
