# SPDX-License-Identifier: Apache-2.0
"""The traffic makers' own reports, against captures and the usual tools."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator

import pytest

from bpfkit.core.errors import BpfkitError, InputError
from bpfkit.net.links.lab import Lab, pair_lab
from bpfkit.net.links.netns import NetNS
from bpfkit.net.packets.capture import Capture
from bpfkit.net.traffic.background import Traffic
from bpfkit.net.traffic.mixed import mixed
from bpfkit.net.traffic.ping import ping
from bpfkit.net.traffic.tcp import tcp, tcp_info
from bpfkit.net.traffic.udp import udp

HOSTS = ["10.77.0.2", "fd77::2"]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with pair_lab(offloads=False) as made:
        made.neighbours("client:eth0", "server:eth0")
        yield made


def of_protocol(capture: Capture, protocol: int) -> list[bytes]:
    """The frames of an IP protocol, in both families (no extension headers here)."""
    found = []
    for packet in capture:
        at = {b"\x08\x00": 23, b"\x86\xdd": 20}.get(packet.data[12:14])
        if at and packet.data[at] == protocol:
            found.append(packet.data)
    return found


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("size", [0, 1, 56, 1400])
def test_ping(lab: Lab, host: str, size: int) -> None:
    with Capture("eth0", ns=lab["client"]) as capture:
        report = ping(host, count=5, size=size, ns=lab["client"])
    six = ":" in host
    echoes = [
        frame
        for frame in of_protocol(capture, 58 if six else 1)
        if frame[54 if six else 34] in ((128, 129) if six else (8, 0))
    ]
    assert report.sent == report.received == 5
    assert report.lost == []
    assert len(report.rtts) == 5
    assert all(0 < rtt < 1000 for rtt in report.rtts)
    assert len(echoes) == report.packets == 10
    # what is shorter than the least Ethernet frame is not padded on a veth
    assert sum(map(len, echoes)) == report.wire_bytes
    assert report.proto == ("ipv6-icmp" if six else "icmp")


def test_ping_without_an_answer(lab: Lab) -> None:
    report = ping("10.77.0.99", count=2, timeout=0.05, ns=lab["client"])
    assert (report.sent, report.received, report.lost) == (2, 0, [0, 1])


def test_ping_tells_loss_by_number(lab: Lab) -> None:
    """The host is away in the middle of the stream, and only then."""
    with Traffic(
        ping, HOSTS[0], count=None, interval=0.01, timeout=0.2, ns=lab["client"]
    ) as stream:
        time.sleep(0.1)
        lab.sysctl("server", "net.ipv4.icmp_echo_ignore_all", 1)
        time.sleep(0.1)
        lab.sysctl("server", "net.ipv4.icmp_echo_ignore_all", 0)
        time.sleep(0.1)
    report = stream.report
    assert report.lost
    assert report.received + len(report.lost) == report.sent
    assert report.lost == list(range(report.lost[0], report.lost[-1] + 1))
    assert report.lost[0] > 0
    assert report.lost[-1] < report.sent - 1


def test_two_pings_at_once_do_not_mix(lab: Lab) -> None:
    with Traffic(ping, HOSTS[0], count=200, ns=lab["client"]) as other:
        report = ping(HOSTS[0], count=200, ns=lab["client"])
        other.wait(10)
    assert report.received == other.report.received == 200


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("requests", "up", "down"), [(1, 1, 1), (3, 100, 1000), (2, 50_000, 200_000), (2, 10, 0)]
)
def test_tcp(lab: Lab, host: str, requests: int, up: int, down: int) -> None:
    with Capture("eth0", ns=lab["client"]) as capture:
        report = tcp(
            host,
            requests=requests,
            up=up,
            down=down,
            connections=2,
            ns=lab["client"],
            server_ns=lab["server"],
        )
    frames = of_protocol(capture, 6)
    assert (report.bytes_up, report.bytes_down) == (2 * requests * up, 2 * requests * down)
    assert len(report.connections) == 2
    assert report.packets == len(frames)
    if all(connection.clean for connection in report.connections):
        assert report.wire_bytes == sum(map(len, frames))
    for connection in report.connections:
        assert connection.client.segs_in == connection.packets[1]
        assert connection.server.segs_in == connection.packets[0]
        assert connection.client.bytes_received == requests * down + 1  # the FIN


def test_tcp_info_agrees_with_ss(lab: Lab) -> None:
    """Field by field, as far as ss(8) prints them."""
    if not shutil.which("ss"):
        pytest.skip("not installed: ss")
    client, server = lab["client"], lab["server"]
    listener, sock = server.socket(2, 1), client.socket(2, 1)
    try:
        listener.bind((HOSTS[0], 5555))
        listener.listen(1)
        sock.connect((HOSTS[0], 5555))
        sock.sendall(bytes(5000))
        time.sleep(0.05)
        info = tcp_info(sock)
        out = client.check_output(["ss", "-tin", "state", "established"])
        words = dict(word.split(":", 1) for word in out.split() if word.count(":") == 1)
        for name in ("segs_out", "segs_in", "bytes_acked", "bytes_sent", "data_segs_out", "pmtu"):
            assert int(words[name]) == getattr(info, name), name
        assert int(words["cwnd"]) == info.snd_cwnd
        assert float(words["minrtt"]) == info.min_rtt / 1000
        assert int(words["snd_wnd"]) == info.snd_wnd
        assert info.as_dict()["state"] == 1
    finally:
        sock.close()
        listener.close()


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(("size", "segment"), [(1, False), (1400, False), (1000, True)])
def test_udp(lab: Lab, host: str, size: int, segment: bool) -> None:
    with Capture("eth0", ns=lab["client"]) as capture:
        report = udp(
            host,
            count=500,
            size=size,
            segment=segment,
            ns=lab["client"],
            server_ns=lab["server"],
        )
    frames = of_protocol(capture, 17)
    assert (report.sent, report.received) == (500, 500)
    assert report.bytes_received == report.bytes_sent == 500 * size
    assert len(frames) == report.packets
    assert sum(map(len, frames)) == report.wire_bytes
    assert int.from_bytes(frames[0][-size - 6 : -size - 4], "big") == report.port


def test_udp_rate(lab: Lab) -> None:
    report = udp(HOSTS[0], count=50, rate=500, ns=lab["client"], server_ns=lab["server"])
    assert 0.09 < report.seconds < 0.5


def test_udp_super_frames_cross_a_cable_with_offloads_whole() -> None:
    with pair_lab() as lab, Capture("eth0", ns=lab["client"], gso=True) as capture:
        report = udp(
            HOSTS[0], count=80, size=1000, segment=True, ns=lab["client"], server_ns=lab["server"]
        )
        assert report.received == 80
        supers = [p for p in capture if p.gso_size]
    assert [(p.gso_size, p.orig_len) for p in supers] == [(1000, 42 + 40_000)] * 2


def test_link_local(lab: Lab) -> None:
    out = lab["server"].check_output(["ip", "-br", "-6", "addr", "show", "eth0"])
    address = next(a for a in out.split() if a.startswith("fe80")).partition("/")[0] + "%eth0"
    assert ping(address, ns=lab["client"]).received == 1
    assert tcp(address, ns=lab["client"], server_ns=lab["server"]).requests == 1
    assert udp(address, ns=lab["client"], server_ns=lab["server"]).received == 100


def test_mixed_over_loopback() -> None:
    with NetNS.new() as ns:
        with Capture("lo", ns=ns, incoming=False) as capture:
            reports = mixed(ns=ns)
        for proto, number in (("icmp", 1), ("ipv6-icmp", 58), ("tcp", 6), ("udp", 17)):
            mine = [report for report in reports if report.proto == proto]
            frames = of_protocol(capture, number)
            assert sum(report.packets for report in mine) == len(frames), proto
            assert sum(report.wire_bytes for report in mine) == sum(map(len, frames)), proto


# -- what goes wrong ----------------------------------------------------------------------------


def test_errors(lab: Lab) -> None:
    client = lab["client"]
    for host in ("localhost", "x", "", "10.0.0.1/24", "1.2.3.4.5"):
        for maker in (ping, tcp, udp):
            with pytest.raises(InputError):
                maker(host, ns=client)
    with pytest.raises(BpfkitError, match="unreachable"):
        ping("8.8.8.8", ns=client)
    start = time.monotonic()
    with NetNS.new() as elsewhere, pytest.raises(BpfkitError):
        tcp("127.0.0.1", ns=client, server_ns=elsewhere)
    assert time.monotonic() - start < 5
    with pytest.raises(BpfkitError):  # the address is the other side's
        tcp("10.77.0.2", ns=client)


def test_tcp_that_gets_no_answer_ends(lab: Lab) -> None:
    """The server's way back is gone: an error within the timeout, nothing left behind."""
    lab["server"].check_output(["ip", "route", "add", "blackhole", "10.77.0.1/32"])
    start = time.monotonic()
    with pytest.raises(BpfkitError, match=r"10\.77\.0\.2"):
        tcp(HOSTS[0], timeout=0.5, ns=lab["client"], server_ns=lab["server"])
    assert time.monotonic() - start < 3


