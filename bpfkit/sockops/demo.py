# SPDX-License-Identifier: Apache-2.0
"""The demo's connections: answered, refused, with lost segments, with a closed window.

A round runs in the program's cgroup and in a network namespace of its own, where sockops_loss drops
chosen segments.  TCP_INFO of the same sockets, read when they are closed, is what --check compares
the close events with.
"""

from __future__ import annotations

from bpfkit.core.words import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from socket import socket

    from bpfkit.core.object import Object
    from bpfkit.net.traffic.tcp import TcpInfo
    from bpfkit.show.rows import Event, Row, Verdict
    from bpfkit.sockops.program import Sockops

__all__ = ["Demo"]

_SYN, _SYN_ACK, _DATA = range(3)
_HOSTS = ("127.0.0.1", "::1")
_PASS_ALL = (0, 0)
_MESSAGES = 100
#: A fast retransmission needs three more segments at once; a slow sender's timer is first.
_ATTEMPTS = 5
#: (what is lost, kind of segment, (pass, drop), payload of the answer, cause that must be seen).
_LOSSES = (
    ("the SYN is", _SYN, (0, 1), 1_000, "syn"),
    ("the SYN-ACK is", _SYN_ACK, (0, 1), 1_000, "syn_ack"),
    ("a segment of an answer is", _DATA, (3, 1), 2_000_000, "fast"),
    ("a request and its probe are", _DATA, (0, 2), 1_000, "rto"),
)
#: Counters of a close event, and their names in TCP_INFO.
_SAME = {
    "bytes_sent": "bytes_sent",
    "bytes_received": "bytes_received",
    "segs_out": "segs_out",
    "segs_in": "segs_in",
    "retransmits": "total_retrans",
}


