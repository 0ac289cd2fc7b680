# SPDX-License-Identifier: Apache-2.0
"""Traffic without external tools: ping, TCP request and response, UDP streams; IPv4 and IPv6.

Each maker runs in the calling thread, in the namespace it is told (default: the thread's own),
and returns a report of what the sockets themselves say about it.  :class:`Traffic` runs one in
the background::

    with Traffic(ping, "10.77.0.2", count=None, interval=0.05, ns=lab["client"]) as stream:
        ...
    print(stream.report)

Addresses are numeric; a link-local one carries its interface (``fe80::1%eth0``).
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import struct
import time

from bpfkit.core.errors import BpfkitError, InputError, PrivilegeError, errno_text
from bpfkit.net.packets.checksum import checksum

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from bpfkit.net.links.netns import NetNS

    #: Asked between packets or requests whether to end early.
    Stop = Callable[[], bool]

__all__ = [
    "PingReport",
    "Report",
    "TcpConnection",
    "TcpInfo",
    "TcpReport",
    "Traffic",
    "UdpReport",
    "mixed",
    "ping",
    "tcp",
    "tcp_info",
    "udp",
]

_SO_RCVBUFFORCE = 33
_UDP_SEGMENT = 103
_ICMP6_FILTER = 1
_TCP_INFO = 11
_TCP_CLOSE = 7
_TCPI_OPT_TIMESTAMPS = 1


# -- addresses and errors -------------------------------------------------------------------------


def _in(ns: NetNS | None, function: Callable[..., Any], *args: Any) -> Any:
    return function(*args) if ns is None else ns.run(function, *args)


def _socket_in(ns: NetNS | None, family: int, kind: int, protocol: int = 0) -> _socket.socket:
    try:
        socket: _socket.socket = _in(
            ns, _socket.socket, family, kind | _socket.SOCK_CLOEXEC, protocol
        )
        return socket
    except PermissionError as error:
        raise PrivilegeError(
            "cannot open a raw socket", why="not permitted", hint="run as root (CAP_NET_RAW)"
        ) from error


def _resolve(ns: NetNS | None, host: str, port: int = 0) -> tuple[int, Any]:
    """(family, sockaddr) of a numeric address."""
    try:
        found = _in(
            ns, _socket.getaddrinfo, host, port, 0, _socket.SOCK_DGRAM, 0, _socket.AI_NUMERICHOST
        )
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"not an IP address: {host!r}", hint="give 10.0.0.1, fd00::1 or fe80::1%eth0"
        ) from error
    return found[0][0], found[0][4]


def _failed(what: str, error: OSError) -> BpfkitError:
    why = str(error) if error.errno is None else errno_text(error.errno)
    return BpfkitError(what, why=why)


class Report:
    """What a maker did; the base of the others.

    :ivar family: 4 or 6.
    :ivar started: UNIX time in seconds.
    :ivar seconds: how long it took.
    """

    def __init__(self, family: int) -> None:
        self.family = 6 if family == _socket.AF_INET6 else 4
        self.started = time.time()
        self.seconds = 0.0

    #: IANA keyword of the protocol above IP.
    proto = ""

    @property
    def what(self) -> str:
        """What it was, for people: :attr:`proto`, and what is special about the frames."""
        return self.proto

    @property
    def packets(self) -> int:
        """IP packets of :attr:`proto` on the wire, both ways, as far as the sockets know."""
        raise NotImplementedError

    @property
    def wire_bytes(self) -> int:
        """Their bytes as Ethernet frames (on lo too), frame check sequence not included."""
        raise NotImplementedError

    def finish(self) -> None:
        """All was sent, and what had to come has come."""
        self.seconds = time.time() - self.started


# -- ping -----------------------------------------------------------------------------------------


class PingReport(Report):
    """:func:`ping`'s.

    :ivar sent: echo requests sent.
    :ivar received: answers.
    :ivar rtts: milliseconds, one per answer, in the order of the requests.
    :ivar lost: sequence numbers (from 0) without an answer.
    :ivar size: ICMP payload bytes; a frame has 8 + 20 (IPv6: 40) + 14 more.
    """

    def __init__(self, family: int, size: int) -> None:
        super().__init__(family)
        self.sent = 0
        self.size = size
        self._rtts: dict[int, float] = {}
        self.lost: list[int] = []

    @property
    def proto(self) -> str:  # type: ignore[override]
        return "ipv6-icmp" if self.family == 6 else "icmp"

    @property
    def received(self) -> int:
        return len(self._rtts)

    @property
    def rtts(self) -> list[float]:
        return [rtt for _, rtt in sorted(self._rtts.items())]

    @property
    def packets(self) -> int:
        return self.sent + self.received

    @property
    def wire_bytes(self) -> int:
        """Bytes on an Ethernet or on lo, both ways, without a checksum."""
        return self.packets * (14 + (40 if self.family == 6 else 20) + 8 + self.size)

    def __repr__(self) -> str:
        rtts = self.rtts
        times = f", {min(rtts):.3f}–{max(rtts):.3f} ms" if rtts else ""
        return f"<ping IPv{self.family}: {self.sent} sent, {self.received} received{times}>"


def ping(
    host: str,
    *,
    count: int | None = 1,
    interval: float = 0.0,
    size: int = 56,
    timeout: float = 1.0,
    source: str = "",
    identifier: int | None = None,
    ns: NetNS | None = None,
    stop: Stop | None = None,
) -> PingReport:
    """Send ICMP or ICMPv6 echo requests and wait for the answers.

    :param count: how many; None: until ``stop`` says so.
    :param interval: seconds from one request to the next; 0: each when its predecessor is answered.
    :param size: bytes of payload.
    :param timeout: how long to wait for an answer.
    :param source: address to send from.
    :param identifier: of the requests, 16 bits; None: any.
    :raises BpfkitError: the kernel refused to send for another reason than that a filter drops or
        nothing answers.
    :raises PrivilegeError: without CAP_NET_RAW.
    """
    family, address = _resolve(ns, host)
    six = family == _socket.AF_INET6
    protocol = _socket.IPPROTO_ICMPV6 if six else _socket.IPPROTO_ICMP
    request, reply = (128, 129) if six else (8, 0)
    sock = _socket_in(ns, family, _socket.SOCK_RAW, protocol)
    report = PingReport(family, size)
    ident = int.from_bytes(os.urandom(2), "big") if identifier is None else identifier
    payload = bytes(i & 0xFF for i in range(size))
    waiting: dict[int, float] = {}

    def send(number: int) -> None:
        packet = struct.pack("!BBHHH", request, 0, 0, ident, number & 0xFFFF) + payload
        if not six:  # the kernel fills ICMPv6's in
            packet = packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:]
        waiting[number & 0xFFFF] = time.perf_counter()
        report.sent += 1
        try:
            sock.sendto(packet, address)
        except OSError as error:
            # A drop on the way out (tc, cgroup, netfilter) is a lost packet, not a failure.
            if error.errno not in (errno.EPERM, errno.ENOBUFS):
                raise _failed(f"cannot ping {host}", error) from error

    def receive(until: float, everything: bool) -> None:
        """Take answers until ``until``; stop early when nothing (or not this one) is missing."""
        while waiting or not everything:
            left = until - time.perf_counter()
            if not select.select([sock], [], [], max(left, 0))[0]:
                return
            try:
                packet = sock.recv(65536)
            except OSError:  # an ICMP error about one of ours; it is missing anyway
                continue
            now = time.perf_counter()
            if not six:
                packet = packet[(packet[0] & 15) * 4 :]
            if len(packet) < 8 or packet[0] != reply:
                continue
            _, _, _, who, number = struct.unpack_from("!BBHHH", packet)
            if who == ident and number in waiting:
                report._rtts[number] = 1e3 * (now - waiting.pop(number))

    try:
        if six:
            # ICMP6_FILTER (RFC 3542): a 1 blocks the type.
            words = [0xFFFFFFFF] * 8
            words[reply >> 5] &= ~(1 << (reply & 31))
            sock.setsockopt(protocol, _ICMP6_FILTER, struct.pack("=8I", *words))
        if source:
            sock.bind(_resolve(ns, source)[1])
        number = 0
        due = time.perf_counter()
        while (count is None or number < count) and not (stop and stop()):
            send(number)
            number += 1
            due += interval
            if interval:
                receive(due, everything=False)
            else:
                receive(time.perf_counter() + timeout, everything=True)
                report.lost.extend(waiting)
                waiting.clear()
        receive(time.perf_counter() + timeout, everything=True)
        report.lost.extend(waiting)
    finally:
        sock.close()
    report.finish()
    return report


# -- TCP ------------------------------------------------------------------------------------------

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
    """What a TCP socket reports about itself (TCP_INFO): the kernel's names without ``tcpi_``.

    Fields that the kernel is too old to have are 0.  ``segs_out`` and ``segs_in`` count segments,
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
    """TCP_INFO of a socket (also of one whose connection has ended, until it is closed)."""
    return TcpInfo(sock.getsockopt(_socket.IPPROTO_TCP, _TCP_INFO, 512))


