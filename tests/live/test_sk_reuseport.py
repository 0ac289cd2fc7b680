# SPDX-License-Identifier: Apache-2.0
"""sk_reuseport on the groups of other processes: choice, restarts, what is left behind."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Running, path_of, run

from bpfkit.app.lifecycle import main
from bpfkit.net.links.netns import NetNS
from bpfkit.sk_reuseport import program

SERVER = """
import os, socket, sys
kind = socket.SOCK_DGRAM if sys.argv[2] == "udp" else socket.SOCK_STREAM
sock = socket.socket(socket.AF_INET, kind)
if sys.argv[3] == "shared":
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
sock.bind(("127.0.0.1", int(sys.argv[1])))
if kind == socket.SOCK_STREAM:
    sock.listen(1000)
print("ready", flush=True)
while True:
    if kind == socket.SOCK_DGRAM:
        _, sender = sock.recvfrom(100)
        sock.sendto(str(os.getpid()).encode(), sender)
    else:
        peer, _ = sock.accept()
        peer.sendall(str(os.getpid()).encode())
        peer.close()
"""


@pytest.fixture
def ns() -> Iterator[NetNS]:
    with NetNS.new("reuseport") as namespace:
        yield namespace


class Servers:
    """Server processes in a namespace, killed at the end."""

    def __init__(self, ns: NetNS) -> None:
        self.ns = ns
        self.all: list[subprocess.Popen[str]] = []

    def start(self, port: int, proto: str = "tcp", shared: str = "shared") -> int:
        process = self.ns.popen(
            [sys.executable, "-c", SERVER, str(port), proto, shared],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.all.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return int(process.pid)

    def close(self) -> None:
        for process in self.all:
            process.kill()
            process.communicate()


@pytest.fixture
def servers(ns: NetNS) -> Iterator[Servers]:
    found = Servers(ns)
    yield found
    found.close()


def who(ns: NetNS, port: int, count: int) -> list[int]:
    """The pids that answered so many TCP connections."""

    def connect() -> list[int]:
        pids = []
        for _ in range(count):
            with socket.create_connection(("127.0.0.1", port), 5) as client:
                pids.append(int(client.recv(20)))
        return pids

    return ns.run(connect)


def serving(ns: NetNS, *words: str) -> Running:
    return Running(
        "sk_reuseport", "--netns", path_of(ns), "--json", "-t", "0.2", *words,
        ready=lambda row: "worker" in row,
    )  # fmt: skip


def test_all_members_of_a_group_get_connections_and_each_is_counted(
    ns: NetNS, servers: Servers
) -> None:
    pids = {servers.start(8080) for _ in range(4)}
    with serving(ns, "--port", "8080") as program:
        answered = who(ns, 8080, 400)
        assert set(answered) == pids
        counted = {pid: answered.count(pid) for pid in pids}

        def complete(row: dict[str, object]) -> bool:
            return row["pid"] in pids and row["selected"] == counted[row["pid"]]  # type: ignore[index]

        for pid in pids:
            program.row(lambda row, pid=pid: row["pid"] == pid and complete(row))  # type: ignore[misc]


def test_a_worker_that_joins_later_gets_its_share_and_one_that_leaves_none(
    ns: NetNS, servers: Servers
) -> None:
    first = servers.start(8081)
    with serving(ns, "--port", "8081", "--how", "hash") as program:
        assert set(who(ns, 8081, 20)) == {first}
        second = servers.start(8081)
        program.row(lambda row: row["pid"] == second)
        assert set(who(ns, 8081, 100)) == {first, second}
        servers.all[0].kill()
        servers.all[0].wait()
        assert set(who(ns, 8081, 50)) == {second}


def test_content_chooses_the_worker_of_a_datagram(ns: NetNS, servers: Servers) -> None:
    pids = [servers.start(5353, "udp") for _ in range(3)]

    def ask(number: int) -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(3)
            client.sendto(b"QUIC" + bytes([number]) + b"payload", ("127.0.0.1", 5353))
            return int(client.recv(20))

    with serving(ns, "--port", "5353", "--how", "content", "--content-at", "4"):
        for number in (1, 2, 3, 3, 2, 1):
            assert ns.run(ask, number) == pids[number - 1]
        assert ns.run(ask, 77) in pids  # no such worker: by the hash


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_workers_share_by_the_program_and_serve_curl(ns: NetNS, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("from nginx\n")
    conf = tmp_path / "nginx.conf"
    conf.write_text(
        f"user root; worker_processes 3; pid {tmp_path}/pid; error_log {tmp_path}/log;\n"
        "events {}\n"
        f"daemon off; http {{ access_log off; server {{ listen 127.0.0.1:8082 reuseport; "
        f"root {tmp_path}; }} }}\n"
    )
    nginx = ns.popen(["nginx", "-c", str(conf), "-p", str(tmp_path)], stderr=subprocess.PIPE)
    try:
        for _ in range(100):
            if ns.run(lambda: socket.socket().connect_ex(("127.0.0.1", 8082))) == 0:
                break
            time.sleep(0.05)
        with serving(ns, "--port", "8082") as program:
            for _ in range(30):
                text = ns.check_output(["curl", "-s", "http://127.0.0.1:8082/"])
                assert text == "from nginx\n"
            seen: dict[int, int] = {}

            def all_counted(row: dict[str, object]) -> bool:
                if row.get("worker"):
                    seen[int(str(row["worker"]))] = int(str(row["selected"]))
                return sum(seen.values()) == 30

            program.row(all_counted)
            assert len(seen) == 3
    finally:
        nginx.terminate()
        nginx.communicate(timeout=20)


def attached_programs() -> list[dict[str, object]]:
    """The kernel's sk_reuseport programs, by bpftool."""
    out = subprocess.run(["bpftool", "-j", "prog"], capture_output=True, text=True, check=True)
    return [prog for prog in json.loads(out.stdout) if prog["type"] == "sk_reuseport"]


