# SPDX-License-Identifier: Apache-2.0
"""sockex3 on several interfaces, by process and by cgroup, judged by the kernel and by /proc."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from running import Row, Running, command, run

from bpfkit.core.cgroups import Cgroup
from bpfkit.core.errors import BpfkitError
from bpfkit.net.links.lab import Lab
from bpfkit.net.links.netns import NetNS
from bpfkit.sockex3.groups import BY, NOT_ATTRIBUTED

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
PATIENCE_S = 60


def watch(*args: str, ns: NetNS | None = None) -> Running:
    return Running("sockex3", "-v", "-t", "30", "--json", *args, ready="attached", ns=ns)


def result(program: Running) -> tuple[list[Row], Row]:
    """(rows, summary) of the last round; they add up."""
    status, out, said = program.end()
    assert status == 0, said
    rows: list[Row] = [json.loads(line) for line in out.splitlines()]
    last = rows[-1]["round"]
    *rows, summary = [row for row in rows if row["round"] == last]
    assert summary["summary"] is True
    for field in ("packets", "bytes"):
        parts = sum(row[field] for row in rows)
        assert (
            parts + summary[f"nonip_{field}"] + summary[f"unattributed_{field}"] == (summary[field])
        )
    return rows, summary


def send(ns: NetNS, count: int, to: str, size: int = 100, port: int = 9) -> None:
    """Datagrams that nobody answers."""
    with ns.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        for _ in range(count):
            sock.sendto(bytes(size), (to, port))


def counters(ns: NetNS, device: str) -> dict[str, int]:
    """The kernel's: rx and tx packets and bytes of a device."""
    shown = json.loads(ns.check_output(["ip", "-s", "-j", "link", "show", device]))[0]["stats64"]
    return {
        f"{way}_{field}": shown[way][field]
        for way in ("rx", "tx")
        for field in ("packets", "bytes")
    }


def growth(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in before}


@pytest.fixture
def bridge() -> Iterator[Lab]:
    """Two stations on a bridge whose host has an address: one:eth0 - a [host:br0] b - two:eth0."""
    with Lab("bridge") as lab:
        for name in ("one", "two", "host"):
            lab.namespace(name)
            lab.sysctl(name, "net.ipv6.conf.all.disable_ipv6", 1)
        lab.veth("one:eth0", "host:a", addresses=(["10.9.0.1/24"], []), offloads=False)
        lab.veth("two:eth0", "host:b", addresses=(["10.9.0.2/24"], []), offloads=False)
        try:
            lab.bridge("host:br0", ["host:a", "host:b"], addresses=["10.9.0.3/24"])
        except BpfkitError as error:
            pytest.skip(str(error))
        for name, address in (("one", "10.9.0.1"), ("two", "10.9.0.2"), ("host", "10.9.0.3")):
            device = f"{name}:br0" if name == "host" else f"{name}:eth0"
            for other in ("one:eth0", "two:eth0", "host:br0"):
                if other != device:
                    lab.neighbour(other, address, lab.lladdr(device))
        lab.ready()
        # The bridge learns where both are, or it would flood the first frames.
        for sender in ("one", "two"):
            send(lab[sender], 1, "10.9.0.3", port=7)
        yield lab


def exchange(lab: Lab) -> int:
    """Frames of known numbers between all three; how many there are."""
    send(lab["one"], 11, "10.9.0.2")  # through the bridge: a, then b
    send(lab["two"], 13, "10.9.0.1")
    send(lab["one"], 17, "10.9.0.3", port=7)  # to the host: a, then br0
    send(lab["host"], 19, "10.9.0.2")  # from the host: br0, then b
    return 11 + 13 + 17 + 19


def held(ns: NetNS, *ports: tuple[str, int]) -> ExitStack:
    """Sockets that take datagrams, so that no ICMP error answers."""
    stack = ExitStack()
    with ns.entered():
        for address, port in ports:
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind((address, port))
    return stack


@pytest.fixture
def quiet_bridge(bridge: Lab) -> Iterator[Lab]:
    with (
        held(bridge["one"], ("10.9.0.1", 9)),
        held(bridge["two"], ("10.9.0.2", 9)),
        held(bridge["host"], ("10.9.0.3", 7)),
    ):
        yield bridge


# ---------------------------------------------------------------- several interfaces


