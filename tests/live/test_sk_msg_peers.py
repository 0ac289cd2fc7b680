# SPDX-License-Identifier: Apache-2.0
"""sk_msg under programs that know nothing of it: nginx, curl, redis, iperf3, openssl."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from running import Running

from bpfkit.core.cgroups import Cgroup
from bpfkit.net.links.netns import NetNS

MEGABYTES = 5


class Peers:
    """A cgroup and a namespace in which commands run, with sk_msg on the cgroup."""

    def __init__(self, ns: NetNS, group: Cgroup) -> None:
        self.ns = ns
        self.group = group
        self._procs = group.open_procs()

    def _join(self) -> None:
        os.write(self._procs, b"0")

    def start(self, *argv: str, **more: Any) -> subprocess.Popen[bytes]:
        return self.ns.popen(list(argv), preexec_fn=self._join, **more)

    def run(self, *argv: str, **more: Any) -> bytes:
        data = more.pop("input", None)
        if data is None:
            more.setdefault("stdin", subprocess.DEVNULL)
        else:
            more["stdin"] = subprocess.PIPE
        with self.start(*argv, stdout=subprocess.PIPE, **more) as process:
            out, _ = process.communicate(data, timeout=60)
        assert process.returncode == 0, argv
        return out

    @contextlib.contextmanager
    def serving(self, argv: Sequence[str], *ports: int, **more: Any) -> Iterator[None]:
        """A server, until the end of the block; every one of the ports accepts by then."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = self.start(*argv, **{**quiet, **more})
        try:
            for port in ports:
                self._wait_for(port)
            yield
        finally:
            process.terminate()
            process.wait(10)

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + 10
        while True:
            with self.ns.entered():
                sock = socket.socket()
            with sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    return
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.02)

    def close(self) -> None:
        os.close(self._procs)


@pytest.fixture
def peers() -> Iterator[Peers]:
    with NetNS.new("peers") as ns, Cgroup.new("sk-msg-peers") as group:
        there = Peers(ns, group)
        yield there
        there.close()


def needs(*names: str) -> None:
    for name in names:
        if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin"):
            pytest.skip(f"{name} is not installed")


def sk_msg(peers: Peers, ports: str) -> Running:
    words = ["--json", "-t", "0.1", "--ports", ports, "--cgroup", peers.group.path]
    return Running("sk_msg", *words, ready=lambda row: True)


def row_of(program: Running, port: int) -> dict[str, Any]:
    """The last figures of a port, by verdict, and those of the summary."""
    found = {"redirected_bytes": 0, "passed": 0}
    for row in program.rows():
        if "summary" in row:
            found.update(row)
        elif row["port"] == port:
            found[row["verdict"]] = row["messages"]
            found[f"{row['verdict']}_bytes"] = row["bytes"]
    return found


def needs_fionread(peers: Peers) -> None:
    """Skip where FIONREAD does not count redirected bytes (kernels before the end of 2025): nginx
    stops reading when it answers 0, as the program says at its start."""
    with peers.ns.entered(), peers.group.entered():
        with socket.create_server(("127.0.0.1", 8082)) as listener:
            client = socket.create_connection(("127.0.0.1", 8082), 10)
            server, _ = listener.accept()
        with client, server:
            client.sendall(b"x" * 100)
            if struct.unpack("i", fcntl.ioctl(server, termios.FIONREAD, bytes(4)))[0] != 100:
                pytest.skip("this kernel's FIONREAD does not count redirected bytes")


NGINX = """
daemon off; pid {where}/pid; error_log stderr; events {{}} worker_processes 1; user root;
http {{
    access_log off; sendfile on; client_max_body_size 1g;
    client_body_temp_path {where}/body; proxy_temp_path {where}/proxy;
    fastcgi_temp_path {where}/f; uwsgi_temp_path {where}/u; scgi_temp_path {where}/s;
    server {{ listen 127.0.0.1:8082; listen [::1]:8082; root {where}; }}
    server {{ listen 127.0.0.1:8081; location / {{ proxy_pass http://127.0.0.1:8082; }} }}
}}
"""


