# SPDX-License-Identifier: Apache-2.0
"""xdp_lb's lab: a client, a layer-3 switch, the load balancer, and three backends.

::

    client ── switch ═╦═ lb        the switch routes the VIPs to lb
     .1.1    .1.254   ╠═ b1        each backend has the VIPs on lo, and a server
             .2.254   ╠═ b2        that answers with the backend's name
                      ╚═ b3

10.77.1.0/24 and fd77:1::/64 between client and switch, 10.77.2.0/24 and fd77:2::/64 behind it:
lb .2, backends .11, .12, .13.  The VIPs are 198.51.100.1 and 2001:db8:51::1.
"""

from __future__ import annotations

import _socket

from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError
from bpfkit.net.links.lab import Lab
from bpfkit.net.links.peers import attach_pass
from bpfkit.net.packets.addresses import family_of, mapped
from bpfkit.net.traffic.sockets import listen

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket as socket_module
    from collections.abc import Sequence

    from bpfkit.core.object import Object
    from bpfkit.core.program import Program
    from bpfkit.net.links.netns import NetNS

__all__ = [
    "BACKENDS",
    "VIP4",
    "VIP6",
    "BackendLab",
    "Conversation",
    "Responder",
    "source_of",
]

VIP4, VIP6 = "198.51.100.1", "2001:db8:51::1"
PORT = 80
BALANCER = ("10.77.2.2", "fd77:2::2")
#: Backend -> its address for the balancer; of both families, for tunnels of both.
BACKENDS = {"b1": "10.77.2.11", "b2": "fd77:2::12", "b3": "10.77.2.13"}
NAMES = tuple(BACKENDS)


class Responder:
    """An HTTP server that answers with its name; persistent connections, bodies of any length.

    The answer to ``/N`` has N bytes, which begin with the name.

    :ivar requests: number of answered requests.
    """

    def __init__(self, ns: NetNS, name: str, port: int = PORT) -> None:
        import socket
        from selectors import DefaultSelector
        from threading import Thread

        self.name = name
        self.requests = 0
        self._listener = listen(ns, port, backlog=256)
        self._wake, self._woken = socket.socketpair()
        self._selector = DefaultSelector()  # here, where a lack of descriptors can be reported
        self._thread = Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        from selectors import EVENT_READ

        buffers: dict[socket_module.socket, bytearray] = {}
        with self._selector as selector:
            selector.register(self._listener, EVENT_READ)
            selector.register(self._woken, EVENT_READ)
            try:
                while True:
                    for key, _ in selector.select():
                        sock: socket_module.socket = key.fileobj  # type: ignore[assignment]
                        if sock is self._woken:
                            return
                        if sock is self._listener:
                            try:
                                fresh, _ = sock.accept()
                            except OSError:
                                continue  # closed again: a health check
                            fresh.settimeout(5)
                            buffers[fresh] = bytearray()
                            selector.register(fresh, EVENT_READ)
                        elif not self._read(sock, buffers[sock]):
                            selector.unregister(sock)
                            del buffers[sock]
                            sock.close()
            finally:
                for sock in buffers:
                    sock.close()

    def _read(self, sock: socket_module.socket, buffer: bytearray) -> bool:
        try:
            data = sock.recv(1 << 16)
            if not data:
                return False
            buffer += data
            while True:
                head, end, _ = buffer.partition(b"\r\n\r\n")
                _, _, length = head.lower().partition(b"content-length:")
                size = len(head) + 4 + (int(length.split()[0]) if length.strip() else 0)
                if not end or len(buffer) < size:
                    return True
                del buffer[:size]
                self.requests += 1
                wanted = bytes(head.split()[1][1:])
                body = f"{self.name}\n".encode().ljust(int(wanted) if wanted.isdigit() else 0)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        except (OSError, ValueError, IndexError):
            return False

    def close(self) -> None:
        """Stop the server and close its connections."""
        self._wake.send(b"!")
        self._thread.join(5)
        for sock in (self._listener, self._wake, self._woken):
            sock.close()


class Conversation:
    """A client's connection to a VIP.

    :param sport: source port; 0: any.
    :ivar source: source address.
    :ivar sport: source port.
    :raises OSError: not established within ``timeout`` seconds.
    """

    def __init__(self, ns: NetNS, vip: str, sport: int = 0, timeout: float = 2.0) -> None:
        import socket

        with ns.entered():
            self._sock = socket.socket(family_of(vip), socket.SOCK_STREAM)
        self._sock.settimeout(timeout)
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sock.bind(("", sport))
            self._sock.connect((vip, PORT))
        except OSError:
            self._sock.close()
            raise
        self.source, self.sport = self._sock.getsockname()[:2]

    def request(self, body: bytes = b"", size: int = 0) -> str:
        """Send a request; the name of the backend that answers.

        :param size: bytes of the answer to ask for.
        :returns: "" if no answer of that size arrives.
        """
        head = f"POST /{size} HTTP/1.1\r\nHost: vip\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            self._sock.sendall(head.encode() + body)
            answer = b""
            while (
                b"\n" not in answer.partition(b"\r\n\r\n")[2]
                or len(answer.partition(b"\r\n\r\n")[2]) < size
            ):
                piece = self._sock.recv(1 << 16)
                if not piece:
                    return ""
                answer += piece
            return answer.partition(b"\r\n\r\n")[2].decode().strip()
        except OSError:
            return ""

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()


