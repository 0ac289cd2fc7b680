# SPDX-License-Identifier: Apache-2.0
"""What an application sees when its TCP socket is in a sockmap: reading, ending, kTLS.

Each function makes one experiment and returns one :class:`Feature`: WORKS, the application sees
what it sees without a sockmap; NOT_SUPPORTED, it does not; INCONCLUSIVE, the experiment is
impossible here.  ``value`` is the observation, where there is one beside that.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from contextlib import ExitStack, contextmanager

from bpfkit.core.features.answer import NOT_SUPPORTED, WORKS, Feature
from bpfkit.core.features.sockmap import probe_fionread, probe_splice, unknown
from bpfkit.core.features.sockmap.table import (
    EGRESS,
    INGRESS,
    SK_MSG,
    SK_SKB,
    Absent,
    Table,
    enters,
    errno_name,
    pair,
    readable,
    receive,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["behaviours"]

#: Seconds for data to cross loopback, and for a workqueue to run; far more than either takes.
_PATIENCE = 0.5
#: Seconds after which what has not come does not come by itself.
_NEVER = 0.1
_SIZE = 1000
_TCP_ULP, _SOL_TLS = 31, 282


def behaviours() -> Iterator[Feature]:
    """Every answer about reading, ending and kTLS."""
    yield probe_fionread()
    yield probe_splice()
    for name, experiment in _EXPERIMENTS.items():
        try:
            yield experiment(name)
        except OSError as error:
            yield unknown(name, error)


def _answer(name: str, works: bool, why: str, value: object = None) -> Feature:
    return Feature(name, WORKS if works else NOT_SUPPORTED, "" if works else why, value=value)


@contextmanager
def _redirected() -> Iterator[tuple[socket.socket, socket.socket, Table]]:
    """(sender, receiver, table) of a connection whose sent data an sk_msg program puts into the
    receiver's queue."""
    with ExitStack() as stack:
        sender, receiver = map(stack.enter_context, pair("tcp"))
        table = stack.enter_context(Table())
        table.attach(SK_MSG, INGRESS)
        table.enter(receiver, target=True)
        table.enter(sender)
        yield sender, receiver, table


@contextmanager
def _proxied() -> Iterator[tuple[socket.socket, socket.socket, socket.socket, Table]]:
    """(client, front, backend, table): what the client sends, an sk_skb program passes on to the
    backend as soon as the proxy's socket ``front`` has entered."""
    with ExitStack() as stack:
        client, front = map(stack.enter_context, pair("tcp"))
        back, backend = map(stack.enter_context, pair("tcp"))
        table = stack.enter_context(Table())
        table.attach(SK_SKB, EGRESS)
        table.enter(back, target=True)
        yield client, front, backend, table


# ---------------------------------------------------------------- reading


def _readiness(name: str) -> Feature:
    with _redirected() as (sender, receiver, _):
        if readable(receiver, 0):
            return _answer(name, False, "readable before anything was sent")
        sender.sendall(bytes(_SIZE))
        seen = [readable(receiver, _PATIENCE)]
        seen.append(bool(select.select([receiver], [], [], 0)[0]))
        receive(receiver, _SIZE, _PATIENCE)
        after = readable(receiver, 0)
        if not all(seen):
            return _answer(name, False, "redirected data does not make the socket readable")
        return _answer(name, not after, "readable although everything was read")


def _edge(name: str) -> Feature:
    with _redirected() as (sender, receiver, _), select.epoll() as epoll:
        epoll.register(receiver, select.EPOLLIN | select.EPOLLET)
        epoll.poll(0)
        wakeups = []
        for _ in range(3):
            sender.sendall(bytes(_SIZE))
            wakeups.append(bool(epoll.poll(_PATIENCE)))  # nothing is read between the messages
        count = sum(wakeups)
        return _answer(name, count == 3, f"{count} wake-ups for 3 messages", value=count)


def _peek(name: str) -> Feature:
    with _redirected() as (sender, receiver, _):
        data = os.urandom(_SIZE)
        sender.sendall(data)
        readable(receiver, _PATIENCE)
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
        peeked = [receiver.recv(2 * _SIZE, flags) for _ in range(2)]
        read = receive(receiver, _SIZE, _PATIENCE)
        if peeked != [data, data]:
            return _answer(name, False, "MSG_PEEK does not return the data that is waiting")
        return _answer(name, read == data, "MSG_PEEK changes what recv() returns")


def _low_water(name: str) -> Feature:
    with _redirected() as (sender, receiver, _):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 2 * _SIZE)
        sender.sendall(bytes(_SIZE))
        if readable(receiver, _NEVER):
            return _answer(name, False, "readable below the mark")
        sender.sendall(bytes(_SIZE))
        return _answer(name, readable(receiver, _PATIENCE), "not readable at the mark")