class TcpConnection:
    """One connection of :func:`tcp`, after its end.

    :ivar client, server: the two sockets' last :class:`TcpInfo`.
    :ivar client_port, server_port: its ports.
    :ivar requests: requests that were answered.
    """

    def __init__(self, client: TcpInfo, server: TcpInfo, ports: tuple[int, int], n: int) -> None:
        self.client = client
        self.server = server
        self.client_port, self.server_port = ports
        self.requests = n

    @property
    def packets(self) -> tuple[int, int]:
        """Segments (client → server, server → client): what each side sent.

        The client's socket counts everything it sent.  The server's exists only from the
        handshake's last step on: the SYN-ACK, sent before, is one more than it counts.
        """
        return self.client.segs_out, self.server.segs_out + 1

    @property
    def clean(self) -> bool:
        """Nothing was sent again or came out of order: no segment carries a SACK block."""
        return not any(
            info.total_retrans or info.dsack_dups or info.rcv_ooopack
            for info in (self.client, self.server)
        )

    @property
    def header_and_payload(self) -> tuple[int, int]:
        """Bytes of TCP header and payload (client → server, server → client), retransmissions too.

        Exact while the connection is :attr:`clean` and its options are Linux's own: 20 bytes on
        a SYN, timestamps on the rest.
        """
        sizes = []
        for info, segments in zip((self.client, self.server), self.packets, strict=True):
            header = 32 if info.options & _TCPI_OPT_TIMESTAMPS else 20
            sizes.append(40 + (segments - 1) * header + info.bytes_sent)
        return sizes[0], sizes[1]


