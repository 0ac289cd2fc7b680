# SPDX-License-Identifier: Apache-2.0
"""sk_msg between sockets of this process: every ending, what may not enter, and how it stops."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import random
import signal
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Running

from bpfkit.core.cgroups import Cgroup
from bpfkit.net.links.netns import NetNS
from bpfkit.net.traffic.tcp import tcp_info

PORT = 5201
#: Every round soon, and sockets that the program is to leave alone at the end.
USUAL = ("--json", "-t", "0.1", "--drain", "2", "--ports", f"{PORT}-5209")


class Place:
    """A cgroup and a namespace, in which sockets of this process are made."""

    def __init__(self) -> None:
        self.ns = NetNS.new("sk-msg")
        self.group = Cgroup.new("sk-msg-test")

    def close(self) -> None:
        self.group.close()
        self.ns.close()

    def run(self, *args: str) -> Running:
        """sk_msg on the cgroup, attached."""
        words = [*USUAL, "--cgroup", self.group.path, *args]
        return Running("sk_msg", *words, ready=lambda row: True)

    def pair(
        self,
        address: str = "127.0.0.1",
        port: int = PORT,
        *,
        ns: NetNS | None = None,
        source: int = 0,
        proto: int = 0,
        options: tuple[tuple[int, int, int], ...] = (),
        accept: bool = True,
    ) -> tuple[socket.socket, socket.socket]:
        """(the connecting socket, the accepted one or the listener)."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with (ns or self.ns).entered(), self.group.entered():
            listener = socket.socket(family, socket.SOCK_STREAM, proto)
            client = socket.socket(family, socket.SOCK_STREAM, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for option in options:
            listener.setsockopt(*option)
        listener.bind((address, port))
        listener.listen()
        client.settimeout(10)
        if source:
            client.bind((address, source))
        client.connect((address, port))
        if not accept:
            return client, listener
        with listener:
            server, _ = listener.accept()
        server.settimeout(10)
        return client, server


@pytest.fixture
def place() -> Iterator[Place]:
    there = Place()
    yield there
    there.close()


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if "summary" in row)


def port_row(rows: list[dict[str, Any]], port: int = PORT) -> dict[str, int]:
    """Messages and bytes of a port: ``redirected``, ``redirected_bytes``, ``passed`` …"""
    found = {
        f"{verdict}{suffix}": 0
        for verdict in ("redirected", "passed", "denied")
        for suffix in ("", "_bytes")
    }
    for row in rows:
        if row.get("port") == port:
            found[row["verdict"]] = row["messages"]
            found[f"{row['verdict']}_bytes"] = row["bytes"]
    return found


def read_all(sock: socket.socket, pause: float = 0.0) -> bytes:
    data = bytearray()
    while part := sock.recv(1 << 16):
        data += part
        if pause:
            time.sleep(pause)
    return bytes(data)


def is_redirected(sock: socket.socket, sent: int) -> bool:
    """Whether TCP knows nothing of what was sent."""
    assert sent
    return tcp_info(sock).bytes_sent == 0


def unread(sock: socket.socket) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0])


# ---------------------------------------------------------------- every ending


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_close_delivers_what_was_sent_before(place: Place, address: str) -> None:
    data = random.Random(1).randbytes(3_000_000)
    with place.run() as program:
        client, server = place.pair(address)
        with server:
            with client:
                client.sendall(data)
                assert is_redirected(client, len(data))
            assert hashlib.sha256(read_all(server)).digest() == hashlib.sha256(data).digest()
        row = port_row(program.rows())
    assert (row["redirected_bytes"], row["passed"]) == (len(data), 0)


def test_after_a_half_close_the_other_direction_goes_on(place: Place) -> None:
    data = random.Random(2).randbytes(1_000_000)
    with place.run():
        client, server = place.pair()
        with client, server:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            assert read_all(server) == b"question"
            with pytest.raises(BrokenPipeError):
                client.send(b"more")
            server.sendall(data)
            assert is_redirected(server, len(data))
            server.close()
            time.sleep(0.1)  # the client reads when both directions have ended
            assert read_all(client) == data


def test_a_slow_reader_gets_every_byte_in_order(place: Place) -> None:
    data = random.Random(3).randbytes(8_000_000)
    with place.run():
        client, server = place.pair()
        with client, server:
            client.sendall(data)  # no receive window holds the sender back
            client.shutdown(socket.SHUT_WR)
            assert read_all(server, pause=0.001) == data


