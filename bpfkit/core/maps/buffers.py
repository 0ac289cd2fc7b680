# SPDX-License-Identifier: Apache-2.0
"""Streams of events: ring buffers, perf buffers, and the ring buffer that goes the other way.

Pure Python over the memory the kernel shares; no libbpf.  All three are context managers::

    with obj["events"].open(obj.btf.layout(type_id)) as events:
        for event in events.poll(1.0):
            print(event.comm, event.dport)

An event is a value of the layout (a struct with named fields), or bytes without one.

Memory order: positions and record headers are aligned words that the kernel publishes with
release stores; Python reads and writes them with single load and store instructions.  On x86-64
loads are not reordered with loads nor stores with stores, so that is enough.  Elsewhere a fence is
needed between a word and the data it guards: :func:`_fence`.

Source: ``Documentation/bpf/ringbuf.rst``, ``kernel/bpf/ringbuf.c``, perf_event_open(2),
``include/uapi/linux/perf_event.h``.
"""

from __future__ import annotations

import errno
import os
from struct import Struct, unpack_from

from bpfkit.core.closing import Held
from bpfkit.core.errors import BpfkitError, MapError, PrivilegeError, errno_text
from bpfkit.core.kernel import syscall as sc
from bpfkit.core.shown import notebook
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterator
    from typing import Any

    from bpfkit.core.maps.base import Map
    from bpfkit.core.types.layout import Layout

__all__ = ["PerfBuffer", "RingBuffer", "UserRingBuffer", "UserRingFullError"]

BUSY = 1 << 31  # the producer is still writing the record
DISCARD = 1 << 30  # the producer took it back
_LENGTH = DISCARD - 1
_HEADER = 8  # u32 length and bits, u32 page offset (the kernel's own)


def _make_fence() -> Callable[[], None] | None:
    if os.uname().machine in ("x86_64", "i686", "s390x"):
        return None
    from threading import Lock

    lock = Lock()
    lock.acquire()

    def fence() -> None:
        # A release followed by an acquire: nothing before passes the first, nothing after is
        # done ahead of the second, and the two stay in order.
        lock.release()
        lock.acquire()

    return fence


_fence = _make_fence()


class UserRingFullError(MapError):
    """The program has not drained the ring far enough for another record of this size."""


class _Stream(Held):
    """What the consumers share: waiting, and the context manager."""

    __slots__ = ("_poll", "layout", "map")

    def __init__(self, m: Map, layout: Layout | None) -> None:
        self.map = m
        self.layout = layout
        self._poll: Any = None

    def _wait(self, timeout: float | None) -> bool:
        """Wait until there is something; seconds, None for ever.  False when time is up."""
        if self._poll is None:
            raise MapError(f"cannot read map '{self.map.name}'", why="its buffer is closed")
        # Signals do not end the wait (PEP 475) unless their handler raises.
        return bool(
            self._poll.poll(None if timeout is None else max(0, int(timeout * 1000 + 0.999)))
        )

    def _is_open(self) -> bool:
        return self._poll is not None

    def fileno(self) -> int:
        """The fd that becomes readable, for an event loop of one's own."""
        raise NotImplementedError

    def drain(self) -> Iterator[Any]:
        raise NotImplementedError

    def poll(self, timeout: float | None = None) -> Iterator[Any]:
        """Wait for events, at most ``timeout`` seconds (None: for ever), and yield what is there.

        Ends when the buffer is empty, or at once when the time is up.  Events that are not
        consumed because the caller leaves the loop stay for the next call.
        """
        if self._wait(timeout):
            yield from self.drain()

    def watch(self, seconds: float = 10.0, every: float = 0.5) -> list[Any]:
        """Show the newest events in a notebook's cell (or as text) for some seconds.

        :param every: seconds between two frames.
        :returns: all events; an interrupt ends it early.
        """
        events: list[Any] = notebook("watch_events")(self, seconds, every)
        return events

    def __iter__(self) -> Iterator[Any]:
        """Events for ever."""
        while True:
            yield from self.poll()


