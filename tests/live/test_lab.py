# SPDX-License-Identifier: Apache-2.0
"""Labs: built, drawn, and crossed by traffic of the usual tools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError
from bpfkit.net.links.interfaces import Interface
from bpfkit.net.links.lab import Lab, bridge_lab, loopback_lab, pair_lab, router_lab
from bpfkit.net.links.netns import NetNS
from bpfkit.net.links.offloads import get_offloads, set_offloads
from bpfkit.net.packets.capture import Capture
from bpfkit.net.traffic.ping import ping
from bpfkit.net.traffic.tcp import tcp

pytest.importorskip("pyroute2", reason="pyroute2 is not installed")

ROOT = Path(__file__).resolve().parents[2]

LABS = [
    (loopback_lab, "host", "host", ["127.0.0.1", "::1"]),
    (pair_lab, "client", "server", ["10.77.0.2", "fd77::2"]),
    (router_lab, "client", "server", ["10.77.2.1", "fd77:2::1"]),
    (bridge_lab, "container", "outside", ["10.77.4.2", "fd77:4::2"]),
    (bridge_lab, "outside", "container", ["10.77.3.2", "fd77:3::2"]),
    (bridge_lab, "container", "host", ["10.77.3.1", "fd77:3::1"]),
]


@pytest.mark.parametrize(("make", "source", "target", "hosts"), LABS)
def test_ping_and_tcp_at_once(make: object, source: str, target: str, hosts: list[str]) -> None:
    """The first packet gets through: no DAD, no forward delay, no carrier to wait for."""
    assert callable(make)
    with make() as lab:
        for host in hosts:
            lab[source].check_output(["ping", "-n", "-c", "1", "-W", "1", host])
            assert ping(host, ns=lab[source]).received == 1
            assert tcp(host, ns=lab[source], server_ns=lab[target]).requests == 1


@pytest.mark.parametrize("make", [loopback_lab, pair_lab, router_lab, bridge_lab])
def test_drawing(make: object) -> None:
    assert callable(make)
    with make() as lab:
        drawing = lab.describe()
        for name, devices in lab.devices.items():
            assert f" {name} " in drawing
            for dev, device in devices.items():
                assert dev in drawing
                for address in device.addresses:
                    assert address in drawing
        lines = drawing.splitlines()
        assert max(map(len, lines)) <= 80
        cables = sum(1 for devices in lab.devices.values() for d in devices.values() if d.peer)
        assert sum(line.count("├") for line in lines) == cables
        ascii = lab.describe(ascii=True)
        assert ascii.isascii()
        assert len(ascii.splitlines()) == len(lines)
        assert "<svg" in lab._repr_html_()
        assert lab.title in repr(lab)


def test_what_is_drawn_is_there() -> None:
    with bridge_lab() as lab:
        for name, devices in lab.devices.items():
            out = lab[name].check_output(["ip", "-br", "addr"])
            found = {
                line.split()[0].partition("@")[0]: line.split()[2:] for line in out.splitlines()
            }
            assert set(found) == set(devices)
            for dev, device in devices.items():
                real = [a for a in found[dev] if not a.startswith("fe80:")]
                assert real == device.addresses
        assert "master br0" in lab["host"].check_output(["ip", "link", "show", "c0"])


def test_drawing_of_a_pair() -> None:
    with pair_lab() as lab:
        lab.note("server:eth0", "xdp: xdp_drop_icmp")
        assert (
            lab.describe()
            == """\
