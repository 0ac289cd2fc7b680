# SPDX-License-Identifier: Apache-2.0
"""Programs on routes, at netfilter's hooks and as flow dissector: --check, and from outside."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time

import pytest
from running import command, path_of, run

from bpfkit.core.errors import UnsupportedError
from bpfkit.core.object import load
from bpfkit.core.records import reap
from bpfkit.net.attach.route import attach_route
from bpfkit.net.links.lab import pair_lab, router_lab
from bpfkit.net.packets.capture import Capture
from bpfkit.net.traffic.ping import ping
from bpfkit.net.traffic.udp import udp

pytest.importorskip("pyroute2", reason="pyroute2 is not installed")
PROGRAMS = [
    "flow_dissector",
    "lwt_in",
    "lwt_out",
    "lwt_xmit",
    "netfilter",
    "seg6local",
    "tc_action",
]


def done(result: subprocess.CompletedProcess[str]) -> None:
    """The exit status is 0; a kernel that cannot says what is missing."""
    if result.returncode == 77:
        assert "CONFIG_" in result.stderr or "installed" in result.stderr
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_check_passes(name: str) -> None:
    done(run(name, "--check", "-c", "2"))


def test_action_behind_flower() -> None:
    done(run("tc_action", "--check", "--match", "flower"))


@pytest.mark.parametrize("match", ["u32", "flower"])
def test_an_action_that_cannot_be_names_the_setting(match: str) -> None:
    result = run("tc_action", "-c", "1", "--match", match)
    if result.returncode == 0:
        pytest.skip("this kernel can")
    assert result.returncode == 77
    missing = re.findall(r"CONFIG_NET_(?:ACT_BPF|CLS_(?:U32|FLOWER))", result.stderr)
    assert len(missing) == 1 and "Traceback" not in result.stderr
    if missing[0] != "CONFIG_NET_ACT_BPF":
        assert missing[0] == f"CONFIG_NET_CLS_{match.upper()}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_rows_are_json(name: str) -> None:
    result = run(name, "--json", "-c", "1", "-t", "2")
    done(result)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert rows
    assert all({"ts", "round"} < set(row) for row in rows)


@pytest.mark.parametrize("hook", ["prerouting", "postrouting"])
def test_netfilter_drops_udp_where_it_is_told_to(hook: str) -> None:
    done(run("netfilter", "--check", "-c", "1", "--drop", "udp", "--hook", hook))


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("lwt_in", ["--route", "10.0.0.0/8"]),
        ("lwt_in", ["--netns", "1", "--route", "10.0.0.0/8"]),
        ("lwt_in", ["--netns", "1", "--route", "10.0.0.1/8", "-i", "lo"]),
        ("lwt_xmit", ["--netns", "1", "--route", "10.0.0.0/8", "-i", "lo"]),
        ("netfilter", ["--priority", "-2147483648"]),
        ("flow_dissector", ["--no-demo"]),
    ],
)
def test_bad_options_are_refused(name: str, argv: list[str]) -> None:
    result = run(name, *argv)
    assert result.returncode == 2
    assert 1 <= len(result.stderr.splitlines()) <= 2


def test_route_in_a_foreign_namespace_goes_after_kill() -> None:
    with router_lab() as lab:
        client = lab["client"]
        argv = [
            "--netns",
            path_of(client),
            "--route",
            "10.77.2.0/24",
            "-i",
            "eth0",
            "--via",
            "10.77.1.254",
        ]
        argv = command("lwt_out", *argv, "--drop", "icmp", "--no-demo")
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as child:
            deadline = time.monotonic() + 30
            while "encap" not in client.check_output(["ip", "route"]):
                assert child.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert ping("10.77.2.1", timeout=0.3, ns=client).received == 0
            child.send_signal(signal.SIGKILL)
        assert "encap" in client.check_output(["ip", "route"])
        assert any("route" in line for line in reap())
        assert "encap" not in client.check_output(["ip", "route"])
        assert ping("10.77.2.1", ns=client).received == 1


@pytest.mark.parametrize("version", [4, 6])
def test_a_route_over_a_vlan_device(version: int) -> None:
    """The tag is put on behind the program: it counts the packet without, the wire has it with."""
    host, via = ("10.98.0.1", "10.99.0.2") if version == 4 else ("fd98::1", "fd99::2")
    prefix = "10.98.0.0/24" if version == 4 else "fd98::/64"
    with pair_lab() as lab, load("lwt/lwt_out.bpf.c", consts={"drop": 1}) as loaded:
        try:
            lab.vlan("client:eth0", 10, addresses=["10.99.0.1/24", "fd99::1/64"])
        except UnsupportedError as error:
            pytest.skip(str(error))
        lab.vlan("server:eth0", 10, addresses=["10.99.0.2/24", "fd99::2/64"])
        lab.address("server:lo", f"{host}/{32 if version == 4 else 128}")
        lab.ready()
        client, server = lab["client"], lab["server"]
        program = next(iter(loaded.programs.values()))
        with (
            attach_route(program, prefix, ns=client, device="eth0.10", via=via, recorded=False),
            Capture("eth0", ns=server, outgoing=False) as capture,
        ):
            assert ping(host, timeout=0.3, ns=client).received == 0, "the program drops it"
            report = udp(host, count=5, size=77, ns=client, server_ns=server)
            assert report.received == 5
            frames = [p.data for p in capture.packets if p.data.endswith(bytes(77))]
        row = loaded["rows"].sum(17)
        assert (row.packets, row.bytes) == (5, report.wire_bytes - 5 * 14)
        assert [frame[12:16].hex() for frame in frames] == ["8100000a"] * 5
