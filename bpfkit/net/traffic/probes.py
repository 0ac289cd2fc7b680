# SPDX-License-Identifier: Apache-2.0
"""Is somebody there?  One question, one answer: TCP connect, HTTP, a bare SYN, a hop on the way.

And who answers.

Each probe runs in the namespace it is told and returns whether an answer came in time.  Hosts are
numeric addresses.  :mod:`bpfkit.net.traffic.report` has ping, and traffic with reports.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
import time

from bpfkit.core.errors import BpfkitError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket as socket_module

    from bpfkit.net.links.netns import NetNS

__all__ = [
    "Listener",
    "SynProber",
    "free_ports",
    "hop",
    "http_answers",
    "path_mtu",
    "tcp_answers",
]

_SYN, _RST, _ACK = 2, 4, 16
_MSG_ERRQUEUE = 0x2000
#: family -> (level, TTL or hop limit, RECVERR, MTU_DISCOVER, MTU); ip(7), ipv6(7).
_OPTIONS = {_socket.AF_INET: (0, 2, 11, 10, 14), _socket.AF_INET6: (41, 16, 25, 23, 24)}
_PMTUDISC_DO = 2
_PAGE = b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n"


def _family(host: str) -> int:
    return _socket.AF_INET6 if ":" in host else _socket.AF_INET


class Listener:
    """Answers TCP connections in a namespace, each with a small HTTP page.

    :param address: to listen at; "" is every address, IPv4 and IPv6.
    :ivar port: its port.
    :raises BpfkitError: the port is taken.
    """

    def __init__(self, ns: NetNS, port: int = 0, *, address: str = "") -> None:
        import socket
        from threading import Thread

        family = _family(address or "::")
        with ns.entered():
            self.sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_INET6:
                self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, bool(address))
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.sock.bind((address or "::", port))
            self.sock.listen(64)
        except OSError as error:
            self.sock.close()
            why = errno_text(error.errno or 0)
            raise BpfkitError(f"cannot listen on port {port}", why=why) from error
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
        connection.settimeout(0.5)  # one after the other: nobody may hold the rest up for long
        try:
            if connection.recv(4096):
                connection.sendall(_PAGE)
        except OSError:
            pass

    def close(self) -> None:
        """Stop listening."""
        try:
            self.sock.shutdown(_socket.SHUT_RDWR)  # wakes accept(2)
        except OSError:
            pass
        self._thread.join(2)
        self.sock.close()


def free_ports(*namespaces: NetNS, family: int, count: int) -> list[int]:
    """TCP ports that nobody uses at this moment, in none of the namespaces; all different."""
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
                    break  # taken in this one
                port = sockets[-1].getsockname()[1]
            else:
                found.append(port)
        return found
    finally:
        for sock in sockets:
            sock.close()


def _connect(sock: _socket.socket, host: str, port: int, timeout: float, sport: int) -> None:
    """Connect within ``timeout``, from port ``sport`` unless that is 0."""
    sock.settimeout(timeout)
    if sport:
        sock.bind(("::" if ":" in host else "0.0.0.0", sport))
    sock.connect((host, port))


def tcp_answers(host: str, port: int, *, ns: NetNS, timeout: float = 0.5, sport: int = 0) -> bool:
    """Does a TCP connection come about?  ``sport`` is the port it comes from; 0: any."""
    sock = ns.socket(_family(host), _socket.SOCK_STREAM)
    try:
        _connect(sock, host, port, timeout, sport)
        return True
    except OSError:
        return False
    finally:
        sock.close()


def http_answers(host: str, port: int, *, ns: NetNS, timeout: float = 0.5, sport: int = 0) -> bool:
    """Does ``GET /`` get 200?  ``sport`` is the port it comes from; 0: any."""
    sock = ns.socket(_family(host), _socket.SOCK_STREAM)
    try:
        _connect(sock, host, port, timeout, sport)
        name = f"[{host}]" if ":" in host else host
        sock.sendall(f"GET / HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
        return b" 200 " in sock.recv(4096).partition(b"\r\n")[0]
    except OSError:
        return False
    finally:
        sock.close()


def hop(host: str, ttl: int, *, ns: NetNS, timeout: float = 1.0) -> tuple[str, str]:
    """Who says what to a UDP datagram that has ``ttl`` hops to go: a line of traceroute.

    :returns: the address and ``time exceeded``, ``port unreachable`` or ``other``; ("", "") where
        nobody says anything.
    """
    family = _family(host)
    level, limit, receive, _, _ = _OPTIONS[family]
    sock = ns.socket(family, _socket.SOCK_DGRAM)
    try:
        sock.setsockopt(level, receive, 1)
        sock.setsockopt(level, limit, ttl)
        sock.connect((host, 33434 + ttl))
        sock.send(bytes(32))
        poller = select.poll()
        poller.register(sock, 0)  # errors are reported unasked
        if not poller.poll(timeout * 1000):
            return "", ""
        _, control, _, _ = sock.recvmsg(512, 512, _MSG_ERRQUEUE)
    except OSError:
        return "", ""
    finally:
        sock.close()
    # struct sock_extended_err, then the address of who says so
    _, _, error = control[0]
    kind, code = error[5], error[6]
    six = family == _socket.AF_INET6
    offender = error[16:]
    who = _socket.inet_ntop(family, offender[8:24] if six else offender[4:8])
    if kind == (3 if six else 11):
        return who, "time exceeded"
    return who, "port unreachable" if (kind, code) == ((1, 4) if six else (3, 3)) else "other"


def path_mtu(host: str, size: int, *, ns: NetNS, timeout: float = 1.0) -> int:
    """The MTU on the way to ``host`` after a datagram of ``size`` bytes that must not be cut."""
    family = _family(host)
    level, _, _, discover, mtu = _OPTIONS[family]
    sock = ns.socket(family, _socket.SOCK_DGRAM)
    try:
        sock.setsockopt(level, discover, _PMTUDISC_DO)
        sock.connect((host, 9))
        before = now = sock.getsockopt(level, mtu)
        if now < size:
            return now  # the kernel knows already
        sock.send(bytes(size))
        end = time.monotonic() + timeout
        while now == before and time.monotonic() < end:
            time.sleep(0.005)
            now = sock.getsockopt(level, mtu)
        return now
    except OSError as error:
        raise BpfkitError(f"cannot send to {host}", why=errno_text(error.errno or 0)) from error
    finally:
        sock.close()


class SynProber:
    """Sends bare SYNs from a raw socket and waits for SYN-ACK or RST, as nping does.

    The kernel, which knows of no such connection, ends each with an RST of its own.

    :ivar sent, received: how many SYNs, and how many of them were answered.
    :raises BpfkitError: no route.
    """

    def __init__(self, host: str, port: int, *, ns: NetNS) -> None:
        self.host, self.port = host, port
        self.sent = self.received = 0
        family = _family(host)
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
        #: The port that the next SYN comes from.
        self.sport = 20000 + int.from_bytes(os.urandom(2), "big") % 10000
        self._waiting: set[int] = set()

    def send(self) -> None:
        """One more SYN, from a port of its own."""
        source = self.sport
        self.sport += 1
        head = struct.pack("!HHIIBBHHH", source, self.port, 1, 0, 5 << 4, _SYN, 1024, 0, 0)
        pton = _socket.inet_pton
        family = _family(self.host)
        pseudo = pton(family, self.source) + pton(family, self.host)
        pseudo += struct.pack("!II" if self._six else "!HH", *((20, 6) if self._six else (6, 20)))
        total = sum(struct.unpack(f"!{(len(pseudo) + 20) // 2}H", pseudo + head))
        while total >> 16:
            total = (total >> 16) + (total & 0xFFFF)
        head = head[:16] + struct.pack("!H", 0xFFFF - total) + head[18:]
        self._waiting.add(source)
        self.sent += 1
        try:
            self._sock.sendto(head, (self.host, 0))
        except OSError:
            pass  # dropped on the way out: a lost probe, not a failure

    def receive(self, until: float) -> None:
        """Take answers until ``until`` (time.monotonic()), or until none is missing."""
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
            answers = packet[13] & (_SYN | _ACK) == _SYN | _ACK or packet[13] & _RST
            if answers and source == self.port and dest in self._waiting:
                self._waiting.remove(dest)
                self.received += 1

    def answers(self, timeout: float = 0.5) -> bool:
        """Send one and wait; was it answered?"""
        before = self.received
        self.send()
        self.receive(time.monotonic() + timeout)
        return self.received > before

    def forget(self) -> None:
        """Answers to what was sent until now count no more."""
        self._waiting.clear()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()