class BackendLab(Closing):
    """The lab, with running servers.

    :param decapsulate: attach xdp_decap at every backend.
    :ivar lab: the namespaces ``client``, ``switch``, ``lb``, ``b1``, ``b2``, ``b3``.
    """

    def __init__(self, decapsulate: bool = True) -> None:
        self.lab = Lab("load balancer")
        self._closables: list[Object | Program] = []
        self.servers: dict[str, Responder] = {}
        self._sport = 10000
        try:
            self._build()
            self.lab.ready()
            # The balancer answers with XDP_TX.
            self.peer_program = attach_pass(self.lab, ["switch:lb"])
            self._closables.append(self.peer_program)
            for name in NAMES:
                if decapsulate:
                    self._attach_decap(name)
                self.start(name)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def addresses(name: str) -> tuple[str, str]:
        """The addresses of a backend, IPv4 and IPv6."""
        number = 11 + NAMES.index(name)
        return f"10.77.2.{number}", f"fd77:2::{number}"

    def _build(self) -> None:
        lab = self.lab
        for name in ("client", "switch", "lb", *NAMES):
            lab.namespace(name)
        lab.forward("switch")
        lab.veth(
            "client:eth0",
            "switch:left",
            addresses=(["10.77.1.1/24", "fd77:1::1/64"], ["10.77.1.254/24", "fd77:1::fe/64"]),
            offloads=False,
        )
        hosts = {"lb": BALANCER}
        hosts.update({name: self.addresses(name) for name in NAMES})
        for name, (four, six) in hosts.items():
            lab.veth(
                f"{name}:eth0",
                f"switch:{name}",
                addresses=([f"{four}/24", f"{six}/64"], []),
                offloads=False,
            )
            # an XDP program would lose a VLAN tag that the kernel stores outside the packet
            lab.offloads(f"switch:{name}", txvlan=False, rxvlan=False)
            lab.offloads(f"{name}:eth0", txvlan=False, rxvlan=False)
        lab.bridge(
            "switch:br0",
            [f"switch:{name}" for name in hosts],
            addresses=["10.77.2.254/24", "fd77:2::fe/64"],
        )
        lab.offloads("switch:br0", txvlan=False, rxvlan=False)
        lab.route("client", "default", via="10.77.1.254")
        lab.route("client", "default6", via="fd77:1::fe")
        for name in hosts:
            lab.route(name, "default", via="10.77.2.254")
            lab.route(name, "default6", via="fd77:2::fe")
            lab.address(f"{name}:lo", f"{VIP4}/32")
            lab.address(f"{name}:lo", f"{VIP6}/128")
            # no ARP answers for the VIPs: the switch has a route to them
            lab.sysctl(name, "net.ipv4.conf.all.arp_ignore", 1)
            lab.sysctl(name, "net.ipv4.conf.all.arp_announce", 2)
        lab.route("switch", f"{VIP4}/32", via=BALANCER[0])
        lab.route("switch", f"{VIP6}/128", via=BALANCER[1])

    def _attach_decap(self, name: str) -> None:
        from bpfkit.core.object import load

        loaded = load("xdp/xdp_decap.bpf.c")
        self._closables.append(loaded)
        for balancer, own in zip(BALANCER, self.addresses(name), strict=True):
            loaded["tunnels"][mapped(balancer) + mapped(own)] = 1
        with self.lab[name].entered():
            loaded.programs["xdp_decap"].attach_xdp(self.lab.interface(f"{name}:eth0").index)

    # -- servers and connections

    def start(self, name: str) -> None:
        """Start a backend's server."""
        self.servers[name] = Responder(self.lab[name], name)

    def stop(self, name: str) -> None:
        """Stop a backend's server and close its connections."""
        self.servers.pop(name).close()

    def connect(self, vip: str) -> Conversation:
        """A new connection from the client."""
        self._sport += 1  # a new source port for each, so that the balancer knows no flow of it
        return Conversation(self.lab["client"], vip, self._sport)

    def burst(self, vips: Sequence[str], count: int) -> list[tuple[str, str, int, str]]:
        """``count`` connections with one request each to each VIP.

        :returns: (VIP, source address, source port, name of the backend that answered).
        """
        seen = []
        for _ in range(count):
            for vip in vips:
                try:
                    talk = self.connect(vip)
                except OSError:
                    seen.append((vip, "", 0, ""))
                    continue
                seen.append((vip, talk.source, talk.sport, talk.request()))
                talk.close()
        return seen

    def inject(self, frame: bytes, wait: float = 2.0) -> list[bytes]:
        """Send a frame from the switch to lb by a packet socket; the frames that lb sends back."""
        from bpfkit.net.packets.capture import Capture
        from bpfkit.net.packets.frames import send_frames

        lb = bytes.fromhex(self.lab.lladdr("lb:eth0").replace(":", ""))
        with Capture("lb", ns=self.lab["switch"], outgoing=False) as capture:
            send_frames("lb", [frame], ns=self.lab["switch"])
            try:
                found = capture.wait(
                    timeout=wait,
                    where=lambda p: p.data[6:12] == lb and p.data.endswith(frame[-20:]),
                )
            except BpfkitError:
                return []
            return [packet.data for packet in found]

    def close(self) -> None:
        """Stop the servers and remove the lab."""
        while self.servers:
            self.servers.popitem()[1].close()
        while self._closables:
            self._closables.pop().close()
        self.lab.close()


def source_of(frame: bytes) -> str:
    """The (outer) source address of an untagged frame."""
    if frame[12:14] == b"\x08\x00":
        return _socket.inet_ntop(_socket.AF_INET, frame[26:30])
    if frame[12:14] == b"\x86\xdd" and len(frame) >= 38:
        return _socket.inet_ntop(_socket.AF_INET6, frame[22:38])
    return ""
