# SPDX-License-Identifier: Apache-2.0
"""Whether this kernel can do without a stream parser, found by doing."""

from __future__ import annotations

import socket

from bpfkit.sk_skb.side import flow_key, run_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bpfkit.core.object import Object

__all__ = ["leaves_intact"]

_DATA = bytes(range(1, 201))
_WAIT_S = 0.5  # only where something is wrong; else the probe takes some milliseconds


def leaves_intact(loaded: Object, run: Callable[[socket.socket], None] = run_program) -> bool:
    """Whether a socket can be read after its data was redirected by the verdict program alone.

    Data waits when the socket enters, more is redirected, the socket leaves the map, and what
    arrives then is read.  A kernel that loses its place in the stream (copied_seq) returns
    nothing, or other bytes.

    :param loaded: an object of sk_skb, whose maps nobody else uses.
    :param run: has the program take what waits in the receive queue of a socket.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = loaded.programs["verdict"].attach_sockmap(loaded["sockets"])
        ends = [socket.create_connection(server.getsockname()) for _ in range(2)]
        ends += [server.accept()[0] for _ in range(2)]
        try:
            return _try(loaded, run, *ends)
        except OSError:
            return False
        finally:
            for sock in ends:
                sock.close()
            link.close()


def _try(
    loaded: Object,
    run: Callable[[socket.socket], None],
    one: socket.socket,
    other: socket.socket,
    near: socket.socket,
    far: socket.socket,
) -> bool:
    """``one`` is connected to ``near``, and ``far`` to ``other``."""
    for sock in (one, other, near, far):
        sock.settimeout(_WAIT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    loaded["flows"][flow_key(near)] = 0
    loaded["targets"][0] = near
    loaded["targets"][1] = far
    one.sendall(_DATA)
    if near.recv(len(_DATA)) != _DATA:
        return False
    one.sendall(_DATA)  # waits
    loaded["sockets"][0] = near
    run(near)
    if other.recv(len(_DATA), socket.MSG_WAITALL) != _DATA:
        return False
    one.sendall(_DATA)
    if other.recv(len(_DATA), socket.MSG_WAITALL) != _DATA:
        return False
    del loaded["sockets"][0]
    one.sendall(_DATA[::-1])
    return near.recv(2 * len(_DATA)) == _DATA[::-1]
