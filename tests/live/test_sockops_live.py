# SPDX-License-Identifier: Apache-2.0
"""sockops on real sockets; its judges are TCP_INFO, the kernel's counters, getsockopt, errnos."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, Running, command, run

import bpfkit
from bpfkit.core.cgroups import Cgroup
from bpfkit.core.features.kfuncs import has_kfunc
from bpfkit.net.links.interfaces import Interface
from bpfkit.net.links.netns import NetNS

sys.path.insert(0, str(ROOT / "tools" / "bench"))
from tcp_destroy import DestroyedSockets

Row = dict[str, Any]
SAME = {
    "bytes_sent": "bytes_sent",
    "bytes_received": "bytes_received",
    "segs_out": "segs_out",
    "segs_in": "segs_in",
    "retransmits": "total_retrans",
}
FIELDS = [
    "event",
    "src",
    "sport",
    "dst",
    "dport",
    *SAME,
    "duration_s",
    "pid",
    "comm",
]
LISTEN = 10
ESTABLISHED, CLOSE = 0, 6  # enum kind of the C side

#: Connections that end in every way: by a FIN of either side, by a RST, with unread data.
ENDINGS = """
import socket, struct
for host in ("127.0.0.1", "::1"):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.bind((host, 0))
    listener.listen(200)
    for i in range(150):
        client = socket.socket(family)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        client.sendall(bytes(i * 50 + 1))
        if i % 5 != 1:
            server.recv(1 << 20)
        server.sendall(bytes(77))
        if i % 5 != 2:
            client.recv(1000)
        if i % 5 == 3:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if i % 5 == 4:
            client.shutdown(socket.SHUT_WR)
        first, second = (client, server) if i % 2 else (server, client)
        first.close()
        second.close()
"""

#: An echo of N messages to a listener of its own: HOST, MESSAGES, SIZE.
ECHO = """
import socket, sys, threading
host, messages, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
listener = socket.socket(family)
listener.bind((host, 0))
listener.listen(5)
def take(sock):
    left = size
    while left:
        data = sock.recv(left)
        assert data
        left -= len(data)
def serve():
    server, _ = listener.accept()
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with server:
        for _ in range(messages):
            take(server)
            server.sendall(bytes(size))
        server.recv(1)
thread = threading.Thread(target=serve, daemon=True)
thread.start()
with socket.create_connection(listener.getsockname()[:2]) as client:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(messages):
        client.sendall(bytes(size))
        take(client)
thread.join()
"""


@pytest.fixture
def ns() -> Iterator[NetNS]:
    """A private network namespace; this thread is in it, and so are its children."""
    with NetNS.new("test") as made, made.entered():
        yield made


@pytest.fixture
def group() -> Iterator[Cgroup]:
    with Cgroup.new("test") as made:
        yield made


def python(code: str, *args: str) -> list[str]:
    return ["/usr/bin/python3", "-c", code, *args]


def events_of(text: str) -> list[Row]:
    return [row for row in map(json.loads, text.splitlines()) if "event" in row]


def observed(*args: str, status: int = 0) -> list[Row]:
    """The events of a run with ``-- COMMAND``."""
    done = run("sockops", "--json", *args, timeout=40)
    assert done.returncode == status, done.stderr
    return events_of(done.stdout)


def of(events: list[Row], kind: str) -> list[Row]:
    return [event for event in events if event["event"] == kind]


def ends(event: Row) -> tuple[str, int, str, int]:
    return event["src"], event["sport"], event["dst"], event["dport"]


def counter(name: str) -> int:
    """A counter of this namespace's /proc/net/netstat or snmp: ``TcpExt.TCPTimeouts``."""
    group, _, field = name.partition(".")
    for path in ("netstat", "snmp"):
        lines = Path(f"/proc/thread-self/net/{path}").read_text().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            if names.startswith(f"{group}:") and field in names.split():
                return int(values.split()[names.split().index(field)])
    raise LookupError(name)


@pytest.fixture
def loss(request: pytest.FixtureRequest, ns: NetNS) -> Iterator[Any]:
    """The demo's loss on lo; the parameter says which data segments get lost (every n-th)."""
    every = getattr(request, "param", 0)
    with bpfkit.load("sock/sockops_loss.bpf.c", consts={"every": every}) as loaded:
        loaded.programs["sockops_loss"].attach_tc(Interface.find("lo").index, "ingress")
        yield loaded


