# SPDX-License-Identifier: Apache-2.0
"""XDP and tc programs on interfaces: modes, who is in the way, the interface's fate, real peers."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from running import on_server, path_of, run
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

import bpfkit
from bpfkit.core.errors import UnsupportedError
from bpfkit.core.object import Object
from bpfkit.net.links.lab import Lab, pair_lab
from bpfkit.net.traffic.ping import ping
from bpfkit.net.traffic.probes import Listener, tcp_answers

PROGRAMS = ["xdp_drop_world", "xdp_drop_icmp", "xdp_drop_tcp", "tc_drop_tcp"]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with pair_lab() as made:
        yield made


def shown(lab: Lab) -> str:
    return lab["server"].check_output(["ip", "link", "show", "dev", "eth0"])


@pytest.mark.parametrize("name", [*PROGRAMS, "tc_drop_tcp --attach clsact"])
def test_check_passes(name: str) -> None:
    done = run(*name.split(), "--check", "-c", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified" in done.stdout


@pytest.mark.parametrize(("mode", "word"), [("native", "xdp"), ("generic", "xdpgeneric")])
def test_the_mode_asked_for_is_the_one_used(lab: Lab, mode: str, word: str) -> None:
    with on_server("xdp_drop_world", lab, "--mode", mode) as program:
        assert f"XDP {mode} on eth0" in program.said
        assert f" {word} " in shown(lab)
        assert ping("10.77.0.2", ns=lab["client"], timeout=0.3).received == 0
        status, _, errors = program.end()
        assert status == 0, errors
    assert "xdp" not in shown(lab)
    assert ping("10.77.0.2", ns=lab["client"]).received == 1


def test_native_where_there_is_none(lab: Lab) -> None:
    done = run(
        "xdp_drop_world",
        "-i",
        "lo",
        "--netns",
        path_of(lab["server"]),
        "--mode",
        "native",
        "-c",
        "1",
    )
    assert done.returncode == 77
    assert "no native XDP" in done.stderr and "--mode generic" in done.stderr


def test_mtu_too_large_for_native() -> None:
    with pair_lab(mtu=9000) as lab:
        with on_server("xdp_drop_world", lab, "--mode", "native", may_end=True) as program:
            status, _, errors = program.end()
            assert status == 1 and "MTU 9000" in errors
        with on_server("xdp_drop_world", lab) as program:
            assert "XDP generic" in program.said
            assert program.end()[0] == 0


def test_another_program_is_named_and_replaced(lab: Lab) -> None:
    with on_server("xdp_drop_tcp", lab) as first:
        with on_server("xdp_drop_icmp", lab, may_end=True) as second:
            status, _, errors = second.end()
            assert status == 1
            assert "'xdp_drop_tcp'" in errors and str(first.process.pid) in errors
            assert "--replace" in errors
        with on_server("xdp_drop_icmp", lab, "--replace") as second:
            assert "XDP native" in second.said
            status, _, errors = first.wait()
            assert status == 1 and "was detached from" in errors
            assert second.end()[0] == 0


def test_interface_down_and_removed(lab: Lab) -> None:
    with on_server("xdp_drop_world", lab, "-t", "0.2") as program:
        lab.interface("server:eth0").set_up(False)
        time.sleep(1.5)
        lab["server"].check_output(["ip", "link", "del", "eth0"])
        status, _, errors = program.wait(30)
        assert status == 1
        assert "went down" in errors and "was removed" in errors


@pytest.mark.parametrize("how", ["clsact", "tcx"])
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_tc_both_ways_leaves_nothing(lab: Lab, how: str, direction: str) -> None:
    server = Listener(lab["server"])
    try:
        options = ["--attach", how, "--direction", direction, "--json"]
        with on_server("tc_drop_tcp", lab, *options, may_end=how == "tcx") as program:
            if how == "tcx" and "(program " not in program.said:
                assert program.end()[0] == 77
                pytest.skip("this kernel has no tcx (6.6)")
            assert f"tc {direction} by {how}" in program.said
            assert not tcp_answers("10.77.0.2", server.port, ns=lab["client"], timeout=0.3)
            assert ping("10.77.0.2", ns=lab["client"]).received == 1
            status, out, errors = program.end()
            assert status == 0, errors
        rows = [json.loads(line) for line in out.splitlines()]
        assert rows[-6]["packets"] > 0
        assert tcp_answers("10.77.0.2", server.port, ns=lab["client"])
    finally:
        server.close()
    assert "clsact" not in lab["server"].check_output(["tc", "qdisc", "show", "dev", "eth0"])


def test_a_program_that_ip_link_attached_is_named_and_replaced(lab: Lab) -> None:
    from bpfkit.net.links import rtnetlink

    with bpfkit.load("xdp/xdp_drop_world.bpf.c") as loaded:
        program = loaded.programs["xdp_drop_world"]
        index = lab.interface("server:eth0").index
        # what `ip link set dev eth0 xdpgeneric …` sends: IFLA_XDP with fd and flags
        inner = struct.pack("=HHiHHI", 8, 1, program.fd, 8, 3, 2)
        body = struct.pack("=BxHiII", 0, 0, index, 0, 0)
        body += rtnetlink.attribute(43 | 0x8000, inner)
        lab["server"].run(rtnetlink.request, 19, body)
        assert f"prog/xdp id {program.id} " in shown(lab)
        with on_server("xdp_drop_icmp", lab, may_end=True) as second:
            status, _, errors = second.end()
            assert status == 1 and f"program {program.id} 'xdp_drop_world' (generic)" in errors
        with on_server("xdp_drop_icmp", lab, "--replace") as second:
            assert "replacing" in second.said and "XDP native" in second.said
            assert f"id {program.id} " not in shown(lab)
            assert second.end()[0] == 0


LINEAR = """
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>
BPF_ARRAY(linear, u64, 2);
SEC("tc")
int measure(struct __sk_buff *skb)
{
	u32 zero = 0, one = 1;
	u64 size = skb->data_end - skb->data, len = skb->len;
	u8 mac[6] = {};

	/* only from 02:00:00:00:00:01: what the kernel itself says on the cable is not measured */
	bpf_skb_load_bytes(skb, 6, mac, sizeof(mac));
	if (mac[0] != 2 || mac[1] | mac[2] | mac[3] | mac[4] || mac[5] != 1)
		return -1;
	linear.update(&zero, &size);
	linear.update(&one, &len);
	return -1;
}
"""


@contextlib.contextmanager
def behind_measure(
    source: str, name: str, how: str
) -> Iterator[tuple[Object, Object, socket.socket]]:
    """A tc program behind that which measures (both objects), and a socket to send from.

    Frames have a virtio_net_hdr in front: only its hdr_len bytes are linear.
    """
    with (
        pair_lab(mtu=9000) as lab,
        bpfkit.load(LINEAR) as first,
        bpfkit.load(source) as second,
        lab["server"].entered(),
    ):
        index = lab.interface("server:eth0").index
        try:
            first.programs["measure"].attach_tc(index, "ingress", how)
            second.programs[name].attach_tc(index, "ingress", how)
        except UnsupportedError:
            assert how == "tcx"
            pytest.skip("this kernel has no tcx (6.6)")
        sock = lab["client"].socket(socket.AF_PACKET, socket.SOCK_RAW)
        try:
            sock.bind(("eth0", 0))
            sock.setsockopt(263, 15, 1)  # PACKET_VNET_HDR
            yield first, second, sock
        finally:
            sock.close()


@pytest.mark.parametrize("how", ["clsact", "tcx"])
def test_headers_that_are_not_linear_and_tags_beside_the_packet(how: str) -> None:
    eth = Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff")
    tcp = IP(src="10.77.0.1", dst="10.77.0.2") / TCP() / Raw(bytes(5000))
    tagged = eth / Dot1Q(vlan=5) / IPv6(src="fd77::1", dst="fd77::2") / TCP()
    with behind_measure("tc/tc_drop_tcp.bpf.c", "tc_drop_tcp", how) as (first, second, sock):
        sock.send(struct.pack("=BBHHHH", 0, 0, 14, 0, 0, 0) + bytes(eth / tcp))
        linear = measured(first, len(eth / tcp))
        assert linear < 54, "the packet was meant to be non-linear"
        sock.send(bytes(10) + bytes(tagged))
        measured(first, len(tagged) - 4)  # the tag is kept beside the packet
        rows = dict(second["rows"].sums())
        assert (rows[0].packets, rows[0].bytes) == (1, len(eth / tcp))
        assert (rows[1].packets, rows[1].bytes) == (1, len(tagged))


def measured(loaded: Object, size: int) -> int:
    """The linear part of the packet of ``size`` bytes that was sent; waits for it to arrive."""
    deadline = time.monotonic() + 5
    while loaded["linear"][1] != size and time.monotonic() < deadline:
        time.sleep(0.001)
    assert loaded["linear"][1] == size, "it did not arrive as one packet"
    return int(loaded["linear"][0])


@pytest.mark.parametrize("how", ["clsact", "tcx"])
def test_classes_of_packets_whose_headers_are_not_linear_and_of_super_frames(how: str) -> None:
    eth = Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff")
    v4 = eth / IP(src="10.77.0.1", dst="10.77.0.2", tos=46 << 2)
    v6 = eth / IPv6(src="fd77::1", dst="fd77::2", tc=10 << 2)
    chain = IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()
    wanted = {}
    source, name = "tc/tc_classifier.bpf.c", "tc_classifier_in"
    with behind_measure(source, name, how) as (first, second, sock):
        for packet, key in (
            (v4 / UDP() / Raw(bytes(5000)), (0, 17, 46)),
            (v6 / UDP() / Raw(bytes(5000)), (0, 17, 10)),
            (v6 / chain / SCTP() / Raw(bytes(5000)), (0, 132, 10)),
        ):
            frame = bytes(packet)
            sock.send(struct.pack("=BBHHHH", 0, 0, 14, 0, 0, 0) + frame)
            linear = measured(first, len(frame))
            assert linear < 54, "the packet was meant to be non-linear"
            wanted[key] = (1, len(frame), 0, 0)
        # Super-frames: nine segments of 1000 bytes, a tenth of 500; only headers are linear.
        for packet, kind, at, key in (
            (v4 / TCP() / Raw(bytes(9500)), 1, 34, (0, 6, 46)),
            (v6 / TCP() / Raw(bytes(9500)), 4, 54, (0, 6, 10)),
        ):
            headers = at + 20
            head = struct.pack("=BBHHHH", 1, kind, headers, 1000, at, 16)
            sock.send(head + bytes(packet))
            assert measured(first, len(packet)) < len(packet)
            wanted[key] = (10, 9500 + 10 * headers, 0, 0)
        counts = {(k.direction, k.proto, k.dscp): tuple(v) for k, v in second["counts"].sums()}
        for key, row in wanted.items():
            assert counts[key] == row
