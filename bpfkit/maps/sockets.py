# SPDX-License-Identifier: Apache-2.0
"""Sockets in maps: SOCKMAP, SOCKHASH, REUSEPORT_SOCKARRAY."""

from __future__ import annotations

import socket
from struct import pack

from bpfkit.core.kernel import syscall as sc
from bpfkit.maps.keyed import key
from bpfkit.maps.tour import Trial, failure, stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.maps.base import Map

_SO_COOKIE = 57
_WAIT_S = 2.0
_LEFT_S = 0.05  # so long a message has time that must not come


def _cookie(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")


def _pair(t: Trial) -> tuple[socket.socket, socket.socket]:
    """The two ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = t.keep(socket.create_connection(listener.getsockname(), _WAIT_S))
        two = t.keep(listener.accept()[0])
    two.settimeout(_WAIT_S)
    return one, two


def _fd(sock: socket.socket) -> bytes:
    return pack("=Q", sock.fileno())


def _messages(t: Trial, m: Map, program: str, first: int, second: int, full: int) -> None:
    """What is sent on one connection arrives on another.

    :param first: the key for the socket that sends.
    :param second: the key that the program redirects to.
    :param full: a key for which there is no room.
    """
    side = t.load(m, program)
    t.keep(side.programs[program].attach_sockmap(m))
    a, a_peer = _pair(t)
    b, b_peer = _pair(t)
    m[first], m[second] = a, b
    t.equal(
        (m[first], m[second]), (_cookie(a), _cookie(b)), "Python reads SO_COOKIE of the sockets"
    )
    a.sendall(b"across")
    t.equal(b.recv(100), b"across", "sent on one connection, redirected to another by the program")
    a_peer.settimeout(_LEFT_S)
    try:
        left = a_peer.recv(100)
    except TimeoutError:
        left = b""
    t.equal(left, b"", "nothing arrives at the peer that it was sent to")
    b_peer.sendall(b"back")
    t.equal(b.recv(100), b"back", "the other way the connections work as before")
    t.equal(
        failure(sc.map_update, m.fd, key(full), _fd(b_peer)), "E2BIG", "no room for a third: E2BIG"
    )
    fresh = t.keep(socket.socket())
    t.equal(
        failure(sc.map_update, m.fd, key(first), _fd(fresh)),
        "EOPNOTSUPP",
        "a TCP socket that is not connected: EOPNOTSUPP",
    )
    t.equal(
        failure(sc.map_update, m.fd, key(first), _fd(b_peer), 1), "EEXIST", "BPF_NOEXIST: EEXIST"
    )
    t.equal(
        failure(sc.map_update, m.fd, key(second), _fd(a)),
        "EBUSY",
        "a socket that has such a program from the map: EBUSY",
    )
    del m[second]
    a.settimeout(_WAIT_S)
    try:
        a.sendall(b"nowhere")
        text = "sent"
    except OSError as error:
        text = type(error).__name__
    t.equal(text, "PermissionError", "deleted: what the program redirects there is EACCES")
    a.close()
    t.equal(failure(sc.map_lookup, m.fd, key(first), 8), "ENOENT", "closed, a socket leaves")


@stop("sockmap", "sockets to redirect between")
def sockmap(t: Trial) -> None:
    _messages(t, t.map(4, 8, 2), "message_map", 0, 1, 2)


@stop("sockhash", "the same by any key: the flow")
def sockhash(t: Trial) -> None:
    _messages(t, t.map(4, 8, 2), "message_hash", 55, 7001, 99)


def _listener(port: int, reuse: bool = True) -> socket.socket:
    sock = socket.socket()
    if reuse:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen()
    sock.settimeout(_WAIT_S)
    return sock


@stop("reuseport_sockarray", "listeners that a program chooses")
def reuseport_sockarray(t: Trial) -> None:
    m = t.map(4, 8, 3)
    first = t.keep(_listener(0))
    port = first.getsockname()[1]
    second = t.keep(_listener(port))
    m[0], m[1] = first, second
    t.equal((m[0], m[1]), (_cookie(first), _cookie(second)), "Python reads SO_COOKIE")
    side = t.load(m, "choose")
    t.keep(side.programs["choose"].attach_reuseport(first))
    for slot, listener in ((0, first), (1, second)):
        side.request(value=slot)
        with socket.create_connection(("127.0.0.1", port), _WAIT_S) as client:
            accepted, address = listener.accept()
            accepted.close()
            t.equal(address, client.getsockname(), f"slot {slot}: that listener accepts")
    side.request(value=2)
    t.equal(_connected(port), "ECONNREFUSED", "an empty slot: the program drops, ECONNREFUSED")
    t.equal(int(side.answer().result), -2, "its helper returned ENOENT")
    t.equal(
        failure(sc.map_update, m.fd, key(2), _fd(first)),
        "EBUSY",
        "a socket that is in the array: EBUSY",
    )
    alone = t.keep(_listener(0, reuse=False))
    t.equal(
        failure(sc.map_update, m.fd, key(2), _fd(alone)), "EINVAL", "without SO_REUSEPORT: EINVAL"
    )
    third = t.keep(_listener(port))
    t.equal(failure(sc.map_update, m.fd, key(3), _fd(third)), "E2BIG", "behind the end: E2BIG")
    second.close()
    t.equal(failure(sc.map_lookup, m.fd, key(1), 8), "ENOENT", "closed, a listener leaves")


def _connected(port: int) -> str:
    """The errno's name; empty where the connection is accepted."""
    return failure(lambda: socket.create_connection(("127.0.0.1", port), _WAIT_S).close())
