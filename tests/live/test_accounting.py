# SPDX-License-Identifier: Apache-2.0
"""sockex3 counts real traffic right: a million packets, judged by others.

iperf3 (TCP and UDP, IPv4 and IPv6) and curl against nginx run between two namespaces while sockex3
watches one end.  With offloads off its flows are compared with tshark's conversation table, made
from a capture of the same interface by tcpdump, and with the interface's own counters.  With
offloads on they are compared with what the sockets report about their segments.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict

import pytest
from running import Running, run

from bpfkit.net.links.lab import pair_lab
from bpfkit.net.traffic.tcp import tcp

PACKETS = 1_000_000
# 128 bytes of each packet hold every header of this traffic.
DUMP = ("-s", "128", "-B", "262144", "-Z", "root")

needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("iperf3", "tshark", "tcpdump", "curl"))),
    reason="needs iperf3, tshark, tcpdump and curl",
)


class Watch:
    """``python3 -m bpfkit.sockex3`` as a user starts it, in a namespace of the lab."""

    def __init__(self, ns, *options):
        arguments = ["-i", "eth0", "--json", "-v", *options]
        self.program = Running("sockex3", *arguments, ready="attached", ns=ns)

    def stop(self):
        """(flows, summary) of the last round."""
        with self.program:
            *flows, summary = self.program.rows()
        assert summary["summary"] is True
        return flows, summary


def counters(ns):
    """(packets, bytes, dropped) of eth0, both ways, as the kernel counts them."""
    (shown,) = json.loads(ns.check_output(["ip", "-s", "-j", "link", "show", "eth0"]))
    both = shown["stats64"]["rx"], shown["stats64"]["tx"]
    return tuple(sum(side[field] for side in both) for field in ("packets", "bytes", "dropped"))


def nginx(ns, directory):
    """nginx in the namespace, serving a file of 3 MB on port 8080; Python's server without it."""
    (directory / "file").write_bytes(os.urandom(3_000_000))
    if not shutil.which("nginx"):
        argv = [sys.executable, "-m", "http.server", "-b", "::", "8080", "-d", str(directory)]
        return ns.popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    directory.chmod(0o755)
    conf = directory / "nginx.conf"
    conf.write_text(
        f"daemon off; master_process off; pid {directory}/pid; error_log stderr;\n"
        "events {}\n"
        f"http {{ access_log off; client_body_temp_path {directory}/b;\n"
        f"  proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;\n"
        f"  uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;\n"
        f"  server {{ listen 8080; listen [::]:8080; root {directory}; }} }}\n"
    )
    return ns.popen(["nginx", "-c", str(conf)], stderr=subprocess.DEVNULL)


def stop(process):
    process.terminate()
    process.wait(timeout=20)


