# SPDX-License-Identifier: Apache-2.0
"""Events: a stream beside the table of figures, or instead of it.

::

    ring buffer ─┐
    perf buffer ─┼─▶ EventSource ─▶ Channel ─▶ sink: a line of text, a JSON line, the live view
    thread ──────┘   (App.events)   (the life cycle's)

A program returns a source from ``events()`` once it is set up, and the life cycle does the rest:
it reads the source as data arrives, prints every event once, reads what is left at the end, and
says how many were lost::

    class Connects(App):
        def setup(self):
            self.object = self.load()
            self.keep(self.object.programs["connect"].attach_cgroup(...))

        def events(self):
            buffer = self.keep(self.object["connects"].open(LAYOUT))
            return from_buffer(buffer, self._connect, lost=lambda: self.object["lost"].sum(0))

        def _connect(self, record):
            fields = {"pid": record.pid, "port": record.port}
            return Event("connect", unix_seconds(record.time_ns), fields)

As JSON an event is ``{"ts": 1700000000.25, "round": 0, "event": "connect", "pid": 17, …}``.  After
events were lost comes ``{"ts": …, "round": …, "event": "lost", "lost": N}``, N since the start; in
text that is a line on standard error.  ``App.event_line`` and ``App.event_row`` change the form.

In ``--check`` events are kept: ``verify()`` finds them in ``self.channel``, which can also wait for
those that are still to come (:meth:`Channel.wait`).
"""

from __future__ import annotations

import os
from collections import deque
from time import monotonic, time, time_ns
from time import monotonic_ns as monotonic_ns_now

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from bpfkit.core.maps.buffers import PerfBuffer, RingBuffer
    from bpfkit.show.rows import Event

__all__ = ["Channel", "EventQueue", "EventSource", "from_buffer", "unix_seconds"]

#: Events, and seconds, after which the life cycle looks at its clock and its signals again.
_BATCH = 4096
_LONGEST = 0.05
#: Seconds after which reading at the end stops at events that are newer than the end; a busy
#: machine never stops making them.
_LAST = 1.0
#: Seconds that reading the events from before the end may take.
_LAST_OLD = 20.0


def unix_seconds(monotonic_ns: int) -> float:
    """UNIX time of what ``bpf_ktime_get_ns()`` returned (CLOCK_MONOTONIC)."""
    return (monotonic_ns + time_ns() - monotonic_ns_now()) / 1e9


