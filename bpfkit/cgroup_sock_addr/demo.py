# SPDX-License-Identifier: Apache-2.0
"""The demo: a proxy in a cgroup and a client in another, each a process of its own.

Nothing of theirs knows of the program: the client addresses servers that do not exist, and the
proxy asks for SO_ORIGINAL_DST as every transparent proxy does.
"""

from __future__ import annotations

from bpfkit.core.closing import Closing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.core.cgroups import Cgroup

#: Redirections, refusals and binds of the demo.
REDIRECT = [
    "192.0.2.0/24:80=127.0.0.1:3128",
    "[2001:db8::/32]:80=[::1]:3128",
    "udp/192.0.2.53:53=127.0.0.1:5353",
    "udp/[2001:db8::53]:53=[::1]:5353",
]
DENY = ["198.51.100.0/24"]
ALLOW = ["192.0.2.200:80"]
BIND = ["0.0.0.0:81=127.0.0.1:8081"]
UNIX = ["unix:@bpfkit-asked=unix:@bpfkit-given"]
UNIX_DENY = ["unix:/run/bpfkit-denied"]

PROXY = """
import selectors, socket, struct
from errno import ENOENT, ENOPROTOOPT
from socket import *

def original(sock):
    try:
        if sock.family == AF_INET:
            data = sock.getsockopt(0, 80, 16)
            return f"{inet_ntop(AF_INET, data[4:8])} {struct.unpack('!H', data[2:4])[0]}"
        data = sock.getsockopt(41, 80, 28)
        return f"{inet_ntop(AF_INET6, data[8:24])} {struct.unpack('!H', data[2:4])[0]}"
    except OSError as error:
        # ENOPROTOOPT, or ENOENT where connection tracking is there and has no such entry.
        return "none" if error.errno in (ENOPROTOOPT, ENOENT) else f"errno {error.errno}"

found = selectors.DefaultSelector()
for family, kind, address in [
    (AF_INET, SOCK_STREAM, ("127.0.0.1", 3128)), (AF_INET6, SOCK_STREAM, ("::1", 3128)),
    (AF_INET, SOCK_DGRAM, ("127.0.0.1", 5353)), (AF_INET6, SOCK_DGRAM, ("::1", 5353)),
    (AF_UNIX, SOCK_STREAM, "\\0bpfkit-given"), (AF_UNIX, SOCK_DGRAM, "\\0bpfkit-given"),
]:
    sock = socket(family, kind)
    if family != AF_UNIX:
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    sock.bind(address)
    if kind == SOCK_STREAM:
        sock.listen(64)
    found.register(sock, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in found.select():
        sock = key.fileobj
        if sock.type == SOCK_STREAM:
            with sock.accept()[0] as client:
                client.sendall((original(client) if sock.family != AF_UNIX else "unix").encode())
        else:
            data, sender = sock.recvfrom(2000)
            if sender:
                sock.sendto(b"answer to " + data, sender)
"""