class TcpReport(Report):
    """:func:`tcp`'s.

    :ivar connections: one :class:`TcpConnection` each.
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
        """Bytes on an Ethernet or on lo, both ways (see TcpConnection.header_and_payload)."""
        link = 14 + (40 if self.family == 6 else 20)
        return self.packets * link + sum(sum(c.header_and_payload) for c in self.connections)

    def __repr__(self) -> str:
        return (
            f"<tcp IPv{self.family}: {len(self.connections)} connections, {self.requests} requests,"
            f" {self.bytes_up} bytes up, {self.bytes_down} down>"
        )


def _read(sock: _socket.socket, size: int, buffer: bytearray) -> int:
    """Read ``size`` bytes, or up to the end; how many."""
    view = memoryview(buffer)
    done = 0
    while done < size:
        n = sock.recv_into(view[: min(size - done, len(buffer))])
        if not n:
            break
        done += n
    return done


def _serve(listener: _socket.socket, up: int, down: int, timeout: float, out: list[Any]) -> None:
    """The server's side of one connection: read ``up`` bytes, answer ``down``, until the end."""
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
    """TCP request and response: a server on ``host`` and a client that talks to it.

    Each connection ends by the client's FIN; then both sockets say what they have counted.

    :param host: the server's address, in ``server_ns`` (default: ``ns``).
    :param port: the server's port; 0: any.
    :param connections: one after the other; None: until ``stop`` says so.
    :param requests: per connection; the client sends ``up`` bytes (at least 1), the server answers
        with ``down`` bytes.
    :param timeout: how long to wait for the other side, in seconds.
    :raises BpfkitError: refused, unreachable, or no progress within ``timeout``.
    """
    import threading

    server_ns = server_ns or ns
    family, address = _resolve(server_ns, host, port)
    report = TcpReport(family)
    what = f"TCP to {host}"
    listener = _socket_in(server_ns, family, _socket.SOCK_STREAM)
    try:
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(16)
        listener.settimeout(timeout)
        target = listener.getsockname()
        if "%" in host:  # the scope is the client's interface, not the server's
            target = _resolve(ns, host, target[1])[1]
        data = bytes(max(up, 1))
        buffer = bytearray(1 << 16)
        number = 0
        while (connections is None or number < connections) and not (stop and stop()):
            number += 1
            out: list[Any] = []
            server = threading.Thread(
                target=_serve, args=(listener, up, down, timeout, out), daemon=True
            )
            client = _socket_in(ns, family, _socket.SOCK_STREAM)
            try:
                client.settimeout(timeout)
                client.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
                if source:
                    client.bind(_resolve(ns, source)[1])
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
                        raise BpfkitError(what, why=f"answer ends after {got} of {down} bytes")
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
                listener.shutdown(_socket.SHUT_RDWR)  # nobody comes: wake accept(2)
                raise
            finally:
                client.close()
                if server.ident is not None:
                    server.join(timeout)
                for item in out:
                    if not isinstance(item, OSError):
                        item.close()
    except OSError as error:
        raise _failed(what, error) from error
    finally:
        listener.close()
    report.finish()
    return report


