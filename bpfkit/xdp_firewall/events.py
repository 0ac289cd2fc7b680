# SPDX-License-Identifier: Apache-2.0
"""The packets that xdp_firewall drops: read from the kernel, written to a file, handed on.

Ring buffer or perf buffer, a record is ``struct dropped`` of the C side and the first bytes of the
frame.  A thread reads the buffer, so that a slow reader of standard output costs no packet in the
file; it hands the packets to the life cycle by a queue.  Records that find no room in the buffer
are counted by the program in the kernel (``totals``).
"""

from __future__ import annotations

import time
from io import BytesIO

from bpfkit.app.events import EventQueue
from bpfkit.core.errors import BpfkitError, InputError
from bpfkit.show.address import address_text
from bpfkit.xdp_firewall.control import REASONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from bpfkit.core.maps.buffers import PerfBuffer, RingBuffer
    from bpfkit.core.types.layout import Layout
    from bpfkit.show.rows import Event

__all__ = ["DropReader", "Dropped"]

_BATCH = 1000  # packets that are written at once
_KEPT = 1000  # packets that wait to be shown
_TICK = 0.2  # seconds that the thread may take to notice the end


class Dropped:
    """A packet that was dropped.

    :param data: what follows the head in the record: the frame's first bytes, and padding.
    :ivar head: ``struct dropped`` of the C side.
    :ivar ts_ns: UNIX time in nanoseconds.
    :ivar frame: as many bytes of the frame as were captured.
    :ivar address: the source, 4 or 16 bytes; empty: not IP.
    """

    __slots__ = ("address", "frame", "head", "ts_ns")

    def __init__(self, head: Any, data: bytes | memoryview, offset_ns: int) -> None:
        self.head = head
        self.ts_ns = head.time_ns + offset_ns
        self.address: bytes = head.saddr[: {4: 4, 6: 16}.get(head.family, 0)]
        self.frame = bytes(data[: head.captured])

    @property
    def source(self) -> str | None:
        """The source address; None: not IP."""
        return address_text(self.address) if self.address else None

    @property
    def why(self) -> str:
        """The kind of rule."""
        return REASONS[self.head.reason][1]

    @property
    def payload(self) -> bytes:
        """What TCP or UDP carries, as far as it was captured (and anything else's content)."""
        head = self.head
        if not head.payload:
            return b""
        data = self.frame[head.payload :]
        if head.proto == 6:
            return data[(data[12] >> 4) * 4 :] if len(data) > 12 else b""
        return data[8:] if head.proto in (17, 136) else data


class DropReader:
    """Reads dropped packets in a thread, until it is closed.

    :param buffer: a consumer without a layout; closed at the end.
    :param head: the layout of the records' heads, ``struct dropped``.
    :param decode: makes an event of a dropped packet, in the main thread.
    :param write: path of a pcapng file to write the packets to, "" for none.
    :param linktype: LINKTYPE of the frames.
    :ivar seen: packets read.
    :ivar queue: the source of the events; has room for 1000 that were not shown yet.
    :ivar unwritten: packets that could not be written to the file.
    :ivar error: why packets cannot be written or read, the first time; neither ends the thread.
    :raises InputError: the file cannot be made.
    """

    def __init__(
        self,
        buffer: RingBuffer | PerfBuffer,
        head: Layout,
        decode: Callable[[Dropped], Event],
        *,
        write: str = "",
        interface: str = "",
        linktype: int = 1,
        snap: int = 0,
    ) -> None:
        from threading import Thread

        self.seen = 0
        self.unwritten = 0
        self.error: BpfkitError | None = None
        self._buffer = buffer
        self._head_layout = head
        self._file = None
        if write:
            from bpfkit.net.packets.pcap import PcapngWriter

            try:
                self._file = open(write, "wb", buffering=0)  # noqa: SIM115 - closed by close()
            except (OSError, ValueError) as error:
                buffer.close()
                why = getattr(error, "strerror", None) or str(error)
                raise InputError(f"cannot write {write}", why=why) from None
            self._pending = BytesIO()  # blocks that are not in the file yet
            self._writer = PcapngWriter(self._pending)
            self._writer.interface(interface, linktype, snap)
            self._head = self._pending.getvalue()  # goes into the file first
            self._pending.truncate(0)
            self._pending.seek(0)
            self._size = 0  # bytes of the file, whole blocks only
        self._path = write
        self._ended = False
        self.queue = EventQueue(_KEPT, decode)
        self._thread = Thread(target=self._run, name="drops", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended:
            try:
                self._batch(self._buffer.poll(_TICK))
            except (OSError, BpfkitError) as error:
                self._fail("cannot read events", error)
                time.sleep(_TICK)
        try:
            self._batch(self._buffer.drain())
        except (OSError, BpfkitError) as error:
            self._fail("cannot read events", error)

    def _fail(self, what: str, error: OSError | BpfkitError) -> None:
        if self.error is None:
            why = str(error.strerror if isinstance(error, OSError) else error)
            self.error = BpfkitError(what, why=why)

    def _write(self, packets: int) -> None:
        """Write the pending blocks.  If that fails, the file is cut off after its last whole block;
        there may be space again for the next ones."""
        assert self._file is not None
        blocks = self._pending.getvalue()
        self._pending.seek(0)
        self._pending.truncate(0)
        left = memoryview(blocks if not self._head else self._head + blocks)
        wanted = len(left)
        try:
            while left:
                left = left[self._file.write(left) or 0 :]
            self._head = b""
            self._size += wanted
        except OSError as error:
            self.unwritten += packets
            self._fail(f"cannot write {self._path}", error)
            self._cut()

    def _cut(self) -> None:
        assert self._file is not None
        try:
            self._file.truncate(self._size)
            self._file.seek(self._size)
        except (OSError, ValueError):
            pass  # a pipe, or a device

    def _batch(self, records: Iterable[memoryview]) -> None:
        offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        decode, size = self._head_layout.decode, self._head_layout.size
        fresh = 0
        for record in records:
            packet = Dropped(decode(record), record[size:], offset)
            self.seen += 1
            fresh += 1
            if self._file is not None:
                self._writer.write(packet.frame, packet.ts_ns, packet.head.length, outgoing=False)
            self.queue.put(packet)
            if fresh == _BATCH:
                self._flush(fresh)
                fresh = 0
        self._flush(fresh)

    def _flush(self, packets: int) -> None:
        if self._file is not None and (packets or self._head):
            self._write(packets)

    def close(self) -> None:
        """Read what is left, and end the thread."""
        if not self._ended:
            self._ended = True
            self._thread.join(10)
            self.queue.close()
            self._buffer.close()
            if self._file is not None:
                try:
                    self._file.close()
                except OSError:
                    pass
