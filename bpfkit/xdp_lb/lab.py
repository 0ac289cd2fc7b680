# SPDX-License-Identifier: Apache-2.0
"""Where xdp_lb is shown: a client, a layer-3 switch, the balancer on one arm, three backends.

::

    client ── switch ═╦═ lb        the switch's route to the VIPs is by lb
     .1.1    .1.254   ╠═ b1        each backend has the VIPs on lo, and a server on their port
             .2.254   ╠═ b2        that says who it is
                      ╚═ b3

10.77.1.0/24 and fd77:1::/64 between client and switch, 10.77.2.0/24 and fd77:2::/64 behind it:
lb .2, backends .11, .12, .13.  The VIPs are 198.51.100.1 and 2001:db8:51::1.
"""

from __future__ import annotations

import _socket

from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError, errno_text
from bpfkit.net.links.lab import Lab
from bpfkit.net.packets.addresses import mapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket as socket_module
    from collections.abc import Sequence

    from bpfkit.core.object import Object
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
#: What the balancer knows the backends by: tunnels of both families.
BACKENDS = {"b1": "10.77.2.11", "b2": "fd77:2::12", "b3": "10.77.2.13"}
NAMES = tuple(BACKENDS)


class Responder:
    """An HTTP server that tells its name: keeps connections, takes bodies of any length.

    Asked for ``/N`` it answers with N bytes, its name in front.

    :ivar requests: how many it has answered.
    """

    def __init__(self, ns: NetNS, name: str, port: int = PORT) -> None:
        import socket
        from threading import Thread

        self.name = name
        self.requests = 0
        with ns.entered():
            self._listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        try:
            self._listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(("::", port))
            self._listener.listen(256)
        except OSError as error:
            self._listener.close()
            why = errno_text(error.errno or 0)
            raise BpfkitError(f"{name} cannot listen on port {port}", why=why) from error
        self._wake, self._woken = socket.socketpair()
        self._thread = Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        from selectors import EVENT_READ, DefaultSelector

        buffers: dict[socket_module.socket, bytearray] = {}
        with DefaultSelector() as selector:
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
                                continue  # gone again: a health check
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
        """End; connections are closed."""
        self._wake.send(b"!")
        self._thread.join(5)
        for sock in (self._listener, self._wake, self._woken):
            sock.close()


class Conversation:
    """A connection to the VIP.

    :param sport: the port to come from; 0: any.
    :ivar source: the address that it comes from; :ivar sport: the port.
    :raises OSError: it does not come about within ``timeout`` seconds.
    """

    def __init__(self, ns: NetNS, vip: str, sport: int = 0, timeout: float = 2.0) -> None:
        import socket

        with ns.entered():
            self._sock = socket.socket(
                socket.AF_INET6 if ":" in vip else socket.AF_INET, socket.SOCK_STREAM
            )
        self._sock.settimeout(timeout)
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sock.bind(("", sport))
            self._sock.connect((vip, PORT))
        except OSError:
            self._sock.close()
            raise
        self.source, self.sport = self._sock.getsockname()[:2]

    def ask(self, body: bytes = b"", size: int = 0) -> str:
        """Who are you?  "" if there is no answer, or not one of ``size`` bytes."""
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
        """End it."""
        self._sock.close()


class BackendLab(Closing):
    """The lab, built, with its servers running.

    :param decapsulate: an xdp_decap on every backend.
    :ivar lab: its namespaces: ``client``, ``switch``, ``lb``, ``b1``, ``b2``, ``b3``.
    """

    def __init__(self, decapsulate: bool = True) -> None:
        self.lab = Lab("load balancer")
        self._objects: list[Object] = []
        self.servers: dict[str, Responder] = {}
        self._sport = 10000
        try:
            self._build()
            self.lab.ready()
            self._attach_peer()
            for name in NAMES:
                if decapsulate:
                    self._attach_decap(name)
                self.start(name)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def addresses(name: str) -> tuple[str, str]:
        """A backend's, IPv4 and IPv6."""
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
            # a tag beside the packet would be lost in an XDP program
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
            # nobody says where the VIP is: the switch's route does
            lab.sysctl(name, "net.ipv4.conf.all.arp_ignore", 1)
            lab.sysctl(name, "net.ipv4.conf.all.arp_announce", 2)
        lab.route("switch", f"{VIP4}/32", via=BALANCER[0])
        lab.route("switch", f"{VIP6}/128", via=BALANCER[1])

    def _attach_peer(self) -> None:
        """XDP_TX of a veth wants an XDP program on its other end."""
        from bpfkit.core.object import load

        text = (
            "#include <bpfkit/bpfkit.h>\n#include <uapi/linux/bpf.h>\n"
            'SEC("xdp")\nint pass_all(struct xdp_md *ctx)\n{\n\treturn XDP_PASS;\n}\n'
        )
        loaded = load(text)
        self._objects.append(loaded)
        with self.lab["switch"].entered():
            loaded.programs["pass_all"].attach_xdp(self.lab.interface("switch:lb").index, "native")

    def _attach_decap(self, name: str) -> None:
        from bpfkit.core.object import load

        loaded = load("xdp/xdp_decap.bpf.c")
        self._objects.append(loaded)
        for balancer, own in zip(BALANCER, self.addresses(name), strict=True):
            loaded["tunnels"][mapped(balancer) + mapped(own)] = 1
        with self.lab[name].entered():
            loaded.programs["xdp_decap"].attach_xdp(self.lab.interface(f"{name}:eth0").index)

    # -- the play

    def start(self, name: str) -> None:
        """A backend's server begins."""
        self.servers[name] = Responder(self.lab[name], name)

    def stop(self, name: str) -> None:
        """A backend's server dies, with its connections."""
        self.servers.pop(name).close()

    def talk(self, vip: str) -> Conversation:
        """A new connection of the client's."""
        self._sport += 1  # one of its own for each: nothing is remembered of it
        return Conversation(self.lab["client"], vip, self._sport)

    def burst(self, vips: Sequence[str], count: int) -> list[tuple[str, str, int, str]]:
        """``count`` connections with one request to each VIP: (VIP, source, its port, who
        answered)."""
        seen = []
        for _ in range(count):
            for vip in vips:
                try:
                    talk = self.talk(vip)
                except OSError:
                    seen.append((vip, "", 0, ""))
                    continue
                seen.append((vip, talk.source, talk.sport, talk.ask()))
                talk.close()
        return seen

    def inject(self, frame: bytes, wait: float = 2.0) -> list[bytes]:
        """Send a frame to lb past the kernel, from the switch; the frame that lb sends back."""
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
        """Everything ends."""
        while self.servers:
            self.servers.popitem()[1].close()
        while self._objects:
            self._objects.pop().close()
        self.lab.close()


def source_of(frame: bytes) -> str:
    """The (outer) source address of an untagged frame."""
    if frame[12:14] == b"\x08\x00":
        return _socket.inet_ntop(_socket.AF_INET, frame[26:30])
    if frame[12:14] == b"\x86\xdd" and len(frame) >= 38:
        return _socket.inet_ntop(_socket.AF_INET6, frame[22:38])
    return ""