@pytest.fixture
def site(tmp_path: Path) -> tuple[list[str], str]:
    """(nginx and its arguments, the digest of its file)."""
    needs("nginx", "curl")
    data = random.Random(5).randbytes(MEGABYTES << 20)
    (tmp_path / "file").write_bytes(data)
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(where=tmp_path))
    os.chmod(tmp_path, 0o755)
    return ["nginx", "-c", str(config)], hashlib.sha256(data).hexdigest()


def test_curl_gets_from_nginx_what_nginx_has(peers: Peers, site: tuple[list[str], str]) -> None:
    argv, digest = site
    with sk_msg(peers, "8082") as program:
        with peers.serving(argv, 8082):
            for host in ("127.0.0.1", "[::1]"):
                for _ in range(3):
                    got = peers.run("curl", "-sf", f"http://{host}:8082/file")
                    assert hashlib.sha256(got).hexdigest() == digest
        row = row_of(program, 8082)
    assert row["passed"] == 0
    assert row["connections"] >= 6
    assert row["redirected_bytes"] > 6 * (MEGABYTES << 20)


def test_tcpdump_sees_the_handshake_and_no_payload(
    peers: Peers, site: tuple[list[str], str], tmp_path: Path
) -> None:
    needs("tcpdump")
    argv, _ = site
    trace = str(tmp_path / "trace.pcap")
    with sk_msg(peers, "8082"), peers.serving(argv, 8082):
        dump = ["tcpdump", "-i", "lo", "-U", "--immediate-mode", "-w", trace, "tcp port 8082"]
        with peers.ns.popen(dump, stderr=subprocess.PIPE, text=True) as tcpdump:
            assert tcpdump.stderr is not None
            while "listening on" not in tcpdump.stderr.readline():
                assert tcpdump.poll() is None
            peers.run("curl", "-sf", "http://127.0.0.1:8082/file")
            time.sleep(0.3)
            tcpdump.terminate()

    def seen(expression: str) -> int:
        argv = ["tcpdump", "-nr", trace, expression]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return len(done.stdout.splitlines())

    size = "ip[2:2] - ((ip[0] & 0xf) << 2) - ((tcp[12] & 0xf0) >> 2)"
    assert seen("tcp[tcpflags] & tcp-syn != 0") == 2
    assert seen("tcp[tcpflags] & tcp-fin != 0") == 2
    assert seen(f"{size} != 0") == 0


def test_nginx_reads_as_a_proxy_what_another_nginx_sends(
    peers: Peers, site: tuple[list[str], str]
) -> None:
    """nginx asks FIONREAD how much is left, which stalls where a socket is in the map alone."""
    argv, digest = site
    with sk_msg(peers, "8081-8082") as program:
        needs_fionread(peers)
        with peers.serving(argv, 8081, 8082):
            for _ in range(3):
                got = peers.run("curl", "-sf", "-m", "20", "http://127.0.0.1:8081/file")
                assert hashlib.sha256(got).hexdigest() == digest
        rows = [row for row in program.rows() if row.get("port")]
    assert [(row["port"], row["verdict"]) for row in rows] == [
        (8081, "redirected"),
        (8082, "redirected"),
    ]
    assert all(row["bytes"] > 3 * (MEGABYTES << 20) for row in rows)


def test_nginx_with_a_client_outside_does_not_stall(
    peers: Peers, site: tuple[list[str], str]
) -> None:
    argv, digest = site
    with sk_msg(peers, "8081-8082") as program:
        needs_fionread(peers)
        with peers.serving(argv, 8081, 8082):
            argv = ["curl", "-sf", "-m", "20", "http://127.0.0.1:8081/file"]
            with peers.ns.popen(argv, stdout=subprocess.PIPE) as curl:
                got, _ = curl.communicate(timeout=30)
            assert hashlib.sha256(got).hexdigest() == digest
            rows = program.rows()
    assert [row["port"] for row in rows if row.get("port")] == [8082]
    assert rows[-1]["plain_elsewhere"] >= 1