def _decoder(layout: Layout | None) -> Callable[[Any, int, int], Any]:
    """(memory, offset, length) -> event."""
    if layout is None:
        return lambda memory, at, length: memory[at : at + length]
    size = layout.size
    fixed, flexible, name = layout.decode, layout.decode_all, layout.name

    def decode(memory: Any, at: int, length: int) -> Any:
        if length < size:
            raise MapError(
                f"cannot decode an event as {name}",
                why=f"it has {count_of(length, 'byte')}, the type {size}",
            )
        # Longer records: the type ends in a flexible array, or the rest is padding.
        return fixed(memory, at) if length == size else flexible(memory[at : at + length])

    return decode


class RingBuffer(_Stream):
    """Consumer of a RINGBUF map (5.8).  There may be only one per map.

    The ring is lossless for the reader: what does not fit is refused to the *program*, whose
    ``bpf_ringbuf_output`` or ``reserve`` then fails, and only it can count that.

    :ivar discarded: records that programs took back (``bpf_ringbuf_discard``), passed over.
    """

    __slots__ = ("_consumer", "_control", "_data", "_decode", "_position", "_producer", "discarded")

    def __init__(self, m: Map, layout: Layout | None = None) -> None:
        import mmap
        import select

        super().__init__(m, layout)
        self.discarded = 0
        self._decode = _decoder(layout)
        page, size = mmap.PAGESIZE, m.max_entries
        # Consumer page read-write; producer page and data read-only.  The kernel maps the data
        # twice in a row, so that a record that wraps around lies in one piece.
        try:
            self._control = mmap.mmap(m.fd, page)
            self._data = mmap.mmap(m.fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        except OSError as error:
            raise MapError(
                f"cannot map ring buffer '{m.name}'", why=errno_text(error.errno or 0)
            ) from None
        self._consumer = memoryview(self._control).cast("Q")
        self._producer = memoryview(self._data)[:8].cast("Q")
        self._position = self._consumer[0]
        self._poll = select.poll()
        self._poll.register(m.fd, select.POLLIN)

    def fileno(self) -> int:
        return self.map.fd

    def close(self) -> None:
        """Unmap the memory; the map stays open."""
        if self._poll is not None:
            self._poll = None
            self._consumer.release()
            self._producer.release()
            self._control.close()
            self._data.close()

    @property
    def pending(self) -> int:
        """Bytes between what was consumed and what is being produced."""
        return self._producer[0] - self._position

    def drain(self) -> Iterator[Any]:
        """Yield what is there, without waiting."""
        import mmap

        page, mask = mmap.PAGESIZE, self.map.max_entries - 1
        data, decode, fence = self._data, self._decode, _fence
        while self._poll is not None:
            end = self._producer[0]
            if fence:
                fence()
            if self._position >= end:
                return
            while self._position < end:
                at = page + (self._position & mask)
                (header,) = unpack_from("=I", data, at)
                if header & BUSY:
                    return  # records are delivered in order: the ones behind it wait
                if fence:
                    fence()
                length = header & _LENGTH
                following = self._position + (length + _HEADER + 7 & ~7)
                if header & DISCARD:
                    self.discarded += 1
                    self._advance(following)
                    continue
                event = decode(data, at + _HEADER, length)
                self._advance(following)
                yield event
                if self._poll is None:  # closed by the caller's loop
                    return

    def _advance(self, position: int) -> None:
        self._position = position
        if _fence:
            _fence()  # the record has been read before its room is given back
        self._consumer[0] = position


# --- perf buffers -------------------------------------------------------------------------------

_IOC_ENABLE, _IOC_DISABLE = 0x2400, 0x2401
_SAMPLE, _LOST, _THROTTLE, _UNTHROTTLE = 9, 2, 5, 6
# struct perf_event_attr up to the word behind bp_len: PERF_TYPE_SOFTWARE,
# PERF_COUNT_SW_BPF_OUTPUT, sample_period 1, PERF_SAMPLE_RAW, wakeup_events
_PERF_ATTR = Struct("=IIQQQQQI")
_PERF_ATTR_SIZE = 112
_HEAD, _TAIL = 1024 // 8, 1032 // 8


class _Ring:
    """The ring of one CPU."""

    __slots__ = ("base", "cpu", "fd", "memory", "size", "words")

    def __init__(self, fd: int, cpu: int, pages: int) -> None:
        import mmap

        self.fd = fd
        self.cpu = cpu
        self.memory: mmap.mmap = mmap.mmap(fd, (1 + pages) * mmap.PAGESIZE)
        self.words = memoryview(self.memory).cast("Q")
        self.base = self.words[1040 // 8] or mmap.PAGESIZE
        self.size = self.words[1048 // 8] or pages * mmap.PAGESIZE

    def close(self) -> None:
        self.words.release()
        self.memory.close()
        os.close(self.fd)


class PerfBuffer(_Stream):
    """Consumer of a PERF_EVENT_ARRAY that programs write by ``bpf_perf_event_output`` (4.4).

    One ring per online CPU: events of one CPU come in order, those of different CPUs do not.
    Without a layout events are bytes, and up to 7 bytes of padding follow the program's data.

    :param pages: size of each CPU's ring, a power of two.
    :param wakeup: wake the reader after so many events on a CPU.
    :ivar lost: events the kernel dropped because a ring was full.
    :ivar cpu: the CPU of the event that was yielded last.
    """

    __slots__ = ("_decode", "_rings", "cpu", "lost")

    def __init__(
        self, m: Map, layout: Layout | None = None, pages: int = 16, wakeup: int = 1
    ) -> None:
        import select

        if pages < 1 or pages & pages - 1:
            raise ValueError(f"pages is a power of two, not {pages}")
        super().__init__(m, layout)
        self.lost = 0
        self.cpu = -1
        self._decode = _decoder(layout)
        self._rings: dict[int, _Ring] = {}
        self._poll = select.poll()
        attr = _PERF_ATTR.pack(1, _PERF_ATTR_SIZE, 10, 1, 1 << 10, 0, 0, wakeup).ljust(
            _PERF_ATTR_SIZE, b"\0"
        )
        try:
            for cpu in range(m.max_entries):
                if not self._open_cpu(attr, cpu, pages):
                    break
            if not self._rings:
                raise MapError(f"cannot open perf buffer '{m.name}'", why="no CPU has one")
            for fd in self._rings:
                self._poll.register(fd, select.POLLIN)
        except BaseException:
            self.close()
            raise

    def _open_cpu(self, attr: bytes, cpu: int, pages: int) -> bool:
        from fcntl import ioctl

        what = f"cannot open perf buffer '{self.map.name}' on CPU {cpu}"
        try:
            fd = sc.perf_event_open(attr, -1, cpu)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return True  # an offline CPU: nothing runs there
            if error.errno == errno.EINVAL and cpu >= (os.cpu_count() or 1):
                return False  # behind the last possible CPU
            if error.errno in (errno.EPERM, errno.EACCES):
                raise PrivilegeError(
                    what, why="CAP_PERFMON is missing", hint="run as root"
                ) from None
            raise BpfkitError(what, why=errno_text(error.errno or 0)) from None
        try:
            ring = _Ring(fd, cpu, pages)
        except OSError as error:
            os.close(fd)
            hint = (
                "fewer pages, or raise /proc/sys/kernel/perf_event_mlock_kb"
                if error.errno == errno.EPERM
                else ""
            )
            raise MapError(what, why=errno_text(error.errno or 0), hint=hint) from None
        self._rings[fd] = ring
        self.map.update_elem(cpu, fd)
        ioctl(fd, _IOC_ENABLE, 0)
        return True

    def fileno(self) -> int:
        """The first CPU's fd; an event loop of one's own needs :meth:`filenos`."""
        return next(iter(self._rings))

    def filenos(self) -> list[int]:
        """An fd per CPU that becomes readable."""
        return list(self._rings)

    def close(self) -> None:
        """Close the rings; the kernel takes the events out of the map."""
        self._poll = None
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()

    def drain(self) -> Iterator[Any]:
        """Yield what is there on all CPUs, without waiting."""
        for ring in list(self._rings.values()):
            for event in self._drain(ring):
                self.cpu = ring.cpu
                yield event

    def _drain(self, ring: _Ring) -> Iterator[Any]:
        memory, base, size = ring.memory, ring.base, ring.size
        decode, fence = self._decode, _fence
        tail = ring.words[_TAIL]
        head = ring.words[_HEAD]
        if fence:
            fence()
        while tail < head:
            at = tail % size
            # Records are multiples of 8 bytes: a header never wraps, what follows may.
            kind, _, length = unpack_from("=IHH", memory, base + at)
            if not length:
                raise MapError(f"perf buffer '{self.map.name}' has a broken record")
            source: Any = memory
            start = base + at
            if at + length > size:
                source = memory[start : base + size] + memory[base : base + at + length - size]
                start = 0
            event = None
            if kind == _SAMPLE:
                (raw,) = unpack_from("=I", source, start + 8)
                event = decode(source, start + 12, raw)
            elif kind == _LOST:
                self.lost += unpack_from("=QQ", source, start + 8)[1]
            tail += length
            if fence:
                fence()
            ring.words[_TAIL] = tail
            if event is not None:
                yield event
                if self._poll is None:
                    return


# --- user ring buffers --------------------------------------------------------------------------


class UserRingBuffer(Held):
    """Producer for a USER_RINGBUF (6.1), which a program drains by ``bpf_user_ringbuf_drain``.

    Only one producer per map, and not from several threads.

    ::

        with obj["commands"].open(layout) as ring:
            ring.send({"op": 1, "port": 443})
    """

    __slots__ = ("_consumer", "_control", "_data", "_open", "_producer", "layout", "map")

    def __init__(self, m: Map, layout: Layout | None = None) -> None:
        import mmap

        self.map = m
        self.layout = layout
        page = mmap.PAGESIZE
        try:
            self._control = mmap.mmap(m.fd, page, prot=mmap.PROT_READ)
            self._data = mmap.mmap(m.fd, page + 2 * m.max_entries, offset=page)
        except OSError as error:
            raise MapError(
                f"cannot map user ring buffer '{m.name}'", why=errno_text(error.errno or 0)
            ) from None
        self._consumer = memoryview(self._control).cast("Q")
        self._producer = memoryview(self._data)[:8].cast("Q")
        self._open: dict[int, memoryview] = {}

    def _is_open(self) -> bool:
        return not self._control.closed

    def close(self) -> None:
        """Unmap the memory; records that were reserved and not submitted are discarded."""
        if self._control.closed:
            return
        for position in list(self._open):
            self._finish(position, DISCARD)
        self._consumer.release()
        self._producer.release()
        self._control.close()
        self._data.close()

    @property
    def pending(self) -> int:
        """Bytes that the program has not drained yet."""
        return self._producer[0] - self._consumer[0]

    def reserve(self, size: int) -> memoryview:
        """Room for a record of ``size`` bytes, to be filled and then submitted or discarded.

        :raises UserRingFullError: the program has to drain first.
        """
        import mmap

        total = size + _HEADER + 7 & ~7
        capacity = self.map.max_entries
        if size < 0 or total > capacity:
            raise ValueError(f"a record of {size} bytes does not fit into {capacity}")
        position = self._producer[0]
        drained = self._consumer[0]
        if _fence:
            _fence()
        if position - drained + total > capacity:
            raise UserRingFullError(
                f"cannot send to '{self.map.name}'",
                why=f"it is full: {position - drained} of {capacity} bytes wait for the program",
                hint="run the program that drains it",
            )
        at = mmap.PAGESIZE + position % capacity
        Struct("=II").pack_into(self._data, at, size | BUSY, 0)
        if _fence:
            _fence()  # the header is there before the position says so
        self._producer[0] = position + total
        room = memoryview(self._data)[at + _HEADER : at + _HEADER + size]
        self._open[at] = room
        return room

    def _finish(self, at: int, bits: int) -> None:
        room = self._open.pop(at)
        size = len(room)
        room.release()
        if _fence:
            _fence()  # the data is there before the header says so
        words = memoryview(self._data)[at : at + 4].cast("I")
        words[0] = size | bits
        words.release()

    def _place(self, room: memoryview) -> int:
        for at, mine in self._open.items():
            if mine is room:
                return at
        raise ValueError("not a reserved record, or it was submitted before")

    def submit(self, room: memoryview) -> None:
        """Hand over a record from :meth:`reserve`; ``room`` cannot be used afterwards."""
        self._finish(self._place(room), 0)

    def discard(self, room: memoryview) -> None:
        """Take a record from :meth:`reserve` back; the program passes over it."""
        self._finish(self._place(room), DISCARD)

    def send(self, value: Any) -> None:
        """Reserve, fill and submit: a value of the layout, or bytes."""
        if self.layout is not None:
            value = self.layout.encode(value)
        room = self.reserve(len(value))
        room[:] = value
        self.submit(room)
