# SPDX-License-Identifier: Apache-2.0
"""RINGBUF, PERF_EVENT_ARRAY and USER_RINGBUF: order, loss and rate."""

from __future__ import annotations

import os
from struct import pack, unpack_from
from time import perf_counter_ns

from bpfkit.core.cpus import online
from bpfkit.core.errors import MapError
from bpfkit.core.kernel import syscall as sc
from bpfkit.maps.tour import PACKET, Trial, failure, pinned_to, stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.maps.buffers import PerfBuffer, RingBuffer
    from bpfkit.core.program import Program
    from bpfkit.maps.tour import Side

#: Records of a run of the program (BURST in the C source), and bytes of one.
BURST, RECORD = 64, 16
HEADER = 8
PAGE = os.sysconf("SC_PAGE_SIZE")
_ROUNDS, _REPEAT = 20, 16
_RB_OVERWRITE = 1 << 19


def numbers(buffer: RingBuffer | PerfBuffer) -> list[int]:
    """The numbers of the records that are there."""
    return [unpack_from("=Q", record)[0] for record in buffer.drain()]


def _load(t: Trial, side: Side, name: str, buffer: RingBuffer | PerfBuffer) -> None:
    """Records written and read in turn: nothing is lost, and what a record costs on each side."""
    side.request()
    written = read = 0
    got: list[int] = []
    for _ in range(_ROUNDS):
        written += side.once(name, _REPEAT).duration_ns * _REPEAT
        began = perf_counter_ns()
        got += numbers(buffer)
        read += perf_counter_ns() - began
    count = _ROUNDS * _REPEAT * BURST
    t.check(
        got == list(range(count)) and side.answer().refused == 0,
        f"read between the bursts: {len(got)} of {count} records, in order; "
        f"{written / count:.0f} ns each in the program, {read / count:.0f} ns in Python",
    )


@stop("ringbuf", "records for user space, in order")
def ringbuf(t: Trial) -> None:
    m = t.map(0, 0, PAGE)
    side = t.load(m, "flood_ring")
    reader = t.keep(m.open())  # type: ignore[attr-defined]
    t.equal(list(reader.poll(0)), [], "an empty ring is not readable")
    room = (PAGE - 1) // (RECORD + HEADER)
    runs = room // BURST + 2
    side.once("flood_ring", runs)
    answer = side.answer()
    t.equal(
        (answer.sent, answer.refused),
        (room, runs * BURST - room),
        f"{room} records of {RECORD} + {HEADER} bytes fit into {PAGE}, the program is refused "
        f"the other {runs * BURST - room}",
    )
    t.equal(reader.pending, room * (RECORD + HEADER), "so many bytes wait for the reader")
    got = [unpack_from("=Q", record)[0] for record in reader.poll(1)]
    t.equal(got, list(range(room)), "they are read in order, the oldest first; none is lost")
    side.once("flood_ring")
    t.equal(len(numbers(reader)), BURST, "what was read makes room")
    t.equal(failure(sc.map_create, 27, 0, 0, PAGE + 1), "EINVAL", "a size that is no power of two")
    big = t.map(0, 0, 1 << 20)
    loaded = t.load(big, "flood_ring")
    _load(t, loaded, "flood_ring", t.keep(big.open()))  # type: ignore[attr-defined]
    _flight_recorder(t)


def _flight_recorder(t: Trial) -> None:
    """BPF_F_RB_OVERWRITE (6.19): a full ring drops the oldest record, not the newest."""
    try:
        m = t.map(0, 0, PAGE, flags=_RB_OVERWRITE)
    except MapError:
        t.partly("overwrite mode (BPF_F_RB_OVERWRITE) needs Linux 6.19")
        return
    side = t.load(m, "flood_ring")
    side.once("flood_ring", 10)
    answer = side.answer()
    t.equal((answer.sent, answer.refused), (10 * BURST, 0), "overwrite mode: nothing is refused")
    got = _recorded(m.fd)
    room = PAGE // (RECORD + HEADER)
    t.check(
        room - 1 <= len(got) <= room and got == list(range(10 * BURST - len(got), 10 * BURST)),
        f"flight recorder: the newest {len(got)} of {10 * BURST} records are there, in order",
    )


def _recorded(fd: int) -> list[int]:
    """The records of a ring in overwrite mode, from the oldest that is whole to the newest.

    The producer's page holds its position, the position of the oldest record that is not committed,
    and the position behind the last record that was overwritten.
    """
    import mmap

    with mmap.mmap(fd, PAGE + 2 * PAGE, prot=mmap.PROT_READ, offset=PAGE) as memory:
        producer, _, overwritten = unpack_from("=QQQ", memory)
        found = []
        at = overwritten
        while at < producer:
            (length,) = unpack_from("=I", memory, PAGE + at % PAGE)
            found.append(unpack_from("=Q", memory, PAGE + at % PAGE + HEADER)[0])
            at += (length & 0x3FFFFFFF) + HEADER + 7 & ~7
    return found


