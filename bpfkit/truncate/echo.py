# SPDX-License-Identifier: Apache-2.0
"""A TCP echo server in a thread, and a client that records when pieces of the answer arrive."""

from __future__ import annotations

import time

from bpfkit.core.errors import BpfkitError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

    from bpfkit.net.packets.packet_socket import Packet, PacketSocket
    from bpfkit.truncate.tcp_trace import Segment

__all__ = ["EchoServer", "Exchange", "exchange"]

_HOST = "127.0.0.1"


class EchoServer:
    """Sends back what it receives, piece by piece, on 127.0.0.1 in the caller's namespace.

    The socket listens from the start, so that a filter can be attached; :meth:`start` starts to
    accept connections.

    :ivar sock: the listening socket.
    :raises BpfkitError: the port is in use.
    """

    def __init__(self, port: int) -> None:
        import socket

        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.sock.bind((_HOST, port))
            self.sock.listen(8)
        except OSError as error:
            self.sock.close()
            raise BpfkitError(
                f"cannot listen on port {port}", why=errno_text(error.errno or 0)
            ) from error

    def start(self) -> None:
        """Accept connections; each is served in its own thread."""
        from threading import Thread

        Thread(target=self._accept, name="echo", daemon=True).start()

    def _accept(self) -> None:
        from threading import Thread

        while True:
            try:
                connection, _ = self.sock.accept()
            except OSError:
                return  # closed
            Thread(target=_serve, args=(connection,), name="echo", daemon=True).start()

    def close(self) -> None:
        """Stop listening, which ends the accepting thread."""
        import socket

        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()


def _serve(connection: socket) -> None:
    with connection:
        try:
            while piece := connection.recv(65536):
                connection.sendall(piece)
        except OSError:
            pass  # the client closed the connection


class Exchange:
    """The result of one message.

    :ivar answers: (seconds after sending, text) of each piece of the answer.
    :ivar trace: the connection's segments, captured as they leave on lo.
    :ivar sent_ns: UNIX time in nanoseconds at which the message was sent.
    """

    __slots__ = ("answers", "sent_ns", "trace")

    def __init__(
        self, answers: list[tuple[float, str]], trace: list[Segment], sent_ns: int
    ) -> None:
        self.answers = answers
        self.trace = trace
        self.sent_ns = sent_ns


def exchange(port: int, message: bytes, timeout: float = 5.0) -> Exchange:
    """Send ``message`` to the echo server on ``port``, with a capture on lo, until it is echoed.

    :raises BpfkitError: no connection, or no complete answer within ``timeout`` seconds.
    """
    import socket

    from bpfkit.net.links.interfaces import Interface
    from bpfkit.net.packets.packet_socket import PacketSocket
    from bpfkit.truncate.tcp_trace import tcp_trace

    what = f"no echo of {message!r} from port {port}"
    answers: list[tuple[float, str]] = []
    packets: list[Packet] = []
    with PacketSocket(Interface.find("lo"), snaplen=2048) as tap:
        _await_timestamps(tap)
        try:
            with socket.create_connection((_HOST, port), timeout=timeout) as client:
                own = client.getsockname()[1]
                sent_ns, sent = time.time_ns(), time.monotonic()
                client.sendall(message)
                left = len(message)
                while left > 0:
                    client.settimeout(max(0.001, sent + timeout - time.monotonic()))
                    piece = client.recv(65536)
                    if not piece:
                        raise BpfkitError(what, why=f"{left} bytes are missing")
                    answers.append((time.monotonic() - sent, piece.decode()))
                    left -= len(piece)
        except OSError as error:
            raise BpfkitError(what, why=str(error)) from error
        # Both FINs, and the last acknowledgement.
        while (packet := tap.recv(0.02)) is not None:
            packets.append(packet)
    return Exchange(answers, tcp_trace(packets, own, port), sent_ns)


def _await_timestamps(tap: PacketSocket) -> None:
    """Wait until the kernel timestamps packets when they pass.

    It starts shortly after the first socket requests timestamps (net_enable_timestamp() uses a work
    queue); until then a packet's timestamp is the time when it is read.
    """
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _ in range(100):
            sent_ns = time.time_ns()
            probe.sendto(b"?", (_HOST, 9))
            time.sleep(0.004)
            stamps = [packet.ts_ns for packet in tap]
            if stamps and stamps[0] - sent_ns < 2_000_000:
                return
