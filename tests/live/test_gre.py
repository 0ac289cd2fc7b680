# SPDX-License-Identifier: Apache-2.0
"""GRE tunnels: with a fixed remote address packets have no link header, without one the outer's.

tcpdump's raw view is the model: ``ip`` makes the tunnels, a packet socket shows their headers.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest
from running import Running, run

from bpfkit.core.errors import UnsupportedError
from bpfkit.net.links.interfaces import Interface
from bpfkit.net.links.lab import Lab, pair_lab
from bpfkit.net.links.netns import NetNS
from bpfkit.net.traffic.ping import ping

#: Settings of ``ip link add … type gre`` -> bytes of link header.
SETTINGS = {
    "remote 10.77.0.2": 0,
    "remote 10.77.0.2 key 7": 0,
    "external": 0,
    "": 24,
    "key 7": 28,
    "remote 239.1.1.1 key 7 csum seq ttl 4 dev eth0": 36,
}


def add(ns: NetNS, name: str, settings: str, kind: str = "gre") -> None:
    local = (
        "" if settings == "external" else "local 10.77.0.1" if kind == "gre" else "local fd77::1"
    )
    argv = ["ip", "link", "add", name, "type", kind, *local.split(), *settings.split()]
    done = ns.run(subprocess.run, argv, capture_output=True, text=True, check=False)
    if "Unknown device type" in done.stderr:
        pytest.skip(f"this kernel has no {kind} (CONFIG_NET_IPGRE, CONFIG_IPV6_GRE)")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def lab() -> Iterator[Lab]:
    with pair_lab() as lab:
        yield lab


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_link_header_comes_from_the_settings(lab: Lab, settings: str) -> None:
    ns = lab["client"]
    add(ns, "gre9", settings)
    assert Interface.find("gre9", ns).l2_len == SETTINGS[settings]


@pytest.mark.parametrize("kind", ["gre", "ip6gre"])
def test_a_header_of_unknown_length_is_refused(lab: Lab, kind: str) -> None:
    ns = lab["client"]
    add(ns, "gre9", "ikey 5" if kind == "gre" else "", kind)
    with pytest.raises(UnsupportedError, match="cannot read packets of gre9"):
        Interface.find("gre9", ns)


def test_programs_read_the_packet_behind_the_outer_header(lab: Lab) -> None:
    ends = {"client": "10.77.0.1", "server": "10.77.0.2"}
    for place, local in ends.items():
        ns = lab[place]
        add(ns, "gre9", "")  # an end without an address of its own: made anew below
        ns.check_output(["ip", "link", "del", "gre9"])
        words = f"gre9 type gre local {local} remote 239.1.1.1 key 5 ttl 4 dev eth0".split()
        ns.check_output(["ip", "link", "add", *words])
        ns.check_output(["ip", "addr", "add", f"10.78.0.{local[-1]}/24", "dev", "gre9"])
        ns.check_output(["ip", "link", "set", "gre9", "up"])
    ns = lab["client"]
    with ns.entered():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        raw.bind(("gre9", 0))
        raw.settimeout(5)
    run("sockex3", "-c", "1", "-t", "0.1")  # compiled now, which takes its time in an emulator
    words = ("-i", "gre9", "--json", "-t", "0.5")
    with Running("sockex3", *words, ready=lambda row: True, ns=ns) as program:
        report = ping("10.78.0.2", count=3, ns=ns)
        assert report.received == 3
        rows = program.rows()
    flows = {(row.get("src"), row.get("dst"), row.get("proto")): row for row in rows}
    assert flows["10.78.0.1", "10.78.0.2", "icmp"]["packets"] == 3
    assert flows["10.78.0.2", "10.78.0.1", "icmp"]["packets"] == 3
    with raw:
        while (frame := raw.recv(2000))[28 + 9 : 28 + 10] != b"\x01":
            pass
    assert frame[9] == 47  # the outer header is what a packet socket shows first
    with Running("xdp_drop_icmp", "-i", "gre9", "--no-demo", "--mode", "generic", ns=ns):
        assert ping("10.78.0.2", count=2, timeout=0.5, ns=ns).received == 0
    assert ping("10.78.0.2", count=2, ns=ns).received == 2
