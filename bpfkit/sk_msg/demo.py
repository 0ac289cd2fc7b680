# SPDX-License-Identifier: Apache-2.0
"""The demo of sk_msg, and what ``--check`` compares: the same messages with and without a redirect,
with a capture on lo.

What is compared comes from outside the program: bytes and digests at the peer, the packets of a
capture, TCP_INFO, errno values.
"""

from __future__ import annotations

import errno
import socket
from hashlib import sha256
from time import monotonic
from typing import NamedTuple

from bpfkit.core.errors import BpfkitError
from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bpfkit.net.packets.packet_socket import Packet
    from bpfkit.show.rows import Verdict
    from bpfkit.sk_msg.program import SkMsg

__all__ = ["Demo", "Segment", "connect", "new_bytes", "segment_of"]

_MESSAGES = 100
_SIZE = 1000
_TIMEOUT_S = 5.0
_TCP_ULP = 31
_SYN, _FIN = 2, 1


def connect(
    address: str, port: int, *, listener: socket.socket | None = None
) -> tuple[socket.socket, socket.socket]:
    """A connection within this process: (the connecting socket, the accepted one)."""
    own = listener is None
    if listener is None:
        listener = listen(address, port)
    try:
        client = socket.create_connection((address, port), _TIMEOUT_S)
        server, _ = listener.accept()
        server.settimeout(_TIMEOUT_S)
        return client, server
    finally:
        if own:
            listener.close()


def listen(address: str, port: int) -> socket.socket:
    """A listening socket on an address of this namespace."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family)


class Segment(NamedTuple):
    """A TCP segment of a capture: its sender's port and sequence number, flags, payload bytes."""

    port: int
    seq: int
    flags: int
    size: int


def segment_of(packet: Packet, port: int) -> Segment | None:
    """The segment in a frame of Ethernet from or to ``port``; None: something else."""
    frame = packet.data
    kind = frame[12:14]
    if kind == b"\x08\x00" and frame[23] == 6:
        at = 14 + (frame[14] & 15) * 4
        end = 14 + int.from_bytes(frame[16:18], "big")
    elif kind == b"\x86\xdd" and frame[20] == 6:
        at = 54
        end = at + int.from_bytes(frame[18:20], "big")
    else:
        return None
    ports = int.from_bytes(frame[at : at + 2], "big"), int.from_bytes(frame[at + 2 : at + 4], "big")
    if port not in ports:
        return None
    seq = int.from_bytes(frame[at + 4 : at + 8], "big")
    return Segment(ports[0], seq, frame[at + 13], end - at - (frame[at + 12] >> 4) * 4)


def new_bytes(segments: Iterable[Segment]) -> int:
    """Bytes of payload, each counted once however often TCP sent it (a slow host retransmits)."""
    first: dict[int, int] = {}
    spans: dict[int, list[tuple[int, int]]] = {}
    for segment in segments:
        start = (segment.seq - first.setdefault(segment.port, segment.seq)) % (1 << 32)
        spans.setdefault(segment.port, []).append((start, start + segment.size))
    total = 0
    for parts in spans.values():
        reached = 0
        for start, end in sorted(parts):
            total += max(end - max(start, reached), 0)
            reached = max(reached, end)
    return total


def receive(sock: socket.socket, size: int) -> bytes:
    """``size`` bytes, less at the end of the stream."""
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            break
        data += part
    return bytes(data)


