# SPDX-License-Identifier: Apache-2.0
"""A proxied connection: two sockets, two directions, and who forwards: the process or the kernel.

::

    user ──enter()──▶ kernel ──half-close, stop──▶ draining ──▶ user ──▶ closed
      │                  └──────────── reset ─────────────────────────▶ reset

A direction in the map is in one of two states, which the program in the kernel changes, too:

- redirecting (with a stream parser always): what arrives goes on in the kernel.  The process only waits for the end of the stream.
- passing: what arrives is left to the process.  It reads, waits until everything that was
  redirected before is in the target's send buffer, and writes.  When nothing is left to read, it
  allows redirects again.

How much is left follows from four counts, each of them exact: of the bytes that the source
received (TCP_INFO) so many were redirected (the program in the kernel) and so many read; of those
handed to the target it accepted so many (TCP_INFO).  FIONREAD is not used: for sockets in a map it
has another meaning in every other kernel.

A socket in the map that closes, or leaves, loses what was passed to it and not read.  Hence:

- The end of a stream is passed on (:meth:`Direction.finish`) only after every byte of it, and after
  the target left the map as a source, while its data is being redirected (`never_pass`).  The other
  direction goes on in user space.  Otherwise the last data of a connection of which one half is
  closed could be thrown away, when the FIN that follows destroys the socket.
- Both sockets reset their connection when they are closed, by SO_LINGER, also by the end of the
  process, until both streams have ended.
"""

from __future__ import annotations

import errno
from time import monotonic

from bpfkit.sk_skb.side import Side, TcpInfo, text_of
from bpfkit.sk_skb.table import Full, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from bpfkit.sk_skb.proxy import Proxy
    from bpfkit.sk_skb.table import DirectionState

__all__ = ["Connection", "Direction"]

_PIECE = 256 * 1024
#: Pieces read from one connection before the others have their turn.
_TURN = 16
#: Seconds after which a condition that nobody announces is looked at again.
_SOONEST, _LATEST = 0.001, 0.016


