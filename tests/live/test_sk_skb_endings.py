# SPDX-License-Identifier: Apache-2.0
"""sk_skb: whatever ends a connection, and at whatever moment, the connection ends.

The proxy runs in the test's own process, turn by turn, so that the peers act at an exact place:
between two statements of the proxy, where only a preempted process would let them.  The judges are
the peers (bytes, end of stream, errno) and the maps in the kernel, which must be empty again.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from bpfkit import load
from bpfkit.core.object import Object
from bpfkit.net.links.netns import NetNS
from bpfkit.sk_skb.connection import Connection
from bpfkit.sk_skb.program import tcp_sock_offsets
from bpfkit.sk_skb.proxy import Proxy
from bpfkit.sk_skb.table import Table

RESET = struct.pack("ii", 1, 0)
DEADLINE_S = 20.0
ROOM = 4096  # CONNECTIONS of the C side
MAPS = ("sockets", "targets", "flows", "directions", "notices")
SENT = {"client": b"question", "backend": b"answer"}

#: Where the peers act: before this call, the n-th of its kind.
PLACES: dict[str, tuple[type, str, int]] = {
    "the backend has answered": (Proxy, "connected", 1),
    "first look": (Connection, "work", 1),
    "entry": (Connection, "enter", 1),
    "states checked": (Table, "reserve", 1),
    "one target": (Table, "make_target", 2),
    "no source": (Table, "make_source", 1),
    "one source": (Table, "make_source", 2),
    "both sources": (Proxy, "entered", 1),
    "second look": (Connection, "_watch", 1),
    "in the kernel": (Proxy, "turn", 0),
}
#: What they do, in this order.
ACTS = (
    "client ends",
    "backend ends",
    "client ends, backend ends",
    "backend ends, client ends",
    "client resets",
    "backend resets",
    "client ends, backend resets",
    "backend ends, client resets",
    "client resets, backend ends",
    "client aborts",
    "backend aborts",
)


class SteppedProxy(Proxy):
    """Waits for events, but not for ever: the test looks at the clock in between."""

    def _timeout(self) -> float | None:
        left = super()._timeout()
        return 0.05 if left is None else min(left, 0.05)

    def close(self) -> None:
        """What the end of the process closes."""
        for connection in set(self.sides.values()):
            self.reset(connection, "the test ends")
        self.poller.close()
        self.notices.close()
        self.notices.map.close()
        self.control.close()
        if self.listener is not None:
            self.listener.close()
        self.table.close()
        os.close(self.freezer)


class Peers:
    """A client and a backend, a proxy between them, and what the peers receive."""

    def __init__(self, ns: NetNS, loaded: Object) -> None:
        def server() -> socket.socket:
            return socket.create_server(("127.0.0.1", 0))

        self.server: socket.socket = ns.run(server)
        listener: socket.socket = ns.run(server)
        where = listener.getsockname()
        self.reports, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        config: dict[str, Any] = {name: os.dup(loaded[name].fd) for name in MAPS}
        self.kept = config["directions"]  # by the proxy's process
        config |= {
            "freezer": os.dup(loaded.programs["freeze"].fd),
            "control": control.detach(),
            "listener": listener.detach(),
            "family": socket.AF_INET,
            "to": self.server.getsockname(),
            "after": 0,
            "pieces": False,
            "grace": 2.0,
            "room": ROOM,
        }
        # The proxy connects from the namespace in which it runs.
        self.proxy: SteppedProxy = ns.run(SteppedProxy, config)
        self.ns = ns
        self.socks = {"client": ns.run(socket.create_connection, where, DEADLINE_S)}
        self.got = {"client": b"", "backend": b""}
        self.ended: dict[str, bool] = {"client": False, "backend": False}
        self.seen: dict[str, str] = {}

    def act(self, acts: str) -> None:
        """Send, then end or reset, one peer after the other; an abort is a reset without data."""
        if "backend" not in self.socks:
            self.server.settimeout(DEADLINE_S)
            self.socks["backend"] = self.server.accept()[0]
        for sock in self.socks.values():
            sock.setblocking(False)
        for who, what in (act.split() for act in acts.split(", ")):
            if what != "aborts":
                self.socks[who].sendall(SENT[who])
            self.end(who, what)

    def end(self, who: str, what: str) -> None:
        """``ends``: FIN; ``resets``, ``aborts``: RST."""
        self.ended[who] = True
        if what != "ends":
            self.socks[who].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.socks[who].close()
            self.seen[who] = "reset by itself"
        else:
            self.socks[who].shutdown(socket.SHUT_WR)

    def read(self) -> None:
        """What has arrived; a peer that has seen the end of the other's stream ends its own."""
        for who, sock in self.socks.items():
            while who not in self.seen:
                try:
                    piece = sock.recv(4096)
                except BlockingIOError:
                    break
                except (ConnectionResetError, BrokenPipeError):
                    self.seen[who] = "reset"
                    break
                self.got[who] += piece
                if not piece:
                    self.seen[who] = "end"
                    if not self.ended[who]:
                        sock.sendall(SENT[who])
                        self.end(who, "ends")

    def turn_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < deadline, (self.seen, self.got, self.kinds())
            self.ns.run(self.proxy.turn)
            if "backend" in self.socks:
                self.read()

    def kinds(self) -> list[str]:
        """What the proxy reported."""
        import json

        self.reports.setblocking(False)
        found = []
        while True:
            try:
                found.append(json.loads(self.reports.recv(1 << 17))["kind"])
            except BlockingIOError:
                return found

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (*self.socks.values(), self.server, self.reports):
            sock.close()
        self.proxy.close()
        os.close(self.kept)