# -- the close event ------------------------------------------------------------------------------


def assert_equal_tcp_info(events: list[Row], truth: list[tuple[Any, Any]]) -> int:
    """Every socket that the kernel freed has one close event with the same counters."""
    closes = of(events, "close")
    known: dict[Any, Counter[tuple[int, ...]]] = {}
    count = 0
    for key, info in truth:
        # A socket that was disconnected (SO_LINGER 0) has neither addresses nor counters any more.
        if info.state != LISTEN and key[3]:
            values = tuple(getattr(info, name) for name in SAME.values())
            known.setdefault(key, Counter())[values] += 1
            count += 1
    told: dict[Any, Counter[tuple[int, ...]]] = {}
    for event in closes:
        told.setdefault(ends(event), Counter())[tuple(event[name] for name in SAME)] += 1
    for key, values in known.items():
        assert told[key] == values, key
    return count


def test_close_events_equal_tcp_info_whatever_ends_the_connection(ns: NetNS) -> None:
    judge = DestroyedSockets()
    try:
        events = observed("--", *python(ENDINGS))
        time.sleep(0.1)
        truth = judge.read()
    finally:
        judge.close()
    closes = of(events, "close")
    assert len(closes) == 600
    assert max(Counter(map(ends, closes)).values()) == 1
    # 2 hosts × 30 clients end by SO_LINGER 0; the kernel clears their counters with the RST.
    assert assert_equal_tcp_info(events, truth) == 540
    assert {e["error"] for e in closes} == {None, "ECONNRESET"}
    assert not of(events, "lost")


@pytest.mark.parametrize("loss", [23], indirect=True)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_retransmissions_equal_tcp_info_and_the_namespaces_counters(loss: Any, host: str) -> None:
    judge = DestroyedSockets()
    try:
        events = observed("--", *python(ECHO, host, "60", "30000"))
        truth = judge.read()
    finally:
        judge.close()
    assert assert_equal_tcp_info(events, truth) == 2
    closes, again = of(events, "close"), of(events, "retransmit")
    total = counter("Tcp.RetransSegs")
    assert total > 0 and loss["dropped"][2] > 0
    assert sum(event["retransmits"] for event in closes) == total
    assert sum(event["segments"] for event in again) == total
    causes: Counter[str] = Counter()
    for event in again:
        causes[event["cause"]] += event["segments"]
    for event in closes:
        causes.subtract(event["causes"])
    assert not any(causes.values()), "events and the close event's sums differ"


def test_causes_are_those_that_the_kernel_counts(loss: Any) -> None:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    loss["plans"][0] = (0, 1)  # the first SYN
    loss["plans"][1] = (0, 1)  # the first SYN-ACK
    loss["plans"][2] = (0, 2)  # the first data segment and its probe
    events = observed(
        "--set", "127.0.0.0/8:initial_rto=100ms", "--", *python(ECHO, "127.0.0.1", "1", "100")
    )
    server.close()
    causes: Counter[str] = Counter()
    for event in of(events, "close"):
        causes.update(event["causes"])
    assert causes["syn"] + causes["syn_ack"] >= 2
    assert causes["syn"] + causes["syn_ack"] == counter("TcpExt.TCPSynRetrans")
    assert causes["probe"] == counter("TcpExt.TCPLossProbes") == 1
    assert causes["fast"] == counter("TcpExt.TCPFastRetrans") == 0
    assert causes["rto"] == 1 and counter("TcpExt.TCPTimeouts") >= 1


def test_the_close_event_has_the_fields_that_scripts_rely_on(ns: NetNS) -> None:
    events = observed("--", *python(ECHO, "127.0.0.1", "3", "1000"))
    closes = of(events, "close")
    assert len(closes) == 2
    for event in closes:
        assert [name for name in event if name not in ("ts", "round")][: len(FIELDS)] == FIELDS
        assert event["comm"] == "python3"
        assert event["bytes_sent"] == 3000
        # TCP counts a FIN as a byte.
        assert event["bytes_received"] in (3000, 3001)
        assert 0 < event["duration_s"] < 5
        assert 0 < event["rtt_min_ms"] <= event["srtt_ms"] <= event["rtt_max_ms"] < 1000
        assert event["rtt_samples"] >= 3
        assert 0 < event["handshake_ms"] < 1000
    assert closes[0]["pid"] == closes[1]["pid"]
    assert {event["side"] for event in closes} == {"active", "passive"}