def test_background_errors_are_raised(lab: Lab) -> None:
    stream = Traffic(ping, "8.8.8.8", ns=lab["client"]).start()
    with pytest.raises(BpfkitError, match="unreachable"):
        stream.wait(5)
    with pytest.raises(BpfkitError, match="not started"):
        Traffic(ping, HOSTS[0]).wait()


def test_background_udp_and_tcp_stop(lab: Lab) -> None:
    ends = {"ns": lab["client"], "server_ns": lab["server"]}
    with (
        Traffic(udp, HOSTS[0], count=None, rate=1000, **ends) as stream,
        Traffic(tcp, HOSTS[1], connections=None, **ends) as requests,
    ):
        time.sleep(0.2)
        assert stream.running
    assert not stream.running
    assert stream.report.received > 20
    assert requests.report.requests > 1


# -- judges -------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("iperf3"), reason="not installed: iperf3")
def test_iperf3_runs_in_a_lab(lab: Lab) -> None:
    server = lab["server"].popen(["iperf3", "-s", "-1", "-i", "0"], stdout=-3, stderr=-3)
    try:
        deadline = time.monotonic() + 5
        while ":1451 " not in lab["server"].check_output(["cat", "/proc/net/tcp6"]):  # 5201
            assert time.monotonic() < deadline
            time.sleep(0.01)
        out = lab["client"].check_output(["iperf3", "-c", "fd77::2", "-n", "1M", "-J"])
        assert json.loads(out)["end"]["sum_sent"]["bytes"] >= 1 << 20
        server.wait(5)
    finally:
        server.kill()
        server.wait()
