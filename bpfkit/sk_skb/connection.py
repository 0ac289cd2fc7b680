# SPDX-License-Identifier: Apache-2.0
"""A proxied connection: two sockets, two directions, and who forwards: the process or the kernel.

::

    user ──enter()──▶ kernel ──half-close, stop──▶ draining ──▶ user ──▶ closed
      │                  └──────────── reset ─────────────────────────▶ reset

A direction is forwarded by the kernel while its source is in the map: then the process reads
nothing of it, and only waits for the end of the stream.  It is forwarded by the process while the
source is not in the map; the target stays a target.  Between the two it goes at moments at which
nothing can be lost or overtaken:

- into the map when the process has written all that it has read, and read no segment in part;
- out of it when the program has redirected all that has arrived, and nothing can arrive: the kernel
  lets go of the program without the socket's lock, and drops what a run that is under way takes
  from the receive queue afterwards.  So a socket filter (`freeze`) drops segments with payload, an
  RCU grace period passes, the receive queue runs empty, the source leaves the map, the filter is
  detached, and the sender repeats what was dropped.  It takes some 10 ms, and the sender's
  retransmission timeout (200 ms) at worst.

A direction that has left the map stays with the process: to enter again costs as much.

How much is left follows from four counts, each of them exact: of the bytes that the source
received (TCP_INFO) so many were redirected (the program in the kernel) and so many read; of those
handed to the target so many were acknowledged or wait in its send buffer.  FIONREAD is not used:
for sockets in a map it has another meaning in every other kernel.

Hence for the ends of a connection:

- The end of a stream is passed on only after every byte of it.  The other direction goes on as it
  was.
- Bytes that arrived, and that are neither redirected nor readable for 5 seconds, are lost: both
  connections are reset.
- Both sockets reset their connection when they are closed, by SO_LINGER, also by the end of the
  process, until both streams have ended.
"""

from __future__ import annotations

import errno
from time import monotonic

from bpfkit.core.words import count_of
from bpfkit.sk_skb.direction import Direction
from bpfkit.sk_skb.side import Side, TcpInfo, run_program, text_of
from bpfkit.sk_skb.table import Full, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from bpfkit.sk_skb.proxy import Proxy

__all__ = ["Connection"]

_PIECE = 256 * 1024
#: Pieces read from one connection before the others have their turn.
_TURN = 16
#: Seconds after which a condition that nobody announces is looked at again.
_SOONEST, _LATEST = 0.001, 0.016
#: Looks at a receive queue that the program does not empty before the process reads it.
_LOOKS = 4


