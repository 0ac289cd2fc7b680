# SPDX-License-Identifier: Apache-2.0
"""sk_skb as a proxy between real peers: every ending, bad input, and what is said about it.

The judges are outside: what a peer received, its errno, a digest, the kernel's counters.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from running import ROOT, Row, Running, command, path_of, run

from bpfkit.net.links.netns import NetNS
from bpfkit.sk_skb.demo import switches
from bpfkit.sk_skb.program import tcp_sock_offsets

sys.path.insert(0, str(ROOT / "tools" / "bench"))

MB = 1 << 20
RESET = struct.pack("ii", 1, 0)
PORT, BACKEND = 5201, 5202
HOSTS = {4: "127.0.0.1", 6: "::1"}
both_ways = pytest.mark.parametrize("how", ["verdict", "parser"])


@pytest.fixture
def ns() -> Iterator[NetNS]:
    with NetNS.new("sk-skb") as namespace:
        yield namespace


class Proxy(Running):
    """sk_skb between a port and a backend of one namespace."""

    def __init__(self, ns: NetNS, *args: str, family: int = 4) -> None:
        host = f"[{HOSTS[6]}]" if family == 6 else HOSTS[4]
        words = ("--listen", str(PORT), "--to", f"{host}:{BACKEND}", "--json", "-t", "0.2")
        self.ns = ns
        self.family = family
        super().__init__("sk_skb", *words, *args, ready="", ns=ns)
        deadline = time.monotonic() + 20
        while f":{PORT:04X} " not in ns.check_output(["cat", "/proc/net/tcp6"]):
            assert self.process.poll() is None and time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def event(self, kind: str) -> Row:
        return self.row(lambda row: row.get("event") == kind)

    def pair(self, server: socket.socket) -> tuple[socket.socket, socket.socket]:
        """A client and a backend, after a message each way; the kernel forwards."""
        client = self.ns.run(socket.create_connection, (HOSTS[self.family], PORT), 20)
        backend, _ = server.accept()
        backend.settimeout(20)
        ping(client, backend)
        self.event("spliced")
        time.sleep(0.05)
        return client, backend


def ping(client: socket.socket, backend: socket.socket) -> None:
    client.sendall(b"there")
    assert backend.recv(99) == b"there"
    backend.sendall(b"back")
    assert client.recv(99) == b"back"


def serve(ns: NetNS, family: int = 4, port: int = BACKEND) -> socket.socket:
    def make() -> socket.socket:
        kind = socket.AF_INET6 if family == 6 else socket.AF_INET
        return socket.create_server((HOSTS[family], port), family=kind)

    server: socket.socket = ns.run(make)
    server.settimeout(20)
    return server


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := sock.recv(MB):
        data += piece
    return bytes(data)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# ---------------------------------------------------------------- endings


@both_ways
@pytest.mark.parametrize("family", [4, 6])
def test_a_stream_arrives_while_the_proxy_sleeps(ns: NetNS, how: str, family: int) -> None:
    """Digest of the stream; and the proxy's own context switches, as the kernel counts them."""
    data = os.urandom(2 * MB)
    with serve(ns, family) as server, Proxy(ns, "--how", how, family=family) as proxy:
        client, backend = proxy.pair(server)
        with client, backend:
            child = int(
                subprocess.check_output(["pgrep", "-P", str(proxy.process.pid)], text=True).split()[
                    0
                ]
            )
            before = switches(child)
            for at in range(0, len(data), 8192):  # no more than the kernel may hold
                client.sendall(data[at : at + 8192])
                got = b""
                while len(got) < 8192:
                    got += backend.recv(8192)
                assert got == data[at : at + 8192]
            assert switches(child) - before <= 5  # the table is asked for meanwhile
        row = proxy.event("closed")
    assert row["to_backend"] == len(data) + 5
    assert row["by_kernel"] >= len(data)


@both_ways
def test_half_close_reaches_the_backend_after_the_data(ns: NetNS, how: str) -> None:
    data = os.urandom(16 * MB)
    with serve(ns) as server, Proxy(ns, "--how", how) as proxy:
        client, backend = proxy.pair(server)
        with client, backend:
            got: list[bytes] = []
            reader = in_thread(lambda: got.append(read_all(backend)))
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            reader.join(20)
            assert [hashlib.sha256(one).digest() for one in got] == [hashlib.sha256(data).digest()]
            sender = in_thread(lambda: (backend.sendall(data), backend.close()))
            assert read_all(client) == data
            sender.join(20)
        proxy.event("drained")
        proxy.event("closed")


