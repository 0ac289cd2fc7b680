# SPDX-License-Identifier: Apache-2.0
"""tcp_cc: the algorithm at work on real connections, its registration and what is left of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import ROOT, Running, run

from bpfkit.net.links.netns import NetNS
from bpfkit.net.traffic.tcp import tcp_info

AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


def listed(name: str) -> bool:
    return name in AVAILABLE.read_text().split()


def until(true: Callable[[], bool], timeout: float = 10) -> bool:
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def place() -> Iterator[NetNS]:
    with_lo = NetNS.new("tcp-cc")
    yield with_lo
    with_lo.close()


def chosen(sock: socket.socket) -> str:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_iperf3_as_a_command_uses_the_algorithm(place: NetNS, host: str) -> None:
    if shutil.which("iperf3") is None:
        pytest.skip("iperf3 is not installed")
    server = place.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        words = ("--name", "f_iperf", "--", "iperf3", "-c", host, "-t", "1", "-J")
        with place.entered():
            done = run("tcp_cc", *words, timeout=20)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["end"]["sender_tcp_congestion"] == "f_iperf"
        assert report["end"]["sum_received"]["bytes"] > 1_000_000
        assert f"[{host}]:5201" in done.stderr or f"{host}:5201" in done.stderr
        assert server.wait(10) == 0
    finally:
        server.kill()
        server.wait()
    assert until(lambda: not listed("f_iperf"))


def test_a_connection_keeps_the_algorithm_after_kill_9_and_the_name_is_gone(place: NetNS) -> None:
    with Running("tcp_cc", "--name", "f_kill", "--no-demo", ready="is registered") as program:
        assert listed("f_kill")
        with place.entered():
            server = socket.create_server(("127.0.0.1", 0))
            client = socket.socket()
        with server, client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"f_kill")
            client.connect(server.getsockname())
            peer = server.accept()[0]
            with peer:
                program.process.kill()
                program.process.wait()
                assert until(lambda: not listed("f_kill"))
                assert chosen(client) == "f_kill"
                client.sendall(bytes(200_000))
                got = 0
                while got < 200_000:
                    got += len(peer.recv(1 << 16))
                assert tcp_info(client).bytes_acked >= 200_000
            with socket.socket() as late, pytest.raises(OSError) as refused:
                late.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"f_kill")
            assert refused.value.errno == errno.ENOENT


def test_a_connection_that_is_under_way_may_change_to_it_and_back(place: NetNS) -> None:
    def opened(row: dict[str, object]) -> bool:
        return row.get("dport") == port and bool(row["open"])

    with place.entered():
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
        client = socket.create_connection(server.getsockname()[:2])
    port = server.getsockname()[1]
    words = ("--name", "f_change", "--no-demo", "--json", "-t", "0.1")
    with server, client, Running("tcp_cc", *words, ready="is registered") as program:
        before = chosen(client)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"f_change")
        row = program.row(opened)
        assert (row["src"], row["sport"]) == ("::1", client.getsockname()[1])
        assert row["cwnd"] == tcp_info(client).snd_cwnd
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, before.encode())
        program.row(lambda row: row.get("dport") == port and not row["open"])


def test_a_second_copy_is_refused_in_two_lines() -> None:
    with Running("tcp_cc", "--name", "f_twice", "--no-demo", ready="is registered"):
        done = run("tcp_cc", "--name", "f_twice", "--no-demo", "-c", "1")
        assert (done.returncode, done.stdout) == (1, "")
        assert "the kernel has one of this name [EEXIST" in done.stderr
        assert "--name" in done.stderr
        assert len(done.stderr.splitlines()) == 2
        assert listed("f_twice")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--against", "nope"], "no congestion control 'nope' in this kernel: there are "),
        (["--name", "sixteen_letters_"], "is no name (1 to 15"),
        (["--name", ""], "is no name"),
        (["--decrease", "0"], "is not a percentage"),
        (["--increase", "1001"], "1000 is the most"),
        (["--no-demo", "--against", "reno"], "--against is for the demo"),
        (["--check", "--", "true"], "do not go together"),
    ],
)
def test_bad_input_is_status_2(words: list[str], text: str) -> None:
    done = run("tcp_cc", *words)
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_other_steps_are_verified_too() -> None:
    """TCP_INFO shows the share that --decrease takes off, at another --increase."""
    done = run("tcp_cc", "--check", "--name", "f_steps", "--decrease", "25", "--increase", "2")
    assert done.returncode == 0, done.stderr
    assert "losses took 25 % off cwnd" in done.stdout


def test_each_change_is_an_event() -> None:
    done = run("tcp_cc", "--name", "f_series", "--series", "--json", "-c", "1")
    assert done.returncode == 0, done.stderr
    events = [row for row in map(json.loads, done.stdout.splitlines()) if "event" in row]
    assert len(events) > 50
    assert {"cwnd"} == {event["event"] for event in events}
    assert events[0]["cwnd"] == 10, "RFC 6928"
    assert events[0]["ssthresh"] is None
    assert {"open", "recovery"} <= {event["state"] for event in events}
    assert abs(events[-1]["ts"] - time.time()) < 60


#: Registers as on a kernel before 6.4: maps with BPF_F_LINK are refused.
OLD_KERNEL = """
import errno, os, signal, sys
import bpfkit
from bpfkit.core.kernel import syscall