def test_any_counts_a_frame_on_a_bridge_once(quiet_bridge: Lab) -> None:
    host = quiet_bridge["host"]
    before = {name: counters(host, name) for name in ("a", "b", "br0")}
    with watch("-i", "any", ns=host) as program:
        sent = exchange(quiet_bridge)
        rows, summary = result(program)
        said = program.said
    moved = {name: growth(before[name], counters(host, name)) for name in before}
    assert summary["packets"] == sent
    # The kernel counts each on every device that it passes.
    assert moved["a"]["rx_packets"] == 11 + 17
    assert moved["b"]["rx_packets"] == 13
    assert moved["br0"]["tx_packets"] == 19
    assert sum(sum(m[f"{w}_packets"] for w in ("rx", "tx")) for m in moved.values()) > sent
    where: dict[str, list[int]] = {}
    for row in rows:
        one = where.setdefault(row["interface"], [0, 0])
        one[0] += row["packets"]
        one[1] += row["bytes"]
    expected = {
        "a": [moved["a"]["rx_packets"], moved["a"]["rx_bytes"]],
        "b": [moved["b"]["rx_packets"], moved["b"]["rx_bytes"]],
        "br0": [moved["br0"]["tx_packets"], moved["br0"]["tx_bytes"]],
    }
    # A device counts what it receives from the Ethernet header on, a bridge what it sends too.
    assert where == expected
    assert "counted once" in said


@pytest.mark.parametrize(
    ("given", "sees"),
    [
        (["a", "b"], 11 + 13 + 17 + 19),  # the ports see everything
        (["a", "br0"], 11 + 13 + 17 + 19),  # and so do one port and what the host sends
        (["br0", "b"], 11 + 13 + 19),  # not what comes in on a for the host, which is said
        (["a"], 11 + 13 + 17),
        (["br0"], 17 + 19),
    ],
)
def test_named_interfaces_count_no_frame_twice(
    given: list[str], sees: int, quiet_bridge: Lab
) -> None:
    options = [word for name in given for word in ("-i", name)]
    with watch(*options, ns=quiet_bridge["host"]) as program:
        exchange(quiet_bridge)
        rows, summary = result(program)
        said = program.said
    assert summary["packets"] == sees, rows
    assert ("interface" in rows[0]) == (len(given) > 1)
    assert ("for the host are not counted" in said) == (set(given) in ({"a", "br0"}, {"b", "br0"}))


def test_by_interface_agrees_with_the_counters_of_each(quiet_bridge: Lab) -> None:
    """Interfaces that share no frames: every frame of each is counted."""
    lab = quiet_bridge
    lab.veth("one:x", "two:x", addresses=(["10.8.0.1/24"], ["10.8.0.2/24"]), offloads=False)
    lab.neighbours("one:x", "two:x")
    lab.ready()
    one = lab["one"]
    before = {name: counters(one, name) for name in ("eth0", "x", "lo")}
    with held(lab["two"], ("10.8.0.2", 9)), held(one, ("127.0.0.1", 9)):
        with watch("-i", "any", "--by", "interface", ns=one) as program:
            exchange(lab)
            send(one, 23, "10.8.0.2")
            send(one, 29, "127.0.0.1")
            rows, _ = result(program)
    moved = {name: growth(before[name], counters(one, name)) for name in before}
    found = {row["interface"]: row["packets"] for row in rows}
    assert found == {
        "eth0": moved["eth0"]["rx_packets"] + moved["eth0"]["tx_packets"],
        "x": moved["x"]["rx_packets"] + moved["x"]["tx_packets"],
        "lo": moved["lo"]["tx_packets"],  # each frame of lo is sent and received
    }
    assert (found["x"], found["lo"]) == (23, 29)


def test_any_follows_interfaces_that_come_and_go(bridge: Lab) -> None:
    host = bridge["host"]
    with watch("-i", "any", ns=host) as program:
        bridge.veth("host:new", "one:new", addresses=(["10.7.0.1/24"], []), offloads=False)
        bridge.interface("one:new").set_up()
        bridge.neighbour("host:new", "10.7.0.9", "02:00:00:00:00:09")
        bridge.ready()
        assert program.wait_for("interface new appeared", PATIENCE_S)
        send(host, 31, "10.7.0.9")
        host.check_output(["ip", "link", "del", "dev", "new"])
        assert program.wait_for("interface new was removed; its figures stay", PATIENCE_S)
        assert program.process.poll() is None
        rows, _ = result(program)
    assert [row["packets"] for row in rows if row["interface"] == "new"] == [31]