CLIENT = """
import json, socket
from socket import *
seen = {}

def attempt(what, function):
    try:
        seen[what] = function()
    except OSError as error:
        seen[what] = error.errno

def stream(family, address):
    with socket(family, SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.connect(address)
        peer = sock.getpeername()
        peer = peer.decode() if isinstance(peer, bytes) else peer
        return [sock.recv(200).decode(), peer if family == AF_UNIX else list(peer[:2])]

def datagram(family, address, connected):
    with socket(family, SOCK_DGRAM) as sock:
        sock.settimeout(5)
        if family == AF_UNIX:
            sock.bind("\\0bpfkit-client")
        if connected:
            sock.connect(address)
            sock.send(b"q")
        else:
            sock.sendto(b"q", address)
        data, sender = sock.recvfrom(200)
        if family == AF_UNIX:
            return [data.decode(), sender.decode()]
        return [data.decode(), list(sender[:2])]

def bound():
    with socket() as sock:
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", 81))
        sock.listen()
        name = list(sock.getsockname())
        with socket() as client:
            client.connect(("127.0.0.1", 8081))
            with sock.accept()[0] as accepted:
                return [name, list(accepted.getsockname())]

attempt("tcp4", lambda: stream(AF_INET, ("192.0.2.1", 80)))
attempt("tcp6", lambda: stream(AF_INET6, ("2001:db8::1", 80)))
attempt("mapped", lambda: stream(AF_INET6, ("::ffff:192.0.2.1", 80)))
attempt("direct", lambda: stream(AF_INET, ("127.0.0.1", 3128)))
attempt("allowed", lambda: stream(AF_INET, ("192.0.2.200", 80)))
attempt("udp4", lambda: datagram(AF_INET, ("192.0.2.53", 53), False))
attempt("udp4 connected", lambda: datagram(AF_INET, ("192.0.2.53", 53), True))
attempt("udp6", lambda: datagram(AF_INET6, ("2001:db8::53", 53), False))
attempt("udp mapped", lambda: datagram(AF_INET6, ("::ffff:192.0.2.53", 53), False))
attempt("denied", lambda: stream(AF_INET, ("198.51.100.1", 443)))
attempt("denied udp", lambda: datagram(AF_INET, ("198.51.100.1", 443), False))
attempt("bind", bound)
attempt("unix", lambda: stream(AF_UNIX, "\\0bpfkit-asked"))
attempt("unix datagram", lambda: datagram(AF_UNIX, "\\0bpfkit-asked", False))
attempt("unix denied", lambda: stream(AF_UNIX, "/run/bpfkit-denied"))
print(json.dumps(seen))
"""

_ECONNREFUSED, _ENETUNREACH = 111, 101

#: What the client must see: [the proxy's words, the peer's address], or an errno.  The proxy says
#: the address that SO_ORIGINAL_DST gave it; ENOPROTOOPT (92) where the kernel has none.
SEEN: dict[str, Any] = {
    "tcp4": ["192.0.2.1 80", ["192.0.2.1", 80]],
    "tcp6": ["2001:db8::1 80", ["2001:db8::1", 80]],
    "mapped": ["192.0.2.1 80", ["::ffff:192.0.2.1", 80]],
    "direct": ["none", ["127.0.0.1", 3128]],
    "allowed": _ENETUNREACH,
    "udp4": ["answer to q", ["192.0.2.53", 53]],
    "udp4 connected": ["answer to q", ["192.0.2.53", 53]],
    "udp6": ["answer to q", ["2001:db8::53", 53]],
    "udp mapped": ["answer to q", ["::ffff:192.0.2.53", 53]],
    "denied": _ECONNREFUSED,
    "denied udp": _ECONNREFUSED,
    "bind": [["0.0.0.0", 81], ["127.0.0.1", 81]],
}
UNIX_SEEN: dict[str, Any] = {
    "unix": ["unix", "\0bpfkit-given"],  # see the C side
    "unix datagram": ["answer to q", "\0bpfkit-asked"],
    "unix denied": _ECONNREFUSED,
}


class Proxy(Closing):
    """The demo's proxy, at work in a cgroup.

    :raises BpfkitError: it does not start.
    """

    def __init__(self, group: Cgroup) -> None:
        import os
        import subprocess
        import sys

        from bpfkit.core.errors import BpfkitError

        procs = group.open_procs()
        try:
            self._process = subprocess.Popen(
                [sys.executable or "python3", "-I", "-S", "-c", PROXY],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                preexec_fn=lambda: _prepare(procs),
            )
        finally:
            os.close(procs)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.close()
            raise BpfkitError("the demo's proxy does not start")

    def close(self) -> None:
        """End the proxy."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _prepare(procs: int) -> None:
    """In the child: into the cgroup, and killed with its parent."""
    import ctypes
    import os
    import signal

    os.write(procs, b"0")
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
