# SPDX-License-Identifier: Apache-2.0
"""A worker of the demo: a process that listens on a port which other workers share.

``python3 -m bpfkit.sk_reuseport.worker PORT NUMBER GENERATION LOOK_MS`` listens on TCP and UDP,
IPv4 and IPv6, prints ``ready``, and answers each connection and each datagram with its number and
generation.  It looks for them every LOOK_MS milliseconds even if the kernel does not wake it; 0: it
does not.  SIGTERM closes the listening sockets; what was accepted is still answered.
"""

from __future__ import annotations

import signal
import socket
import sys
from select import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

BACKLOG = 16384
_ASK_S = 10.0


class _Stop(Exception):
    pass


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stop


def listening(kind: socket.SocketKind, port: int) -> socket.socket:
    """A socket of the group: SO_REUSEPORT before bind, dual stack."""
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        sock.listen(BACKLOG)
    return sock


def answer(connection: socket.socket, text: bytes) -> None:
    """Read a request, send the answer, close."""
    connection.settimeout(_ASK_S)
    try:
        if connection.recv(64):
            connection.sendall(text)
    except OSError:
        pass  # the client went away
    finally:
        connection.close()


def main(port: int, number: int, generation: int, look_ms: int) -> None:
    """Serve until SIGTERM."""
    text = b"%d %d\n" % (number, generation)
    stream = listening(socket.SOCK_STREAM, port)
    datagrams = listening(socket.SOCK_DGRAM, port)
    signal.signal(signal.SIGTERM, _stop)
    print("ready", flush=True)
    try:
        while True:
            ready, _, _ = select([stream, datagrams], [], [], look_ms / 1000 if look_ms else None)
            if stream in ready:
                answer(stream.accept()[0], text)
            if datagrams in ready:
                _, sender = datagrams.recvfrom(2048)
                datagrams.sendto(text, sender)
    except _Stop:
        pass


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