@pytest.mark.skipif(shutil.which("bpftool") is None, reason="bpftool is not installed")
def test_after_kill_9_the_next_start_takes_the_program_off_the_group(
    ns: NetNS, servers: Servers
) -> None:
    """The group holds the program; without the record it would choose for ever."""
    pids = {servers.start(8083) for _ in range(2)}
    before = len(attached_programs())
    with serving(ns, "--port", "8083") as program:
        assert len(attached_programs()) == before + 1
        program.process.send_signal(signal.SIGKILL)
        program.process.wait()
    assert len(attached_programs()) == before + 1
    done = subprocess.run(
        [sys.executable, "-m", "bpfkit", "clean"], capture_output=True, text=True, check=True
    )
    assert "reuseport" in done.stdout + done.stderr
    deadline = time.monotonic() + 5
    while len(attached_programs()) > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(attached_programs()) == before
    assert set(who(ns, 8083, 60)) == pids


def test_the_end_takes_the_program_off_and_servers_go_on(ns: NetNS, servers: Servers) -> None:
    pids = {servers.start(8084) for _ in range(2)}
    with serving(ns, "--port", "8084"):
        pass
    assert set(who(ns, 8084, 60)) == pids


def test_bad_input_is_named(ns: NetNS, servers: Servers) -> None:
    servers.start(8085, "tcp", "alone")
    for words, status, text in (
        (["--port", "8099"], 2, "nobody listens on port 8099"),
        (["--port", "8085"], 2, "bound without SO_REUSEPORT"),
        (["--port", "8085", "--pid", "999999999"], 2, "no process 999999999"),
        (["--port", "70000"], 2, "is not a port"),
    ):
        done = run("sk_reuseport", "--netns", path_of(ns), *words, "-c", "1")
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert text in done.stderr
        assert len(done.stderr.splitlines()) <= 3
    assert run("sk_reuseport", "--pid", "1").returncode == 2


def test_where_the_kernel_wakes_nobody_for_a_moved_connection_the_workers_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Linux 6.18.15, for one."""
    monkeypatch.setattr(program, "wakes_on_migration", lambda: False)
    assert main(program.SkReuseport, ["--check"]) == 0
    said = capsys.readouterr()
    assert "the demo's workers look every 50 ms" in said.err
    assert re.search(r"2 restarts: \d+ connections waited, 0 lost", said.out)
