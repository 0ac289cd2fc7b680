# SPDX-License-Identifier: Apache-2.0
"""What xdp_firewall says of the packets it drops: read, kept for showing, written to a file.

Ring buffer or perf buffer, the events are the same: ``struct dropped`` of the C side and the first
bytes of the frame.  A thread reads them, so that nothing is lost while figures are shown; what
finds no room is counted by the program itself (``totals``).
"""

from __future__ import annotations

import time
from _socket import AF_INET, AF_INET6, inet_ntop
from collections import deque
from struct import Struct

from bpfkit.core.errors import BpfkitError, InputError
from bpfkit.xdp_firewall.control import REASONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bpfkit.core.maps.buffers import PerfBuffer, RingBuffer

__all__ = ["Dropped", "Events"]

_HEAD = Struct("<QIIHHHBBBB6x16s")
_KEPT = 1000  # events that wait to be shown
_TICK = 0.2  # seconds, from asking for the end to the end


class Dropped:
    """A packet that was dropped.

    :ivar ts_ns: UNIX time in nanoseconds.
    :ivar length: bytes of the frame; :ivar frame: as many of them as were captured.
    :ivar number: of the rule, where it is one of ports or of a protocol; else 0.
    :ivar reason: index of :data:`bpfkit.xdp_firewall.control.REASONS`.
    :ivar prefix: length of the prefix, where an address was the reason.
    """

    __slots__ = (
        "address",
        "frame",
        "ifindex",
        "length",
        "number",
        "payload_at",
        "prefix",
        "proto",
        "reason",
        "ts_ns",
    )

    def __init__(self, data: bytes, offset_ns: int) -> None:
        (
            time_ns,
            self.ifindex,
            self.length,
            captured,
            self.payload_at,
            self.number,
            self.reason,
            family,
            self.proto,
            self.prefix,
            address,
        ) = _HEAD.unpack_from(data)
        self.ts_ns = time_ns + offset_ns
        self.address: bytes = address[: {4: 4, 6: 16}.get(family, 0)]
        self.frame = bytes(data[_HEAD.size : _HEAD.size + captured])

    @property
    def source(self) -> str | None:
        """The source address; None: not IP."""
        if not self.address:
            return None
        return inet_ntop(AF_INET if len(self.address) == 4 else AF_INET6, self.address)

    @property
    def why(self) -> str:
        """The kind of rule."""
        return REASONS[self.reason][1]

    @property
    def payload(self) -> bytes:
        """What TCP or UDP carries, as far as it was captured (and anything else's content)."""
        if not self.payload_at:
            return b""
        data = self.frame[self.payload_at :]
        if self.proto == 6:
            return data[(data[12] >> 4) * 4 :] if len(data) > 12 else b""
        return data[8:] if self.proto in (17, 136) else data


class Events:
    """Reads events in a thread, until it is closed.

    :param buffer: a consumer without a layout.
    :param write: path of a pcapng file to write them to, "" for none.
    :param linktype: of the frames.
    :ivar seen: how many events there were.
    :ivar unshown: how many of them fell out of :meth:`take`'s room.
    :ivar error: what ended the thread, if anything did.
    :raises InputError: the file cannot be made.
    """

    def __init__(
        self,
        buffer: RingBuffer | PerfBuffer,
        *,
        write: str = "",
        interface: str = "",
        linktype: int = 1,
        snap: int = 0,
    ) -> None:
        from threading import Thread

        self.seen = self.unshown = 0
        self.error: BpfkitError | None = None
        self._kept: deque[Dropped] = deque()
        self._buffer = buffer
        self._file = None
        if write:
            from bpfkit.net.packets.pcap import PcapngWriter

            try:
                self._file = open(write, "wb")  # noqa: SIM115 - closed by close()
            except (OSError, ValueError) as error:
                buffer.close()
                why = getattr(error, "strerror", None) or str(error)
                raise InputError(f"cannot write {write}", why=why) from None
            self._writer = PcapngWriter(self._file)
            self._writer.interface(interface, linktype, snap)
        self._path = write
        self._ended = False
        self._thread = Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ended:
                self._batch(self._buffer.poll(_TICK))
            self._batch(self._buffer.drain())
        except OSError as error:
            self.error = BpfkitError(f"cannot write {self._path}", why=str(error.strerror))
        except BpfkitError as error:
            self.error = error

    def _batch(self, events: object) -> None:
        offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        fresh = False
        for data in events:  # type: ignore[attr-defined]
            event = Dropped(data, offset)
            self.seen += 1
            fresh = True
            if self._file is not None:
                self._writer.write(event.frame, event.ts_ns, event.length, outgoing=False)
            if len(self._kept) < _KEPT:
                self._kept.append(event)
            else:
                self.unshown += 1
        if fresh and self._file is not None:
            self._file.flush()

    def take(self) -> list[Dropped]:
        """The events since the last call, at most a thousand."""
        return [self._kept.popleft() for _ in range(len(self._kept))]

    def wait(self, until: Callable[[], bool], timeout: float = 2.0) -> bool:
        """Wait until ``until()`` is true; False when the time is up."""
        deadline = time.monotonic() + timeout
        while not until():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        """Read what is there, and end."""
        if not self._ended:
            self._ended = True
            self._thread.join(10)
            self._buffer.close()
            if self._file is not None:
                try:
                    self._file.close()
                except OSError:
                    pass
