# SPDX-License-Identifier: Apache-2.0
"""cgroup_skb on curl and other commands, judged by exit status, errno and sums."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bpfkit.core.cgroups import Cgroup, cgroup_root
from bpfkit.net.links.netns import NetNS
from tests.running import Running, run

NAME = "cgroup_skb"
BODY = bytes(300_000)

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        pass


class _Dual(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a web server on both IP versions, in a namespace that the test is in."""
    with NetNS.new("skb-test") as space, space.entered(), _Dual(("::", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def attached(group: Cgroup) -> list[str]:
    """The names that bpftool lists."""
    argv = ["bpftool", "-j", "cgroup", "show", group.path]
    out = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    return [row["name"] for row in json.loads(out.strip() or "[]")]


@contextlib.contextmanager
def at_work(group: Cgroup, *args: str) -> Iterator[Running]:
    """The program on a cgroup, once the last of its programs is there."""
    last = "call_sendmsg6" if "--reject" in args else "call_connect6"
    argv = ["--json", "--cgroup", group.path, "--no-demo", *args]
    with Running(NAME, *argv, ready="") as running:
        deadline = time.monotonic() + 30
        while last not in attached(group):
            assert running.process.poll() is None, running.said
            assert time.monotonic() < deadline, running.said
            time.sleep(0.02)
        yield running


def curl(host: str, port: int, *more: str) -> list[str]:
    return ["curl", "-s", "-o", "/dev/null", "-m", "10", *more, f"http://{host}:{port}/"]


def json_rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_reject_tells_curl_at_once(port: int, host: str) -> None:
    command = curl(host, port, "-w", "took %{time_total} s")
    done = run(NAME, "--json", "--reject", f"{host}:{port}", "--", *command)
    assert done.returncode == 7, done.stderr  # curl: failed to connect
    took = done.stderr.partition("took ")[2].partition(" s")[0]
    assert float(took) < 0.9  # an unanswered SYN is sent again after a second
    (event,) = [row for row in json_rows(done.stdout) if row.get("event") == "denied"]
    assert (event["action"], event["dst"], event["dport"], event["comm"]) == (
        "reject",
        host.strip("[]"),
        port,
        "curl",
    )
    assert event["answer"] in ("ECONNREFUSED", "icmp")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_deny_makes_curl_wait(port: int, host: str) -> None:
    command = curl(host, port, "--connect-timeout", "1")
    done = run(NAME, "--json", "--deny", f"{host}:{port}", "--", *command)
    assert done.returncode == 28, done.stderr  # curl: timeout
    hooks = {row["hook"] for row in json_rows(done.stdout) if row.get("event") == "denied"}
    assert hooks == {"egress"}
    assert run(NAME, "--deny", f"{host}:{port + 1}", "--", *command).returncode == 0


def test_an_allow_list_lets_only_its_prefixes_through(port: int) -> None:
    def allowed(host: str) -> int:
        command = curl(host, port, "--connect-timeout", "1")
        return run(NAME, "--allow", "127.0.0.0/24", "--", *command).returncode

    assert [allowed(host) for host in ("127.0.0.1", "127.0.1.1", "[::1]")] == [0, 28, 28]


@pytest.mark.parametrize(("host", "header"), [("127.0.0.1", 52), ("[::1]", 72)])
def test_bytes_are_what_curl_received_and_a_header_for_every_packet(
    port: int, host: str, header: int
) -> None:
    done = run(
        NAME,
        "--json",
        "--",
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{stderr}%{size_download} %{size_header}\n",
        f"http://{host}:{port}/",
    )
    assert done.returncode == 0, done.stderr
    received = sum(map(int, done.stderr.splitlines()[0].split()))
    (row,) = [row for row in json_rows(done.stdout) if row["comm"] == "curl"]
    # IP header, TCP header with time stamps; the SYN-ACK has 8 bytes of options more.  Segments of
    # super-frames are told apart: they have headers of their own.
    assert row["in_bytes"] == received + header * row["in_packets"] + 8
    assert row["in_packets"] >= received // 65483


def test_cgroups_below_have_rows_of_their_own(port: int) -> None:
    with (
        Cgroup.new("skb-test") as outer,
        Cgroup.new("inner", parent=outer.path) as inner,
        at_work(outer) as running,
    ):
        for group in (outer, inner):
            with group.entered():
                assert subprocess.run(curl("127.0.0.1", port), check=False).returncode == 0
        rows = {row["cgroup"]: row for row in running.rows() if row["comm"] == "curl"}
        paths = [group.path[len(cgroup_root()) :] for group in (outer, inner)]
        assert sorted(rows) == sorted(paths)
        assert all(rows[path]["in_bytes"] > len(BODY) for path in paths)


def test_accepted_connections_are_their_listeners(port: int) -> None:
    del port
    script = (
        "import socket; s = socket.create_server(('127.0.0.1', 7009)); c = s.accept()[0]; "
        "c.sendall(bytes(1000)); c.recv(1)"
    )
    with Running(NAME, "--json", "--", sys.executable, "-c", script, ready="") as running:
        deadline = time.monotonic() + 10
        client = None
        while client is None:
            assert time.monotonic() < deadline
            with contextlib.suppress(ConnectionRefusedError):
                client = socket.create_connection(("127.0.0.1", 7009))
        with client:
            assert len(client.recv(1000, socket.MSG_WAITALL)) == 1000
        status, out, _ = running.wait()
        assert status == 0
        (row,) = [row for row in json_rows(out) if row["comm"]]
        assert row["comm"].startswith("python")
        assert row["out_bytes"] > 1000


def test_a_socket_older_than_the_program_has_a_cgroup_and_no_name(port: int) -> None:
    del port
    with Cgroup.new("skb-test") as group:
        with group.entered():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock, at_work(group) as running:
            for _ in range(3):
                sock.sendto(bytes(10), ("127.0.0.1", 9))
            (row,) = running.rows()
        assert row["comm"] is None
        assert row["cgroup"] == group.path[len(cgroup_root()) :]
        assert (row["out_packets"], row["out_bytes"]) == (3, 3 * 38)


def test_rules_end_with_the_program_killed_or_not(port: int) -> None:
    with Cgroup.new("skb-test") as group:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with at_work(group, "--reject", "127.0.0.0/8") as running:
                with group.entered(), socket.socket() as sock:
                    assert sock.connect_ex(("127.0.0.1", port)) != 0
                status, _, _ = running.end(number)
            assert status == (0 if number == signal.SIGTERM else -9)
            deadline = time.monotonic() + 5
            while attached(group):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            with group.entered(), socket.socket() as sock:
                assert sock.connect_ex(("127.0.0.1", port)) == 0


def test_udp_senders_see_eperm_for_deny_and_econnrefused_for_reject(port: int) -> None:
    del port
    script = (
        "import socket\n"
        "for host in '127.0.0.2', '127.0.0.3', '::ffff:127.0.0.3':\n"
        "    kind = socket.AF_INET6 if ':' in host else socket.AF_INET\n"
        "    try: socket.socket(kind, socket.SOCK_DGRAM).sendto(b'', (host, 9))\n"
        "    except OSError as error: print(error.errno, flush=True)\n"
    )
    rules = ["--deny", "127.0.0.2", "--reject", "127.0.0.3:9"]
    done = run(NAME, *rules, "--", sys.executable, "-c", script)
    assert done.stdout.split() == ["1", "111", "111"], done.stderr


@pytest.mark.parametrize("text", ["192.0.2.0/33", "example.com", "[::1", "1.2.3.4:http"])
def test_bad_rules_end_with_status_two_and_no_traceback(text: str) -> None:
    done = run(NAME, "--deny", text, "--", "true")
    assert done.returncode == 2
    assert "is not PREFIX[:PORT]" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_check_verifies_itself_from_anywhere() -> None:
    done = run(NAME, "--check", "--json", cwd="/", env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("cgroup_skb: ")
    assert done.stderr.rstrip().endswith("verified")