class Scene:
    """One exchange of messages over one connection, and what was seen of it.

    :ivar sent, got: digests of what was sent and of what the peer received, both ways.
    :ivar packets: the segments on lo.
    :ivar tcp_bytes: what TCP sent, both ways, without what it sent again.
    """

    def __init__(self, address: str, port: int, redirected: bool) -> None:
        self.address = address
        self.port = port
        self.redirected = redirected
        self.bytes = 0
        self.sent = sha256()
        self.got = sha256()
        self.packets: list[Segment] = []
        self.tcp_bytes = 0

    @property
    def where(self) -> str:
        """The server's address, for people."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"

    def run(self, size: int = _SIZE, messages: int = _MESSAGES) -> None:
        """Send the messages, first all of the client's, then all of the server's."""
        from bpfkit.net.packets.capture import Capture
        from bpfkit.net.traffic.tcp import tcp_info

        with Capture("lo", incoming=False) as capture:
            client, server = connect(self.address, self.port)
            with client, server:
                for source, target in ((client, server), (server, client)):
                    for number in range(messages):
                        data = number.to_bytes(4, "big") * (size // 4 + 1)
                        source.sendall(data[:size])
                        self.sent.update(data[:size])
                        self.bytes += size
                    self.got.update(receive(target, size * messages))
                for info in (tcp_info(client), tcp_info(server)):
                    self.tcp_bytes += info.bytes_sent - info.bytes_retrans
            deadline = monotonic() + 1
            while monotonic() < deadline and not self._has_ended():
                self._read(capture.packets)
            self._read(capture.stop())

    def _read(self, packets: list[Packet]) -> None:
        found = [segment_of(packet, self.port) for packet in packets]
        self.packets = [packet for packet in found if packet is not None]

    def _has_ended(self) -> bool:
        return len({packet.port for packet in self.packets if packet.flags & _FIN}) == 2

    @property
    def payload(self) -> int:
        """Bytes of payload in the capture."""
        return new_bytes(self.packets)

    def verify(self) -> Iterator[Verdict]:
        """That everything arrived, and by which way."""
        same = self.sent.digest() == self.got.digest()
        yield same, f"{self.where}: {self.bytes} bytes sent, the peers received the same"
        syns = len({packet.port for packet in self.packets if packet.flags & _SYN})
        wanted = 0 if self.redirected else self.bytes
        yield (
            self.payload == wanted and syns == 2,
            f"{self.where}: {count_of(len(self.packets), 'packet')} on lo, "
            f"{syns} of the handshake, {count_of(self.payload, 'byte')} of payload",
        )
        yield self.tcp_bytes == wanted, f"{self.where}: TCP_INFO: TCP sent {self.tcp_bytes} bytes"


class Demo:
    """The scenes of a round."""

    def __init__(self, app: SkMsg) -> None:
        self._app = app
        self._round = 0
        self._verdicts: list[Verdict] = []
        #: A port that connections may enter by, and one that they may not.
        self.port = app.options.ports[0][0]
        scope = {port for ports in app.options.ports for port in ports}
        self.other = next((port for port in range(5299, 65536) if port not in scope), None)

    def run(self) -> None:
        """One round."""
        app, options = self._app, self._app.options
        address = ("127.0.0.1", "::1")[self._round % 2]
        self._round += 1
        addresses = ("127.0.0.1", "::1") if options.check else (address,)
        with app.group.entered():
            for address in addresses:
                if options.cork:
                    self._cork(address, options.cork)
                    continue
                self._exchange(address)
                if options.deny_prefix:
                    self._deny(address, options.deny_prefix)
            if options.check and not options.cork:
                self._half_close()
                self._no_ktls()
        if options.check:
            self._other_end_outside()

    def verify(self) -> Iterator[Verdict]:
        """What ``--check`` compares."""
        yield from self._verdicts
        sizes = {
            (row["port"], row["verdict"]): row["bytes"]
            for row in self._app.rows()
            if "summary" not in row
        }
        redirected, passed = (sizes.get((self.port, name), 0) for name in ("redirected", "passed"))
        yield (
            redirected > 0 and passed == 0,
            f"port {self.port}: {count_of(redirected, 'byte')} redirected, {passed} by TCP",
        )

    def _say(self, text: str) -> None:
        self._app.note(text)

    def _exchange(self, address: str) -> None:
        """The same messages over a port in scope and over another."""
        size = min(self._app.options.apply or _SIZE, _SIZE)
        self._say(
            f"{2 * _MESSAGES} messages of {size} bytes over {address}; those to port {self.port} "
            "go past TCP: a capture on lo is to show the handshake and no payload"
        )
        ports = [(self.port, True)]
        if self.other is not None:
            ports.append((self.other, False))
        for port, redirected in ports:
            scene = Scene(address, port, redirected)
            scene.run(size)
            how = "in" if redirected else "not in"
            self._say(
                f"  {scene.where} ({how} --ports): {count_of(len(scene.packets), 'packet')}, "
                f"{count_of(scene.payload, 'byte')} of payload on lo"
            )
            self._verdicts += scene.verify()

    def _deny(self, address: str, prefix: bytes) -> None:
        """A message that begins with the denied text, after one that does not, and one more.

        Kernels keep the verdict (seen on 6.1 and 6.18): they refuse what the socket sends later,
        too, without asking the program.
        """
        client, server = connect(address, self.port)
        results = []
        with client, server:
            for data in (b"before", prefix + b" and more", b"after"):
                try:
                    client.send(data)
                    results.append("sent")
                except OSError as error:
                    results.append(errno.errorcode.get(error.errno or 0, str(error)))
            client.shutdown(socket.SHUT_WR)
            got = receive(server, 1 << 16)
        text = (prefix + b" and more").decode(errors="replace")
        said = (
            f"'before' {results[0]}, {text!r} {results[1]}, 'after' {results[2]}; "
            f"the peer read {got.decode(errors='replace')!r}"
        )
        self._say(f"  {said}")
        arrived = b"before" + (b"after" if results[2] == "sent" else b"")
        self._verdicts.append((results[:2] == ["sent", "EACCES"] and got == arrived, said))

    def _cork(self, address: str, cork: int) -> None:
        """Messages of a quarter of the size that cork waits for."""
        size = -(-cork // 4)
        self._say(f"16 messages of {size} bytes over {address}, held back until {cork} are there")
        client, server = connect(address, self.port)
        reads: list[int] = []
        with client, server:
            server.setblocking(False)
            for number in range(16):
                client.sendall(bytes([number]) * size)
                try:
                    reads.append(len(server.recv(1 << 20)))
                except BlockingIOError:
                    continue
        sizes = ", ".join(map(str, reads))
        said = f"{address}: 16 messages of {size} bytes arrived as {len(reads)}: {sizes} bytes"
        self._say(f"  they arrived as {len(reads)}: {sizes} bytes")
        self._verdicts.append((reads == [4 * size] * 4, said))

    def _half_close(self) -> None:
        """An answer that is read only after its sender has closed."""
        client, server = connect("127.0.0.1", self.port)
        with client:
            with server:
                client.sendall(b"question")
                client.shutdown(socket.SHUT_WR)
                question = receive(server, 100)
                server.sendall(b"x" * 100_000)
            got = len(receive(client, 1 << 20))
        said = f"half-close: {got} of 100000 bytes read after the sender had closed"
        self._verdicts.append((question == b"question" and got == 100_000, said))

    def _no_ktls(self) -> None:
        client, server = connect("127.0.0.1", self.port)
        number = 0
        with client, server:
            try:
                client.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
            except OSError as error:
                number = error.errno or 0
        name = errno.errorcode.get(number, "no error")
        said = f"setsockopt(TCP_ULP) of a redirected socket: {name}"
        self._verdicts.append((number == errno.EINVAL, said))

    def _other_end_outside(self) -> None:
        """A listener that belongs to another cgroup: neither end enters the map."""
        before = len(self._app.object["socks"])
        with listen("127.0.0.1", self.port) as listener, self._app.group.entered():
            client, server = connect("127.0.0.1", self.port, listener=listener)
            with client, server:
                client.sendall(b"x" * 1000)
                got = len(receive(server, 1000))
                from bpfkit.net.traffic.tcp import tcp_info

                info = tcp_info(client)
                by_tcp = info.bytes_sent - info.bytes_retrans
                entered = len(self._app.object["socks"]) - before
        if got != 1000:
            raise BpfkitError("the peer outside the cgroup did not get the data")
        said = (
            f"a peer outside the cgroup: {by_tcp} of 1000 bytes by TCP, {entered} sockets entered"
        )
        self._verdicts.append((by_tcp == 1000 and entered <= 0, said))