def _last_info(sock: _socket.socket) -> TcpInfo:
    """The figures when the last acknowledgement is through (at most a second later)."""
    deadline = time.monotonic() + 1
    while (info := tcp_info(sock)).state != _TCP_CLOSE and time.monotonic() < deadline:
        time.sleep(0.001)
    return info


# -- UDP ------------------------------------------------------------------------------------------


class UdpReport(Report):
    """:func:`udp`'s.

    :ivar sent, received: datagrams.
    :ivar bytes_sent, bytes_received: payload.
    :ivar size: payload bytes of one.
    :ivar source_port, port: its ports.
    """

    proto = "udp"

    def __init__(self, family: int, size: int) -> None:
        super().__init__(family)
        self.sent = self.received = 0
        self.bytes_sent = self.bytes_received = 0
        self.size = size
        self.source_port = self.port = 0

    @property
    def packets(self) -> int:
        return self.sent

    @property
    def wire_bytes(self) -> int:
        """Bytes sent, as frames on an Ethernet or on lo, without a checksum (no fragments)."""
        return self.bytes_sent + self.sent * (14 + (40 if self.family == 6 else 20) + 8)

    def __repr__(self) -> str:
        return f"<udp IPv{self.family}: {self.sent} sent, {self.received} received>"


def udp(
    host: str,
    *,
    port: int = 0,
    count: int | None = 100,
    size: int = 100,
    rate: float | None = None,
    segment: bool = False,
    timeout: float = 0.5,
    source: str = "",
    ns: NetNS | None = None,
    server_ns: NetNS | None = None,
    stop: Stop | None = None,
) -> UdpReport:
    """A one-way stream of UDP datagrams, received by a socket on ``host``.

    :param port: the receiver's port; 0: any.
    :param count: datagrams; None: until ``stop`` says so.
    :param size: bytes of payload each.
    :param rate: datagrams a second; None: as fast as it goes.
    :param segment: hand up to 40 datagrams to the kernel at once as one super-frame (UDP_SEGMENT,
        Linux 4.18): on the wire they are single packets.
    :param timeout: how long after the last one to wait for those still missing, in seconds.
    :raises BpfkitError: unreachable, or larger than the path allows.
    """
    server_ns = server_ns or ns
    family, address = _resolve(server_ns, host, port)
    report = UdpReport(family, size)
    what = f"UDP to {host}"
    receiver = _socket_in(server_ns, family, _socket.SOCK_DGRAM)
    sender = None
    buffer = bytearray(1 << 16)

    def drain(wait: float) -> bool:
        """Take what is there, waiting for the first; whether there was anything."""
        if wait and not select.select([receiver], [], [], wait)[0]:
            return False
        before = report.received
        while True:
            try:
                n = receiver.recv_into(buffer, 0, _socket.MSG_DONTWAIT)
            except BlockingIOError:
                return report.received > before
            report.received += 1
            report.bytes_received += n

    try:
        try:
            receiver.setsockopt(_socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        except PermissionError:
            receiver.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, 8 << 20)
        receiver.bind(address)
        target = receiver.getsockname()
        if "%" in host:
            target = _resolve(ns, host, target[1])[1]
        sender = _socket_in(ns, family, _socket.SOCK_DGRAM)
        if source:
            sender.bind(_resolve(ns, source)[1])
        sender.connect(target)
        report.port, report.source_port = target[1], sender.getsockname()[1]
        batch = max(1, min(40, 60000 // max(size, 1))) if segment else 1
        if segment:
            sender.setsockopt(_socket.IPPROTO_UDP, _UDP_SEGMENT, size)
        start = time.perf_counter()
        while (count is None or report.sent < count) and not (stop and stop()):
            if rate:
                wait = start + report.sent / rate - time.perf_counter()
                if wait > 0:
                    time.sleep(wait)
            n = batch if count is None else min(batch, count - report.sent)
            try:
                sender.send(bytes(size * n))
                report.sent += n
                report.bytes_sent += size * n
            except OSError as error:
                # An ICMP error about an earlier one, or a drop on the way out by a filter.
                if error.errno == errno.EPERM:
                    report.sent += n
                    report.bytes_sent += size * n
                elif error.errno != errno.ECONNREFUSED:
                    raise
            drain(0)
        while report.received < report.sent and drain(timeout):
            pass
    except OSError as error:
        raise _failed(what, error) from error
    finally:
        receiver.close()
        if sender is not None:
            sender.close()
    report.finish()
    return report


# -- several at once ------------------------------------------------------------------------------


def mixed(
    *hosts: str,
    ns: NetNS | None = None,
    server_ns: NetNS | None = None,
    pings: int = 3,
    requests: int = 3,
    datagrams: int = 5,
) -> list[Report]:
    """Some of everything to each address (default: 127.0.0.1 and ::1): ping, TCP, UDP.

    :returns: the reports; ``sum(r.packets for r in reports if r.proto == "udp")`` and the like
        say what must have crossed the wire.
    """
    reports: list[Report] = []
    for host in hosts or ("127.0.0.1", "::1"):
        reports.append(ping(host, count=pings, ns=ns))
        reports.append(tcp(host, requests=requests, ns=ns, server_ns=server_ns))
        reports.append(udp(host, count=datagrams, ns=ns, server_ns=server_ns))
    return reports


class Traffic:
    """A maker in the background: ``Traffic(udp, "10.77.0.2", count=None, rate=100, ns=…)``.

    The maker gets ``stop``; leaving the with-block stops it.

    :ivar report: what the maker returned, once it has ended.
    """

    def __init__(self, maker: Callable[..., Report], *args: Any, **kwargs: Any) -> None:
        self.report: Any = None
        self._error: BaseException | None = None
        self._stop = False
        self._maker, self._args, self._kwargs = maker, args, kwargs
        self._thread: threading.Thread | None = None

    def start(self) -> Traffic:
        """Begin."""
        import threading

        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self) -> None:
        try:
            self.report = self._maker(*self._args, stop=lambda: self._stop, **self._kwargs)
        except BaseException as error:
            self._error = error

    @property
    def running(self) -> bool:
        """Whether the maker is still at it."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> Any:
        """Wait until the maker has ended by itself; its report.

        :raises BpfkitError: what the maker raised, or no end within ``timeout`` seconds.
        """
        if self._thread is None:
            raise BpfkitError("traffic was not started")
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise BpfkitError(f"{self._maker.__name__} has not ended within {timeout} s")
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self.report

    def stop(self) -> Any:
        """Stop the maker and wait for it; its report."""
        self._stop = True
        return self.wait(60)

    def __enter__(self) -> Traffic:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop = True
        if error is None:
            self.wait(60)
        elif self._thread is not None:
            self._thread.join(60)
