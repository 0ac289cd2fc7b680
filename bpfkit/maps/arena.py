# SPDX-License-Identifier: Apache-2.0
"""ARENA: memory that programs and user space share.

The program is assembled: address spaces in C need a newer clang than Debian 12's.
"""

from __future__ import annotations

import os
from struct import pack, unpack_from

from bpfkit.core.errors import UnsupportedError
from bpfkit.core.features.kfuncs import kfunc_id
from bpfkit.core.kernel import syscall as sc
from bpfkit.maps.tour import Trial, failure, read_fdinfo, stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.kernel.asm import Code

PAGE = os.sysconf("SC_PAGE_SIZE")
PAGES = 4
_MMAPABLE = 1 << 10
_SLEEPABLE = 1 << 4
_NUMA_NO_NODE = -1


def _kfunc(name: str) -> int:
    number = kfunc_id(name)
    if number is None:
        raise UnsupportedError("cannot use an arena", why=f"the kernel has no function {name}")
    return number


def _writer(fd: int) -> Code:
    """Take a page, write the context's number into it, return the page's address to user space.

    Context: u64 number in, u64 address out (0: no page is left).
    """
    from bpfkit.core.kernel.asm import (
        addr_space_cast,
        assemble,
        call_kfunc,
        exit_,
        jeq,
        label,
        ld_map_fd,
        ldx,
        mov,
        r0,
        r1,
        r2,
        r3,
        r4,
        r5,
        r6,
        r7,
        r8,
        stx,
        u64,
    )

    return assemble(
        mov(r6, r1),
        ldx(u64, r7, r6 + 0),
        ld_map_fd(r1, fd),
        mov(r2, 0),
        mov(r3, 1),
        mov(r4, _NUMA_NO_NODE),
        mov(r5, 0),
        call_kfunc(_kfunc("bpf_arena_alloc_pages")),
        stx(u64, r6 + 8, r0),
        jeq(r0, 0, "end"),
        addr_space_cast(r8, r0, 0, 1),
        stx(u64, r8 + 0, r7),
        label("end"),
        mov(r0, 0),
        exit_(),
    )


def _adder(fd: int) -> Code:
    """Follow a pointer that user space wrote, add 1 there and return what was there.

    Context: u64 address of user space in, u64 number out.
    """
    from bpfkit.core.kernel.asm import (
        add,
        addr_space_cast,
        assemble,
        exit_,
        ld_map_fd,
        ldx,
        mov,
        r0,
        r1,
        r2,
        r6,
        r7,
        stx,
        u64,
    )

    return assemble(
        mov(r6, r1),
        ld_map_fd(r1, fd),  # says which arena
        ldx(u64, r7, r6 + 0),
        addr_space_cast(r7, r7, 0, 1),
        ldx(u64, r2, r7 + 0),
        stx(u64, r6 + 8, r2),
        add(r2, 1),
        stx(u64, r7 + 0, r2),
        mov(r0, 0),
        exit_(),
    )


@stop("arena", "memory shared with programs")
def arena(t: Trial) -> None:
    m = t.map(0, 0, PAGES, flags=_MMAPABLE)
    memory = t.keep(m.mmap())
    base = _address(memory)
    writer = t.assembled("syscall", _writer(m.fd), prog_flags=_SLEEPABLE)
    adder = t.assembled("syscall", _adder(m.fd), prog_flags=_SLEEPABLE)
    addresses = []
    for number in range(PAGES):
        (address,) = unpack_from("=Q", _run(writer.fd, 1000 + number), 8)
        addresses.append(address)
    t.equal(
        sorted(address - base for address in addresses),
        [page * PAGE for page in range(PAGES)],
        f"the program takes {PAGES} pages; their addresses are those of Python's mmap",
    )
    t.equal(
        [unpack_from("=Q", memory, address - base)[0] for address in addresses],
        [1000 + number for number in range(PAGES)],
        "Python reads what the program wrote, without a system call",
    )
    t.equal(unpack_from("=Q", _run(writer.fd, 1), 8)[0], 0, "no page is left: NULL")
    place = 2 * PAGE + 64
    memory[place : place + 8] = pack("=Q", 77)
    found = unpack_from("=Q", _run(adder.fd, base + place), 8)[0]
    t.equal(found, 77, "the program follows a pointer of Python's and reads what it wrote")
    t.equal(unpack_from("=Q", memory, place)[0], 78, "and what it adds is there at once")
    t.equal(
        (failure(sc.map_lookup, m.fd, None, 8), failure(sc.map_create, 33, 0, 0, PAGES, 0)),
        ("EINVAL", "EINVAL"),
        "there are no elements, and without BPF_F_MMAPABLE no arena: EINVAL",
    )
    t.check("memlock" in read_fdinfo(m.fd), "the kernel accounts for it in fdinfo")


def _address(memory: object) -> int:
    """Where a mapping begins."""
    import ctypes

    view = ctypes.c_char.from_buffer(memory)  # type: ignore[arg-type]
    try:
        return ctypes.addressof(view)
    finally:
        del view


def _run(fd: int, number: int) -> bytes:
    """A run of a SYSCALL program with two words of context; returns them afterwards.

    The kernel copies the context back to where it was given.
    """
    run = sc.TestRun(fd, 0, 0, 16)
    assert run.ctx_in is not None
    run.ctx_in.raw = pack("=QQ", number, 0)
    run.run(0, repeat=0)
    return run.ctx_in.raw
