# SPDX-License-Identifier: Apache-2.0
"""Probes of a container: HTTP, and a bare TCP SYN; each reports whether an answer arrives.

Hosts are numeric addresses.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
import time

from bpfkit.core.errors import BpfkitError, errno_text
from bpfkit.net.packets.addresses import family_of
from bpfkit.net.packets.frames import tcp_segment
from bpfkit.net.traffic.probes import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.net.links.netns import NetNS

__all__ = ["SynProber", "free_ports", "http_answers"]

_SYN, _RST, _ACK = 2, 4, 16


def free_ports(*namespaces: NetNS, family: int, count: int) -> list[int]:
    """Different TCP ports, each of them free at this moment in all of the namespaces."""
    sockets: list[_socket.socket] = []
    found: list[int] = []
    try:
        while len(found) < count:
            port = 0
            for ns in namespaces:
                sockets.append(ns.socket(family, _socket.SOCK_STREAM))
                try:
                    sockets[-1].bind(("::" if family == _socket.AF_INET6 else "0.0.0.0", port))
                except OSError:
                    break  # in use in this namespace
                port = sockets[-1].getsockname()[1]
            else:
                found.append(port)
        return found
    finally:
        for sock in sockets:
            sock.close()


def http_answers(host: str, port: int, *, ns: NetNS, timeout: float = 0.5, sport: int = 0) -> bool:
    """Whether ``GET /`` is answered with status 200.

    :param sport: source port; 0: any.
    """
    sock = ns.socket(family_of(host), _socket.SOCK_STREAM)
    try:
        connect(sock, host, port, timeout, sport)
        name = f"[{host}]" if ":" in host else host
        sock.sendall(f"GET / HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
        return b" 200 " in sock.recv(4096).partition(b"\r\n")[0]
    except OSError:
        return False
    finally:
        sock.close()


class SynProber:
    """Sends TCP SYNs from a raw socket and waits for SYN-ACK or RST, as nping does.

    The kernel has no socket for these connections and answers each SYN-ACK with an RST.

    :ivar sent, received: SYNs sent, and SYNs answered.
    :raises BpfkitError: no route.
    """

    def __init__(self, host: str, port: int, *, ns: NetNS) -> None:
        self.host, self.port = host, port
        self.sent = self.received = 0
        family = family_of(host)
        self._six = family == _socket.AF_INET6
        finder = ns.socket(family, _socket.SOCK_DGRAM)
        try:
            finder.connect((host, 9))
            self.source = finder.getsockname()[0]
        except OSError as error:
            why = errno_text(error.errno or 0)
            raise BpfkitError(f"cannot probe {host}", why=why) from error
        finally:
            finder.close()
        self._sock = ns.socket(family, _socket.SOCK_RAW, _socket.IPPROTO_TCP)
        #: Source port of the next SYN.
        self.sport = 20000 + int.from_bytes(os.urandom(2), "big") % 10000
        self._waiting: set[int] = set()

    def send(self) -> None:
        """Send a SYN from the next source port."""
        source = self.sport
        self.sport += 1
        segment = tcp_segment(self.source, self.host, ports=(source, self.port))
        self._waiting.add(source)
        self.sent += 1
        try:
            self._sock.sendto(segment, (self.host, 0))
        except OSError:
            pass  # dropped on the way out: a lost probe, not a failure

    def receive(self, until: float) -> None:
        """Receive answers until ``until`` (time.monotonic()) or until every SYN is answered."""
        while self._waiting:
            left = max(until - time.monotonic(), 0)
            if not select.select([self._sock], [], [], left)[0]:
                return
            packet = self._sock.recv(65536)
            if not self._six:
                packet = packet[(packet[0] & 15) * 4 :]
            if len(packet) < 20:
                continue
            source, dest = struct.unpack_from("!HH", packet)
            is_answer = packet[13] & (_SYN | _ACK) == _SYN | _ACK or packet[13] & _RST
            if is_answer and source == self.port and dest in self._waiting:
                self._waiting.remove(dest)
                self.received += 1

    def probe(self, timeout: float = 0.5) -> bool:
        """Send a SYN; whether it is answered within ``timeout`` seconds."""
        before = self.received
        self.send()
        self.receive(time.monotonic() + timeout)
        return self.received > before

    def forget(self) -> None:
        """Ignore answers to the SYNs sent so far."""
        self._waiting.clear()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()