def test_a_socket_that_connects_twice_has_two_close_events(ns: NetNS) -> None:
    code = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
client = socket.socket()
for size in (10, 20):
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    client.sendall(bytes(size))
    server.recv(100)
    server.close()
    client.recv(1)
    import ctypes
    ctypes.CDLL(None).connect(client.fileno(), bytes(16), 16)  # AF_UNSPEC: disconnect
"""
    closes = [e for e in of(observed("--", *python(code)), "close") if e["side"] == "active"]
    assert [event["bytes_sent"] for event in closes] == [10, 20]


def test_a_failed_connect_has_its_errno_and_no_close_event(ns: NetNS) -> None:
    code = """
import socket
for host in ("127.0.0.1", "::1"):
    client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    assert client.connect_ex((host, 1)) == 111
"""
    events = observed("--", *python(code))
    assert [e["event"] for e in events] == ["failed", "failed"]
    assert [e["error"] for e in events] == ["ECONNREFUSED", "ECONNREFUSED"]
    assert [e["dst"] for e in events] == ["127.0.0.1", "::1"]


def test_states_are_shown_when_asked_for(ns: NetNS) -> None:
    events = observed("--events", "state", "--", *python(ECHO, "127.0.0.1", "1", "10"))
    assert {event["event"] for event in events} == {"state"}
    seen = {(e["side"], e["old"], e["new"]) for e in events}
    assert ("active", "SYN_SENT", "ESTABLISHED") in seen
    assert ("passive", "SYN_RECV", "ESTABLISHED") in seen
    assert {"FIN_WAIT1", "CLOSE_WAIT"} <= {new for _, _, new in seen}


def test_close_events_of_a_command_that_leaves_data_behind(ns: NetNS) -> None:
    """Its socket closes when the slow peer has read, half a second after the command."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    size = 200_000
    code = f"""
import socket
client = socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}))
client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
client.sendall(bytes({size}))
"""
    got = []

    def serve() -> None:
        server, _ = listener.accept()
        with server:
            time.sleep(0.8)
            while data := server.recv(1 << 16):
                got.append(len(data))

    thread = threading.Thread(target=serve)
    thread.start()
    events = observed("--", *python(code))
    thread.join()
    listener.close()
    (close,) = of(events, "close")
    assert close["bytes_acked"] - 2 == sum(got) == size
    assert close["duration_s"] > 0.5


def test_a_connection_that_stays_open_is_named_at_the_end(ns: NetNS) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    code = f"""
import os, socket, time
client = socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}))
if os.fork() == 0:
    os.closerange(0, 3)
    time.sleep(5)
"""
    done = run("sockops", "--json", "--", *python(code))
    listener.close()
    assert done.returncode == 0
    assert "1 connection of /usr/bin/python3 did not close" in done.stderr
    assert [e["event"] for e in events_of(done.stdout)] == ["established"]


# -- the window -----------------------------------------------------------------------------------


def test_a_closed_window_is_measured(ns: NetNS) -> None:
    code = """
import socket, time
from bpfkit.net.traffic.tcp import tcp_info
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
listener.bind(("127.0.0.1", 0))
listener.listen(1)
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
client.setblocking(False)
total = 0
while tcp_info(client).snd_wnd:
    try:
        total += client.send(bytes(4096))
    except BlockingIOError:
        pass
begun = time.monotonic()
time.sleep(0.3)
data = server.recv(1 << 16)
while not tcp_info(client).snd_wnd:
    total -= len(data)
    data = server.recv(1 << 16)
print("took", time.monotonic() - begun)
total -= len(data)
while total:
    total -= len(server.recv(1 << 16))
client.close()
server.recv(1)
"""
    before = counter("TcpExt.TCPToZeroWindowAdv")
    done = run("sockops", "--json", "--", *python(code))
    assert done.returncode == 0, done.stderr
    took = float(done.stderr.partition("took")[2].split()[0])
    assert counter("TcpExt.TCPToZeroWindowAdv") > before
    events = events_of(done.stdout)
    (close,) = [e for e in of(events, "close") if e["side"] == "active"]
    first = of(events, "zero_window")[0]
    opened = next(e for e in of(events, "window_open") if e["ts"] > first["ts"])
    # The script sees the window closed a moment later than the kernel.
    assert took - 0.02 < opened["zero_window_s"] < took + 0.5
    assert close["zero_windows"] == len(of(events, "zero_window"))
    assert close["zero_window_s"] >= opened["zero_window_s"]


