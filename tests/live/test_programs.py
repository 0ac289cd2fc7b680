# SPDX-License-Identifier: Apache-2.0
"""The programs as their users run them: whole processes, real traffic, in namespaces of our own."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, Running, command, path_of, run

from bpfkit.app.options import parser_of
from bpfkit.commands.catalog import programs
from bpfkit.net.links.netns import NetNS

#: The programs whose only type is SOCKET_FILTER, and those of them that read captures.
FAMILY = [cls for cls in programs() if cls.types() == ["BPF_PROG_TYPE_SOCKET_FILTER"]]
PROGRAMS = sorted(cls.name for cls in FAMILY)
OBSERVERS = sorted(cls.name for cls in FAMILY if "--pcap" in parser_of(cls).format_help())
FIELDS = {
    "sock_example": ["proto", "packets"],
    "sockex1": ["proto", "bytes"],
    "sockex2": ["dst", "bytes", "packets"],
    "sockex3": (
        "src sport dst dport proto vlan tunnel bytes packets bytes_per_s packets_per_s".split()
    ),
    "fanout": ["socket", "flows", "bytes", "packets"],
}
SUMMARY = [
    "summary",
    "packets",
    "bytes",
    "flows",
    "nonip_packets",
    "nonip_bytes",
    "unattributed_packets",
    "unattributed_bytes",
    "bytes_per_s",
    "packets_per_s",
]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def running(name: str, *args: str) -> Running:
    return Running(name, "-v", *args, ready="attached to")


@pytest.fixture
def ns() -> Iterator[NetNS]:
    with NetNS.new("test") as made:
        yield made


def rows_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def udp(ns: NetNS, count: int, size: int, to: str = "127.0.0.1", dport: int = 9) -> int:
    """Send datagrams to a port that somebody listens on; the source port."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with ns.entered():
        receiver = socket.socket(family, socket.SOCK_DGRAM)
        sender = socket.socket(family, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.bind((to, dport))
        sender.bind((to, 0))
        for _ in range(count):
            sender.sendto(bytes(size), (to, dport))
        return int(sender.getsockname()[1])


# ---------------------------------------------------------------- demo and check


@pytest.mark.parametrize("name", PROGRAMS)
def test_check_verifies(name: str) -> None:
    done = run(name, "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = [line for line in done.stdout.splitlines() if line.startswith(("ok ", "FAILED"))]
    assert len(verdicts) >= 3
    assert not any(line.startswith("FAILED") for line in verdicts)
    assert re.search(rf"^{name}: (\d+) of \1 verified$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", ["sockex3", "truncate"])
def test_check_with_json(name: str) -> None:
    done = run(name, "--check", "--json")
    assert done.returncode == 0, done.stderr
    assert rows_of(done.stdout)
    assert "verified" in done.stderr


@pytest.mark.parametrize("name", [*OBSERVERS, "fanout"])
def test_the_demo_shows_its_own_traffic(name: str, ns: NetNS) -> None:
    done = run(name, "--netns", path_of(ns), "--json", "-c", "2", "-t", "0.5")
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    assert {row["round"] for row in rows} == {0, 1}
    plain = [row for row in rows if "summary" not in row]
    for row in plain:
        assert list(row)[2:] == FIELDS[name]
    field = [title for title in FIELDS[name] if not title.endswith("_per_s")][-1]
    assert sum(int(str(row[field])) for row in plain if row["round"] == 1) > 0
    if "proto" in FIELDS[name]:
        assert {"tcp", "udp", "icmp", "ipv6-icmp"} <= {row["proto"] for row in plain}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_newcomer_without_arguments(name: str) -> None:
    done = run(name, "-t", "0.3")
    assert done.returncode == 0, done.stderr
    sent, seen = done.stderr.splitlines()  # the demo's story
    assert sent.startswith(f"{name}: ")
    assert seen.startswith(f"{name}: seen: ")
    assert done.stdout


# ---------------------------------------------------------------- observing


def test_sock_example_counts_packets(ns: NetNS) -> None:
    with running("sock_example", "--netns", path_of(ns), "--no-demo", "-t", "30") as program:
        udp(ns, 7, 100)
        status, out, _ = program.end()
    assert (status, out) == (0, "TCP 0 UDP 7 ICMP 0 packets\n")


def test_sockex1_counts_bytes_on_the_wire(ns: NetNS) -> None:
    with running("sockex1", "--netns", path_of(ns), "--no-demo", "-t", "30") as program:
        udp(ns, 7, 100)
        status, out, _ = program.end(signal.SIGTERM)
    assert (status, out) == (0, f"TCP 0 UDP {7 * (14 + 20 + 8 + 100)} ICMP 0 bytes\n")


def test_sockex2_counts_per_destination(ns: NetNS) -> None:
    with running("sockex2", "--netns", path_of(ns), "--no-demo", "-t", "30") as program:
        udp(ns, 7, 100, "127.0.0.1")
        udp(ns, 3, 50, "::1")
        status, out, _ = program.end()
    assert status == 0
    assert out.splitlines() == [
        f"ip 127.0.0.1 bytes {7 * 142} packets 7",
        f"ip ::1 bytes {3 * (14 + 40 + 8 + 50)} packets 3",
    ]


def test_sockex3_counts_per_flow_and_sums_up(ns: NetNS) -> None:
    with running("sockex3", "--netns", path_of(ns), "--no-demo", "-t", "30", "--json") as program:
        first = udp(ns, 7, 100, "127.0.0.1", 53)
        second = udp(ns, 3, 50, "::1", 53)
        status, out, _ = program.end()
    assert status == 0
    rows = rows_of(out)
    stamps = [(row.pop("ts"), row.pop("round")) for row in rows]
    assert {round_ for _, round_ in stamps} == {0}
    assert list(rows[2]) == SUMMARY
    rates = [(row.pop("bytes_per_s"), row.pop("packets_per_s")) for row in rows]
    # All over the same interval: the time that the program ran.
    passed = [row["bytes"] / rate for row, (rate, _) in zip(rows, rates, strict=True)]
    assert passed == pytest.approx([passed[0]] * 3, rel=0.05)
    assert rows[0] == {
        "src": "127.0.0.1",
        "sport": first,
        "dst": "127.0.0.1",
        "dport": 53,
        "proto": "udp",
        "vlan": [],
        "tunnel": [],
        "bytes": 994,
        "packets": 7,
    }
    assert (rows[1]["src"], rows[1]["sport"], rows[1]["packets"]) == ("::1", second, 3)
    assert rows[2] == {
        "summary": True,
        "packets": 10,
        "bytes": 994 + 336,
        "flows": 2,
        "nonip_packets": 0,
        "nonip_bytes": 0,
        "unattributed_packets": 0,
        "unattributed_bytes": 0,
    }


def test_sockex3_plain_lines(ns: NetNS) -> None:
    with running("sockex3", "--netns", path_of(ns), "--no-demo", "-t", "30") as program:
        sport = udp(ns, 7, 100, "127.0.0.1", 53)
        _, out, _ = program.end()
    head, flow, total = out.splitlines()
    assert head == "IP src.port -> dst.port bytes packets bytes/s packets/s proto"
    # The rates are over the time that the program ran: the sockets do not say how long that was.
    start = re.escape(f"127.0.0.1.{sport} -> 127.0.0.1.53 994 7 ")
    rates = re.fullmatch(rf"{start}(\d+) (\d+\.\d) udp", flow)
    assert rates, flow
    assert int(rates[1]) > 0
    assert total == "total 994 bytes 7 packets in 1 flow"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--port", "53"], 2),
        (["--host", "::/0"], 1),
        (["--host", "127.0.0.0/8", "--port", "53"], 1),
        (["--host", "10.0.0.0/8"], 0),
        (["--proto", "udp"], 2),
        (["--proto", "tcp"], 0),
        (["--top", "1"], 1),
    ],
)
def test_sockex3_shows_a_choice_and_sums_up_all(
    arguments: list[str], shown: int, ns: NetNS
) -> None:
    arguments = [*arguments, "--netns", path_of(ns), "--no-demo", "-t", "30", "--json"]
    with running("sockex3", *arguments) as program:
        udp(ns, 7, 100, "127.0.0.1", 53)
        udp(ns, 3, 50, "::1", 53)
        _, out, _ = program.end()
    *flows, summary = rows_of(out)
    assert len(flows) == shown
    assert (summary["flows"], summary["packets"]) == (2, 10)