def until_listening(ns, port, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if f":{port} " in str(ns.check_output(["ss", "-Hltn"])):
            return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens on {port}")


def run_in(ns, *argv):
    ns.check_output(list(argv))


def traffic(lab, packets):
    """About ``packets`` packets on the client's eth0."""
    client = lab["client"]
    for address in ("10.77.0.2", "fd77::2"):
        # 64-byte datagrams: many packets for few bytes.  A bounded rate loses none.
        run_in(
            client,
            *("iperf3", "-c", address, "-u", "-l", "64", "-b", "40M", "-k", str(packets // 3)),
        )
        # A small MSS does the same for TCP (data and acknowledgements).
        run_in(
            client,
            "iperf3",
            "-c",
            address,
            "-M",
            "200",
            "-b",
            "150M",
            "-n",
            str(packets // 4 * 188),
        )
        host = f"[{address}]" if ":" in address else address
        for _ in range(3):
            run_in(client, "curl", "-sfo", "/dev/null", f"http://{host}:8080/file")
        run_in(client, "ping", "-q", "-n", "-c", "5", "-i", "0.01", address)


FIELDS = ("ip.src", "ipv6.src", "ip.dst", "ipv6.dst", "frame.len")
PORTS = ("srcport", "dstport")


def conversations(capture):
    """tshark's view: {proto: {(src, sport, dst, dport): (packets, bytes)}}, one per direction.

    Packets are those of tshark's conversation tables.  The tables round bytes to "kB", so bytes are
    added up from the same run's frame lengths, and must give the tables' packets as well.
    """
    argv = ["tshark", "-n", "-r", str(capture), "-T", "fields"]
    for option in ("desegment_tcp_streams", "analyze_sequence_numbers", "track_bytes_in_flight"):
        argv += ["-o", f"tcp.{option}:FALSE"]
    for field in (*FIELDS, *(f"{proto}.{port}" for proto in ("tcp", "udp") for port in PORTS)):
        argv += ["-e", field]
    argv += ["-z", "conv,tcp", "-z", "conv,udp"]
    tables, sums = {}, {"tcp": defaultdict(lambda: [0, 0]), "udp": defaultdict(lambda: [0, 0])}
    table = None
    with subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"LC_ALL": "C"},
    ) as tshark:
        for line in tshark.stdout:
            if " Conversations" in line:
                table = tables.setdefault(line.split()[0].lower(), {})
            elif "<->" in line:
                # a <-> b, then frames and size towards a, towards b, in all
                a, _, b, *rest = line.split()
                a, b = ((host, int(port)) for host, _, port in (w.rpartition(":") for w in (a, b)))
                table[(*b, *a)] = int(rest[0])
                table[(*a, *b)] = int(rest[3])
            elif line.count("\t") == 8:
                ip4, ip6, to4, to6, size, *ports = line.rstrip("\n").split("\t")
                proto = "tcp" if ports[0] else "udp" if ports[2] else None
                if proto and "," not in line:  # an ICMP error quotes a second header
                    sport, dport = (int(port) for port in ports if port)
                    one = sums[proto][(ip4 or ip6, sport, to4 or to6, dport)]
                    one[0] += 1
                    one[1] += int(size)
    assert tshark.returncode == 0
    for proto, flows in sums.items():
        assert {flow: n for flow, n in tables[proto].items() if n} == {
            flow: packets for flow, (packets, _) in flows.items()
        }
    return {proto: {flow: tuple(n) for flow, n in flows.items()} for proto, flows in sums.items()}


def per_flow(flows, proto):
    return {
        (row["src"], row["sport"], row["dst"], row["dport"]): (row["packets"], row["bytes"])
        for row in flows
        if row["proto"] == proto
    }


def adds_up(flows, summary):
    for field in ("packets", "bytes"):
        parts = sum(row[field] for row in flows)
        parts += summary[f"nonip_{field}"] + summary[f"unattributed_{field}"]
        assert parts == summary[field]
    assert summary["flows"] == len(flows)


def quiet(ns, seconds=0.5):
    """Wait until the interface counts nothing more."""
    before = None
    while before != (before := counters(ns)):
        time.sleep(seconds)


def written(capture, seconds=1.0):
    """Wait until tcpdump has nothing more to write: on SIGINT it drops what is in its buffer."""
    size = -1
    while size != (size := capture.stat().st_size):
        time.sleep(seconds)


@needs_tools
def test_a_million_packets_agree_with_tshark_and_the_interface_offloads_off(tmp_path):
    with pair_lab(offloads=False) as lab:
        client, server = lab["client"], lab["server"]
        servers = [
            server.popen(["iperf3", "-s"], stdout=subprocess.DEVNULL),
            nginx(server, tmp_path),
        ]
        until_listening(server, 5201)
        until_listening(server, 8080)
        capture = tmp_path / "capture.pcap"
        quiet(client)
        dump = client.popen(
            ["tcpdump", "-i", "eth0", *DUMP, "-w", str(capture)],
            stderr=subprocess.PIPE,
            text=True,
        )
        dump.stderr.readline()  # "listening on …"
        watch = Watch(client)
        before = counters(client)
        try:
            traffic(lab, PACKETS)
            quiet(client)
            after = counters(client)
            flows, summary = watch.stop()
            written(capture)
        finally:
            for process in servers:
                stop(process)
            dump.send_signal(signal.SIGINT)
            said = dump.communicate(timeout=60)[1]
        assert "\n0 packets dropped by kernel" in said, said

    packets, size, dropped = (b - a for a, b in zip(before, after, strict=True))
    assert packets >= PACKETS
    assert dropped == 0  # else the tap saw what the interface did not send
    assert (summary["packets"], summary["bytes"]) == (packets, size)
    assert summary["unattributed_packets"] == 0
    adds_up(flows, summary)
    for proto, theirs in conversations(capture).items():
        assert len(theirs) >= 4
        assert per_flow(flows, proto) == theirs

    # The same program over the same capture (--pcap) gives the same flows.
    done = run("sockex3", "--json", "--pcap", str(capture), check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for proto in ("tcp", "udp"):
        assert per_flow(rows[:-1], proto) == per_flow(flows, proto)


@pytest.mark.parametrize("family", [4, 6])
def test_super_frames_count_as_the_segments_that_the_sockets_report(family):
    address = {4: "10.77.0.2", 6: "fd77::2"}[family]
    link = {4: 14 + 20, 6: 14 + 40}[family]
    with pair_lab(offloads=True) as lab:
        lab.offloads("server:eth0", gro=True)
        lab.offloads("client:eth0", gro=True)
        for name in lab:
            # a retransmission too many, on a busy machine, is answered with a SACK block: 12
            # bytes that tcp_info does not tell
            lab.sysctl(name, "net.ipv4.tcp_sack", 0)
        client, server = lab["client"], lab["server"]
        watches = [Watch(client), Watch(server)]
        before = counters(client)
        report = tcp(
            address,
            connections=3,
            requests=20,
            up=700_000,
            down=900_000,
            ns=client,
            server_ns=server,
        )
        quiet(client)
        frames = counters(client)[0] - before[0]
        results = [watch.stop() for watch in watches]
    segments = report.packets
    # The interfaces passed super-frames, or this test would show nothing.
    assert frames < segments / 3
    for flows, summary in results:
        adds_up(flows, summary)
        seen = per_flow(flows, "tcp")
        for connection in report.connections:
            up = next(f for f in seen if f[1] == connection.client_port)
            down = next(f for f in seen if f[3] == connection.client_port)
            assert (seen[up][0], seen[down][0]) == connection.packets
            expected = tuple(
                n * link + size
                for n, size in zip(connection.packets, connection.header_and_payload, strict=True)
            )
            assert (seen[up][1], seen[down][1]) == expected
