# SPDX-License-Identifier: Apache-2.0
"""hooks in its lab: the order, what drops hide from captures, the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from running import run

from bpfkit.hooks.journey import expected
from bpfkit.hooks.probes import PacketPath


@pytest.fixture(scope="module")
def path() -> Iterator[PacketPath]:
    with PacketPath() as made:
        yield made


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("way", ["in", "out", "forward", "all"])
@pytest.mark.parametrize("proto", ["tcp", "udp", "icmp"])
def test_order_is_the_documented_one(path: PacketPath, proto: str, way: str, family: int) -> None:
    journey = path.send(proto, way, family=family)
    met = [(s.place, s.hook) for s in journey.sightings]
    assert met == [step for step in expected(way, proto) if step[1] not in path.missing]
    assert journey.received
    times = [s.ns for s in journey.sightings]
    assert times == sorted(times)


def test_captures_miss_what_xdp_or_tc_egress_drops(path: PacketPath) -> None:
    whole = path.send("udp")
    assert [name for name, saw in whole.captures.items() if saw] == [
        "client:eth0 out",
        "router:left in",
        "router:right out",
        "server:eth0 in",
    ]
    at = {(s.place, s.hook): s for s in whole.sightings}
    for place, hook, seen in (
        ("router", "xdp_native", ["client:eth0 out"]),
        ("router", "tc_ingress", ["client:eth0 out", "router:left in"]),
        ("router", "tc_egress", ["client:eth0 out", "router:left in"]),
        ("client", "tc_egress", []),
        ("server", "xdp_generic", ["client:eth0 out", "router:left in", "router:right out"]),
        ("server", "cgroup_ingress", [name for name, saw in whole.captures.items() if saw]),
    ):
        cut = path.send("udp", drop=at[place, hook])
        assert [name for name, saw in cut.captures.items() if saw] == seen
        assert not cut.received
        assert cut.sightings[-1].dropped
        assert (cut.sightings[-1].place, cut.sightings[-1].hook) == (place, hook)


def test_tag_moves_from_the_data_to_beside_the_packet(path: PacketPath) -> None:
    journey = path.send("udp", vlan=0)
    where = {(s.place, s.hook): s.vlan for s in journey.sightings}
    assert where["client", "tc_egress"] == "none"  # it is pushed by the filter behind this one
    assert where["client", "tap_out"] == where["router", "xdp_native"] == "data"
    assert where["router", "tap_in"] == where["router", "tc_ingress"] == "beside"
    assert where["router", "prerouting"] == where["server", "tap_in"] == "none"
    assert journey.received  # a priority tag is no VLAN


def test_json_rows_of_a_drop() -> None:
    done = run("hooks", "--json", "--path", "in", "--proto", "tcp", "--drop-at", "xdp_native")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    hooks = [row for row in rows if row["event"] == "hook"]
    assert [row["hook"] for row in hooks][:3] == ["xdp_native", "tap_in", "tcx_ingress"]
    assert [row["seen"] for row in hooks] == [True] + [False] * (len(hooks) - 1)
    assert hooks[0]["dropped"] and hooks[0]["form"] == "L2" and hooks[0]["us"] == 0
    (capture,) = [row for row in rows if row["event"] == "capture"]
    assert (capture["device"], capture["direction"], capture["seen"]) == ("left", "in", False)
    assert rows[-1]["event"] == "application" and rows[-1]["seen"] is False


def test_text_explains_the_drop() -> None:
    done = run("hooks", "--drop-at", "tc_egress@router", "--ipv6")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["hooks", "hooks"]
    assert "right: the tap on the way out is after tc_egress, so tcpdump misses" in done.stdout
    assert "left: the tap on the way in is before tc_egress" in done.stdout
    assert "the application on server did not get it" in done.stdout


def test_text_answers_what_tcpdump_misses() -> None:
    done = run("hooks", "--path", "forward", "--proto", "tcp")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["hooks", "hooks"]
    found = [
        re.fullmatch(
            r"  dropped at (\w+) on (\S+), [\d.]+ µs (\w+) (\w+): a capture there (.*)", line
        )
        for line in done.stdout.splitlines()
    ]
    assert [match.groups() for match in found if match] == [
        ("xdp_native", "router:left", "before", "tap_in", "did not see it"),
        ("tc_ingress", "router:left", "after", "tap_in", "saw it"),
        ("tc_egress", "router:right", "before", "tap_out", "did not see it"),
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--drop-at", "nowhere"], "no hook 'nowhere'"),
        (["--drop-at", "tap_in"], "only gets a copy"),
        (["--drop-at", "input@moon"], "no place 'moon'"),
        (["--drop-at", "sk_lookup", "--proto", "icmp"], "does not pass sk_lookup"),
        (["--vlan", "4095"], "not a VLAN id"),
        (["--no-demo"], "nothing to observe"),
    ],
)
def test_bad_usage(options: list[str], said: str) -> None:
    done = run("hooks", *options)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