def test_a_reset_is_seen_after_the_bytes_that_came_before(place: Place) -> None:
    with place.run():
        client, server = place.pair()
        with client, server:
            client.sendall(b"x" * 100_000)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            got = b""
            with pytest.raises(ConnectionResetError):
                while True:
                    part = server.recv(1 << 16)
                    assert part, "the end was not a reset"
                    got += part
    assert got == b"x" * 100_000


def test_bytes_redirected_before_accept_are_read_after_it(place: Place) -> None:
    with place.run():
        client, listener = place.pair(accept=False)
        with client, listener:
            client.sendall(b"hello")
            assert is_redirected(client, 5)
            server, _ = listener.accept()
            with server:
                assert server.recv(100) == b"hello"


def test_fionread_knows_of_redirected_bytes(place: Place) -> None:
    with place.run():
        client, server = place.pair()
        with client, server:
            client.sendall(b"x" * 1234)
            if not unread(server):
                pytest.skip("this kernel's FIONREAD does not know redirected bytes")
            assert unread(server) == 1234


def test_splice_finds_no_redirected_bytes_and_does_not_take_them(place: Place) -> None:
    """A program that splices is to be left out by --ports."""
    with place.run():
        client, server = place.pair()
        reader, writer = os.pipe()
        try:
            with client, server:
                client.sendall(b"x" * 1000)
                server.setblocking(False)
                with pytest.raises(BlockingIOError):
                    os.splice(server.fileno(), writer, 1000)
                assert server.recv(2000) == b"x" * 1000
            client, server = place.pair(port=6000)  # not in --ports
            with client, server:
                client.sendall(b"y" * 1000)
                assert os.splice(server.fileno(), writer, 1000) == 1000
                assert os.read(reader, 2000) == b"y" * 1000
        finally:
            os.close(reader)
            os.close(writer)


# ---------------------------------------------------------------- what does not enter


def test_a_full_map_leaves_both_ends_out(place: Place) -> None:
    with place.run("--max", "3") as program:
        first, second = place.pair(), place.pair(port=PORT + 1)
        with first[0], first[1], second[0], second[1]:
            for client, server in (first, second):
                client.sendall(b"x" * 1000)
                assert server.recv(2000) == b"x" * 1000
            assert is_redirected(first[0], 1000)
            assert tcp_info(second[0]).bytes_sent == 1000
            rows = program.rows()
        assert summary_of(rows)["plain_full"] == 1
        assert summary_of(rows)["connections"] == 1


def test_mptcp_does_not_enter(place: Place) -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
    except OSError:
        pytest.skip("this kernel has no MPTCP (CONFIG_MPTCP)")
    with place.run() as program:
        client, server = place.pair(proto=262)
        with client, server:
            client.sendall(b"hello")
            assert server.recv(100) == b"hello"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"
            found = summary_of(program.rows())
    assert found["plain_refused"] >= 1


def test_what_was_sent_before_the_server_had_a_socket_keeps_its_order(place: Place) -> None:
    """TCP_DEFER_ACCEPT: the server's socket comes with the first data."""
    defer = ((socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1),)
    with place.run() as program:
        client, listener = place.pair(options=defer, accept=False)
        with client, listener:
            for number in range(50):
                client.sendall(bytes([number]) * 1000)
            server, _ = listener.accept()
            with server:
                client.shutdown(socket.SHUT_WR)
                expected = b"".join(bytes([number]) * 1000 for number in range(50))
                assert read_all(server) == expected
        found = summary_of(program.rows())
    assert (found["plain_early"], found["sockets"]) == (1, 0)


def test_fast_open_goes_by_tcp(place: Place) -> None:
    """Its server is established by the SYN, and has data before the client is."""
    with place.ns.entered():
        Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("1027")  # both sides, no cookie needed
    with place.run() as program:
        with place.ns.entered(), place.group.entered():
            listener = socket.create_server(("127.0.0.1", PORT))
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
            client = socket.socket()
            client.sendto(b"in the SYN;", socket.MSG_FASTOPEN, ("127.0.0.1", PORT))
        with listener, client:
            server, _ = listener.accept()
            with server:
                client.sendall(b"after it")
                client.shutdown(socket.SHUT_WR)
                assert read_all(server) == b"in the SYN;after it"
            rows = program.rows()
    assert port_row(rows)["redirected"] == 0
    assert summary_of(rows)["plain_early"] + summary_of(rows)["plain_elsewhere"] >= 1