def test_what_the_demo_says_at_its_end_is_of_all_flows() -> None:
    done = run("sockex3", "--top", "1", "-c", "1")
    total = re.search(r"^total \d+ bytes (\d+) packets in \d+ flows", done.stdout, re.M)
    said = re.search(r"seen: (\d+) packets, ", done.stderr)
    assert total and said, (done.stdout, done.stderr)
    assert said[1] == total[1]


def test_sockex3_never_loses_silently(ns: NetNS) -> None:
    arguments = ["--netns", path_of(ns), "--no-demo", "-t", "30", "--json", "--max-flows", "4"]
    with running("sockex3", *arguments) as program:
        for port in range(2000, 2020):
            udp(ns, 1, 10, "127.0.0.1", port)
        _, out, _ = program.end()
    *flows, summary = rows_of(out)
    assert len(flows) == summary["flows"] <= 4
    assert summary["packets"] == 20
    assert int(str(summary["unattributed_packets"])) == 20 - len(flows)
    assert summary["bytes"] == 20 * (14 + 20 + 8 + 10)


def test_sockex3_lru_accounts_for_what_it_forgot(ns: NetNS) -> None:
    arguments = ["--netns", path_of(ns), "--no-demo", "-t", "30", "--json", "--max-flows", "8"]
    with running("sockex3", *arguments, "--lru") as program:
        for port in range(2000, 2300):
            udp(ns, 1, 10, "127.0.0.1", port)
        _, out, _ = program.end()
    *flows, summary = rows_of(out)
    assert 0 < len(flows) < 300
    assert flows[0]["dport"] is not None
    assert summary["packets"] == 300
    assert summary["unattributed_packets"] == 300 - len(flows)


