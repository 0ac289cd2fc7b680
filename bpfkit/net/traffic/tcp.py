# SPDX-License-Identifier: Apache-2.0
"""TCP request and response between two sockets, and what TCP_INFO says about them."""

from __future__ import annotations

import _socket
import struct
import time

from bpfkit.core.errors import BpfkitError
from bpfkit.net.traffic.report import Report
from bpfkit.net.traffic.sockets import failure, open_socket, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.net.links.netns import NetNS
    from bpfkit.net.traffic.report import Stop

__all__ = ["TcpConnection", "TcpInfo", "TcpReport", "tcp", "tcp_info"]

_TCP_INFO = 11
_TCP_CLOSE = 7
_TCPI_OPT_TIMESTAMPS = 1
#: struct tcp_info (include/uapi/linux/tcp.h) behind its first eight bytes.
_TCP_INFO_FIELDS = (
    ("I", "rto ato snd_mss rcv_mss unacked sacked lost retrans fackets"),
    ("I", "last_data_sent last_ack_sent last_data_recv last_ack_recv pmtu rcv_ssthresh rtt rttvar"),
    ("I", "snd_ssthresh snd_cwnd advmss reordering rcv_rtt rcv_space total_retrans"),
    ("Q", "pacing_rate max_pacing_rate bytes_acked bytes_received"),
    ("I", "segs_out segs_in notsent_bytes min_rtt data_segs_in data_segs_out"),
    ("Q", "delivery_rate busy_time rwnd_limited sndbuf_limited"),
    ("I", "delivered delivered_ce"),
    ("Q", "bytes_sent bytes_retrans"),
    ("I", "dsack_dups reord_seen rcv_ooopack snd_wnd rcv_wnd rehash"),
)