def _queued_at_entry(name: str) -> Feature:
    """Data that waits when the socket enters: judged at once, with the next segment, or never?"""
    with _proxied() as (client, front, backend, table):
        client.sendall(b"1" * _SIZE)
        readable(front, _PATIENCE)
        table.enter(front)
        early = receive(backend, _SIZE, _NEVER)
        client.sendall(b"2" * _SIZE)
        late = receive(backend, 2 * _SIZE, _NEVER)
        left = receive(front, 2 * _SIZE, _NEVER) if len(early + late) < 2 * _SIZE else b""
        if early:
            return _answer(name, True, "")
        if late == b"1" * _SIZE + b"2" * _SIZE:
            return _answer(name, False, "redirected only when the next segment arrives")
        missing = 2 * _SIZE - len(late) - len(left)
        where = f"{len(left)} bytes stay with the socket" + (f", {missing} lost" if missing else "")
        return _answer(name, False, f"not redirected with the next segment either: {where}")


# ---------------------------------------------------------------- ending


def _eof(name: str) -> Feature:
    with _redirected() as (sender, receiver, _):
        why = _end_fails(sender, receiver, receiver)
        return _answer(name, not why, why)


def _eof_verdict(name: str) -> Feature:
    with _proxied() as (client, front, backend, table):
        table.enter(front)
        why = _end_fails(client, backend, front)
        return _answer(name, not why, why)


def _end_fails(sender: socket.socket, reader: socket.socket, ends: socket.socket) -> str:
    """What is wrong with the end of a stream; "": ``reader`` gets all, ``ends`` sees the end."""
    sender.sendall(bytes(_SIZE))
    sender.shutdown(socket.SHUT_WR)
    lost = _SIZE - len(receive(reader, _SIZE, _PATIENCE))
    if lost:
        return f"{lost} of {_SIZE} bytes lost before the end"
    if readable(ends, _PATIENCE) and not ends.recv(1):
        return ""
    whose = "" if ends is reader else " by the proxy's socket"
    return f"the end of the stream is not seen{whose}"


def _drain(name: str) -> Feature:
    with _redirected() as (sender, receiver, table):
        sender.sendall(bytes(_SIZE))
        readable(receiver, _PATIENCE)
        table.leave(target=True)
        got = receive(receiver, _SIZE, _NEVER)
        lost = _SIZE - len(got)
        return _answer(name, not lost, f"{lost} of {_SIZE} unread bytes are gone", value=lost)


def _drain_ends(name: str) -> Feature:
    """Does the reader learn of the loss?  The next bytes must not follow as if nothing happened."""
    with _redirected() as (sender, receiver, table):
        sender.sendall(b"1" * _SIZE)
        readable(receiver, _PATIENCE)
        table.leave(target=True)
        table.leave()
        sender.sendall(b"2" * _SIZE)
        try:
            got = receive(receiver, 2 * _SIZE, _NEVER)
        except ConnectionError:
            return _answer(name, True, "")
        complete = got == b"1" * _SIZE + b"2" * _SIZE
        return _answer(name, complete, "the next bytes follow the gap, nothing tells the reader")


# ---------------------------------------------------------------- kTLS


def _tls_in_map(name: str) -> Feature:
    with ExitStack() as stack:
        ours, _ = map(stack.enter_context, pair("tcp"))
        table = stack.enter_context(Table())
        table.enter(ours)
        why = _start_tls(ours)
        return _answer(name, not why, f"{why} on a socket in a map")


def _tls_enters(name: str) -> Feature:
    with ExitStack() as stack:
        ours, _ = map(stack.enter_context, pair("tcp"))
        table = stack.enter_context(Table())
        why = _start_tls(ours)
        if why:
            raise Absent(errno.ENOENT, f"kTLS does not start here: {why}")
        found = enters(table, ours)
        return _answer(name, not found, f"a kTLS socket is refused with {found}")


def _start_tls(sock: socket.socket) -> str:
    """How switching to kTLS fails (AES-128-GCM, sending): step and errno, "" if it works.

    :raises Absent: the kernel has no TLS.
    """
    try:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise Absent(errno.ENOENT, "no kTLS in this kernel (CONFIG_TLS)") from None
        return f"setsockopt(TCP_ULP, tls) says {errno_name(error)}"
    # struct tls12_crypto_info_aes_gcm_128: version 1.2, cipher 51, iv, key, salt, rec_seq.
    info = (0x0303).to_bytes(2, "little") + (51).to_bytes(2, "little") + bytes(8 + 16 + 4 + 8)
    try:
        sock.setsockopt(_SOL_TLS, 1, info)
    except OSError as error:
        return f"setsockopt(SOL_TLS) says {errno_name(error)}"
    return ""


_EXPERIMENTS: dict[str, Callable[[str], Feature]] = {
    "poll and select": _readiness,
    "epoll, edge-triggered": _edge,
    "MSG_PEEK": _peek,
    "SO_RCVLOWAT": _low_water,
    "queued at entry": _queued_at_entry,
    "end of stream, sk_msg": _eof,
    "end of stream, sk_skb": _eof_verdict,
    "leaving with unread data": _drain,
    "a gap is visible": _drain_ends,
    "kTLS after entering": _tls_in_map,
    "entering with kTLS": _tls_enters,
}