@pytest.mark.parametrize("direction", ["in", "out", "both"])
@pytest.mark.parametrize("name", ["sockex1", "sockex3"])
def test_lo_shows_each_packet_once_in_any_direction(name: str, direction: str, ns: NetNS) -> None:
    arguments = ["--netns", path_of(ns), "--no-demo", "-t", "30", "--direction", direction]
    with running(name, "--json", *arguments) as program:
        udp(ns, 5, 100)
        _, out, _ = program.end()
    rows = rows_of(out)
    assert [row["bytes"] for row in rows if row.get("proto") == "udp"] == [5 * 142]


def test_fanout_keeps_a_flow_on_one_socket(ns: NetNS) -> None:
    arguments = ["--netns", path_of(ns), "--no-demo", "-t", "30", "--json", "--sockets", "3"]
    with running("fanout", *arguments) as program:
        for port in range(3000, 3040):
            udp(ns, 3, 10, "127.0.0.1", port)
        status, out, _ = program.end()
    assert status == 0
    rows = rows_of(out)
    assert [row["socket"] for row in rows] == [0, 1, 2]
    assert sum(int(str(row["flows"])) for row in rows) == 40
    assert sum(int(str(row["packets"])) for row in rows) == 120
    assert all(row["packets"] == 3 * int(str(row["flows"])) for row in rows)
    assert all(int(str(row["flows"])) > 0 for row in rows)


# ---------------------------------------------------------------- the interface's fate


def ip(ns: NetNS, *args: str) -> None:
    ns.check_output(["ip", *args])