class TcpInfo:
    """A TCP socket's TCP_INFO; the attributes are the kernel's names without ``tcpi_``.

    Fields that this kernel does not have are 0.  ``segs_out`` and ``segs_in`` count segments,
    not super-frames.  The accepting side's do not count the handshake before its socket existed:
    see :attr:`TcpReport.packets`.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> int: ...

    def __init__(self, raw: bytes) -> None:
        names = ("state", "ca_state", "retransmits", "probes", "backoff", "options")
        values = dict(zip(names, raw[:6], strict=True))
        offset = 8
        for form, text in _TCP_INFO_FIELDS:
            width = 4 if form == "I" else 8
            for name in text.split():
                whole = offset + width <= len(raw)
                values[name] = struct.unpack_from("=" + form, raw, offset)[0] if whole else 0
                offset += width
        self.__dict__.update(values)

    def as_dict(self) -> dict[str, int]:
        """All fields."""
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return (
            f"<TcpInfo segs_out {self.segs_out} segs_in {self.segs_in} "
            f"bytes_acked {self.bytes_acked} bytes_received {self.bytes_received} "
            f"retrans {self.total_retrans}>"
        )


def tcp_info(sock: _socket.socket) -> TcpInfo:
    """TCP_INFO of a socket; also after its connection has ended, until it is closed."""
    return TcpInfo(sock.getsockopt(_socket.IPPROTO_TCP, _TCP_INFO, 512))


class TcpConnection:
    """One finished connection of :func:`tcp`.

    :ivar client, server: the last :class:`TcpInfo` of the two sockets.
    :ivar client_port, server_port: the ports.
    :ivar requests: requests that were answered.
    """

    def __init__(self, client: TcpInfo, server: TcpInfo, ports: tuple[int, int], n: int) -> None:
        self.client = client
        self.server = server
        self.client_port, self.server_port = ports
        self.requests = n

    @property
    def packets(self) -> tuple[int, int]:
        """Segments sent (client → server, server → client).

        The client's socket counts all of its segments.  The server's socket exists from the end of
        the handshake on and does not count the SYN-ACK, which is added here.
        """
        return self.client.segs_out, self.server.segs_out + 1

    @property
    def clean(self) -> bool:
        """Whether nothing was retransmitted or reordered: then no segment has a SACK block."""
        return not any(
            info.total_retrans or info.dsack_dups or info.rcv_ooopack
            for info in (self.client, self.server)
        )

    @property
    def header_and_payload(self) -> tuple[int, int]:
        """Bytes of TCP header and payload (client → server, server → client), retransmissions too.

        Exact if the connection is :attr:`clean` and has Linux's options: 20 bytes on a SYN,
        timestamps on the other segments.
        """
        sizes = []
        for info, segments in zip((self.client, self.server), self.packets, strict=True):
            header = 32 if info.options & _TCPI_OPT_TIMESTAMPS else 20
            sizes.append(40 + (segments - 1) * header + info.bytes_sent)
        return sizes[0], sizes[1]


class TcpReport(Report):
    """What :func:`tcp` returns.

    :ivar connections: the finished connections.
    :ivar bytes_up, bytes_down: payload.
    """

    proto = "tcp"

    def __init__(self, family: int) -> None:
        super().__init__(family)
        self.connections: list[TcpConnection] = []
        self.requests = 0
        self.bytes_up = 0
        self.bytes_down = 0

    @property
    def packets(self) -> int:
        return sum(sum(connection.packets) for connection in self.connections)

    @property
    def wire_bytes(self) -> int:
        """Bytes as Ethernet frames, both ways (see :attr:`TcpConnection.header_and_payload`)."""
        link = 14 + (40 if self.family == 6 else 20)
        return self.packets * link + sum(sum(c.header_and_payload) for c in self.connections)

    def __repr__(self) -> str:
        from bpfkit.core.words import count_of

        connections = count_of(len(self.connections), "connection")
        return (
            f"<tcp IPv{self.family}: {connections}, {count_of(self.requests, 'request')}, "
            f"{count_of(self.bytes_up, 'byte')} up, {self.bytes_down} down>"
        )


def _read(sock: _socket.socket, size: int, buffer: bytearray) -> int:
    """Read ``size`` bytes or up to the end; the number of bytes read."""
    view = memoryview(buffer)
    done = 0
    while done < size:
        n = sock.recv_into(view[: min(size - done, len(buffer))])
        if not n:
            break
        done += n
    return done


def _serve(listener: _socket.socket, up: int, down: int, timeout: float, out: list[Any]) -> None:
    """Serve one connection: read ``up`` bytes and answer with ``down``, until it ends."""
    try:
        fd, _ = listener._accept()  # type: ignore[attr-defined]
        sock = _socket.socket(fileno=fd)
        out.append(sock)
        sock.settimeout(timeout)
        sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        buffer = bytearray(1 << 16)
        answer = bytes(down)
        while _read(sock, max(up, 1), buffer) == max(up, 1):
            if down:
                sock.sendall(answer)
        sock.shutdown(_socket.SHUT_WR)
    except OSError as error:
        out.append(error)


def tcp(
    host: str,
    *,
    port: int = 0,
    connections: int | None = 1,
    requests: int = 1,
    up: int = 100,
    down: int = 1000,
    timeout: float = 10.0,
    source: str = "",
    ns: NetNS | None = None,
    server_ns: NetNS | None = None,
    stop: Stop | None = None,
) -> TcpReport:
    """TCP requests and responses between a server on ``host`` and a client.

    The client ends each connection with a FIN; then both sockets' counters are read.

    :param host: the server's address, in ``server_ns`` (default: ``ns``).
    :param port: the server's port; 0: any.
    :param connections: number of consecutive connections; None: until ``stop`` returns True.
    :param requests: requests per connection; the client sends ``up`` bytes (at least 1), the server
        answers with ``down`` bytes.
    :param timeout: seconds to wait for the peer.
    :raises BpfkitError: refused, unreachable, or no progress within ``timeout``.
    """
    import threading

    server_ns = server_ns or ns
    family, address = resolve(server_ns, host, port)
    report = TcpReport(family)
    what = f"TCP to {host}"
    listener = open_socket(server_ns, family, _socket.SOCK_STREAM)
    try:
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(16)
        listener.settimeout(timeout)
        target = listener.getsockname()
        if "%" in host:  # the scope is the client's interface, not the server's
            target = resolve(ns, host, target[1])[1]
        data = bytes(max(up, 1))
        buffer = bytearray(1 << 16)
        number = 0
        while (connections is None or number < connections) and not (stop and stop()):
            number += 1
            out: list[Any] = []
            server = threading.Thread(
                target=_serve, args=(listener, up, down, timeout, out), daemon=True
            )
            client = open_socket(ns, family, _socket.SOCK_STREAM)
            try:
                client.settimeout(timeout)
                client.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
                if source:
                    client.bind(resolve(ns, source)[1])
                server.start()
                client.connect(target)
                ports = client.getsockname()[1], target[1]
                answered = 0
                for _ in range(requests):
                    if stop and stop():
                        break
                    client.sendall(data)
                    report.bytes_up += len(data)
                    got = _read(client, down, buffer)
                    report.bytes_down += got
                    if got < down:
                        raise BpfkitError(what, why=f"the answer ended after {got} of {down} bytes")
                    answered += 1
                client.shutdown(_socket.SHUT_WR)
                _read(client, 1, buffer)
                server.join(timeout)
                if not out or isinstance(out[-1], OSError):
                    raise out[-1] if out else TimeoutError("timed out")
                report.requests += answered
                report.connections.append(
                    TcpConnection(_last_info(client), _last_info(out[0]), ports, answered)
                )
            except BaseException:
                listener.shutdown(_socket.SHUT_RDWR)  # no client will connect: wake accept(2)
                raise
            finally:
                client.close()
                if server.ident is not None:
                    server.join(timeout)
                for item in out:
                    if not isinstance(item, OSError):
                        item.close()
    except OSError as error:
        raise failure(what, error) from error
    finally:
        listener.close()
    report.finish()
    return report


def _last_info(sock: _socket.socket) -> TcpInfo:
    """TCP_INFO once the last acknowledgement has arrived, or after a second."""
    deadline = time.monotonic() + 1
    while (info := tcp_info(sock)).state != _TCP_CLOSE and time.monotonic() < deadline:
        time.sleep(0.001)
    return info
