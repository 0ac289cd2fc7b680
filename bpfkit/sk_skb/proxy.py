# SPDX-License-Identifier: Apache-2.0
"""The proxy: a process of its own, which accepts, connects and forwards, and enters sockets.

``python3 -m bpfkit.sk_skb.proxy JSON``, started by :class:`bpfkit.sk_skb.child.ProxyChild`.  JSON
holds the descriptors that it inherits and the options.  It reports by messages (JSON, one each) on
a SOCK_SEQPACKET socket and takes ``rows`` and ``stop`` from there.  It ends with its parent, and
its end resets every connection.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections import deque
from time import monotonic, time

from bpfkit.core.errors import errno_text
from bpfkit.core.kernel.syscall import grace_period
from bpfkit.core.maps.base import Map
from bpfkit.sk_skb.connection import Connection
from bpfkit.sk_skb.table import Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.sk_skb.direction import Direction

__all__ = ["Proxy"]

_CONNECT_S = 10.0
_SHOWN = 48  # bytes of a piece
_CLOSED = 20  # connections that have ended and are still in the table
_NO_DESCRIPTORS = (23, 24)  # ENFILE, EMFILE
_ROWS_AT_ONCE = 64
_ROWS_S = 1.0
_DRAIN_LOOK_S = 0.02


class Proxy:
    """Connections, and what they wait for.

    :ivar after: pieces that the process forwards before the kernel takes over.
    :ivar room: connections that the map has room for.
    :ivar freezer: descriptor of the program that keeps data from a socket while it leaves the map.
    :ivar leaving: directions whose sources were frozen since the last grace period.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.after = int(config["after"])
        self.room = int(config["room"])
        self.freezer = int(config["freezer"])
        self.leaving: list[tuple[Connection, Direction]] = []
        self.shows_pieces = bool(config["pieces"])
        self.grace = float(config["grace"])
        self.target = tuple(config["to"])
        self.family = int(config["family"])
        self.control = socket.socket(fileno=config["control"])
        self.control.setblocking(False)
        self.listener: socket.socket | None = socket.socket(fileno=config["listener"])
        self.listener.setblocking(False)
        maps = {name: config[name] for name in ("sockets", "targets", "flows", "directions")}
        self.table = Table(**maps, room=self.room)
        self.notices = Map.from_fd(config["notices"]).open()  # type: ignore[attr-defined]
        self.poller = select.epoll()
        self.poller.register(self.control.fileno(), select.EPOLLIN)
        self.poller.register(self.listener.fileno(), select.EPOLLIN)
        self.poller.register(self.notices.fileno(), select.EPOLLIN)
        self.sides: dict[int, Connection] = {}
        self.by_number: dict[int, Connection] = {}
        self.waiting: set[Connection] = set()
        self.draining: set[Connection] = set()
        self.closed_rows: deque[dict[str, Any]] = deque(maxlen=_CLOSED)
        self.lost = 0
        self.deadline = 0.0  # of a stop
        self.accepts_at = 0.0  # when to accept again, after a lack of descriptors
        self.full_said = False

    # -- reports

    def tell(self, kind: str, **fields: Any) -> None:
        """Send a message to the parent; one that does not fit is counted."""
        message = {"kind": kind, "time": time(), **fields}
        if self.lost:
            message["lost"] = self.lost
        try:
            self.control.send(json.dumps(message).encode())
        except (BlockingIOError, TimeoutError):
            self.lost += 1
        except OSError:
            sys.exit(1)  # the parent is gone

    def _event(self, kind: str, connection: Connection, **fields: Any) -> None:
        self.tell(kind, **self._fields(connection), **fields)

    def _fields(self, connection: Connection) -> dict[str, Any]:
        fields = connection.fields()
        ends = {"src": fields.pop("src"), "sport": fields.pop("sport")}
        return {**ends, "dst": self.target[0], "dport": self.target[1], **fields}

    def piece(self, connection: Connection, one: Direction, data: bytes) -> None:
        """The process forwards these bytes."""
        text = data[:_SHOWN].decode("ascii", "replace")
        self._event("forwarded", connection, to=one.name, bytes=len(data), text=text)

    def entered(self, connection: Connection) -> None:
        """The kernel forwards from now on."""
        assert connection.number is not None
        self.by_number[connection.number] = connection
        self._event("spliced", connection)

    def stays(self, connection: Connection, why: str) -> None:
        """The process goes on forwarding."""
        self._event("user", connection, why=why)

    def left(self, connection: Connection, why: str) -> None:
        """The process forwards a direction that the kernel forwarded."""
        self._event("drained", connection, why=why)

    # -- connections

    def accept(self) -> None:
        """Take a connection, and connect to the backend."""
        assert self.listener is not None
        try:
            near, _ = self.listener.accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                self.poller.unregister(self.listener.fileno())
                self.accepts_at = monotonic() + 0.1
                if not self.full_said:
                    self.full_said = True
                    self.tell("note", text="no descriptors left: new clients wait (ulimit -n)")
            return
        try:
            far = socket.socket(self.family, socket.SOCK_STREAM)
        except OSError:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
            near.close()
            return
        try:
            connection = Connection(self, near, far)
        except OSError:
            near.close()  # reset while it waited to be accepted
            far.close()
            return
        self.sides[near.fileno()] = self.sides[far.fileno()] = connection
        connection.near.connected()
        try:
            far.connect(self.target)
        except BlockingIOError:
            connection.far.watch(self.poller, False, True)
            connection.next_look = connection.opened + _CONNECT_S
            self.waiting.add(connection)
            return
        except OSError as error:
            self.refused(connection, error)
            return
        self.connected(connection)

    def connected(self, connection: Connection) -> None:
        """The backend has answered."""
        connection.mode = "user"
        connection.far.connected()
        self._event("connected", connection)
        self.work(connection)

    def refused(self, connection: Connection, error: OSError) -> None:
        """The backend does not answer: the client's connection is reset."""
        why = errno_text(error.errno or 0)
        self._close(connection, reset=True)
        self._event("refused", connection, why=f"the backend does not answer: {why}")

    def work(self, connection: Connection) -> None:
        """Let a connection do what it can; an error of a socket resets both."""
        try:
            connection.work()
        except OSError as error:
            self.reset(connection, errno_text(error.errno or 0))
        if connection.next_look and connection.mode != "closed":
            self.waiting.add(connection)
        else:
            self.waiting.discard(connection)

    def reset(self, connection: Connection, why: str) -> None:
        """Reset both ends."""
        self._close(connection, reset=True)
        self._event("reset", connection, why=why)

    def closed(self, connection: Connection, reset: bool) -> None:
        """Both streams have ended, and every byte of them was handed on."""
        self._close(connection, reset)
        self._event("closed", connection)

    def _close(self, connection: Connection, reset: bool) -> None:
        for side in (connection.near, connection.far):
            self.sides.pop(side.fd, None)
        if connection.number is not None:
            self.by_number.pop(connection.number, None)
        self.waiting.discard(connection)
        self.draining.discard(connection)
        connection.close(reset)
        self.closed_rows.append(self._fields(connection))

    # -- the loop

    def run(self) -> None:
        """Until a stop is complete."""
        while self.listener is not None or self.sides:
            self.turn()
        self._send_rows()

    def turn(self) -> None:
        """Wait for the next events, and deal with them."""
        clients = False
        for fd, events in self.poller.poll(self._timeout()):
            connection = self.sides.get(fd)
            if connection is not None:
                self._ready(connection, fd, events)
            elif fd == self.control.fileno():
                self._commands()
            elif fd == self.notices.fileno():
                self._notices()
            else:
                clients |= self.listener is not None and fd == self.listener.fileno()
        # Last: the new sockets may get the numbers of some that this turn closed, and these may
        # have events in the rest of the list.
        if clients and self.listener is not None:
            self.accept()
        self._look()
        self._await_frozen()

    def _await_frozen(self) -> None:
        """One grace period for all that were frozen in this turn: no segment is past the filter."""
        if not self.leaving:
            return
        leaving, self.leaving = self.leaving, []
        grace_period()
        for connection, direction in leaving:
            try:
                connection.froze(direction)
            except OSError as error:
                self.reset(connection, errno_text(error.errno or 0))

    def _timeout(self) -> float | None:
        if self.leaving:
            return 0.0
        times = [one.next_look for one in self.waiting]
        times += [at for at in (self.deadline, self.accepts_at) if at]
        left = max(0.0, min(times) - monotonic()) if times else None
        return min(left or 0.0, _DRAIN_LOOK_S) if self.draining else left

    def _look(self) -> None:
        """What is due by the clock."""
        now = monotonic()
        for connection in [one for one in self.waiting if one.next_look <= now]:
            if connection.mode == "connecting":
                self.refused(connection, TimeoutError(110, ""))
            else:
                self.work(connection)
        for connection in list(self.draining):
            try:
                drained = connection.drained()
            except OSError as error:
                self.reset(connection, errno_text(error.errno or 0))
                continue
            if drained:
                self.draining.discard(connection)
                self._event("drained", connection, why="the proxy stops")
        if self.accepts_at and self.accepts_at <= now:
            self.accepts_at = 0.0
            if self.listener is not None:
                self.poller.register(self.listener.fileno(), select.EPOLLIN)
        if self.deadline and self.deadline <= now:
            for connection in set(self.sides.values()):
                self.reset(connection, "the proxy stops")

    def _ready(self, connection: Connection, fd: int, events: int) -> None:
        side = connection.near if connection.near.fd == fd else connection.far
        if connection.mode == "connecting":
            number = side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                self.refused(connection, OSError(number, ""))
            else:
                self.connected(connection)
            return
        if events & select.EPOLLERR:
            number = side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            end = "client" if side is connection.near else "backend"
            self.reset(connection, f"the {end}'s connection: {errno_text(number)}")
            return
        if events & (select.EPOLLRDHUP | select.EPOLLHUP):
            side.fin = True
        self.work(connection)

    def _notices(self) -> None:
        """Sockets whose data the program in the kernel does not redirect any more."""
        for key in self.notices.drain():
            number = int.from_bytes(key, sys.byteorder) if isinstance(key, bytes) else int(key)
            connection = self.by_number.get(number // 2)
            if connection is None:
                continue
            state = self.table.state(number)
            if state.lost:
                self.reset(connection, state.lost)
                continue
            if state.asked:
                try:
                    connection.take_over(connection.directions[number % 2])
                except OSError as error:
                    self.reset(connection, errno_text(error.errno or 0))
                    continue
            self.work(connection)

    def _commands(self) -> None:
        try:
            word = self.control.recv(64)
        except BlockingIOError:
            return
        if not word:
            sys.exit(1)  # the parent has ended, and the connections with it
        if word == b"rows":
            self._send_rows()
        elif word == b"stop" and not self.deadline:
            self._stop()

    def _stop(self) -> None:
        """Accept nothing more, leave nothing to the kernel, give connections time to end."""
        assert self.listener is not None
        if not self.accepts_at:
            self.poller.unregister(self.listener.fileno())
        self.accepts_at = 0.0
        self.listener.close()
        self.listener = None
        self.deadline = monotonic() + self.grace
        for connection in set(self.sides.values()):
            if connection.mode == "connecting":
                self.reset(connection, "the proxy stops")
            elif connection.mode == "kernel":
                try:
                    connection.drain()
                except OSError as error:
                    self.reset(connection, errno_text(error.errno or 0))
                    continue
                self.draining.add(connection)
                self._event("draining", connection)
                self.work(connection)

    def _send_rows(self) -> None:
        self.control.settimeout(_ROWS_S)
        rows = [self._fields(one) for one in dict.fromkeys(self.sides.values())]
        rows = [*self.closed_rows, *rows]
        for at in range(0, len(rows), _ROWS_AT_ONCE):
            self.tell("rows", rows=rows[at : at + _ROWS_AT_ONCE])
        self.tell("end")
        self.control.setblocking(False)


def main() -> None:
    """Run the proxy that the parent asked for."""
    import resource

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent takes them, and says what to do
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    config = json.loads(sys.argv[1])
    if os.getppid() != config["parent"]:
        return
    Proxy(config).run()


if __name__ == "__main__":
    main()