class Direction:
    """From one socket of a connection to the other.

    :ivar state: the counts shared with the kernel; None: the source is not in the map.
    :ivar read: bytes that the process read from the source.
    :ivar redirected_before: bytes that were redirected when the source was in the map.
    :ivar done: the end of the stream was passed on.
    """

    __slots__ = ("buffer", "done", "ended", "name", "read", "redirected_before", "source", "state")
    __slots__ += ("target", "to_key")

    def __init__(self, name: str, source: Side, target: Side) -> None:
        self.name = name
        self.source = source
        self.target = target
        self.buffer = memoryview(b"")
        self.read = 0
        self.redirected_before = 0
        self.state: DirectionState | None = None
        self.ended = False  # everything up to the end of the stream was read or redirected
        self.done = False

    @property
    def redirected(self) -> int:
        """Bytes that the kernel forwarded."""
        return self.redirected_before if self.state is None else self.state.redirected

    @property
    def redirects(self) -> bool:
        """Does the kernel forward what arrives now?"""
        return self.state is not None and self.state.redirects

    def left(self) -> int:
        """Bytes that the source received and that were neither read nor redirected."""
        info = TcpInfo(self.source.sock)  # takes the lock that the program runs under
        self.source.fin |= info.fin
        return info.received - self.redirected - self.read

    def queued(self) -> int:
        """Bytes that were redirected and are not in the target's send buffer yet.

        Valid while the direction is passing: after a read from the source, or after ``left()``.
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
            if self.state is not None:
                self.state.set_written(self.target.written)
        return True


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
        self.draining = False
        self.next_look = 0.0
        self._delay = _SOONEST / 2
        self.opened = monotonic()

    # -- what the poller reports

    def work(self) -> None:
        """Do all that can be done now.

        :raises OSError: a socket has an error: the connection is to be reset.
        """
        self.next_look = 0.0
        wait = False
        for direction in self.directions:
            wait |= self._pump(direction)
        if self.up.done and self.down.done:
            self.proxy.closed(self, reset=False)
            return
        if self.may_enter and self.mode == "user" and self.pieces >= self.proxy.after:
            self.enter()
            wait |= self.may_enter
            for direction in self.directions:
                wait |= self._pump(direction)
        self._watch()
        if wait:
            self._delay = min(2 * self._delay, _LATEST)
            self.next_look = monotonic() + self._delay
        else:
            self._delay = _SOONEST / 2

    def _watch(self) -> None:
        poller = self.proxy.poller
        for one, other in ((self.up, self.down), (self.down, self.up)):
            reads = not (one.ended or one.buffer or one.redirects)
            writes = bool(other.buffer) and not other.queued()
            one.source.watch(poller, reads, writes)

    def _pump(self, one: Direction) -> bool:
        """Move what can be moved in a direction; True: look again soon."""
        if one.done:
            return False
        if one.redirects:
            if not one.source.fin:
                return False
            if not self.proxy.passes:
                return self._await_parser(one)
            assert one.state is not None
            # No more will come.  What the program has not seen is for the process.
            one.state.pass_everything()
        for _ in range(_TURN):
            if one.buffer:
                if one.queued():
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
        return bool(one.queued()) or not one.write()

    def _await_parser(self, one: Direction) -> bool:
        """Wait until the stream parser has redirected all that is in the receive queue.

        It looks there when a segment arrives, and when a process reads: that is what the call of
        recv is for, which is given nothing.
        """
        try:
            if one.source.sock.recv(_PIECE):
                # Kernels before 6.4 give a process what their parser has not seen.
                raise OSError(errno.EPROTO, "data that the stream parser left")
        except BlockingIOError:
            pass
        if one.left():
            return True
        if not one.source.fin:
            return False
        one.ended = True
        return self._finish(one)

    def _nothing_to_read(self, one: Direction) -> bool:
        state = one.state
        if state is None:
            if one.source.fin and not one.left():
                one.ended = True
                return self._finish(one)
            return one.source.fin
        passed = state.passed
        if one.left():
            return True  # on its way to the process; readable soon
        if one.source.fin:
            one.ended = True
            return self._finish(one)
        if not self.draining and not one.queued():
            # Data that arrives from here on changes `passed`, and is not redirected.
            state.allow_redirects(passed)
        return not one.redirects and not self.draining

    # -- into the map

    def enter(self) -> None:
        """Put both sockets into the map; what they have received by now is read as before."""
        if not self.proxy.passes and any(one.buffer or one.left() for one in self.directions):
            return  # the kernel's queue must not get ahead of what the process has
        self.may_enter = False
        table = self.proxy.table
        if not (TcpInfo(self.near.sock).established and TcpInfo(self.far.sock).established):
            self.proxy.stays(self, "one end has ended its stream: the kernel takes it no more")
            return
        try:
            number = table.reserve()
        except Full:
            self.proxy.stays(self, f"the map is full: {self.proxy.room} connections")
            return
        keys = (2 * number, 2 * number + 1)
        entered = []
        passes = self.proxy.passes
        try:
            for key, one in zip(keys, self.directions, strict=True):
                table.state(key).clear(one.target.written, not passes)
                self.flows.append(table.name(key, one.source))
            for key, one in zip(keys, self.directions, strict=True):
                table.enter(key, one.source)
                entered.append(key)
                one.state = table.state(key)
        except Refused as error:
            self.proxy.stays(self, str(error))
            if entered and passes:  # it stays in the map: to leave it could lose data
                self.number = number
                self.draining = True
                return
            if entered:
                raise OSError(errno.EPIPE, "") from None
            self._forget()
            table.release(number)
            return
        self.number = number
        self.mode = "kernel"
        self.proxy.entered(self)
        if not passes:
            for one in self.directions:
                self._await_parser(one)

    def _forget(self) -> None:
        for flow in self.flows:
            self.proxy.table.forget(flow)
        self.flows.clear()

    # -- out of it

    def drain(self) -> None:
        """Redirect nothing any more: the process forwards until the connection ends."""
        self.may_enter = False
        if self.number is None or self.draining:
            return
        self.draining = True
        self.mode = "draining"
        for one in self.directions:
            if one.state is not None and self.proxy.passes:
                one.state.pass_everything()

    def drained(self) -> bool:
        """Has all that was redirected reached the send buffers, and is nothing left to forward?"""
        return not any(
            not one.done and (one.buffer or one.left() or one.queued()) for one in self.directions
        )

    def _finish(self, one: Direction) -> bool:
        """Pass on the end of a stream whose bytes were all read or redirected; True: not yet."""
        if one.buffer or one.queued():
            return True
        back = self.down if one is self.up else self.up
        if back.state is not None and not back.done and not self._leave(back):
            return True
        one.source.check()
        one.target.shut_down()
        one.done = True
        return False

    def _leave(self, one: Direction) -> bool:
        """Take the source of a direction out of the map, in the only way that loses nothing: while
        its data is redirected.  Nothing is redirected to it any more.  False: not yet."""
        state = one.state
        assert state is not None and self.number is not None
        if one.source.fin:
            return one.ended  # nothing is left in it that could be thrown away
        if not state.redirects:
            passed = state.passed
            if one.buffer or one.left() or one.queued():
                return False
            state.allow_redirects(passed)
        state.set_never_pass(True)
        one.left()  # after this no run of the program has missed never_pass
        if not state.redirects:
            state.set_never_pass(False)
            return False
        self.proxy.table.leave(2 * self.number + (one is self.down))
        one.left()  # nor does one run any more
        one.redirected_before = state.redirected
        one.state = None
        self.mode = "user"
        self.proxy.left(self)
        return True

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
            "state": self.mode,
            "to_backend": self.up.read + self.up.redirected,
            "to_client": self.down.read + self.down.redirected,
            "by_kernel": self.up.redirected + self.down.redirected,
        }