create = syscall.map_create
def refuse(kind, key, value, entries, flags=0, *rest, **more):
    if flags & 1 << 13:
        raise OSError(errno.EINVAL, "no BPF_F_LINK")
    return create(kind, key, value, entries, flags, *rest, **more)
syscall.map_create = refuse
obj = bpfkit.load("sock/tcp_cc.bpf.c")
link = obj.attach_struct_ops("tcp_congestion_ops", name=sys.argv[1])
assert link.fd < 0 and link.is_attached()
print("registered", flush=True)
sys.stdin.readline()
link.close()
print("closed", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    where = tmp_path / "records"
    monkeypatch.setenv("BPFKIT_RUN", str(where))
    return where


def old_kernel(name: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OLD_KERNEL, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "registered\n"
    return process


def test_without_links_closing_unregisters_and_removes_the_record(records: Path) -> None:
    process = old_kernel("f_old_close")
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert listed("f_old_close")
        assert len(list(records.iterdir())) == 1
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "closed\n"
        assert not listed("f_old_close")
        assert list(records.iterdir()) == []
        process.kill()


def test_without_links_clean_removes_what_kill_9_left(records: Path) -> None:
    process = old_kernel("f_old_kill")
    with process:
        process.kill()
        process.wait()
    time.sleep(0.2)
    assert listed("f_old_kill"), "without a link the registration outlives the process"
    clean = [sys.executable, "-m", "bpfkit", "clean"]
    done = subprocess.run(clean, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "f_old_kill" in done.stdout + done.stderr
    assert until(lambda: not listed("f_old_kill"))
    assert list(records.iterdir()) == []


def test_the_undo_leaves_the_maps_of_others_alone() -> None:
    """Map ids are used again: a record may name the id of somebody else's map."""
    from bpfkit.core.attach.struct_ops import undo_struct_ops
    from bpfkit.core.kernel import syscall

    with Running("tcp_cc", "--name", "f_mine", "--no-demo", ready="is registered"):
        number: int | None = 0
        ours = []
        while (number := syscall.next_id(syscall.MAP_GET_NEXT_ID, number or 0)) is not None:
            try:
                fd = syscall.map_get_fd_by_id(number)
            except FileNotFoundError:
                continue  # gone meanwhile
            try:
                info = syscall.map_info(fd)
            finally:
                os.close(fd)
            if info["name"] == "f_mine":
                ours.append(number)
        assert len(ours) == 1
        undo_struct_ops({"name": "f_other", "map": ours[0]})
        assert listed("f_mine")
        undo_struct_ops({"name": "f_other", "map": (1 << 31) - 1})  # no such map


def test_sigterm_prints_the_last_figures() -> None:
    with Running(
        "tcp_cc", "--name", "f_term", "--json", "-t", "60", ready="expect a saw"
    ) as program:
        time.sleep(1.0)
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(10) == 0
        row = program.row(lambda row: "cwnd" in row)
        assert row["max_cwnd"] > 10
    assert until(lambda: not listed("f_term"))