@stop("perf_event_array", "records by a buffer for each CPU")
def perf_event_array(t: Trial) -> None:
    cpus = online()
    m = t.map(4, 4, max(cpus) + 1)
    side = t.load(m, "flood_perf")
    side.once("flood_perf")
    answer = side.answer()
    t.equal((answer.sent, answer.refused), (0, BURST), "without a perf event every record fails")
    reader = t.keep(m.open(pages=1))  # type: ignore[attr-defined]
    t.equal(failure(sc.map_lookup, m.fd, bytes(4), 4), "ENOTSUPP", "events cannot be looked up")
    seen = {}
    for cpu in cpus:
        with pinned_to(cpu):
            side.once("flood_perf")
        numbers(reader)
        seen[cpu] = reader.cpu
    t.equal(seen, {cpu: cpu for cpu in cpus}, f"CPU {cpus[0]} to {cpus[-1]}: each its own buffer")
    with pinned_to(cpus[0]):
        side.request()
        side.once("flood_perf", 8)  # nobody reads
        answer = side.answer()
        got = numbers(reader)
        t.check(
            0 < answer.refused < 8 * BURST and got == list(range(answer.sent)),
            f"a full buffer of {PAGE} bytes refuses the newest: {len(got)} of {8 * BURST} "
            "are read, in order",
        )
        refused = int(answer.refused)
        side.once("flood_perf")  # the kernel tells the losses in front of the next record
        numbers(reader)
        t.equal(reader.lost, refused, f"PERF_RECORD_LOST tells the {refused} that were lost")
        reader.close()
        large = t.keep(m.open(pages=64))  # type: ignore[attr-defined]
        _load(t, side, "flood_perf", large)


@stop("user_ringbuf", "records for programs, from Python")
def user_ringbuf(t: Trial) -> None:
    from bpfkit.core.maps.buffers import UserRingFullError

    m = t.map(0, 0, PAGE)
    out = t.map(0, 0, 2 * PAGE, type="ringbuf")
    program = t.keep(_drainer(m.fd, out.fd))
    writer = t.keep(m.open())  # type: ignore[attr-defined]
    reader = t.keep(out.open())  # type: ignore[attr-defined]
    t.equal(program.run(PACKET).retval, 0, "an empty ring: the program drains 0 records")
    count = 0
    try:
        while True:
            writer.send(pack("=QQ", count, 0))
            count += 1
    except UserRingFullError:
        pass
    room = PAGE // (RECORD + HEADER)
    t.equal(count, room, f"Python writes {room} records into {PAGE} bytes, then it is full")
    t.equal(program.run(PACKET).retval, room, "the program's callback is called for each")
    t.equal(numbers(reader), list(range(room)), "it got them in order")
    t.equal(writer.pending, 0, "and what it drained makes room")
    gone = writer.reserve(8)
    writer.send(pack("=Q", 7))
    writer.discard(gone)
    program.run(PACKET)
    t.equal(numbers(reader), [7], "a record that Python takes back is passed over")
    t.equal(failure(sc.map_update, m.fd, bytes(4), bytes(8)), "EINVAL", "there are no keys: EINVAL")


def _drainer(source: int, out: int) -> Program:
    """A program that drains a user ring buffer and sends the first 8 bytes of each record on.

    A callback needs a function of its own with BTF, which BCC's loader does not make.
    """
    from bpfkit.core.kernel.asm import (
        add,
        assemble,
        call,
        exit_,
        label,
        ld_func,
        ld_map_fd,
        mov,
        r0,
        r1,
        r2,
        r3,
        r4,
        r5,
        r10,
    )
    from bpfkit.core.kernel.sections import Section
    from bpfkit.core.program import Program
    from bpfkit.core.types.btf_writer import BtfBuilder

    code = assemble(
        ld_map_fd(r1, source),
        ld_func(r2, "record"),
        mov(r3, 0),
        mov(r4, 0),
        call("user_ringbuf_drain"),
        exit_(),
        label("record"),  # long record(struct bpf_dynptr *data, void *context)
        mov(r3, r1),
        mov(r1, r10),
        add(r1, -8),
        mov(r2, 8),
        mov(r4, 0),
        mov(r5, 0),
        call("dynptr_read"),
        ld_map_fd(r1, out),
        mov(r2, r10),
        add(r2, -8),
        mov(r3, 8),
        mov(r4, 0),
        call("ringbuf_output"),
        mov(r0, 0),
        exit_(),
    )
    start = next(slot for slot, names in code.labels.items() if "record" in names)
    types = BtfBuilder()
    integer = types.int_("int", 4)
    void = types.pointer(0)
    functions = [
        types.function("main", integer, [("ctx", void)], 1),
        types.function("record", integer, [("data", void), ("context", void)], 0),
    ]
    btf_fd = sc.btf_load(types.blob())
    try:
        fd = sc.prog_load(
            3,
            code,
            b"GPL",
            b"drain",
            btf_fd=btf_fd,
            func_info=pack("=IIII", 0, functions[0], start, functions[1]),
            func_info_rec_size=8,
        )
    finally:
        os.close(btf_fd)
    return Program("drain", Section("tc", 3, 0, 0), fd)