class Demo:
    """The demo's traffic, and what is known of it from outside."""

    def __init__(self, app: Sockops) -> None:
        from bpfkit.core.errors import BpfkitError
        from bpfkit.net.links.interfaces import Interface

        self._app = app
        self.infos: list[tuple[int, int, TcpInfo]] = app.for_check([])
        self.losses: list[tuple[str, str, int]] = app.for_check([])
        self.refusals: list[tuple[str, int, int]] = app.for_check([])
        self.windows: list[tuple[int, int, float]] = app.for_check([])
        self.settings: list[tuple[str, str]] = app.for_check([])
        self.messages: list[tuple[int, int]] = app.for_check([])
        self._loss: Object | None = None
        #: Two ends of a connection that stays open from round to round, and its listener.
        self._kept: list[socket] = []
        try:
            from bpfkit import load

            loss = app.keep(load("sock/sockops_loss.bpf.c", cache=not app.options.no_cache))
            program = loss.programs["sockops_loss"]
            app.keep(program.attach_tc(Interface.find("lo").index, "ingress"))
            self._loss = loss
        except BpfkitError as error:
            app.note(f"no segments will be lost: {error}")

    def round(self) -> None:
        """One round of everything."""
        app = self._app
        with app.group.entered():
            if not app.options.check:
                self._keep_one()
            app.note("two connections, IPv4 and IPv6: nothing is lost")
            for host in _HOSTS:
                self._transfer(host, 1_000)
            if self._loss is not None:
                for index, (what, kind, plan, size, cause) in enumerate(_LOSSES):
                    word = cause.replace("_", "-")
                    app.note(f"{what} lost: a retransmission follows, cause {word}")
                    for _ in range(_ATTEMPTS if cause == "fast" else 1):
                        before = _fast()
                        self._loss["plans"][kind] = plan
                        port = self._transfer(_HOSTS[index % 2], size)
                        self._loss["plans"][kind] = _PASS_ALL
                        if _fast() > before:
                            break
                    self.losses.append((what, cause, port))
            app.note("a port where nobody listens: connect(2) fails")
            for host in _HOSTS:
                self._refused(host)
            app.note("a server that does not read: its window closes, until it reads")
            self._slow_reader(_HOSTS[0])
            if app.where is not None:
                app.note(f"{_MESSAGES} messages and their echoes, each followed through the host")
                self._echo(_HOSTS[1])

    def _keep_one(self) -> None:
        """A connection that stays open, so that the table has a row; a message each round."""
        from socket import create_connection, create_server

        if not self._kept:
            self._app.note("a connection that stays open: it is in the table of each round")
            listener = create_server((_HOSTS[0], 0))
            client = create_connection(listener.getsockname())
            self._kept = [client, listener.accept()[0], listener]
        client, server, _ = self._kept
        client.sendall(bytes(10_000))
        left = 10_000
        while left:
            left -= len(server.recv(left))

    def close(self) -> None:
        """Close the connection that stayed open."""
        for sock in self._kept:
            sock.close()
        self._kept.clear()

    def _transfer(self, host: str, size: int) -> int:
        """A request and an answer of ``size`` bytes; returns the client's port."""
        from bpfkit.net.traffic.tcp import tcp

        report = tcp(host, up=500, down=size)
        (connection,) = report.connections
        client, server = connection.client_port, connection.server_port
        self.infos.append((client, server, connection.client))
        self.infos.append((server, client, connection.server))
        return client

    def _refused(self, host: str) -> None:
        from socket import SOCK_STREAM, getaddrinfo
        from socket import socket as new_socket

        family, _, _, _, address = getaddrinfo(host, 0, type=SOCK_STREAM)[0]
        with new_socket(family) as reserved, new_socket(family) as client:
            reserved.bind(address)  # bound, not listening: nobody else gets the port
            port = reserved.getsockname()[1]
            self.refusals.append((host, port, client.connect_ex((host, port))))

    def _slow_reader(self, host: str) -> None:
        from socket import IPPROTO_TCP, SO_RCVBUF, SOL_SOCKET, TCP_CONGESTION, create_connection
        from socket import socket as new_socket
        from time import monotonic, sleep

        from bpfkit.net.traffic.tcp import tcp_info

        with new_socket() as listener:
            listener.setsockopt(SOL_SOCKET, SO_RCVBUF, 8192)
            listener.bind((host, 0))
            listener.listen(1)
            with create_connection(listener.getsockname()) as client:
                cc = client.getsockopt(IPPROTO_TCP, TCP_CONGESTION, 16)
                self.settings.append((host, cc.rstrip(b"\0").decode()))
                server, _ = listener.accept()
                with server:
                    client.setblocking(False)
                    total = 0
                    deadline = monotonic() + 2
                    while tcp_info(client).snd_wnd and monotonic() < deadline:
                        try:
                            total += client.send(bytes(4096))
                        except BlockingIOError:
                            sleep(0.002)
                    closed = tcp_info(client).snd_wnd == 0
                    begun = monotonic()
                    sleep(0.05)
                    while total > 0:
                        total -= len(server.recv(1 << 16))
                    port = client.getsockname()[1]
                    self.windows.append((port, int(closed), monotonic() - begun))
                    self._end(client, server)

    def _echo(self, host: str) -> None:
        from bpfkit.net.traffic.tcp import tcp

        before = self._followed()
        report = tcp(host, requests=_MESSAGES, up=100, down=100)
        self.messages.append((2 * report.requests, self._followed() - before))
        (connection,) = report.connections
        client, server = connection.client_port, connection.server_port
        self.infos.append((client, server, connection.client))
        self.infos.append((server, client, connection.server))

    def _followed(self) -> int:
        """Messages that --where has followed to their acknowledgement."""
        assert self._app.where is not None
        found = self._app.where.histograms()
        return sum(sum(counts.values()) for (_, stage), counts in found.items() if stage == "whole")

    def _end(self, client: socket, server: socket) -> None:
        """Close both ways, and keep the last TCP_INFO of both."""
        from socket import SHUT_WR
        from time import monotonic, sleep

        from bpfkit.net.traffic.tcp import tcp_info

        ports = client.getsockname()[1], server.getsockname()[1]
        client.setblocking(True)
        client.shutdown(SHUT_WR)
        server.recv(1)
        server.shutdown(SHUT_WR)
        client.recv(1)
        deadline = monotonic() + 1
        while (
            any(tcp_info(sock).state != 7 for sock in (client, server)) and monotonic() < deadline
        ):
            sleep(0.001)
        self.infos.append((*ports, tcp_info(client)))
        self.infos.append((*ports[::-1], tcp_info(server)))

    # -- --check

    def verify(self) -> Iterator[Verdict]:
        """Compare the events with TCP_INFO, errnos, the namespace's counters."""
        channel = self._app.channel
        assert channel is not None
        channel.wait(lambda: len(_of("close", channel.waiting)) >= len(self.infos))
        events = list(channel.waiting)
        closes = _of("close", events)
        by_ports: dict[tuple[int, int], list[Row]] = {}
        for row in closes:
            by_ports.setdefault((row["sport"], row["dport"]), []).append(row)
        once = sum(len(by_ports.get((s, d), ())) == 1 for s, d, _ in self.infos)
        n = len(self.infos)
        yield (
            once == n == len(closes),
            f"{once} of {n} sockets have one close event; {count_of(len(closes), 'event')}",
        )
        same = sum(
            all(row[name] == getattr(info, theirs) for name, theirs in _SAME.items())
            for s, d, info in self.infos
            for row in by_ports.get((s, d), ())[:1]
        )
        yield same == n, f"{same} of {n} close events equal TCP_INFO of the closed socket"
        yield from self._verify_losses(closes, _of("retransmit", events))
        failed = {(r["dst"], r["dport"]): r["error"] for r in _of("failed", events)}
        for host, port, number in self.refusals:
            from errno import errorcode

            told = failed.get((host, port))
            errno = errorcode.get(number, str(number))
            yield told == errno, f"connect to {host}: {errno}; event: {told}"
        yield from self._verify_window(events)
        for host, cc in self.settings:
            yield cc == "reno", f"getsockopt(TCP_CONGESTION) to {host} is {cc}, set: reno"
        for sent, followed in self.messages:
            yield sent == followed, f"--where followed {followed} of {count_of(sent, 'message')}"
        if self._app.where is not None:
            waits = [r["max_us"] for r in self._app.where.rows() if r["stage"] == "socket"]
            longest = max(waits, default=0.0) / 1e3
            yield (
                longest >= 45,
                f"--where: the reader slept 50 ms; longest wait in a socket {longest:.0f} ms",
            )

    def _verify_losses(self, closes: list[Row], retransmits: list[Row]) -> Iterator[Verdict]:
        for what, cause, port in self.losses:
            found = [r["cause"] for r in retransmits if port in (r["sport"], r["dport"])]
            yield cause in found, f"{what} lost: causes {', '.join(found) or 'none'}"
            if cause == "syn":
                took = next(r["handshake_ms"] for r in closes if r["sport"] == port)
                # HZ is 100 at least: a timer may be late by 10 ms, and by more on a busy machine.
                yield 90 <= took < 900, f"initial_rto=100ms: the handshake took {took:.0f} ms"
        kernel = _retransmitted()
        counted = sum(row["retransmits"] for row in closes)
        events = sum(row["segments"] for row in retransmits)
        yield (
            kernel == counted == events,
            f"RetransSegs of the namespace {kernel}, close events {counted}, retransmit events "
            f"{events}",
        )

    def _verify_window(self, events: list[Event]) -> Iterator[Verdict]:
        for port, closed, seconds in self.windows:
            zero = [e for e in events if e.kind == "zero_window" and e.fields["sport"] == port]
            opened = [e for e in events if e.kind == "window_open" and e.fields["sport"] == port]
            yield (
                closed == 1 and bool(zero),
                f"TCP_INFO's snd_wnd was 0: {bool(closed)}; zero_window events {len(zero)}",
            )
            told = opened[-1].fields["zero_window_s"] if opened else 0.0
            yield (
                0.045 <= told <= seconds + 0.5,
                f"the reader slept 50 ms; the window was closed for {told * 1e3:.0f} ms",
            )


def _of(kind: str, events: object) -> list[Row]:
    """The fields of the events of a kind."""
    from typing import cast

    return [e.fields for e in cast("list[Event]", events) if e.kind == kind]


def _counted(table: str, group: str, name: str) -> int:
    """A counter of the thread's network namespace: ``"snmp", "Tcp:", "RetransSegs"``."""
    with open(f"/proc/thread-self/net/{table}") as file:
        names, values = (line.split() for line in file if line.startswith(group))
    return int(values[names.index(name)])


def _retransmitted() -> int:
    return _counted("snmp", "Tcp:", "RetransSegs")


def _fast() -> int:
    return _counted("netstat", "TcpExt:", "TCPFastRetrans")