def test_a_send_that_waits_for_the_handshake_keeps_its_order(place: Place) -> None:
    """It has gone to TCP before the socket enters the map."""
    with place.run() as program:
        with place.ns.entered(), place.group.entered():
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", PORT))
            listener.listen(0)
            first = socket.create_connection(("127.0.0.1", PORT), 10)  # the queue is full
            client = socket.socket()
        with listener, first, client:
            client.setblocking(False)
            assert client.connect_ex(("127.0.0.1", PORT)) == errno.EINPROGRESS
            client.setblocking(True)
            sender = threading.Thread(target=client.sendall, args=(b"waits;",))
            sender.start()
            time.sleep(0.1)
            assert sender.is_alive()
            listener.accept()[0].close()
            sender.join(10)  # the SYN is sent again after a second
            client.sendall(b"does not wait")
            server, _ = listener.accept()
            with server:
                client.shutdown(socket.SHUT_WR)
                assert read_all(server) == b"waits;does not wait"
        assert summary_of(program.rows())["plain_early"] == 1


def test_a_socket_that_connects_again_is_redirected_again(place: Place) -> None:
    with place.run():
        client, server = place.pair()
        with client:
            with server:
                client.sendall(b"first")
                assert server.recv(100) == b"first"
            assert client.recv(100) == b""
            disconnect = struct.pack("=H14x", socket.AF_UNSPEC)
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.connect(client.fileno(), disconnect, len(disconnect)) == 0
            with place.ns.entered(), place.group.entered():
                listener = socket.create_server(("127.0.0.1", PORT + 1))
            with listener:
                client.connect(("127.0.0.1", PORT + 1))
                server, _ = listener.accept()
            with server:
                client.sendall(b"second")
                server.settimeout(5)
                assert server.recv(100) == b"second"


def test_waitall_returns_what_one_message_had(place: Place) -> None:
    """The limit that --help names: a program that asks for more must go on asking."""
    with place.run():
        client, server = place.pair()
        with client, server:
            client.sendall(b"x" * 50)
            threading.Timer(0.1, client.sendall, [b"y" * 50]).start()
            got = server.recv(100, socket.MSG_WAITALL)
            assert got == (b"x" * 50 + b"y" * 50)[: len(got)]
            while len(got) < 100:
                got += server.recv(100)
            assert got == b"x" * 50 + b"y" * 50


def test_thousands_of_connections_leave_the_map_empty(place: Place) -> None:
    with place.run() as program:
        with place.ns.entered(), place.group.entered():
            listener = socket.create_server(("127.0.0.1", PORT), backlog=100)
            with listener:
                for number in range(2000):
                    with socket.create_connection(("127.0.0.1", PORT), 10) as client:
                        server, _ = listener.accept()
                        with server:
                            client.sendall(number.to_bytes(4, "big"))
                            assert server.recv(10) == number.to_bytes(4, "big")
                            server.sendall(b"ok")
                            assert client.recv(10) == b"ok"
        rows = program.rows()
    assert port_row(rows)["redirected"] == 4000
    assert (summary_of(rows)["connections"], summary_of(rows)["sockets"]) == (2000, 0)


def test_a_peer_outside_the_cgroup_is_left_alone(place: Place) -> None:
    with place.run() as program:
        with place.ns.entered():
            listener = socket.create_server(("127.0.0.1", PORT))
            with place.group.entered():
                client = socket.create_connection(("127.0.0.1", PORT), 10)
        with listener, client:
            server, _ = listener.accept()
            with server:
                client.sendall(b"x" * 1000)
                assert server.recv(2000) == b"x" * 1000
                assert unread(server) == 0
                assert tcp_info(client).bytes_sent == 1000
                server.sendall(b"y" * 500)
                time.sleep(0.05)
                assert unread(client) == 500  # a socket in the map would say 0 on some kernels
                found = summary_of(program.rows())
    assert (found["plain_elsewhere"], found["sockets"]) == (1, 0)


def test_the_same_addresses_and_ports_in_two_namespaces_are_two_connections(place: Place) -> None:
    other = NetNS.new("sk-msg-other")
    try:
        with place.run():
            one = place.pair(source=40000)
            two = place.pair(source=40000, ns=other)
            with one[0], one[1], two[0], two[1]:
                one[0].sendall(b"one")
                two[0].sendall(b"two")
                assert is_redirected(one[0], 3)
                assert is_redirected(two[0], 3)
                assert (one[1].recv(100), two[1].recv(100)) == (b"one", b"two")
    finally:
        other.close()