def test_the_end_of_all_named_interfaces_is_the_end(bridge: Lab) -> None:
    host = bridge["host"]
    with watch("-i", "a", "-i", "b", ns=host) as program:
        host.check_output(["ip", "link", "del", "dev", "a"])
        assert program.wait_for("interface a was removed; its figures stay", PATIENCE_S)
        assert program.process.poll() is None
        host.check_output(["ip", "link", "del", "dev", "b"])
        assert program.process.wait(PATIENCE_S) == 1
        assert program.wait_for("all interfaces were removed")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-i", "lo", "-i", "nope"], "no network interface named 'nope'"),
        (["-i", "lo", "-i", "lo"], "given twice"),
        (["-i", "any", "-i", "lo"], "-i any is all interfaces"),
        (["-i", "lo", "-i", "any", "--check"], "-i any is all interfaces"),
        (["-i", "any", "--check"], "--check takes one interface"),
        (["--by", "nonsense"], "--by"),
        (["--by", "host", "--sort", "sport"], "--sort sport needs --by flow"),
        (["--pcap", "x", "--by", "process"], "--pcap and --by process"),
        (["--pcap", "x", "-i", "any"], "--pcap and --interface"),
        (["--idle", "0"], "--idle"),
    ],
)
def test_bad_usage(arguments: list[str], says: str) -> None:
    done = run("sockex3", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert 1 <= len(done.stderr.splitlines()) <= 2


# ---------------------------------------------------------------- whose


TALK = """
import socket, sys, time
kind, address, port = sys.argv[1:4]
sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
if kind == "udp":
    for _ in iter(int, 1):
        sock.sendto(bytes(500), (address, int(port)))
        time.sleep(0.02)
sock.connect((address, int(port)))
for _ in iter(int, 1):
    sock.sendall(bytes(5000))
    time.sleep(0.02)
"""
LISTEN = """
import socket, sys
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
peer, _ = server.accept()
while peer.recv(65536):
    pass
"""


@contextmanager
def script(
    ns: NetNS, text: str, *args: str, ready: bool = False
) -> Iterator[subprocess.Popen[Any]]:
    argv = [sys.executable, "-c", text, *args]
    process = ns.popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        if ready:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def rows_until(program: Running, enough: set[Any], field: str) -> dict[Any, Row]:
    """The rows of one round, by a field, as soon as there are all of those."""
    rows: dict[Any, Row] = {}
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        row = program.row(lambda row: True, PATIENCE_S)
        if row.get("summary"):
            if enough <= set(rows):
                assert (
                    sum(r["bytes"] for r in rows.values())
                    + row["nonip_bytes"]
                    + row["unattributed_bytes"]
                    == (row["bytes"])
                )
                return rows
            rows = {}
        else:
            rows[row[field]] = row
    raise AssertionError(f"{enough} not among {rows}: {program.said}")


@pytest.mark.parametrize("how", ["iterator", "sock_diag"])
def test_packets_belong_to_the_process_that_ss_names(how: str, bridge: Lab) -> None:
    """Watched on the bridge; a server in one namespace, clients in another and on the host."""
    two, host = bridge["two"], bridge["host"]
    options = ["-v", "-t", "0.5", "--json", "-i", "any", "--by", "process"]
    with (
        script(two, LISTEN, "5201", ready=True) as server,
        script(bridge["one"], TALK, "tcp", "10.9.0.2", "5201") as client,
        script(host, TALK, "udp", "10.9.0.2", "5300") as local,
    ):
        argv = command("sockex3", *options)
        if how == "sock_diag":  # in a PID namespace the iterator's numbers mean nothing
            argv = ["unshare", "--pid", "--fork", "--kill-child", *argv]
        with Program(argv, host) as program:
            assert program.wait_for("processes are found by", PATIENCE_S)
            assert f"found by {how}" in program.said
            # None: what the server's host answers to datagrams, which has no ports (ICMP).
            found = rows_until(program, {server.pid, client.pid, local.pid, None}, "pid")
            shown = two.check_output(["ss", "-Htnp", "state", "established"])
            assert f"pid={server.pid}," in str(shown)
            assert found[client.pid]["process"] == Path(f"/proc/{client.pid}/comm").read_text()[:-1]
            assert found[client.pid]["bytes"] > found[server.pid]["bytes"] > 0
            assert found[None]["process"] == NOT_ATTRIBUTED


class Program(Running):
    """A program started by an argv of its own."""

    def __init__(self, argv: list[str], ns: NetNS) -> None:
        self._argv = argv
        super().__init__("", ready="", ns=_Starts(ns, argv))


class _Starts:
    def __init__(self, ns: NetNS, argv: list[str]) -> None:
        self._ns, self._argv = ns, argv

    def popen(self, _: object, **options: Any) -> subprocess.Popen[Any]:
        return self._ns.popen(self._argv, **options)


def test_packets_belong_to_the_cgroup_that_proc_names(bridge: Lab) -> None:
    try:
        group = Cgroup.new("sockex3")
    except BpfkitError as error:
        pytest.skip(str(error))
    with group, script(bridge["two"], LISTEN, "5201", ready=True):
        with script(bridge["one"], TALK, "tcp", "10.9.0.2", "5201") as client:
            group.add(client.pid)
            lines = Path(f"/proc/{client.pid}/cgroup").read_text().splitlines()
            (path,) = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
            options = ["-t", "0.5", "-i", "any", "--by", "cgroup", "--json"]
            with Running("sockex3", *options, ready="", ns=bridge["host"]) as program:
                found = rows_until(program, {path}, "cgroup")
                assert found[path]["bytes"] > 0


@pytest.mark.parametrize("by", BY)
def test_sums_of_every_by_are_those_of_the_kernel(by: str, quiet_bridge: Lab) -> None:
    one = quiet_bridge["one"]
    before = counters(one, "eth0")
    with watch("-i", "eth0", "--by", by, "--max-flows", "3", ns=one) as program:
        exchange(quiet_bridge)
        for port in range(9000, 9004):  # more flows than the table has room for
            send(one, 2, "10.9.0.3", port=port)
        # The host answers with ICMP; it limits how often, so the interface says how many there are.
        rows, summary = result(program)
    moved = growth(before, counters(one, "eth0"))
    assert summary["packets"] == moved["rx_packets"] + moved["tx_packets"]
    assert summary["bytes"] == moved["rx_bytes"] + moved["tx_bytes"]
    assert summary["unattributed_packets"] > 0
    assert rows


# ---------------------------------------------------------------- names, the view


def test_names_come_from_the_system_and_addresses_stay(tmp_path: Path, bridge: Lab) -> None:
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n10.9.0.2 printer.example\n")
    argv = command("sockex3", "-t", "0.3", "--json", "-i", "eth0", "--resolve", "--proto", "udp")
    inner = f'mount --bind {hosts} /etc/hosts && exec "$@"'
    with Program(["unshare", "-m", "sh", "-c", inner, "sh", *argv], bridge["one"]) as program:
        with script(bridge["one"], TALK, "udp", "10.9.0.2", "9"):
            row = program.row(lambda row: bool(row.get("dst_name")), PATIENCE_S)
    assert (row["dst"], row["dst_name"]) == ("10.9.0.2", "printer.example")
    assert row["src_name"] is None or row["src_name"] != row["src"]


def test_idle_rows_leave_the_view_and_stay_in_the_sums(bridge: Lab) -> None:
    one = bridge["one"]
    master, slave = pty.openpty()
    argv = command("sockex3", "-t", "0.2", "-i", "eth0", "--idle", "1", "--proto", "udp")
    process = one.popen(argv, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""

    def screen_with(text: bytes, without: bytes = b"\0") -> bytes:
        """The screen's last frame, as soon as it shows the one and not the other."""
        nonlocal seen
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            frame = seen.rpartition(b"\x1b[J")[2]
            if text in frame and without not in frame and b"total" in frame:
                return frame
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 65536)
        raise AssertionError(seen[-2000:])

    try:
        with script(one, TALK, "udp", "10.9.0.2", "9"):
            screen_with(b"10.9.0.2.9")
        frame = screen_with(b"idle for 1 s, not shown", without=b"10.9.0.2.9")
        assert b"total 0 B" not in frame
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)
    finally:
        process.kill()
        process.wait()
        os.close(master)
