# SPDX-License-Identifier: Apache-2.0
"""One direction of a proxied connection: what was read, redirected and written; what is left."""

from __future__ import annotations

import errno
from time import monotonic

from bpfkit.sk_skb.side import TcpInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.sk_skb.side import Side
    from bpfkit.sk_skb.table import DirectionState

__all__ = ["Direction"]

#: Seconds without progress after which bytes that arrived count as lost.
_LOST_S = 5.0


class Direction:
    """From one socket of a connection to the other.

    :ivar counts: those shared with the kernel, once the source has been in the map.
    :ivar in_kernel: the source is in the map.
    :ivar leaving: why the source is about to leave the map; None: it is not.
    :ivar frozen: nothing with payload arrives any more until the source has left.
    :ivar read: bytes that the process read from the source.
    :ivar done: the end of the stream was passed on.
    """

    __slots__ = (
        "buffer",
        "counts",
        "done",
        "ended",
        "frozen",
        "in_kernel",
        "key",
        "leaving",
        "looks",
        "name",
        "progress",
        "read",
        "settling",
        "source",
        "target",
        "waits",
    )

    def __init__(self, name: str, source: Side, target: Side) -> None:
        self.name = name
        self.source = source
        self.target = target
        self.buffer = memoryview(b"")
        self.read = 0
        self.key = 0
        self.counts: DirectionState | None = None
        self.in_kernel = False
        self.leaving: str | None = None
        self.frozen = False
        self.looks = 0  # at a receive queue that the program has not emptied
        self.progress = (0, 0.0)  # bytes forwarded, and when it was seen
        self.ended = False  # everything up to the end of the stream was read or redirected
        self.done = False
        self.settling = False  # data that waited when the source entered may still be there
        self.waits = False  # for what was redirected before to be in the send buffer

    @property
    def redirected(self) -> int:
        """Bytes that the kernel forwarded."""
        return 0 if self.counts is None else self.counts.redirected

    def left(self) -> int:
        """Bytes that the source received and that were neither read nor redirected."""
        redirected = self.redirected  # first: what is redirected meanwhile counts as left
        info = TcpInfo(self.source.sock)  # takes the lock that the program runs under
        self.source.fin |= info.fin
        left: int = info.received - redirected - self.read
        if left < 0:
            self.source.check()  # the connection was reset, and has no FIN
            raise OSError(errno.EPROTO, "bytes were forwarded twice")
        return left

    def missing(self) -> int:
        """The same; to be called again until it is 0.

        :raises OSError: nothing was forwarded for 5 seconds: the bytes are lost.
        """
        left = self.left()
        forwarded, now = self.read + self.redirected, monotonic()
        if not left:
            self.progress = (forwarded, 0.0)
        elif self.progress[0] != forwarded or not self.progress[1]:
            self.progress = (forwarded, now)
        elif now - self.progress[1] > _LOST_S:
            raise OSError(errno.EPROTO, "bytes were lost")
        return left

    def queued(self) -> int:
        """Bytes that were redirected and are not in the target's send buffer yet.

        Exact while nothing more is redirected.
        """
        redirected = self.redirected
        if not redirected:
            return 0
        return redirected + self.target.written - self.target.accepted()

    def write(self) -> bool:
        """Write what is in the buffer; True: it is empty.  False: the target has no room."""
        while self.buffer:
            try:
                count = self.target.sock.send(self.buffer)
            except BlockingIOError:
                return False
            self.buffer = self.buffer[count:]
            self.target.written += count
        return True