def test_a_connection_between_two_namespaces_goes_by_tcp(place: Place) -> None:
    from bpfkit.net.links.lab import pair_lab

    with pair_lab() as lab, place.run() as program:
        address = "10.77.0.2"
        with lab["server"].entered(), place.group.entered():
            listener = socket.create_server((address, PORT))
        with lab["client"].entered(), place.group.entered():
            client = socket.create_connection((address, PORT), 10)
        with listener, client:
            server, _ = listener.accept()
            with server:
                client.sendall(b"x" * 1000)
                assert server.recv(2000) == b"x" * 1000
                assert tcp_info(client).bytes_sent == 1000
        assert summary_of(program.rows())["plain_elsewhere"] == 2  # each end


def test_ktls_is_refused_on_a_redirected_socket(place: Place) -> None:
    with place.run() as program:
        client, server = place.pair()
        with client, server:
            with pytest.raises(OSError) as caught:
                client.setsockopt(socket.IPPROTO_TCP, 31, b"tls")
            assert caught.value.errno == errno.EINVAL
            client.sendall(b"in clear")
            assert server.recv(100) == b"in clear"
        assert summary_of(program.rows())["plain_ktls"] == 1


def test_a_second_copy_leaves_the_first_one_its_sockets(place: Place) -> None:
    with place.run() as first, place.run() as second:
        client, server = place.pair()
        with client, server:
            client.sendall(b"x" * 1000)
            assert server.recv(2000) == b"x" * 1000
            assert is_redirected(client, 1000)
            rows = second.rows()
            assert summary_of(rows)["plain_refused"] == 1
            server.sendall(b"y" * 1000)
            assert client.recv(2000) == b"y" * 1000
            assert is_redirected(server, 1000)
        assert port_row(first.rows())["redirected_bytes"] == 2000


# ---------------------------------------------------------------- messages


def test_a_message_with_the_denied_text_fails_with_eacces(place: Place) -> None:
    with place.run("--deny-prefix", "DROP TABLE") as program:
        client, server = place.pair()
        with client, server:
            client.sendall(b"SELECT 1;")
            with pytest.raises(PermissionError):
                client.send(b"DROP TABLE users;")
            client.close()
            assert read_all(server) == b"SELECT 1;"
        client, server = place.pair()
        with client, server:
            client.sendall(b"DROP TABL")  # shorter than the text
            assert server.recv(100) == b"DROP TABL"
        row = port_row(program.rows())
    assert (row["denied"], row["denied_bytes"], row["redirected"]) == (1, 17, 2)


def test_a_denied_text_across_two_buffers_is_found(place: Place) -> None:
    with place.run("--deny-prefix", "DROP TABLE"):
        client, server = place.pair()
        with client, server, pytest.raises(PermissionError):
            client.sendmsg([b"DROP", b" TABLE users", b"x" * 100_000])


def test_apply_judges_many_messages_at_once(place: Place) -> None:
    with place.run("--apply", "1000") as program:
        client, server = place.pair()
        with client, server:
            for _ in range(40):
                client.sendall(b"x" * 100)
            client.close()
            assert read_all(server) == b"x" * 4000
        row = port_row(program.rows())
    assert (row["redirected"], row["redirected_bytes"]) == (4, 4000)


def test_cork_loses_what_it_holds_when_the_socket_is_closed(place: Place) -> None:
    """The hazard that --help names."""
    with place.run("--cork", "1000"):
        client, server = place.pair()
        with server:
            with client:
                client.sendall(b"x" * 600)
                client.sendall(b"y" * 400)
                client.sendall(b"z" * 100)
            assert read_all(server) == b"x" * 600 + b"y" * 400


# ---------------------------------------------------------------- the end of the program


