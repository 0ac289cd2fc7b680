# SPDX-License-Identifier: Apache-2.0
"""What cgroup_skb's demo sends: a server outside of the cgroup, a client inside.

The server echoes UDP on port 7001 and accepts TCP on port 7003, on every address of the demo's
network namespace.  The client sends datagrams to addresses that are allowed, denied and rejected,
and says what its system calls returned.  Only a raw socket's packet to a rejected address gets as
far as the egress hook, as those of a connection that is older than the program: where the kernel
can, ICMP answers it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket
    from typing import Any

__all__ = ["CLIENT", "RAW", "RULES", "Server", "expected"]

ECHO, REFUSED = 7001, 7003
#: (option, rule) of the demo.
RULES = (
    ("deny", "127.0.0.2"),
    ("reject", "127.0.0.3"),
    ("reject", f"[::1]:{REFUSED}"),
)
#: What the client sends to the echo server: (address, datagrams, bytes of each).
ECHOED = (("127.0.0.1", 10, 100), ("::1", 5, 200))
DENIED = 4
#: Where the client sends a raw UDP packet: (address, port).
RAW = (("127.0.0.3", ECHO), ("::1", REFUSED))
_HEADERS = {4: 28, 6: 48}  # bytes of IP and UDP header

_CLIENT = f"""
import json, socket, struct, time
def kind(host): return socket.AF_INET6 if ":" in host else socket.AF_INET
def errno_of(call, *args):
    try: call(*args)
    except OSError as error: return error.errno
    return 0
out = {{"comm": open("/proc/self/comm").read().strip(), "echoed": 0}}
for host, count, size in {ECHOED!r}:
    with socket.socket(kind(host), socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        for _ in range(count):
            sock.sendto(bytes(size), (host, {ECHO}))
            out["echoed"] += len(sock.recv(4096)) == size
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    out["denied"] = [errno_of(sock.sendto, b"no", ("127.0.0.2", {ECHO})) for _ in range({DENIED})]
    out["rejected_udp"] = errno_of(sock.sendto, b"no", ("127.0.0.3", {ECHO})) or (
        time.sleep(0.2) or errno_of(sock.send, b"no"))
out["rejected"] = []
for host in ("127.0.0.3", "::1", "::ffff:127.0.0.3"):
    with socket.socket(kind(host)) as sock:
        sock.settimeout(5)
        start = time.monotonic()
        errno = errno_of(sock.connect, (host, {REFUSED}))
        out["rejected"].append([host, errno, time.monotonic() - start])
out["rejected_raw"] = []
for host, port in {RAW!r}:
    with socket.socket(kind(host), socket.SOCK_RAW, socket.IPPROTO_UDP) as sock:
        sock.connect((host, 0))
        errno = errno_of(sock.send, struct.pack("!4H", 9, port, 8, 0))
        for _ in range(50):
            answer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if answer: break
            time.sleep(0.01)
        out["rejected_raw"].append([host, errno, answer])
print(json.dumps(out))
"""
CLIENT = [sys.executable, "-I", "-S", "-c", _CLIENT]


def expected() -> tuple[int, int]:
    """(packets, bytes from the IP header on) that a client sends to the echo server."""
    packets = sum(count for _, count, _ in ECHOED)
    size = sum(count * (size + _HEADERS[6 if ":" in host else 4]) for host, count, size in ECHOED)
    return packets, size


class Server:
    """The servers, in a thread, on both IP versions of the caller's namespace.

    :ivar datagrams: ``datagrams`` and ``payload`` that arrived at the echo server.
    :ivar accepted: TCP connections.
    """

    def __init__(self) -> None:
        import socket
        from threading import Thread

        self.datagrams = self.payload = self.accepted = 0
        self._udp = _dual(socket.SOCK_DGRAM, ECHO)
        self._tcp = _dual(socket.SOCK_STREAM, REFUSED)
        self._tcp.listen()
        self._stop, self._stopped = socket.socketpair()
        self._thread = Thread(target=self._serve, name="server", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        from select import select

        while True:
            ready: list[Any] = select([self._udp, self._tcp, self._stopped], [], [])[0]
            if self._udp in ready:
                data, peer = self._udp.recvfrom(4096)
                self.datagrams += 1
                self.payload += len(data)
                self._udp.sendto(data, peer)
            if self._tcp in ready:
                self._tcp.accept()[0].close()
                self.accepted += 1
            if self._stopped in ready:
                return

    def close(self) -> None:
        """End the thread and close the sockets."""
        self._stop.close()
        self._thread.join()
        for sock in (self._udp, self._tcp, self._stopped):
            sock.close()


def _dual(kind: int, port: int) -> socket:
    import socket

    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", port))
    return sock
