# SPDX-License-Identifier: Apache-2.0
"""xdp_redirect and xdp_cpumap on interfaces of the user's: peers, what is lost, what goes away."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from running import ROOT, Running, command, path_of, run
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from bpfkit.core.cpus import online
from bpfkit.net.links.lab import Lab, pair_lab, star_lab
from bpfkit.net.packets.capture import Capture
from bpfkit.net.packets.frames import BROADCAST, send_frames
from bpfkit.net.traffic.ping import ping
from bpfkit.net.traffic.probes import Listener
from bpfkit.net.traffic.tcp import tcp
from bpfkit.xdp_redirect.star import peers_pass

PORTS = ["-i", "p1", "--to", "p2", "--to", "p3"]


def running(name: str, lab: Lab, place: str, *args: str, may_end: bool = False) -> Running:
    return Running(name, "--netns", path_of(lab[place]), *args, may_end=may_end)


@pytest.fixture
def star() -> Iterator[Lab]:
    with star_lab() as lab:
        yield lab


@pytest.fixture
def routed() -> Iterator[Lab]:
    with star_lab(routed=True) as lab:
        yield lab


@pytest.mark.parametrize("how", ["patch", "switch", "hub", "router"])
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_check_passes(how: str, mode: str) -> None:
    done = run("xdp_redirect", "--how", how, "--mode", mode, "--check", "-c", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"XDP {mode} on p1, p2, p3" in done.stderr


def test_a_switch_on_given_interfaces(star: Lab) -> None:
    with running("xdp_redirect", star, "middle", *PORTS, "--json") as program:
        assert "veth, so generic XDP" in program.said
        shown = star["middle"].check_output(["ip", "link"])
        assert shown.count("xdpgeneric") == 3
        for host in ("10.77.0.2", "fd77::3"):
            assert ping(host, count=3, ns=star["h1"]).received == 3
            server = star["h3" if ":" in host else "h2"]
            assert tcp(host, down=50000, ns=star["h1"], server_ns=server).bytes_down == 50000
        ways = {(row["port"], row["direction"], row["result"]) for row in program.rows()}
    assert {("p1", "in", "to one port"), ("p1", "in", "to all other ports")} <= ways
    assert {("p2", "out", "sent"), ("p3", "out", "sent")} <= ways
    assert "xdp" not in star["middle"].check_output(["ip", "link"])
    assert ping("10.77.0.2", ns=star["h1"], timeout=0.2).received == 0


def test_vlans_of_a_port(star: Lab) -> None:
    # a port of VLAN 20 and 4094, one of what is untagged, and one of everything
    vlans = ["--vlan", "p2=20,4094", "--vlan", "p3=untagged"]
    by = star.lladdr("h1:eth0")
    packet = IP(src="10.77.0.1", dst="10.77.0.255") / UDP()
    head = Ether(src=by, dst=BROADCAST)
    frames = {"none": bytes(head / packet)}
    frames |= {str(n): bytes(head / Dot1Q(vlan=n) / packet) for n in (10, 20, 4094)}
    frames["20 in 10"] = bytes(head / Dot1Q(vlan=10) / Dot1Q(vlan=20) / packet)
    frames["priority"] = bytes(head / Dot1Q(vlan=0, prio=5) / packet)
    frames["cut"] = bytes(head)[:12] + b"\x81\0\0"
    with (
        running("xdp_redirect", star, "middle", *PORTS, *vlans),
        Capture("eth0", ns=star["h2"], outgoing=False) as two,
        Capture("eth0", ns=star["h3"], outgoing=False) as three,
    ):
        for frame in frames.values():
            send_frames("eth0", [frame.ljust(15, b"\0")], ns=star["h1"])
        two.wait(where=lambda p: p.data == frames["4094"])
        three.wait(where=lambda p: p.data == frames["priority"])
        time.sleep(0.05)
        names = {frame: name for name, frame in frames.items()}
        got = [{names[p.data] for p in c.packets if p.data in names} for c in (two, three)]
    assert got == [{"20", "4094"}, {"none", "priority"}]


def test_native_redirects_into_a_veth_whose_peer_has_no_program(star: Lab) -> None:
    broadcast = bytes(Ether(src="02:00:00:00:00:01", dst=BROADCAST) / IP() / UDP())
    native = [*PORTS[:4], "--mode", "native", "--json", "-t", "0.2"]
    with running("xdp_redirect", star, "middle", *native) as program:
        send_frames("eth0", [broadcast], ns=star["h1"])
        assert program.wait_for("XDP_PASS will do")
        lost = {row["result"] for row in program.rows() if row["port"] == "p2" and row["lost"]}
    # kernels differ: before 6.3 a veth takes them and throws them away
    assert lost & {"left out of broadcasts", "ENXIO"}
    with running("xdp_redirect", star, "middle", *native, "--how", "patch") as program:
        send_frames("eth0", [broadcast], ns=star["h1"])
        assert program.wait_for("XDP_PASS will do")
        lost = {row["result"] for row in program.rows() if row["lost"]}
    assert lost <= {"EOPNOTSUPP", "ENXIO"}
    with peers_pass(star), running("xdp_redirect", star, "middle", *native):
        assert star["middle"].check_output(["ip", "link"]).count(" xdp ") == 2
        assert ping("fd77::2", count=3, ns=star["h1"]).received == 3


def test_frames_that_are_too_long_for_the_way_out(star: Lab) -> None:
    star.mtu("middle:p2", 600)
    with running("xdp_redirect", star, "middle", *PORTS, "--json") as program:
        assert ping("10.77.0.2", ns=star["h1"]).received == 1
        assert ping("10.77.0.2", size=1000, ns=star["h1"], timeout=0.2).received == 0
        assert program.wait_for("longer than its MTU")
        lost = [(r["port"], r["direction"], r["result"]) for r in program.rows() if r["lost"]]
    assert lost == [("p2", "out", "EMSGSIZE")]


def test_ports_that_go_away(star: Lab) -> None:
    with running("xdp_redirect", star, "middle", *PORTS, "-t", "0.2") as program:
        star.interface("middle:p3").set_up(False)
        assert program.wait_for("port p3 went down")
        star["middle"].check_output(["ip", "link", "del", "p3"])
        assert program.wait_for("p3 was removed, going on with p1, p2")
        assert ping("10.77.0.2", count=2, ns=star["h1"]).received == 2
        star["middle"].check_output(["ip", "link", "del", "p2"])
        status, _, errors = program.wait()
        assert status == 1
        assert "p2 was removed: no two ports are left" in errors


def test_a_wire_whose_end_goes_away() -> None:
    with star_lab(4) as lab:
        wires = ["--how", "patch", "-i", "p1", "--to", "p3", "--to", "p2", "--to", "p4"]
        with running("xdp_redirect", lab, "middle", *wires) as program:
            assert ping("10.77.0.3", ns=lab["h1"]).received == 1
            assert ping("10.77.0.2", ns=lab["h1"], timeout=0.2).received == 0
            lab["middle"].check_output(["ip", "link", "del", "p3"])
            assert program.wait_for("p3 was removed, going on with p2, p4")
            assert ping("10.77.0.4", ns=lab["h2"]).received == 1


def test_a_router_on_given_interfaces(routed: Lab) -> None:
    server = Listener(routed["h2"], 8080)
    try:
        with (
            running(
                "xdp_redirect", routed, "middle", *PORTS, "--how", "router", "--json"
            ) as router,
            Capture("eth0", ns=routed["h2"], outgoing=False) as capture,
        ):
            for url in ("http://10.77.2.1:8080/", "http://[fd77:2::1]:8080/"):
                assert routed["h1"].check_output(["curl", "-s", "-m", "5", url]) == "ok\n"
            text = routed["h1"].check_output(
                [
                    "sh",
                    "-c",
                    "ping -n -c 1 -t 1 -W 2 10.77.2.1; ping -n -6 -c 1 -t 1 fd77:2::1; true",
                ]
            )
            assert "From 10.77.1.254" in text and "From fd77:1::fe" in text
            packets = [Ether(p.data) for p in capture.packets]
            hops = [p.ttl if p.type == 0x800 else p.hlim for p in packets if p.type != 0x806]
            assert set(hops) <= {63, 255} and hops.count(63) > 6  # 255: neighbour discovery
            for packet in packets:
                if IP in packet:
                    sent, packet[IP].chksum = packet[IP].chksum, None
                    assert Ether(bytes(packet))[IP].chksum == sent, "scapy's checksum is another"
            results = {row["result"] for row in router.rows()}
        assert {"BPF_FIB_LKUP_RET_SUCCESS", "TTL used up"} <= results
    finally:
        server.close()


def test_a_router_where_the_kernel_is_none(star: Lab) -> None:
    with running("xdp_redirect", star, "middle", *PORTS, "--how", "router") as program:
        assert program.wait_for("sysctl -w net.ipv4.conf.p2.forwarding=1")
        status, _, _ = program.end()
        assert status == 0


BAD = [
    (["-i", "p1", "--to", "nowhere"], "no network interface named 'nowhere': there are lo, p1"),
    (["-i", "p1"], "--interface needs --to"),
    (["--to", "p1"], "needs --interface"),
    (["-i", "p1", "--to", "p1"], "given twice"),
    (["-i", "p1", "--to", "lo"], "lo cannot be a port"),
    (["-i", "p1", "--to", "p2", "--to", "p3", "--how", "patch"], "two ends"),
    (["-i", "p1", "--to", "p2", "--vlan", "p3=1"], "no port 'p3': there are p1, p2"),
    (["-i", "p1", "--to", "p2", "--vlan", "p1=4095"], "'4095' is neither a VLAN id"),
    (["-i", "p1", "--to", "p2", "--vlan", "p1"], "PORT=ID"),
    (["-i", "p1", "--to", "p2", "--check"], "--check makes a lab of its own"),
]


@pytest.mark.parametrize(
    ("args", "text"), BAD, ids=lambda x: " ".join(x) if type(x) is list else ""
)
def test_bad_input(star: Lab, args: list[str], text: str) -> None:
    done = run("xdp_redirect", "--netns", path_of(star["middle"]), *args)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert text in done.stderr and len(done.stderr.splitlines()) <= 2, done.stderr
    assert "xdp" not in star["middle"].check_output(["ip", "link"])


def test_a_port_with_another_program(star: Lab) -> None:
    with running("xdp_drop_icmp", star, "middle", "-i", "p2") as first:
        with running("xdp_redirect", star, "middle", *PORTS, may_end=True) as second:
            status, _, errors = second.end()
            assert status == 1
            assert "to p2" in errors and "'xdp_drop_icmp'" in errors
            assert str(first.process.pid) in errors and "--replace" in errors
        assert star["middle"].check_output(["ip", "link"]).count("prog/xdp") == 1
        with running("xdp_redirect", star, "middle", *PORTS, "--replace"):
            assert ping("10.77.0.2", ns=star["h1"]).received == 1
            assert first.process.wait(timeout=30) == 1


def test_kill_leaves_nothing(star: Lab) -> None:
    with running("xdp_redirect", star, "middle", *PORTS) as program:
        assert ping("10.77.0.2", ns=star["h1"]).received == 1
        program.process.kill()
        program.process.wait()
    deadline = time.monotonic() + 5
    while "xdp" in star["middle"].check_output(["ip", "link"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- xdp_cpumap -----------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[Lab]:
    with pair_lab(offloads=False) as lab:
        yield lab


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_cpumap_check_passes(mode: str) -> None:
    done = run("xdp_cpumap", "--mode", mode, "--check", "-c", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"XDP {mode} on eth0" in done.stderr


@pytest.mark.parametrize("cpu", [online()[0], online()[-1]])
def test_cpumap_the_cpu_asked_for_is_the_one_that_works(pair: Lab, cpu: int) -> None:
    with running("xdp_cpumap", pair, "server", "-i", "eth0", "--cpus", str(cpu)) as program:
        assert program.wait_for("tx off")
        for host in ("10.77.0.2", "fd77::2"):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = pair["server"].socket(family, socket.SOCK_STREAM)
            clients = []
            try:
                listener.bind((host, 0))
                listener.listen(8)
                for _ in range(5):
                    client = pair["client"].socket(family, socket.SOCK_STREAM)
                    clients.append(client)
                    client.settimeout(5)
                    client.connect(listener.getsockname())
                    fd, _ = listener._accept()
                    with socket.socket(fileno=fd) as server:
                        client.send(b"x" * 100)
                        assert server.recv(100) == b"x" * 100
                        assert server.getsockopt(socket.SOL_SOCKET, 49) == cpu  # SO_INCOMING_CPU
            finally:
                for sock in (listener, *clients):
                    sock.close()


def test_cpumap_counts_what_its_queues_lose(pair: Lab) -> None:
    arguments = ["-i", "eth0", "--queue", "1", "--json", "-t", "0.2"]
    with running("xdp_cpumap", pair, "server", *arguments) as program:
        sender = pair["client"].socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            for number in range(4000):
                sender.sendto(bytes(20), ("10.77.0.2", 7000 + number % 64))
        finally:
            sender.close()
        time.sleep(0.3)
        rows = program.rows()
    sums = {
        name: sum(r[name] for r in rows if r["cpu"] is not None)
        for name in rows[0]
        if name in ("queued", "packets", "lost")
    }
    assert sums["queued"] >= 4000
    assert sums["queued"] == sums["packets"] + sums["lost"]
    assert sums["lost"] > 0


@pytest.mark.parametrize(
    ("cpus", "text"),
    [
        ("4000", "no CPU 4000: these are online: 0"),
        ("x", "neither a CPU nor"),
        ("1-0", "not a range"),
        ("", "neither a CPU nor"),
    ],
)
def test_cpumap_bad_cpus(cpus: str, text: str) -> None:
    done = run("xdp_cpumap", "--cpus", cpus)
    assert done.returncode == 2 and text in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["xdp_redirect", "xdp_cpumap"])
def test_without_root(name: str) -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", *command(name)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 77 and "root" in done.stderr, done.stderr