pair lab
╭─ client ───────────────────────╮
│ lo    127.0.0.1/8  ::1/128     │
│ eth0  10.77.0.1/24  fd77::1/64 ├──╮
╰────────────────────────────────╯  │
╭─ server ───────────────────────╮  │
│ lo    127.0.0.1/8  ::1/128     │  │
│ eth0  10.77.0.2/24  fd77::2/64 ├──╯
│       ● xdp: xdp_drop_icmp     │
╰────────────────────────────────╯"""
        )


def test_crossing_cables() -> None:
    with Lab("star") as lab:
        for name in "abc":
            lab.namespace(name)
        lab.veth("a:b", "b:a")
        lab.veth("a:c", "c:a")
        assert "┼" in lab.describe()


def test_no_two_devices_share_an_index() -> None:
    with bridge_lab() as lab:
        indexes = [
            lab.interface(f"{name}:{dev}").index
            for name, devices in lab.devices.items()
            for dev in devices
            if dev != "lo"
        ]
        assert len(set(indexes)) == len(indexes)


def has_vlan() -> bool:
    """By ip, on a veth: lo takes no VLANs on any kernel."""
    add = ["ip", "link", "add"]
    with NetNS.new() as ns:
        ns.check_output([*add, "v0", "type", "veth", "peer", "name", "v1"])
        vlan = [*add, "link", "v0", "name", "v0.9", "type", "vlan", "id", "9"]
        return ns.popen(vlan, stderr=-3).wait() == 0


def test_vlan() -> None:
    if not has_vlan():
        pytest.skip("this kernel has no CONFIG_VLAN_8021Q")
    with pair_lab() as lab:
        assert lab.vlan("client:eth0", 10, addresses=["10.78.0.1/24"]) == "client:eth0.10"
        lab.vlan("server:eth0", 10, addresses=["10.78.0.2/24"])
        with Capture("eth0", ns=lab["client"]) as capture:
            assert ping("10.78.0.2", ns=lab["client"]).received == 1
        assert any(p.data[12:16] == b"\x81\x00\x00\x0a" for p in capture)


def test_no_vlan_is_said() -> None:
    if has_vlan():
        pytest.skip("this kernel has VLAN devices")
    with pair_lab() as lab:
        with pytest.raises(UnsupportedError, match="CONFIG_VLAN_8021Q") as caught:
            lab.vlan("client:eth0", 10, addresses=["10.78.0.1/24"])
        assert caught.value.exit_status == 77
        assert Interface.names(lab["client"]) == ["lo", "eth0"]


def test_neighbours_and_routes() -> None:
    with pair_lab() as lab:
        lab.neighbours("client:eth0", "server:eth0")
        with Capture("eth0", ns=lab["client"]) as capture:
            assert ping("10.77.0.2", ns=lab["client"]).received == 1
        assert not [p for p in capture if p.data[12:14] == b"\x08\x06"]  # no ARP
        lab.address("server:eth0", "10.99.0.1/32")
        lab.route("client", "10.99.0.0/16", via="10.77.0.2")
        assert ping("10.99.0.1", ns=lab["client"]).received == 1
        lab.route("client", "fd99::/16", device="eth0")
        assert "fd99::/16" in lab["client"].check_output(["ip", "-6", "route"])


def test_mtu() -> None:
    with pair_lab(mtu=9000) as lab:
        assert lab.interface("client:eth0").mtu == lab.interface("server:eth0").mtu == 9000


# -- offloads -----------------------------------------------------------------------------------


def test_without_offloads_every_packet_is_one_frame() -> None:
    with pair_lab(offloads=False) as lab:
        with Capture("eth0", ns=lab["client"], gso=True) as capture:
            tcp("10.77.0.2", up=200_000, ns=lab["client"], server_ns=lab["server"])
        assert max(p.orig_len for p in capture) <= 1514
        assert not any(p.gso_size for p in capture)
    with pair_lab() as lab:
        with Capture("eth0", ns=lab["client"]) as capture:
            tcp("10.77.0.2", up=200_000, ns=lab["client"], server_ns=lab["server"])
        assert max(p.orig_len for p in capture) > 1514


def ethtool(lab: Lab, device: str) -> dict[str, bool]:
    ns, _, dev = device.partition(":")
    out = lab[ns].check_output(["ethtool", "-k", dev])
    return {m[1]: m[2] == "on" for m in re.finditer(r"^\s*([a-z0-9-]+): (on|off)", out, re.M)}


@pytest.mark.skipif(not shutil.which("ethtool"), reason="not installed: ethtool")
def test_offloads_as_ethtool_sees_them() -> None:
    with pair_lab() as lab:
        wanted = {"tso": False, "gso": False, "gro": True, "tx": False, "rxvlan": False}
        lab.offloads("client:eth0", **wanted)
        seen = ethtool(lab, "client:eth0")
        assert not seen["tcp-segmentation-offload"]
        assert not seen["generic-segmentation-offload"]
        assert seen["generic-receive-offload"]
        assert not seen["tx-checksumming"]
        assert not seen["rx-vlan-offload"]
        mine = get_offloads(lab.interface("client:eth0"))
        for name, value in seen.items():
            if name in mine:
                assert mine[name] == value, name
        lab.offloads("client:eth0", tso=True, gso=True, tx=True)
        assert ethtool(lab, "client:eth0")["tcp-segmentation-offload"]
        with pytest.raises(InputError, match="no offload named 'nope'"):
            set_offloads(lab.interface("client:eth0"), nope=True)
        set_offloads(lab.interface("client:eth0"), tx_nocache_copy=True)
        assert get_offloads(lab.interface("client:eth0"))["tx-nocache-copy"]


# -- bad use ------------------------------------------------------------------------------------


def test_errors_name_the_thing() -> None:
    with pair_lab() as lab:
        for call, word in (
            (lambda: lab["nope"], "client, server"),
            (lambda: lab.namespace("client"), "client"),
            (lambda: lab.veth("client:eth0", "server:x"), "client:eth0"),
            (lambda: lab.veth("client:" + "x" * 16, "server:x"), "15 bytes"),
            (lambda: lab.veth("client", "server:x"), "namespace:device"),
            (lambda: lab.address("client:eth0", "10.0.0.1"), "10.0.0.1"),
            (lambda: lab.address("client:eth0", "300.0.0.1/24"), "300.0.0.1/24"),
            (lambda: lab.address("client:eth9", "10.0.0.1/24"), "lo, eth0"),
            (lambda: lab.interface("client:eth9"), "eth9"),
            (lambda: lab.note("client:eth9", "x"), "lo, eth0"),
        ):
            with pytest.raises(InputError) as caught:
                call()  # type: ignore[no-untyped-call]
            assert word in str(caught.value)
        with pytest.raises(BpfkitError, match="unreachable"):
            lab.route("client", "10.0.0.0/8", via="1.2.3.4")
        with pytest.raises(BpfkitError, match="File exists"):
            lab.address("client:eth0", "10.77.0.1/24")


def test_a_failing_build_leaves_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InputError), Lab() as lab:
        lab.namespace("a")
        lab.veth("a:x", "nope:y")
    assert len(os.listdir("/proc/self/fd")) == before
    lab.close()  # twice is fine


def test_without_pyroute2() -> None:
    """Only what needs netlink says so; the loopback lab does not."""
    code = """
import sys
sys.modules["pyroute2"] = None
from bpfkit.core.errors import UnsupportedError
from bpfkit.net.links.lab import loopback_lab, pair_lab
from bpfkit.net.traffic.ping import ping
with loopback_lab() as lab:
    assert ping("::1", ns=lab["host"]).received == 1
try:
    pair_lab()
except UnsupportedError as error:
    print(error)
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert "pyroute2 is not installed" in out


def test_from_a_thread_with_a_running_event_loop() -> None:
    """As in a notebook cell, whose thread has an asyncio loop running."""
    import asyncio

    async def cell() -> int:
        with pair_lab() as lab:
            return ping("fd77::2", ns=lab["client"]).received

    assert asyncio.run(cell()) == 1


def test_cheap_imports() -> None:
    """What a program imports to attach brings none of the heavy modules along."""
    code = """
import sys
import bpfkit.net.links.netns, bpfkit.net.links.interfaces, bpfkit.net.packets.packet_socket
import bpfkit.net.packets.pcap, bpfkit.net.traffic.mixed
print(" ".join(sys.modules))
"""
    out = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout
    heavy = "pyroute2 socket ipaddress subprocess dataclasses typing re enum pathlib json gzip"
    assert not set(out.split()) & set(heavy.split())