@both_ways
def test_a_slow_reader_holds_the_sender_back(ns: NetNS, how: str) -> None:
    """The kernel's queue is limited; without that the sender would fill the memory."""
    data = os.urandom(MB)
    with serve(ns) as server, Proxy(ns, "--how", how, "--queue", str(MB)) as proxy:
        client, backend = proxy.pair(server)
        with client, backend:
            client.settimeout(0.7)
            sent = 0
            with pytest.raises(TimeoutError):
                while sent < 200 * MB:
                    sent += client.send(data[sent % MB :])
            assert sent < 60 * MB
            assert "faster" in proxy.event("drained")["why"]
            client.close()
            got = read_all(backend)
        assert len(got) == sent
        assert all(got[at : at + MB] == data[: len(got) - at] for at in range(0, sent, MB))
        proxy.event("closed")


@both_ways
@pytest.mark.parametrize("who", ["client", "backend"])
def test_a_reset_of_one_end_resets_the_other(ns: NetNS, how: str, who: str) -> None:
    with serve(ns) as server, Proxy(ns, "--how", how) as proxy:
        pair = proxy.pair(server)
        one, other = pair if who == "client" else pair[::-1]
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        one.close()
        with other, pytest.raises(ConnectionResetError):
            other.recv(1)
        assert who in proxy.event("reset")["why"]