class Stream:
    """A thread that sends random bytes over a connection, and one that reads them."""

    def __init__(self, source: socket.socket, target: socket.socket, seed: int) -> None:
        self._random = random.Random(seed)
        self.sent, self.got = hashlib.sha256(), hashlib.sha256()
        self.bytes = 0
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._send, args=(source,)),
            threading.Thread(target=self._read, args=(target,)),
        ]
        for thread in self._threads:
            thread.start()

    def _send(self, sock: socket.socket) -> None:
        try:
            while not self.stop.is_set():
                data = self._random.randbytes(self._random.choice((1, 100, 4000, 70_000)))
                self.sent.update(data)
                self.bytes += len(data)
                sock.sendall(data)
                time.sleep(0.001)
            sock.shutdown(socket.SHUT_WR)
        except BaseException as error:
            self.error = error

    def _read(self, sock: socket.socket) -> None:
        try:
            while part := sock.recv(30_000):
                self.got.update(part)
                time.sleep(0.0005)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(20)
        assert self.error is None, self.error
        assert self.sent.digest() == self.got.digest(), f"{self.bytes} bytes sent"


def both_ways(pairs: list[tuple[socket.socket, socket.socket]]) -> list[Stream]:
    return [
        Stream(*ends, number)
        for number, (one, two) in enumerate(pairs)
        for ends in ((one, two), (two, one))
    ]


def close_all(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    for pair in pairs:
        for sock in pair:
            sock.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_end_in_the_middle_of_traffic_loses_and_reorders_nothing(
    place: Place, number: signal.Signals
) -> None:
    for delay in (0.05, 0.2, 0.4):
        with place.run() as program:
            # Sockets of a process in the cgroup: where the drain looks for them.
            with place.group.entered():
                pairs = [place.pair(port=PORT + n) for n in range(3)]
                streams = both_ways(pairs)
                time.sleep(delay)
                if number == signal.SIGTERM:
                    status, out, said = program.end(number)
                    assert status == 0, said
                    assert "redirected" in out
                else:
                    program.process.kill()
                    program.process.wait()
                time.sleep(0.2)
                for stream in streams:
                    stream.end()
            for client, server in pairs:
                if number == signal.SIGKILL:
                    assert is_redirected(client, 1) and is_redirected(server, 1)
                else:
                    assert tcp_info(client).bytes_sent > 0
            close_all(pairs)


def test_unread_bytes_survive_the_end_of_the_program(place: Place) -> None:
    """They are not read within --drain: the sockets stay in the map, and lose nothing."""
    with place.run("--drain", "0.3") as program:
        client, server = place.pair()
        with client, server:
            client.sendall(b"redirected;")
            status, _, said = program.end(signal.SIGTERM)
            assert (status, "2 sockets left in the map" in said) == (0, True), said
            client.sendall(b"by TCP;")
            time.sleep(0.05)
            client.sendall(b"by TCP, too")
            client.close()
            assert read_all(server) == b"redirected;by TCP;by TCP, too"


def test_a_drained_socket_is_an_ordinary_one(place: Place) -> None:
    with place.run() as program, place.group.entered():
        client, server = place.pair()
        with client, server:
            client.sendall(b"hello")
            assert server.recv(100) == b"hello"
            status, _, said = program.end(signal.SIGINT)
            assert (status, "left in the map" in said) == (0, False), said
            client.sendall(b"x" * 777)
            time.sleep(0.05)
            assert unread(server) == 777
            reader, writer = os.pipe()
            try:
                assert os.splice(server.fileno(), writer, 777) == 777
            finally:
                os.close(reader)
                os.close(writer)


@pytest.mark.parametrize("option", ["--apply", "--cork"])
def test_bytes_under_way_are_not_lost_at_the_end(place: Place, option: str) -> None:
    """The kernel goes by the last verdict, or holds bytes back, after the program has stopped."""
    with place.run(option, "1000") as program, place.group.entered():
        client, server = place.pair()
        with client, server:
            client.sendall(b"x" * 600)
            status, _, said = program.end(signal.SIGTERM)
            assert (status, "2 sockets left in the map" in said) == (0, True), said
            client.sendall(b"y" * 400)
            client.sendall(b"z" * 1000)
            client.shutdown(socket.SHUT_WR)
            assert read_all(server) == b"x" * 600 + b"y" * 400 + b"z" * 1000


def test_after_a_kill_the_connection_goes_on_and_unread_bytes_are_read(place: Place) -> None:
    with place.run() as program:
        client, server = place.pair()
        with client, server:
            client.sendall(b"before;")
            program.process.kill()
            program.process.wait()
            client.sendall(b"after")
            assert is_redirected(client, 12)
            client.close()
            assert read_all(server) == b"before;after"
        new = place.pair()
        with new[0], new[1]:
            new[0].sendall(b"plain")
            assert new[1].recv(100) == b"plain"
            assert tcp_info(new[0]).bytes_sent == 5