def veth(ns: NetNS) -> None:
    ip(ns, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    ip(ns, "addr", "add", "192.0.2.1/24", "dev", "v0")
    ip(ns, "link", "set", "v0", "up")
    ip(ns, "link", "set", "v1", "up")


@pytest.mark.parametrize("name", ["sockex1", "fanout"])
def test_an_interface_that_goes_down_and_comes_back(name: str, ns: NetNS) -> None:
    veth(ns)
    arguments = ["-i", "v0", "--netns", path_of(ns), "-t", "30"]
    with running(name, *arguments) as program:
        before = program.said
        ip(ns, "link", "set", "v0", "down")
        assert program.wait_for("v0 went down", 10)
        assert program.process.poll() is None
        ip(ns, "link", "set", "v0", "up")
        assert program.wait_for("v0 is up again", 10)
        status, out, said = program.end()
    assert status == 0
    assert out
    went, came = said.removeprefix(before).splitlines()
    assert "v0 went down" in went and "v0 is up again" in came


def test_waiting_for_an_interface_costs_no_cpu(ns: NetNS) -> None:
    veth(ns)
    with running("sockex1", "-i", "v0", "--netns", path_of(ns), "-t", "30") as program:
        for _ in range(3):  # a flap leaves an error on the socket although the interface is up
            ip(ns, "link", "set", "v0", "down")
            ip(ns, "link", "set", "v0", "up")
        time.sleep(1.5)
        stat = Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()
        before = int(stat[11]) + int(stat[12])
        time.sleep(1)
        stat = Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()
        assert int(stat[11]) + int(stat[12]) - before < 20
        status, _, _ = program.end()
    assert status == 0


@pytest.mark.parametrize("name", ["sockex1", "sockex3", "fanout"])
def test_an_interface_that_is_removed(name: str, ns: NetNS) -> None:
    veth(ns)
    with running(name, "-i", "v0", "--netns", path_of(ns), "-t", "30") as program:
        attached = program.said
        ip(ns, "link", "del", "v0")
        status, out, said = program.wait(10)
    assert status == 1
    assert out  # the last figures
    # It goes down on its way out, which a slow machine may notice first.
    *before, last = said.removeprefix(attached).splitlines()
    assert "v0 was removed" in last
    assert all("went down" in line for line in before) and len(before) <= 1


def test_an_interface_that_is_down_at_the_start(ns: NetNS) -> None:
    veth(ns)
    ip(ns, "link", "set", "v0", "down")
    done = run("sockex1", "-i", "v0", "--netns", path_of(ns), "-c", "1", "-t", "0.1")
    assert done.returncode == 0
    assert "v0 is down" in done.stderr


# ---------------------------------------------------------------- ends and accidents


@pytest.mark.parametrize("name", PROGRAMS)
def test_head(name: str) -> None:
    text = " ".join(command(name, "-t", "0.1"))
    done = subprocess.run(
        ["bash", "-c", f"{text} | head -1; echo ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "0"
    # The demo's story; its end where all output had been written before the reader left.
    sent, *seen = done.stderr.splitlines()
    assert sent.startswith(f"{name}: ")
    assert all(line.startswith(f"{name}: seen: ") for line in seen)


@pytest.mark.parametrize("name", ["sockex3", "truncate", "fanout"])
def test_two_copies_at_once(name: str, ns: NetNS) -> None:
    extra = [] if name == "truncate" else ["--netns", path_of(ns)]
    both = [
        subprocess.Popen(
            command(name, "--json", "-t", "0.5", *extra),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert rows_of(out)


def test_without_root() -> None:
    if subprocess.run(
        [
            "setpriv",
            "--reuid=65534",
            "--clear-groups",
            "--inh-caps=-all",
            "cat",
            str(ROOT / "pyproject.toml"),
        ],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("another user cannot read this checkout")
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all", *command("sockex3")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 77
    assert done.stdout == ""
    assert "needs root" in done.stderr
    assert "CAP_" in done.stderr


def test_kill_9_leaves_no_program() -> None:
    def loaded() -> set[str]:
        found = subprocess.run(
            ["bpftool", "-j", "prog", "show"], capture_output=True, text=True, check=False
        )  # programs only: see conftest.py on opening maps by id
        return {prog["name"] for prog in json.loads(found.stdout or "[]") if "name" in prog}

    if subprocess.run(["which", "bpftool"], capture_output=True, check=False).returncode:
        pytest.skip("bpftool is not installed")
    with running("sockex1", "--no-demo", "-t", "30") as program:
        assert "sockex1" in loaded()
        program.process.kill()
        program.process.wait()
    deadline = time.monotonic() + 5
    while "sockex1" in loaded() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "sockex1" not in loaded()


@pytest.mark.parametrize("name", ["sockex3", "sockex1"])
def test_the_live_view_of_a_terminal(name: str, ns: NetNS) -> None:
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            command(name, "--netns", path_of(ns), "-t", "0.4", "-c", "3"),
            cwd=ROOT,
            stdout=slave,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(slave)
        slave = -1
        seen = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # EIO: the other end is closed
                break
            if not piece:
                break
            seen += piece
        _, errors = process.communicate(timeout=30)
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)
    assert process.returncode == 0, errors
    text = seen.decode()
    assert "demo, round 3 of 3" in text
    assert "bytes/s" in text
    assert "\x1b[J" in text  # drawn again in place


def test_a_capture_through_the_program(tmp_path: Path) -> None:
    scapy = pytest.importorskip("scapy.all")
    packets = [
        scapy.Ether() / scapy.IP(src="192.0.2.1", dst="192.0.2.2") / scapy.UDP(sport=1, dport=2)
        for _ in range(5)
    ]
    packets.append(scapy.Ether() / scapy.ARP())
    path = tmp_path / "x.pcap"
    scapy.wrpcap(str(path), packets)
    done = run("sockex3", "--pcap", str(path), "--json")
    assert done.returncode == 0, done.stderr
    flow, summary = rows_of(done.stdout)
    assert (flow["src"], flow["sport"], flow["dport"], flow["packets"]) == ("192.0.2.1", 1, 2, 5)
    assert (summary["packets"], summary["nonip_packets"], summary["round"]) == (6, 1, 0)
    # A file that was cut off: what came before is shown, and the exit status tells.
    path.write_bytes(path.read_bytes()[:-10])
    done = run("sockex1", "--pcap", str(path))
    assert done.returncode == 2
    assert done.stdout == "TCP 0 UDP 210 ICMP 0 bytes\n"
    assert "5 packets before" in done.stderr
