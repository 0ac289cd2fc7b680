# SPDX-License-Identifier: Apache-2.0
"""TCP reachability: a server that answers, and a client that reports whether one does.

Hosts are numeric addresses.  Ping, and traffic with reports, is in the other modules of this
package.
"""

from __future__ import annotations

import _socket

from bpfkit.net.packets.addresses import family_of
from bpfkit.net.traffic.sockets import listen

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket as socket_module

    from bpfkit.net.links.netns import NetNS

__all__ = ["Listener", "connect", "tcp_answers"]

_PAGE = b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n"


class Listener:
    """A TCP server in a namespace; it answers each connection with a small HTTP page.

    :param port: the port to listen on; 0: a free one.
    :param address: the address to listen on; "": every address, IPv4 and IPv6.
    :ivar port: the port that it listens on.
    :raises BpfkitError: the port is in use.
    """

    def __init__(self, ns: NetNS, port: int = 0, *, address: str = "") -> None:
        from threading import Thread

        self.sock = listen(ns, port, address=address)
        self.port = int(self.sock.getsockname()[1])
        self._thread = Thread(target=self._serve, name="listener", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.sock.accept()
            except OSError:
                return  # closed
            with connection:
                self._answer(connection)

    @staticmethod
    def _answer(connection: socket_module.socket) -> None:
        connection.settimeout(0.5)  # served one after the other: none may block the rest
        try:
            if connection.recv(4096):
                connection.sendall(_PAGE)
        except OSError:
            pass

    def close(self) -> None:
        """Stop listening and end the thread."""
        try:
            self.sock.shutdown(_socket.SHUT_RDWR)  # wakes accept(2)
        except OSError:
            pass
        self._thread.join(2)
        self.sock.close()


def connect(sock: _socket.socket, host: str, port: int, timeout: float, sport: int) -> None:
    """Connect within ``timeout`` seconds, from port ``sport`` (0: any).

    :raises OSError: refused, unreachable, or no answer in time.
    """
    sock.settimeout(timeout)
    if sport:
        sock.bind(("::" if ":" in host else "0.0.0.0", sport))
    sock.connect((host, port))


def tcp_answers(host: str, port: int, *, ns: NetNS, timeout: float = 0.5, sport: int = 0) -> bool:
    """Whether a TCP connection is established.

    :param sport: source port; 0: any.
    """
    sock = ns.socket(family_of(host), _socket.SOCK_STREAM)
    try:
        connect(sock, host, port, timeout, sport)
        return True
    except OSError:
        return False
    finally:
        sock.close()