@pytest.fixture(scope="module")
def ns() -> Iterator[NetNS]:
    with NetNS.new("sk-skb-ends") as namespace:
        yield namespace


@pytest.fixture(scope="module", params=["verdict", "parser"])
def loaded(request: pytest.FixtureRequest) -> Iterator[Object]:
    names = ("verdict",) if request.param == "verdict" else ("parser", "stream_verdict")
    with load("sock/sk_skb.bpf.c", consts=tcp_sock_offsets()) as found:
        links = [found.programs[name].attach_sockmap(found["sockets"]) for name in names]
        yield found
        for link in links:
            link.close()


def before(
    monkeypatch: pytest.MonkeyPatch, where: type, name: str, nth: int, act: Callable[[], None]
) -> list[str]:
    """Have ``act`` called before the n-th call of a method; the list says that it was."""
    real = getattr(where, name)
    calls = 0
    acted: list[str] = []

    def wrapper(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            acted.append(name)
            act()
        return real(*args, **more)

    monkeypatch.setattr(where, name, wrapper)
    return acted


def check_end(peers: Peers, loaded: Object, acts: str) -> None:
    """The connection ends, as the peers ended it, and nothing of it stays in the maps."""
    peers.turn_until(lambda: not peers.proxy.sides and len(peers.seen) == 2)
    kinds = peers.kinds()
    if "resets" in acts or "aborts" in acts:
        assert kinds[-1] == "reset", acts
        assert set(peers.seen.values()) == {"reset", "reset by itself"}, (acts, peers.seen)
    else:
        assert kinds[-1] == "closed", acts
        assert peers.seen == {"client": "end", "backend": "end"}, acts
        assert peers.got == {"client": SENT["backend"], "backend": SENT["client"]}, acts
    assert list(loaded["flows"].items()) == [], acts
    assert sorted(peers.proxy.table.reserve() for _ in range(ROOM)) == list(range(ROOM)), acts


@pytest.mark.parametrize("place", PLACES)
def test_a_connection_ends_with_its_peers(
    ns: NetNS, loaded: Object, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A client's and a backend's ends that came while the proxy entered used to be one too many:
    both streams ended, and the connection stayed for ever."""
    where, name, nth = PLACES[place]
    for acts in ACTS:
        with Peers(ns, loaded) as peers, monkeypatch.context() as patch:
            if nth:
                acted = before(patch, where, name, nth, partial(peers.act, acts))
                peers.turn_until(lambda acted=acted: bool(acted))
            else:
                peers.turn_until(lambda peers=peers: bool(peers.proxy.by_number))
                peers.act(acts)
            check_end(peers, loaded, acts)


def test_a_connection_that_ends_while_the_proxy_stops(
    ns: NetNS, loaded: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reset between two looks at what is left to drain used to end the whole proxy."""
    for acts in ACTS:
        with Peers(ns, loaded) as peers, monkeypatch.context() as patch:
            peers.turn_until(lambda peers=peers: bool(peers.proxy.by_number))
            # At the first look both sources are in the map, at the second they have left it.
            acted = before(patch, Connection, "drained", 2, partial(peers.act, acts))
            peers.reports.send(b"stop")
            peers.turn_until(lambda acted=acted: bool(acted))
            check_end(peers, loaded, acts)