class Connection:
    """Two sockets, and the directions between them.

    :ivar mode: ``connecting``, ``user``, ``kernel``, ``draining`` or ``closed``.
    :ivar number: the connection's in the map; None: it is not in the map.
    :ivar next_look: monotonic time at which to call :meth:`work` without a reason.
    """

    def __init__(self, proxy: Proxy, near: socket.socket, far: socket.socket) -> None:
        self.proxy = proxy
        self.near = Side(near, self)
        self.far = Side(far, self)
        self.client = text_of(near.getpeername())
        self.mode = "connecting"
        self.number: int | None = None
        self.flows: list[bytes] = []
        self.up = Direction("up", self.near, self.far)
        self.down = Direction("down", self.far, self.near)
        self.directions = (self.up, self.down)
        self.pieces = 0
        self.may_enter = True
        self.next_look = 0.0
        self._delay = _SOONEST / 2
        self.opened = monotonic()

    # -- what the poller reports

    def work(self) -> None:
        """Do all that can be done now.

        :raises OSError: a socket has an error: the connection is to be reset.
        """
        self.next_look = 0.0
        wait = self._pump_both()
        if not self._done() and self._enters_now():
            self.enter()
            wait |= self.may_enter
            wait |= self._pump_both()
        if self._done():  # looked at last: the second pump passes on ends too
            self.proxy.closed(self, reset=False)
            return
        self._watch()
        if wait:
            self._delay = min(2 * self._delay, _LATEST)
            self.next_look = monotonic() + self._delay
        else:
            self._delay = _SOONEST / 2

    def _pump_both(self) -> bool:
        waits = [self._pump(direction) for direction in self.directions]
        return any(waits)

    def _done(self) -> bool:
        return self.up.done and self.down.done

    def _enters_now(self) -> bool:
        return self.may_enter and self.mode == "user" and self.pieces >= self.proxy.after

    def _watch(self) -> None:
        poller = self.proxy.poller
        for one, other in ((self.up, self.down), (self.down, self.up)):
            reads = not (one.ended or one.buffer or one.in_kernel)
            writes = bool(other.buffer) and not other.waits
            one.source.watch(poller, reads, writes)

    def _pump(self, one: Direction) -> bool:
        """Move what can be moved in a direction; True: look again soon."""
        if one.done:
            return False
        if one.in_kernel:
            if not (one.source.fin or one.settling or one.frozen):
                return False
            wait = self._await_kernel(one)
            if one.in_kernel or one.done:
                return wait
        for _ in range(_TURN):
            if one.buffer:
                one.waits = bool(one.queued())
                if one.waits:
                    return True
                if not one.write():
                    return False  # EPOLLOUT will tell
            if one.ended:
                return self._finish(one)
            try:
                piece = one.source.sock.recv(_PIECE)
            except BlockingIOError:
                return self._nothing_to_read(one)
            if not piece:
                one.source.fin = True
                return self._nothing_to_read(one)
            one.read += len(piece)
            one.buffer = memoryview(piece)
            self.pieces += 1
            if self.proxy.shows_pieces:
                self.proxy.piece(self, one, piece)
        one.waits = bool(one.queued())
        if not one.waits:
            one.write()
        return one.waits

    def _await_kernel(self, one: Direction) -> bool:
        """Have the kernel forward what is in the receive queue; True: look again soon.

        The program runs when a segment arrives, and now.  What it leaves is read: a socket that has
        ended is out of the map, and some kernels give the process what their program has not seen.
        """
        run_program(one.source.sock)
        if not one.missing():
            return self._emptied(one)
        one.looks += 1
        if one.looks < _LOOKS:
            return True
        redirected = one.redirected
        try:
            piece = one.source.sock.recv(_PIECE)
        except BlockingIOError:
            return True
        if piece:
            one.leaving = "the kernel left data to the process"
            self._take_out(one)
            one.read += len(piece)
            one.buffer = memoryview(piece)
            if one.redirected != redirected:
                raise OSError(errno.EPROTO, "bytes were overtaken")
        return True

    def _emptied(self, one: Direction) -> bool:
        """All that has arrived was redirected; True: look again soon."""
        one.settling = False
        one.looks = 0
        if one.frozen:
            self._take_out(one)
        if not one.source.fin:
            return False
        one.ended = True
        return self._finish(one)

    def _nothing_to_read(self, one: Direction) -> bool:
        if (one.source.fin or one.redirected) and one.missing():
            return True
        if one.source.fin:
            one.ended = True
            return self._finish(one)
        return False

    # -- into the map

    def enter(self) -> None:
        """Put both sockets into the map, unless data has been read in part: then later."""
        for one in self.directions:
            # Data that waits is taken into the map as it came, in whole segments: of one that was
            # read in part, the part would be forwarded again.
            if one.buffer or (one.read and one.left()):
                return
        self.may_enter = False
        table = self.proxy.table
        if not (TcpInfo(self.near.sock).established and TcpInfo(self.far.sock).established):
            self.proxy.stays(self, "one end has ended its stream: the kernel takes it no more")
            return
        try:
            number = table.reserve()
        except Full:
            self.proxy.stays(self, f"the map is full: {count_of(self.proxy.room, 'connection')}")
            return
        self.number = number  # a socket that fails below gives it back when it is closed
        try:
            for key, one in enumerate(self.directions, 2 * number):
                one.key = key
                one.counts = table.state(key)
                one.counts.clear()
                self.flows.append(table.name(key, one.source))
                table.make_target(key, one.source)
            for one in self.directions:
                self._redirect(one)
        except Refused as error:
            for one in self.directions:
                self._leave(one, "")
            self.proxy.stays(self, str(error))  # they stay targets until they are closed
            return
        self.mode = "kernel"
        self.proxy.entered(self)
        for one in self.directions:
            self._await_kernel(one)

    def _redirect(self, one: Direction) -> None:
        """The kernel forwards from now on."""
        assert one.counts is not None
        one.counts.start(one.target.written)
        self.proxy.table.make_source(one.key, one.source)
        one.in_kernel = one.settling = True

    def _forget(self) -> None:
        for flow in self.flows:
            self.proxy.table.forget(flow)
        self.flows.clear()

    # -- out of it

    def drain(self) -> None:
        """The process forwards until the connection ends."""
        self.may_enter = False
        self.mode = "draining"
        for one in self.directions:
            self._leave(one, "")

    def drained(self) -> bool:
        """Has all that was redirected reached the send buffers, and is nothing left to forward?"""
        return not any(
            not one.done and (one.in_kernel or one.buffer or one.left() or one.queued())
            for one in self.directions
        )

    def _finish(self, one: Direction) -> bool:
        """Pass on the end of a stream whose bytes were all read or redirected; True: not yet."""
        if one.buffer or one.queued():
            return True
        one.source.check()
        one.target.shut_down()
        one.done = True
        return False

    def take_over(self, one: Direction) -> None:
        """Forward in user space from now on: too much waits in the kernel for the reader."""
        self._leave(one, "the sender is faster than the reader")

    def _leave(self, one: Direction, why: str) -> None:
        """Take the source out of the map, as soon as nothing can be lost."""
        if one.in_kernel and one.leaving is None:
            one.leaving = why
            one.source.freeze(self.proxy.freezer)
            self.proxy.leaving.append((self, one))

    def froze(self, one: Direction) -> None:
        """A grace period has passed since the source of a direction was frozen."""
        if self.mode == "closed" or not one.in_kernel:
            return
        if one.ended:
            self._take_out(one)
        else:
            one.frozen = True
            self.proxy.work(self)

    def _take_out(self, one: Direction) -> None:
        """What arrives from now on stays in the receive queue."""
        self.proxy.table.leave(one.key)
        one.left()  # no run of the program is under way any more
        one.in_kernel = one.frozen = False
        one.source.thaw()
        if one.leaving:
            self.proxy.left(self, one.leaving)
        one.leaving = None

    def close(self, reset: bool) -> None:
        """Close both sockets."""
        for side in (self.near, self.far):
            side.close(self.proxy.poller, reset)
        self.mode = "closed"
        self._forget()
        if self.number is not None:
            self.proxy.table.release(self.number)
            self.number = None

    # -- for people

    def fields(self) -> dict[str, Any]:
        """What a row says about the connection."""
        return {
            "src": self.client[0],
            "sport": self.client[1],
            "state": self._state(),
            "to_backend": self.up.read + self.up.redirected,
            "to_client": self.down.read + self.down.redirected,
            "by_kernel": self.up.redirected + self.down.redirected,
        }

    def _state(self) -> str:
        if self.mode == "kernel" and not (self.up.in_kernel or self.down.in_kernel):
            return "user"
        return self.mode