# -- options --------------------------------------------------------------------------------------

#: Prints what getsockopt and TCP_INFO say of a connection: HOST, LISTENER'S HOST.
OPTIONS = """
import json, socket, struct, sys
host, where = sys.argv[1:]
family = socket.AF_INET6 if ":" in where else socket.AF_INET
listener = socket.create_server((where, 0), family=family, dualstack_ipv6=where == "::")
port = listener.getsockname()[1]
client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
client.connect((host, port))
server, _ = listener.accept()
found = []
for sock in (client, server):
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 200)
    six = sock.family == socket.AF_INET6
    found.append({
        "cc": sock.getsockopt(6, socket.TCP_CONGESTION, 16).rstrip(b"\\0").decode(),
        "tos": sock.getsockopt(*(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if six
                               else (socket.IPPROTO_IP, socket.IP_TOS)),
        "sndbuf": sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
        "rcvbuf": sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
        "iw": struct.unpack_from("=I", info, 80)[0],
        "pacing": struct.unpack_from("=Q", info, 112)[0],
    })
print(json.dumps(found))
"""


def options_of(host: str, where: str, *rules: str) -> tuple[list[Row], list[Row], str]:
    args = [word for rule in rules for word in ("--set", rule)]
    with open("/dev/null") as null:
        done = subprocess.run(
            command("sockops", *args, "--events", "established", "--json", "--")
            + python(OPTIONS, host, where),
            cwd=ROOT,
            stdin=null,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    shown = next(line for line in done.stderr.splitlines() if line.startswith("[{"))
    return json.loads(shown), events_of(done.stdout), done.stderr


EVERYTHING = "cc=reno,tos=16,sndbuf=60000,rcvbuf=50000,iw=3,pacing=2M"


@pytest.mark.parametrize(
    ("host", "prefix"), [("127.0.0.1", "127.0.0.0/8"), ("::1", "::1"), ("::1", "::/0")]
)
def test_options_by_prefix_are_what_getsockopt_and_tcp_info_show(
    ns: NetNS, host: str, prefix: str
) -> None:
    found, events, _ = options_of(host, host, f"{prefix}:{EVERYTHING}")
    for sock in found:
        assert sock == {
            "cc": "reno",
            "tos": 16,
            "sndbuf": 120_000,
            "rcvbuf": 100_000,
            "iw": 3,
            "pacing": 2_000_000,
        }
    for event in events:
        assert sorted(event["options"]) == sorted(["cc", "tos", "sndbuf", "rcvbuf", "iw", "pacing"])
        assert event["refused_options"] == []


def test_the_longest_prefix_decides_and_others_are_left_alone(ns: NetNS) -> None:
    plain, _, _ = options_of("127.0.0.1", "127.0.0.1")
    rules = ("127.0.0.0/8:tos=4", "127.0.0.1:tos=8", "::/0:tos=12,cc=reno", "10.0.0.0/8:iw=2")
    found, _, _ = options_of("127.0.0.1", "127.0.0.1", *rules)
    assert found == [{**sock, "tos": 8} for sock in plain]
    # The server's peer is 127.0.0.1 here, too: only the client's has another address.
    found, _, _ = options_of("127.0.0.2", "0.0.0.0", *rules)
    assert [sock["tos"] for sock in found] == [4, 8]


def test_an_ipv4_peer_of_an_ipv6_socket_has_its_ipv4_address_and_rule(ns: NetNS) -> None:
    found, events, said = options_of("127.0.0.1", "::", "127.0.0.0/8:cc=reno", "::/0:cc=bbr,iw=2")
    assert [sock["cc"] for sock in found] == ["reno", "reno"]
    assert [(e["src"], e["dst"]) for e in events] == [("127.0.0.1", "127.0.0.1")] * 2


def test_the_initial_rto_is_the_time_until_the_second_syn(loss: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    code = f"""
import socket, time
begun = time.monotonic()
client = socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}))
print("took", time.monotonic() - begun)
"""
    took = {}
    for rule in ("127.0.0.0/8:initial_rto=200ms", "10.0.0.0/8:initial_rto=200ms"):
        loss["plans"][0] = (0, 1)
        done = run("sockops", "--set", rule, "--", *python(code))
        took[rule[:3]] = float(done.stdout.partition("took")[2])
        (again,) = [line for line in done.stderr.splitlines() if " retransmit " in line]
        assert " syn " in again
    listener.close()
    assert 0.19 < took["127"] < 0.7 < 0.9 < took["10."]


# -- where ----------------------------------------------------------------------------------------

needs_timestamping = pytest.mark.skipif(
    not has_kfunc("bpf_sock_ops_enable_tx_tstamp"),
    reason="the kernel has no TX timestamping callbacks (Linux 6.15)",
)


@needs_timestamping
def test_where_agrees_with_the_applications_own_time_stamps(ns: NetNS) -> None:
    """SO_TIMESTAMPING takes the same moments of the same messages, by another way out."""
    code = """
import socket, struct, statistics, sys
SCHED, SOFTWARE, ACK = 1 << 8, 1 << 1, 1 << 9
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname(), source_address=("127.0.0.2", 0))
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
server, _ = listener.accept()
client.setsockopt(socket.SOL_SOCKET, 37, SCHED | SOFTWARE | ACK | 1 << 4 | 1 << 7 | 1 << 11)
stages = {"qdisc": [], "network": []}
for _ in range(400):
    client.sendall(bytes(1000))
    server.recv(1000)
    server.sendall(bytes(1000))
    client.recv(1000)
    stamps = {}
    while len(stamps) < 3:
        try:
            _, ancillary, _, _ = client.recvmsg(100, 500, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        for level, kind, data in ancillary:
            if (level, kind) == (1, 37):
                seconds, ns = struct.unpack_from("=qq", data)
            elif kind in (11, 25):
                (which,) = struct.unpack_from("=I", data, 8)
        stamps[which] = seconds * 10**9 + ns
    stages["qdisc"].append(stamps[0] - stamps[1])
    stages["network"].append(stamps[2] - stamps[0])
print({name: statistics.median(values) / 1e3 for name, values in stages.items()})
"""
    done = run("sockops", "--where", "--json", "--", *python(code))
    assert done.returncode == 0, done.stderr
    found = [row for row in map(json.loads, done.stdout.splitlines()) if "stage" in row]
    assert {row["peer"] for row in found} == {"127.0.0.1", "127.0.0.2"}
    rows = {row["stage"]: row for row in found if row["peer"] == "127.0.0.1"}
    shown = next(line for line in done.stderr.splitlines() if line.startswith("{"))
    truth = json.loads(shown.replace("'", '"'))
    assert {row["messages"] for row in found} == {400}
    for stage, median in truth.items():
        assert rows[stage]["p50_us"] == pytest.approx(median, rel=0.5, abs=3), (rows, truth)
    whole = rows["whole"]
    assert whole["p50_us"] <= whole["p99_us"] <= whole["max_us"]


@needs_timestamping
def test_where_shows_a_wait_in_the_socket(ns: NetNS) -> None:
    """The peer's window is closed for 300 ms: the message is not sent before."""
    code = """
import socket, threading, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
listener.bind(("127.0.0.1", 0))
listener.listen(1)
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
client.setblocking(False)
total = 0
for _ in range(300):
    try:
        total += client.send(bytes(4096))
    except BlockingIOError:
        time.sleep(0.001)
time.sleep(0.3)
while total:
    total -= len(server.recv(1 << 16))
"""
    done = run("sockops", "--where", "--json", "--", *python(code))
    rows = {r["stage"]: r for r in map(json.loads, done.stdout.splitlines()) if "stage" in r}
    assert rows["socket"]["max_us"] > 280_000
    assert rows["qdisc"]["max_us"] < rows["socket"]["max_us"]


# -- whose connections ----------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("curl") or not shutil.which("nginx"), reason="curl, nginx")
def test_curl_and_nginx(ns: NetNS, tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(bytes(300_000))
    tmp_path.chmod(0o755)
    (tmp_path / "nginx.conf").write_text(
        f"""daemon off; master_process off; pid {tmp_path}/pid; error_log stderr; user root;
        events {{}} http {{ access_log off; server {{ listen 127.0.0.1:8080; listen [::1]:8080;
        root {tmp_path}; }} }}"""
    )
    server = subprocess.Popen(["nginx", "-c", f"{tmp_path}/nginx.conf"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", 8080)) == 0:
                    break
            time.sleep(0.02)
        for host, literal in (("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")):
            url = f"http://{literal}:8080/page"
            events = observed("--", "curl", "-s", "-o", "/dev/null", url)
            (close,) = of(events, "close")
            assert (close["comm"], close["dst"], close["dport"]) == ("curl", host, 8080)
            assert close["bytes_received"] > 300_000
            assert close["side"] == "active"
        assert observed("--", "curl", "-sf", f"http://{literal}:8080/none", status=22)
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_listener_from_before_is_known_by_its_process(
    ns: NetNS, group: Cgroup, host: str
) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with group.entered():
        listener = socket.create_server((host, 0), family=family)
    with Running("sockops", "-v", "--json", "--cgroup", group.path, ready="attached to") as program:
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
        server.close()
        client.close()
        event = program.row(lambda row: row.get("event") == "close")
        status, _, said = program.end()
    listener.close()
    comm = Path("/proc/self/comm").read_text().rstrip()
    assert (event["pid"], event["comm"], event["side"]) == (os.getpid(), comm, "passive")
    assert status == 0, said


def test_two_programs_on_one_cgroup_and_a_cgroup_below(ns: NetNS, group: Cgroup) -> None:
    below = f"{group.path}/below"
    os.mkdir(below)
    try:
        args = ("sockops", "-v", "--json", "--cgroup", group.path)
        with (
            Running(*args, ready="attached to") as first,
            Running(*args, ready="attached to") as second,
        ):
            with Cgroup.open(below) as inner:
                inner.run(python(ECHO, "127.0.0.1", "2", "50"))
            for program in (first, second):
                event = program.row(lambda row: row.get("event") == "close")
                assert event["bytes_sent"] == 100
                assert program.end()[0] == 0
    finally:
        os.rmdir(below)


def test_open_connections_are_rows(ns: NetNS, group: Cgroup) -> None:
    args = ("sockops", "-v", "--json", "-t", "0.1", "--cgroup", group.path)
    with Running(*args, ready="attached to") as program:
        if "open connections are not listed" in program.said:
            assert program.end()[0] == 0
            pytest.skip(program.said.partition("not listed: ")[2].partition("\n")[0])
        with group.entered():
            listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
            client = socket.create_connection(listener.getsockname()[:2])
            server, _ = listener.accept()
        client.sendall(bytes(1234))
        server.recv(2000)
        port = client.getsockname()[1]
        row = program.row(
            lambda row: "age_s" in row and row["sport"] == port and row["bytes_sent"] == 1234
        )
        assert (row["state"], row["src"], row["dst"]) == ("ESTABLISHED", "::1", "::1")
        assert row["pid"] == os.getpid()
        for sock in (client, server, listener):
            sock.close()
        program.row(lambda row: row.get("event") == "close")
        assert program.end()[0] == 0


def test_subflows_of_mptcp_are_marked(ns: NetNS) -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
    except OSError:
        pytest.skip("the kernel has no MPTCP")
    code = """
import socket
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
listener.bind(("127.0.0.1", 0))
listener.listen(1)
client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
client.connect(listener.getsockname())
server, _ = listener.accept()
client.sendall(bytes(500))
server.recv(1000)
client.close()
server.recv(1)
server.close()
"""
    events = observed("--", *python(code))
    closes = of(events, "close")
    assert len(closes) == 2
    assert all(event["mptcp"] for event in closes)
    (active,) = [event for event in closes if event["side"] == "active"]
    assert active["bytes_sent"] == 500 and active["comm"] == "python3"


# -- bad input, bad ends --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        (["--set", "127.0.0.0/8:cc=no_such"], 2, "no congestion control 'no_such'"),
        (["--set", "127.0.0.0/99:iw=1"], 2, "is not a prefix"),
        (["--set", "rubbish"], 2, "is no rule"),
        (["--events", "opened"], 2, "no kind of event 'opened'"),
        (["--cgroup", "/no/such/cgroup"], 2, "/no/such/cgroup"),
        (["--cgroup", "/tmp"], 2, "/tmp"),
        (["--", "no_such_command"], 127, "cannot run no_such_command"),
        (["--", "/etc/passwd"], 126, "cannot run /etc/passwd"),
        (["--", "true"], 0, ""),
        (["--", "sh", "-c", "exit 7"], 7, ""),
        (["--", "sh", "-c", "kill -9 $$"], 137, ""),
        (["--where", "--check"], 2, "do not go together"),
    ],
)
def test_bad_input_and_commands_that_end_at_once(args: list[str], status: int, text: str) -> None:
    done = run("sockops", *args)
    assert done.returncode == status, done.stderr
    assert text in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_trace_pipe_needs_tracefs(ns: NetNS) -> None:
    script = 'umount -a -t tracefs,debugfs; exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *command("sockops", "--trace-pipe", "-c", "1")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 77
    assert "tracefs is not mounted" in done.stderr and "mount -t tracefs" in done.stderr


def test_trace_pipe_has_a_line_for_each_event(ns: NetNS, tmp_path: Path) -> None:
    out = tmp_path / "lines"
    script = f"""
mount -t tracefs tracefs /sys/kernel/tracing || exit 99
cat /sys/kernel/tracing/trace_pipe > {out} & reader=$!
sleep 0.3
"$@"
status=$?
sleep 0.5
kill $reader
exit $status
"""
    done = subprocess.run(
        [
            *("unshare", "-m", "sh", "-c", script, "sh"),
            *command("sockops", "--trace-pipe", "--"),
            *python(ECHO, "::1", "1", "77"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 99:
        pytest.skip("tracefs cannot be mounted")
    assert done.returncode == 0, done.stderr
    lines = [line.partition("sockops: ")[2] for line in out.read_text().splitlines()]
    words = [line.split() for line in lines if line]
    assert Counter(word[0] for word in words) == {"established": 2, "close": 2}
    for word in words:
        assert word[1].startswith("[0000:0000:0000:0000:0000:0000:0000:0001]:")
        if word[0] == "close":
            assert word[4:6] == ["sent", "77"]


def test_events_that_do_not_fit_are_counted_and_close_events_have_room(
    ns: NetNS, group: Cgroup
) -> None:
    flags = ["-DHAS_MPTCP"] if os.path.isdir("/proc/sys/net/mptcp") else []
    with (
        bpfkit.load(
            "sock/sockops.bpf.c",
            consts={"report": 0b1101111},
            max_entries={"events": 16384},
            cflags=flags,
            programs=["sockops"],
        ) as loaded,
        loaded.programs["sockops"].attach_cgroup(group.path),
    ):
        group.run(python(ENDINGS))
        with loaded["events"].open() as buffer:
            records = list(buffer.drain())
        opened, closed, lost, lost_closes = (loaded["count"].sum(i) for i in range(4))
    assert opened == closed == 600
    kinds = Counter(int(record.kind) for record in records)
    assert kinds[CLOSE] + lost_closes == kinds[ESTABLISHED] + lost == 600
    assert kinds[CLOSE] > 0.8 * kinds[ESTABLISHED] > 0, "half of the ring is for close events"


def attached(path: str) -> str:
    done = subprocess.run(["bpftool", "cgroup", "show", path], capture_output=True, text=True)
    return done.stdout


@pytest.mark.skipif(not shutil.which("bpftool"), reason="bpftool")
def test_nothing_is_left_after_kill(ns: NetNS, group: Cgroup) -> None:
    with Running("sockops", "-v", "--cgroup", group.path, ready="attached to") as program:
        assert "sockops" in attached(group.path)
        program.end(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while "sockops" in attached(group.path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "sockops" not in attached(group.path)


def test_the_check_verifies_itself() -> None:
    done = run("sockops", "--check", "--json")
    assert done.returncode == 0, done.stderr
    assert " verified" in done.stderr.splitlines()[-1]
    rows = list(map(json.loads, done.stdout.splitlines()))
    assert {row["event"] for row in rows} >= {"established", "retransmit", "failed", "close"}


@pytest.mark.skipif(not shutil.which("cc"), reason="cc")
def test_the_benchmark_compares_every_connection() -> None:
    bench = ROOT / "tools" / "bench" / "sockops.py"
    done = subprocess.run(
        ["/usr/bin/python3", str(bench), "--connections", "800", "--rounds", "0"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    plain, lossy = done.stdout.splitlines()
    assert "1600 close events, 1600 equal TCP_INFO" in plain
    assert "400 close events, 400 equal TCP_INFO" in lossy
