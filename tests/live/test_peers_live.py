# SPDX-License-Identifier: Apache-2.0
"""The packet path's programs as other people's tools see them: nping, nft, tc, bpftool, tcpdump."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from running import Running, on_server, path_of

from bpfkit.core.features import NOT_SUPPORTED, probe_program_type
from bpfkit.net.links.lab import Lab, pair_lab, router_lab
from bpfkit.net.links.netns import NetNS
from bpfkit.net.traffic.ping import ping
from bpfkit.net.traffic.probes import Listener
from bpfkit.net.traffic.udp import udp

COUNT = 3


def needs(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with pair_lab() as made:
        yield made


def nping(ns: NetNS, *args: str) -> tuple[int, int]:
    """(sent, answered), as nping counts."""
    command = ["nping", "-q", "-c", str(COUNT), "--delay", "20ms", *args]
    said = ns.check_output(command)
    found = re.search(r"packets sent: (\d+) .* Rcvd: (\d+) ", said)
    found = found or re.search(r"attempts: (\d+) .* connections: (\d+) ", said)
    assert found, said
    return int(found[1]), int(found[2])


def answered(lab: Lab, port: int) -> dict[str, int]:
    """Of COUNT packets of each kind that nping sends from the client, how many are answered."""
    kinds = {
        "tcp": ["--tcp", "-p", str(port), "10.77.0.2"],
        "tcp6": ["-6", "--tcp-connect", "-p", str(port), "fd77::2"],
        "icmp": ["--icmp", "10.77.0.2"],
        "arp": ["--arp", "10.77.0.2"],
    }
    result = {}
    for kind, args in kinds.items():
        sent, got = nping(lab["client"], *args)
        assert sent == COUNT
        result[kind] = got
    return result


@pytest.mark.parametrize(
    ("name", "args", "lost"),
    [
        ("xdp_drop_tcp", (), {"tcp", "tcp6"}),
        ("xdp_drop_icmp", ("--keep-nd",), {"icmp"}),
        ("tc_drop_tcp", ("--direction", "ingress"), {"tcp", "tcp6"}),
        ("tc_drop_tcp", ("--direction", "egress", "--attach", "clsact"), {"tcp", "tcp6"}),
    ],
)
def test_nping_loses_what_is_dropped_and_nothing_else(
    lab: Lab, name: str, args: tuple[str, ...], lost: set[str]
) -> None:
    needs("nping")
    with closing(Listener(lab["server"])) as listener:
        everything = dict.fromkeys(("tcp", "tcp6", "icmp", "arp"), COUNT)
        assert answered(lab, listener.port) == everything
        with on_server(name, lab, *args) as program:
            assert answered(lab, listener.port) == {**everything, **dict.fromkeys(lost, 0)}
            status, _, errors = program.end()
            assert status == 0, errors
        assert answered(lab, listener.port) == everything


def test_tc_and_bpftool_show_what_was_said(lab: Lab) -> None:
    needs("tc", "bpftool")
    with on_server("tc_classifier", lab, "--attach", "clsact") as program:
        number = re.search(r"\(program (\d+), tag (\w+), jited\)", program.said)
        assert number, program.said
        server = lab["server"]
        there = server.check_output(["tc", "filter", "show", "dev", "eth0", "ingress"])
        assert (
            f" id {number[1]} " in there
            and f"tag {number[2]}" in there
            and "direct-action" in there
        )
        assert "clsact" in server.check_output(["tc", "qdisc", "show", "dev", "eth0"])
        shown = json.loads(server.check_output(["bpftool", "-j", "net", "show"]))
        kinds = {(one["kind"], one["name"].partition("/")[0]) for one in shown[0]["tc"]}
        assert kinds == {
            ("clsact/ingress", "tc_classifier_in"),
            ("clsact/egress", "tc_classifier_out"),
        }
        assert program.end()[0] == 0
    assert "clsact" not in lab["server"].check_output(["tc", "qdisc", "show", "dev", "eth0"])


def test_tcpdump_sees_what_tc_drops_and_not_what_xdp_drops(lab: Lab, tmp_path: Path) -> None:
    needs("tcpdump")
    for name, args, seen in (
        ("xdp_drop_icmp", (), 0),
        ("xdp_drop_world", (), 0),
        ("tc_classifier", ("--rule", "ingress,icmp,police=8bit,burst=1"), COUNT),
    ):
        path = tmp_path / f"{name}.pcap"
        ping("10.77.0.2", ns=lab["client"])  # the neighbours are known
        command = ["tcpdump", "-i", "eth0", "-Q", "in", "--immediate-mode"]
        command += ["-w", str(path), "icmp"]
        with on_server(name, lab, *args) as program, lab["server"].entered():
            dump = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            assert dump.stderr is not None
            for line in dump.stderr:
                if "listening on" in line:
                    break
            report = ping("10.77.0.2", count=COUNT, interval=0.02, timeout=0.3, ns=lab["client"])
            time.sleep(0.2)
            dump.send_signal(signal.SIGINT)
            _, said = dump.communicate(timeout=20)
            assert report.received == 0, "it is dropped"
            assert f"{seen} packets captured" in said, (name, said)
            assert program.end()[0] == 0


def test_nft_before_and_behind_the_netfilter_program() -> None:
    """By priority: what nft drops first the program never sees, and the other way round."""
    needs("nft")
    found = probe_program_type("netfilter")
    if found.state == NOT_SUPPORTED:
        pytest.skip(found.why)
    rules = """
    table inet t {
        chain before { type filter hook forward priority -5; udp dport 7777 counter drop; }
        chain behind {
            type filter hook forward priority 5;
            meta l4proto udp counter;
            ip protocol icmp counter;
        }
    }"""
    with router_lab() as lab:
        client, router, server = lab["client"], lab["router"], lab["server"]
        router.check_output(["nft", "-f", "-"], input=rules)
        argv = ["--netns", path_of(router), "--drop", "icmp", "--json", "-t", "0.1"]
        # with a row it is attached
        with Running("netfilter", *argv, ready=lambda row: True) as program:
            assert ping("10.77.2.1", count=3, timeout=0.3, ns=client).received == 0
            lost = udp("10.77.2.1", port=7777, count=4, timeout=0.2, ns=client, server_ns=server)
            came = udp("10.77.2.1", count=5, ns=client, server_ns=server)
            time.sleep(0.3)
            last = {row["hook"]: row for row in program.rows() if row["family"] == 4}
        assert (lost.received, came.received) == (0, 5)
        assert (last["prerouting"]["packets"], last["forward"]["packets"]) == (12, 8)
        assert last["forward"]["dropped"] == 3
        counted = {
            chain: re.findall(
                r"counter packets (\d+)",
                router.check_output(["nft", "list", "chain", "inet", "t", chain]),
            )
            for chain in ("before", "behind")
        }
        assert counted == {"before": ["4"], "behind": ["5", "0"]}