def test_redis_benchmark_runs_and_values_come_back(peers: Peers, tmp_path: Path) -> None:
    needs("redis-server", "redis-benchmark", "redis-cli")
    server = ["redis-server", "--port", "6379", "--save", "", "--dir", str(tmp_path)]
    requests = 5000
    with sk_msg(peers, "6379") as program:
        with peers.serving(server, 6379):
            words = ["-n", str(requests), "-c", "20", "-d", "1000", "-t", "set,get", "--csv"]
            out = peers.run("redis-benchmark", *words).decode()
            rates = {
                row[0]: float(row[1])
                for row in csv.reader(out.splitlines())
                if row[1:] and row[0] in ("SET", "GET")
            }
            assert sorted(rates) == ["GET", "SET"]
            value = random.Random(6).randbytes(1 << 20).hex()
            peers.run("redis-cli", "-x", "set", "big", input=value.encode())
            assert peers.run("redis-cli", "get", "big").decode().strip() == value
            stats = peers.run("redis-cli", "info", "stats").decode()
        row = row_of(program, 6379)
    figures = dict(line.split(":", 1) for line in stats.splitlines() if ":" in line)
    assert int(figures["total_commands_processed"]) >= 2 * requests
    # What redis read and wrote itself, all of it redirected.
    total = int(figures["total_net_input_bytes"]) + int(figures["total_net_output_bytes"])
    assert row["passed"] == 0
    assert total <= row["redirected_bytes"] <= total + 100_000


def test_iperf3_runs_to_its_end(peers: Peers) -> None:
    """No receive window holds the client back, and the server stops reading when the client says
    that it has finished: it may count less than was sent, and never more."""
    needs("iperf3")
    with sk_msg(peers, "5201") as program:
        with peers.serving(["iperf3", "-s"], 5201):
            words = ["-c", "127.0.0.1", "-n", "200M", "-J"]
            figures = json.loads(peers.run("iperf3", *words))
        row = row_of(program, 5201)
    assert "error" not in figures
    sent, received = figures["end"]["sum_sent"], figures["end"]["sum_received"]
    assert sent["bytes"] >= 200_000_000
    assert 0 < received["bytes"] <= sent["bytes"]
    assert row["redirected_bytes"] >= sent["bytes"]


def test_openssl_talks_tls(peers: Peers, tmp_path: Path) -> None:
    needs("openssl")
    key = ["-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-subj", "/CN=localhost"]
    peers.run(
        "openssl", "req", "-x509", *key, "-out", "cert.pem", cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    data = random.Random(7).randbytes(MEGABYTES << 20)
    (tmp_path / "file").write_bytes(data)
    server = [
        "openssl",
        "s_server",
        "-accept",
        "4433",
        "-key",
        "key.pem",
        "-cert",
        "cert.pem",
        "-HTTP",
        "-quiet",
    ]
    with sk_msg(peers, "4433") as program:
        with peers.serving(server, 4433, cwd=tmp_path):
            client = ["openssl", "s_client", "-connect", "127.0.0.1:4433", "-quiet", "-no_ign_eof"]
            got = b""
            with peers.start(
                *client, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as process:
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(b"GET /file HTTP/1.0\r\n\r\n")
                process.stdin.flush()
                while part := process.stdout.read(1 << 16):
                    got += part
                process.stdin.close()
        row = row_of(program, 4433)
    assert hashlib.sha256(got[-len(data) :]).digest() == hashlib.sha256(data).digest()
    assert row["passed"] == 0
    assert row["redirected_bytes"] > len(data)


def test_a_command_runs_unchanged_and_gives_its_status(peers: Peers, tmp_path: Path) -> None:
    script = (
        "import socket\n"
        "l = socket.create_server(('127.0.0.1', 0))\n"
        "c = socket.create_connection(l.getsockname()); s, _ = l.accept()\n"
        "c.sendall(b'x' * 1000); print(len(s.recv(2000))); raise SystemExit(7)\n"
    )
    argv = ["--json", "--", "/usr/bin/python3", "-c", script]
    with Running("sk_msg", *argv, ready="(1000)", may_end=True, ns=peers.ns) as program:
        status, out, said = program.wait()
    rows = [json.loads(line) for line in out.splitlines()]
    assert (status, "1000" in said) == (7, True), said
    assert [row["bytes"] for row in rows if row.get("verdict") == "redirected"] == [1000]
    assert "splice" in said