@both_ways
def test_a_stop_delivers_what_is_under_way(ns: NetNS, how: str) -> None:
    """SIGTERM in the middle: the connection that ends in time is whole, the other is reset."""
    data = os.urandom(24 * MB)
    with serve(ns) as server, Proxy(ns, "--how", how, "--grace", "3") as proxy:
        client, backend = proxy.pair(server)
        idle, idle_backend = proxy.pair(server)
        with client, backend, idle, idle_backend:
            sender = in_thread(lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
            first = backend.recv(MB)
            proxy.process.send_signal(signal.SIGTERM)
            got = first + read_all(backend)
            sender.join(20)
            backend.close()
            assert client.recv(1) == b""
            assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
            for sock in (idle, idle_backend):
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
        proxy.event("draining")
        assert proxy.process.wait(20) == 0
        with pytest.raises(ConnectionRefusedError):
            ns.run(socket.create_connection, (HOSTS[4], PORT), 5)


@both_ways
@pytest.mark.parametrize("victim", ["program", "proxy process"])
def test_kill_resets_both_ends(ns: NetNS, how: str, victim: str) -> None:
    with serve(ns) as server, Proxy(ns, "--how", how) as proxy:
        client, backend = proxy.pair(server)
        with client, backend:
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.sendall(bytes(32 * MB))
                client.recv(1)
            pid = proxy.process.pid
            if victim == "proxy process":
                pid = int(subprocess.check_output(["pgrep", "-P", str(pid)], text=True).split()[0])
            os.kill(pid, signal.SIGKILL)
            client.settimeout(20)
            for sock in (client, backend):
                with pytest.raises(ConnectionResetError):
                    read_all(sock)
        status = proxy.process.wait(20)
        assert status == (-signal.SIGKILL if victim == "program" else 1)
        if victim == "proxy process":
            assert "the proxy process has ended" in proxy.said


# ---------------------------------------------------------------- who cannot enter, and bad input


def test_a_client_that_has_ended_its_stream_is_forwarded_in_user_space(ns: NetNS) -> None:
    with serve(ns) as server, Proxy(ns) as proxy:
        client = ns.run(socket.create_connection, (HOSTS[4], PORT), 20)
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        backend, _ = server.accept()
        with client, backend:
            assert read_all(backend) == b"question"
            backend.sendall(b"answer")
            backend.close()
            assert read_all(client) == b"answer"
        row = proxy.event("closed")
        assert (row["to_backend"], row["to_client"]) == (8, 6)


def test_connections_that_find_the_map_full_are_forwarded_and_reported(ns: NetNS) -> None:
    with serve(ns) as server, Proxy(ns, "--connections", "1") as proxy:
        client, backend = proxy.pair(server)
        other = ns.run(socket.create_connection, (HOSTS[4], PORT), 20)
        other_backend, _ = server.accept()
        with client, backend, other, other_backend:
            ping(other, other_backend)
            assert "full" in proxy.event("user")["why"]
            ping(client, backend)
            client.close()
            backend.close()
            proxy.event("closed")
            last, last_backend = proxy.pair(server)  # there is room again
            last.close()
            last_backend.close()


def test_without_a_backend_the_client_is_reset_and_told_why(ns: NetNS) -> None:
    with Proxy(ns) as proxy:
        with ns.run(socket.create_connection, (HOSTS[4], PORT), 20) as client:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert "ECONNREFUSED" in proxy.event("refused")["why"]
        with serve(ns) as server:  # and the next one is served
            client, backend = proxy.pair(server)
            client.close()
            backend.close()


def test_a_port_in_use_is_an_error_of_one_line(ns: NetNS) -> None:
    with serve(ns, port=PORT):
        words = ("--listen", f"127.0.0.1:{PORT}", "--to", "127.0.0.1:1", "--netns", path_of(ns))
        done = run("sk_skb", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"cannot listen on 127.0.0.1 port {PORT}" in done.stderr
    assert "EADDRINUSE" in done.stderr or "in use" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    "words",
    [
        ["--listen", "1"],
        ["--to", "127.0.0.1:1"],
        ["--listen", "x", "--to", "127.0.0.1:1"],
        ["--listen", "1", "--to", "80"],
        ["--after", "-1"],
        ["--connections", "5000"],
        ["--check", "--listen", "1", "--to", "127.0.0.1:1"],
        ["--no-demo"],
    ],
)
def test_options_that_make_no_sense(words: list[str]) -> None:
    done = run("sk_skb", *words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_the_demo_shows_the_moment_when_the_proxy_falls_silent() -> None:
    import json

    done = run("sk_skb", "--json", "-c", "1", "-t", "1.5")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    port = next(row["sport"] for row in rows if row.get("event") == "connected")
    mine = [row for row in rows if row.get("sport") == port]
    kinds = [row["event"] for row in mine if "event" in row]
    spliced = kinds.index("spliced")
    assert kinds[:spliced].count("forwarded") == 6
    assert "forwarded" not in kinds[spliced:]
    assert kinds[spliced:].count("answer") >= 5
    answers = [row["text"] for row in mine if row.get("event") == "answer"]
    assert answers == [f"answer {number}" for number in range(1, len(answers) + 1)]


# ---------------------------------------------------------------- places in the stream


def test_the_probe_finds_a_kernel_that_loses_its_place() -> None:
    """recv(2) in the map loses it; setting SO_RCVLOWAT does not."""
    from bpfkit import load
    from bpfkit.sk_skb.probe import leaves_intact

    def receive(sock: socket.socket) -> None:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1000)
        sock.settimeout(0.5)

    with load("sock/sk_skb.bpf.c", consts=tcp_sock_offsets()) as loaded:
        assert not leaves_intact(loaded, receive)
    with load("sock/sk_skb.bpf.c", consts=tcp_sock_offsets()) as loaded:
        began = time.monotonic()
        assert leaves_intact(loaded)
        assert time.monotonic() - began < 0.5


@both_ways
def test_data_that_waits_at_entry_leaves_the_socket_readable(ns: NetNS, how: str) -> None:
    """Messages race with the entry; then the process takes over, and has to find its place.

    recv(2) used to run the program on what waited, and set copied_seq back: some stalled.
    """
    words = ("--how", how, "--queue", "65536")
    data = os.urandom(MB)
    with serve(ns) as server, Proxy(ns, *words) as proxy:
        for _ in range(40):
            client = ns.run(socket.create_connection, (HOSTS[4], PORT), 20)
            backend, _ = server.accept()
            with client, backend:
                client.settimeout(20)
                backend.settimeout(20)
                for _ in range(60):  # the proxy enters between two of them
                    client.sendall(b"message")
                    backend.send(b"answer")
                sender = in_thread(partial(_send_all, client, data))
                time.sleep(0.02)  # more than --queue waits
                got = read_all(backend)
                sender.join(20)
                assert got == 60 * b"message" + data
                backend.close()
                assert read_all(client) == 60 * b"answer"
        assert [proxy.event("closed")["to_backend"] for _ in range(40)] == [MB + 420] * 40


def test_a_takeover_in_the_middle_of_a_stream_costs_no_byte(ns: NetNS) -> None:
    """Both directions at full speed while their sources leave the map, again and again."""
    data = os.urandom(6 * MB)
    with serve(ns) as server, Proxy(ns, "--queue", "65536") as proxy:
        for _ in range(10):
            pair = proxy.pair(server)
            with pair[0], pair[1]:
                got: dict[socket.socket, bytes] = {}
                work = [in_thread(partial(_send_all, sock, data)) for sock in pair]
                work += [in_thread(partial(_read_into, got, sock)) for sock in pair]
                for thread in work:
                    thread.join(20)
                assert got == dict.fromkeys(pair, data)
            assert proxy.event("closed")["to_client"] == len(data) + 4


def _send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def _read_into(got: dict[socket.socket, bytes], sock: socket.socket) -> None:
    got[sock] = read_all(sock)


def test_a_ping_that_takes_long_is_a_stall(tmp_path: Path) -> None:
    """The benchmark's client against a server that answers one message 60 ms late."""
    import json

    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    from sockmap import build

    traffic = build("traffic", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as sock:
                for number in range(20):
                    message = sock.recv(64, socket.MSG_WAITALL)
                    time.sleep(0.06 if number == 7 else 0)
                    sock.sendall(message)

        in_thread(answer)
        place = f"127.0.0.1:{server.getsockname()[1]}"
        done = subprocess.run(
            [traffic, "ping", place, "20", "64"], capture_output=True, text=True, timeout=20
        )
    found = json.loads(done.stdout)
    assert (found["count"], found["wrong"]) == (20, 0)
    assert found["stalls"] >= 1
    assert found["max_us"] >= 60000


# ---------------------------------------------------------------- real peers


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@both_ways
def test_curl_fetches_from_nginx(ns: NetNS, how: str, tmp_path: Path) -> None:
    """A page of 30 MB, several times over one connection."""
    curl, nginx = _tool("curl"), _tool("nginx")
    page = os.urandom(30 * MB)
    os.chmod(tmp_path, 0o755)
    (tmp_path / "page").write_bytes(page)
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; error_log stderr crit;\n"
        "events {}\nhttp { access_log off; "
        f"server {{ listen 127.0.0.1:{BACKEND}; root {tmp_path}; }} }}\n"
    )
    with ns.popen([nginx, "-c", str(config), "-e", "stderr"], stderr=subprocess.DEVNULL) as server:
        try:
            with Proxy(ns, "--how", how) as proxy:
                url = f"http://127.0.0.1:{PORT}/page"
                words = ["-sS", "--retry", "5", "--retry-all-errors", url]
                for name in "abc":
                    words += ["-o", str(tmp_path / name)] + ([url] if name != "c" else [])
                subprocess.run(
                    ["nsenter", f"--net={path_of(ns)}", curl, *words], check=True, timeout=60
                )
                for name in "abc":
                    assert (tmp_path / name).read_bytes() == page
                assert proxy.event("closed")["by_kernel"] > 0
        finally:
            server.kill()


def test_openssl_speaks_tls_through_it(ns: NetNS, tmp_path: Path) -> None:
    openssl = _tool("openssl")
    key, cert = tmp_path / "key", tmp_path / "cert"
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=test"]
    subprocess.run([openssl, *made, "-keyout", key, "-out", cert], check=True, capture_output=True)
    words = ["s_server", "-accept", str(BACKEND), "-cert", cert, "-key", key, "-rev", "-quiet"]
    ask = ["s_client", "-quiet", "-connect", f"127.0.0.1:{PORT}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with ns.popen([openssl, *words], stdout=subprocess.DEVNULL) as server, Proxy(ns) as proxy:
        while f":{BACKEND:04X} " not in ns.check_output(["cat", "/proc/net/tcp", "/proc/net/tcp6"]):
            assert server.poll() is None
            time.sleep(0.02)
        with ns.popen([openssl, *ask], text=True, **pipes) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            for number in range(200):
                client.stdin.write(f"line {number}\n")
                client.stdin.flush()
                assert client.stdout.readline().rstrip() == f"line {number}"[::-1]
            assert proxy.row(lambda row: row.get("by_kernel", 0) > 200 * 8)
            client.kill()
        server.kill()


def test_iperf3_both_directions(ns: NetNS) -> None:
    import json

    iperf3 = _tool("iperf3")
    with ns.popen([iperf3, "-s", "-p", str(BACKEND)], stdout=subprocess.DEVNULL) as server:
        try:
            with Proxy(ns):
                for words in ([], ["-R"]):
                    argv = [iperf3, "-c", "127.0.0.1", "-p", str(PORT), "-J", "-n", "64M", *words]
                    done = subprocess.run(
                        ["nsenter", f"--net={path_of(ns)}", *argv],
                        capture_output=True,
                        text=True,
                        timeout=60,
                    )
                    ends = json.loads(done.stdout)["end"]
                    assert ends["sum_sent"]["bytes"] >= 64e6, done.stdout
                    # What is still on its way when the sender has ended is not counted.
                    assert ends["sum_received"]["bytes"] >= 24e6, done.stdout
        finally:
            server.kill()


@both_ways
def test_a_peer_that_splices(ns: NetNS, how: str, tmp_path: Path) -> None:
    """Both peers use splice(2); the proxy's sockets are in the map, not theirs."""
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    from sockmap import build

    splicer = build("splicer", str(tmp_path))
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(os.urandom(48 * MB))
    with open(target, "wb") as out, open(source, "rb") as data, Proxy(ns, "--how", how) as proxy:
        with ns.popen(
            [splicer, "receive", str(BACKEND)], stdout=out, stderr=subprocess.PIPE, text=True
        ) as receiver:
            assert receiver.stderr is not None
            assert receiver.stderr.readline() == "ready\n"
            with ns.popen([splicer, "send", "127.0.0.1", str(PORT)], stdin=data) as sender:
                assert (sender.wait(60), receiver.wait(60)) == (0, 0)
        proxy.event("closed")
    assert target.read_bytes() == source.read_bytes()


def test_many_connections_at_once(ns: NetNS) -> None:
    """400 connections, IPv4 and IPv6 clients; each gets its own answer."""
    with serve(ns) as server, Proxy(ns, "-t", "5") as proxy:
        clients = []
        backends: dict[bytes, socket.socket] = {}
        for number in range(400):
            client = ns.run(socket.create_connection, (HOSTS[4 if number % 2 else 6], PORT), 20)
            client.sendall(b"%5d" % number)
            clients.append(client)
            backend, _ = server.accept()
            backends[backend.recv(5)] = backend
        assert len(backends) == 400
        for _ in range(3):
            for name, backend in backends.items():
                backend.sendall(name[::-1])
            for number, client in enumerate(clients):
                assert client.recv(5) == (b"%5d" % number)[::-1]
        for sock in [*clients, *backends.values()]:
            sock.close()
        closed = [proxy.event("closed") for _ in range(400)]
        assert {row["to_client"] for row in closed} == {15}


def test_nothing_is_left_of_two_that_are_killed(ns: NetNS) -> None:
    """A second copy runs beside the first; the leak check looks at what stays."""
    with serve(ns) as server, Proxy(ns) as first:
        words = ("--listen", "5203", "--to", f"127.0.0.1:{BACKEND}", "--json", "-t", "0.2")
        with ns.popen(command("sk_skb", *words), cwd=ROOT, stdout=subprocess.DEVNULL) as second:
            while ":1453 " not in ns.check_output(["cat", "/proc/net/tcp6"]):
                assert second.poll() is None
                time.sleep(0.02)
            client, backend = first.pair(server)
            other = ns.run(socket.create_connection, (HOSTS[4], 5203), 20)
            other_backend, _ = server.accept()
            with client, backend, other, other_backend:
                ping(other, other_backend)
                ping(client, backend)
                second.kill()
                with pytest.raises(ConnectionResetError):
                    other.recv(1)
                ping(client, backend)
        first.process.kill()