class EventSource:
    """Where events come from.

    :param read: returns the events that are there, without waiting; None stands for data that
        made no event.  What is not taken from the iterable stays for the next call.
    :param filenos: descriptors that are readable while there are events.  Without any the source
        is read once a second and at the end of a round.
    :param lost: returns how many events were lost since the start.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[Event | None]],
        filenos: Sequence[int] = (),
        lost: Callable[[], int] | None = None,
    ) -> None:
        self.read = read
        self.filenos = filenos
        self._lost = lost

    @property
    def lost(self) -> int:
        """Events lost since the start."""
        return self._lost() if self._lost is not None else 0


def from_buffer(
    buffer: RingBuffer | PerfBuffer,
    decode: Callable[[Any], Event | None],
    lost: Callable[[], int] | None = None,
) -> EventSource:
    """The source over a ring buffer or a perf buffer (``Map.open``).

    :param decode: makes an event of a record; None leaves the record out.
    :param lost: what the program in the kernel counted itself.  A ring buffer (5.8) refuses a
        record to the program, which alone can count that.  The losses that a perf buffer (4.4)
        counts are added.
    """

    def read() -> Iterator[Event | None]:
        for record in buffer.drain():
            yield decode(record)

    def all_lost() -> int:
        counted = 0 if lost is None else lost()
        return counted + (buffer.lost if hasattr(buffer, "lost") else 0)

    filenos = buffer.filenos() if hasattr(buffer, "filenos") else [buffer.fileno()]
    return EventSource(read, filenos, all_lost)


class EventQueue(EventSource):
    """The source that a thread of the program fills.  The thread must have ended before
    :meth:`close`.

    :param limit: items that may wait; :meth:`put` counts further ones as lost.
    :param decode: makes an event of an item, in the main thread (default: items are events).
    """

    def __init__(self, limit: int = 10_000, decode: Callable[[Any], Event] | None = None) -> None:
        self._items: deque[Any] = deque()
        self._limit = limit
        self._decode = decode
        self._overflows = 0
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        super().__init__(self._take, [self._fd], lambda: self._overflows)

    def put(self, item: Any) -> None:
        """Append an item; may be called from one thread other than the reader's."""
        if len(self._items) >= self._limit:
            self._overflows += 1
            return
        self._items.append(item)
        os.eventfd_write(self._fd, 1)

    def _take(self) -> Iterator[Event]:
        while True:
            if self._items:
                item = self._items.popleft()
                yield item if self._decode is None else self._decode(item)
                continue
            try:
                os.eventfd_read(self._fd)  # the descriptor is readable until all items are taken
            except BlockingIOError:
                return

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Channel:
    """The events of one run.

    :param kept: events that may wait to be shown; further ones are counted as lost.
    :ivar seen: events that were read.
    :ivar waiting: events that were read and not shown yet.
    :ivar unread: did :meth:`drain` leave events from before its begin?
    """

    def __init__(self, source: EventSource, kept: int = 100_000) -> None:
        self.source = source
        self.seen = 0
        self.waiting: deque[Event] = deque()
        self.unread = False
        self._kept = kept
        self._overflows = 0
        self._stream: Iterator[Event | None] = iter(())

    @property
    def lost(self) -> int:
        """Events that were lost, in the kernel or here, since the start."""
        return self.source.lost + self._overflows

    def read(self, limit: int = _BATCH) -> int:
        """Read what is there, for 50 ms at most; returns how many records there were, those that
        made no event included.

        :param limit: the most to read.
        """
        deadline = monotonic() + _LONGEST
        count = nothing = 0
        # An unfinished iterable goes on where it was left, so that no CPU's buffer is left out.
        for fresh in (False, True):
            if fresh:
                self._stream = iter(self.source.read())
            for event in self._stream:
                count += 1
                if event is None:
                    nothing += 1
                elif len(self.waiting) < self._kept:
                    self.waiting.append(event)
                else:
                    self._overflows += 1
                if count >= limit or monotonic() >= deadline:
                    self.seen += count - nothing
                    return count
        self.seen += count - nothing
        return count

    def take(self) -> list[Event]:
        """The events that wait to be shown; they wait no longer."""
        events = list(self.waiting)
        self.waiting.clear()
        return events

    def drain(self) -> Iterator[list[Event]]:
        """Read and take what came before this call, batch by batch.

        Ends when there is nothing more, after a second when a batch has newer events only, or
        after 20 seconds; :attr:`unread` is true then.
        """
        began, end = monotonic(), time()
        while self.read() or self.waiting:
            passed = monotonic() - began
            batch = self.take()
            if batch:
                yield batch
            if passed >= _LAST and batch and all(event.time > end for event in batch):
                return
            if passed >= _LAST_OLD:
                self.unread = True
                return

    def wait(self, enough: Callable[[], bool], timeout: float = 2.0) -> bool:
        """Read until ``enough()`` is true; False after ``timeout`` seconds."""
        from select import POLLIN, poll

        poller = poll()
        for fd in self.source.filenos:
            poller.register(fd, POLLIN)
        deadline = monotonic() + timeout
        while True:
            self.read()
            if enough():
                return True
            left = deadline - monotonic()
            if left <= 0:
                return False
            # A condition that is not about events must be looked at now and then, too.
            poller.poll(int(min(left, 0.02) * 1000) + 1)
