# SPDX-License-Identifier: Apache-2.0
"""sockex3: rates of flows, what they are added up by, and where frames on a bridge are counted."""

from __future__ import annotations

import threading
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from bpfkit.sockex3.flow_rows import FIGURES, figures
from bpfkit.sockex3.groups import BY, NOT_ATTRIBUTED, aggregate, group_row, sort_groups
from bpfkit.sockex3.interfaces import Link, plan
from bpfkit.sockex3.names import Names
from bpfkit.sockex3.rates import Rates

if TYPE_CHECKING:
    from bpfkit.net.packets.flows import Flow, Outer


def flow(
    src: str,
    dst: str,
    ports: tuple[int | None, int | None] = (40000, 443),
    size: int = 100,
    packets: int = 1,
    proto: int = 6,
    outer: Outer | None = None,
    interface: int = 0,
) -> Flow:
    ends = ip_address(src).packed, ip_address(dst).packed
    return (*ends, *ports, proto, outer, size, packets, interface)


GRE: Outer = ((5,), (("gre", b"\1\1\1\1", b"\2\2\2\2", 7),))
BACK: Outer = ((5,), (("gre", b"\2\2\2\2", b"\1\1\1\1", 7),))
FLOWS = [
    flow("10.0.0.1", "10.0.0.2", size=1000, packets=10),
    flow("10.0.0.2", "10.0.0.1", (443, 40000), size=5000, packets=7),
    flow("10.0.0.1", "10.0.0.2", (40001, 443), size=10),
    flow("10.0.0.1", "10.0.0.3", (40002, 53), proto=17, size=70, packets=2),
    flow("::1", "2001:db8::1", (None, None), proto=58, size=300, packets=3),
    flow("10.0.0.1", "10.0.0.2", size=40, packets=4, outer=GRE),
    flow("10.0.0.2", "10.0.0.1", (443, 40000), size=50, packets=5, outer=BACK),
]


def rows(by: str, sort: str = "bytes", flows: list[Flow] = FLOWS) -> list[dict[str, object]]:
    readings = Rates(1.0, 0.0).update(flows, 1.0)
    owner = {"process": (7, "curl"), "cgroup": "/a", "interface": "eth0"}.get(by)
    key_of = None if owner is None else lambda one: owner if one[4] == 6 else None
    groups = aggregate(by, flows, readings, key_of)
    sort_groups(groups, by, sort)
    return [group_row(by, group) for group in groups]


# ---------------------------------------------------------------- sums


@pytest.mark.parametrize("by", BY)
def test_rows_of_every_by_add_up_to_the_flows(by: str) -> None:
    found = rows(by)
    for field, i in (("bytes", 6), ("packets", 7)):
        assert sum(row[field] for row in found) == sum(one[i] for one in FLOWS)  # type: ignore[misc]
        rates = sum(row[f"{field}_per_s"] for row in found)  # type: ignore[misc]
        assert rates == pytest.approx(sum(one[i] for one in FLOWS))


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("sort", FIGURES)
def test_every_order_of_every_by_is_stable(by: str, sort: str) -> None:
    assert rows(by, sort) == rows(by, sort, FLOWS[::-1])


def test_a_connection_joins_both_directions_and_its_tunnels() -> None:
    found = rows("connection")
    assert len(found) == 5
    first = found[0]
    ends = [first[field] for field in ("src", "sport", "dst", "dport")]
    assert ends == ["10.0.0.1", 40000, "10.0.0.2", 443]
    assert (first["bytes"], first["bytes_sent"], first["bytes_received"]) == (6000, 1000, 5000)
    assert (first["packets"], first["flows"]) == (17, 2)
    (tunnelled,) = [row for row in found if row["tunnel"]]
    assert (tunnelled["bytes_sent"], tunnelled["bytes_received"]) == (40, 50)
    assert tunnelled["tunnel"] == [{"type": "gre", "src": "1.1.1.1", "dst": "2.2.2.2", "id": 7}]


def test_a_host_has_what_it_received_beside_what_it_sent() -> None:
    by_host = {row["host"]: row for row in rows("host")}
    assert by_host["10.0.0.2"]["bytes"] == 5050
    assert by_host["10.0.0.2"]["bytes_received"] == 1050
    assert by_host["10.0.0.3"]["bytes"] == 0
    assert by_host["10.0.0.3"]["bytes_received"] == 70


def test_a_port_is_the_lower_one() -> None:
    found = {(row["port"], row["proto"]): row["bytes"] for row in rows("port")}
    assert found == {(443, "tcp"): 6100, (53, "udp"): 70, (None, "ipv6-icmp"): 300}


@pytest.mark.parametrize(("by", "field"), [("process", "process"), ("cgroup", "cgroup")])
def test_what_is_not_attributed_has_a_row(by: str, field: str) -> None:
    found = {row[field]: row["bytes"] for row in rows(by)}
    assert found == {{"process": "curl", "cgroup": "/a"}[by]: 6100, NOT_ATTRIBUTED: 370}


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("bits", [False, True])
def test_all_figures_of_the_live_view_have_prefixes(by: str, bits: bool) -> None:
    big = [flow("10.0.0.1", "10.0.0.2", size=39_430_512, packets=39_341_386)]
    (row, *_) = rows(by, flows=big)
    cells = figures(row, bits)
    for title, text, _ in cells:
        assert sum(letter.isdigit() for letter in text) <= 3, (title, text)
    titles = [title for title, _, _ in cells]
    assert len(set(titles)) == len(titles)
    assert min(rank for _, _, rank in cells) == 0
    if by != "host":
        assert ("bit/s", "315 Mbit", 0) in cells if bits else ("bytes/s", "39.4 MB", 0) in cells


# ---------------------------------------------------------------- rates


def test_rates_are_over_the_last_interval() -> None:
    rates = Rates(1.0, 100.0)
    (one,) = rates.update([flow("10.0.0.1", "10.0.0.2", size=500, packets=5)], 101.0)
    assert (one.bytes_per_s, one.packets_per_s) == (500, 5)
    (one,) = rates.update([flow("10.0.0.1", "10.0.0.2", size=2500, packets=9)], 103.0)
    assert (one.bytes_per_s, one.packets_per_s) == (1000, 2)
    (one,) = rates.update([flow("10.0.0.1", "10.0.0.2", size=2500, packets=9)], 104.0)
    assert (one.bytes_per_s, one.packets_per_s) == (0, 0)
    assert (one.active, one.first) == (103.0, 101.0)


def test_a_reading_soon_after_another_is_compared_with_the_one_before() -> None:
    rates = Rates(1.0, 0.0)
    rates.update([flow("10.0.0.1", "10.0.0.2", size=1000, packets=10)], 1.0)
    (one,) = rates.update([flow("10.0.0.1", "10.0.0.2", size=1100, packets=11)], 1.001)
    assert one.bytes_per_s == pytest.approx(1100 / 1.001)
    assert one.active == 1.001
    # The next one is compared with the reading at 1.0 again.
    (one,) = rates.update([flow("10.0.0.1", "10.0.0.2", size=3000, packets=30)], 2.0)
    assert one.bytes_per_s == pytest.approx(2000)


def test_a_flow_that_the_table_forgot_starts_anew() -> None:
    rates = Rates(1.0, 0.0)
    rates.update([flow("10.0.0.1", "10.0.0.2", size=1000, packets=10)], 1.0)
    assert rates.update([], 2.0) == []
    (one,) = rates.update([flow("10.0.0.1", "10.0.0.2", size=300, packets=3)], 3.0)
    assert (one.bytes_per_s, one.first) == (300, 3.0)
    # Forgotten and there again between two readings: never a negative rate.
    (one,) = rates.update([flow("10.0.0.1", "10.0.0.2", size=100, packets=1)], 4.0)
    assert one.bytes_per_s == 100


def test_recent_puts_new_flows_first_and_rate_the_fast_ones() -> None:
    rates = Rates(1.0, 0.0)
    old = [flow("10.0.0.1", "10.0.0.9", size=10_000, packets=9)]
    rates.update(old, 1.0)
    fast = [flow("10.0.0.2", "10.0.0.9", size=5000, packets=5)]
    rates.update(old + fast, 2.0)
    fast = [flow("10.0.0.2", "10.0.0.9", size=9000, packets=9)]
    now = old + fast + [flow("10.0.0.3", "10.0.0.9", size=60)]
    groups = aggregate("flow", now, rates.update(now, 3.0))
    for sort, order in (
        ("recent", ["10.0.0.3", "10.0.0.2", "10.0.0.1"]),
        ("rate", ["10.0.0.2", "10.0.0.3", "10.0.0.1"]),
        ("bytes", ["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
    ):
        sort_groups(groups, "flow", sort)
        assert [group_row("flow", group)["src"] for group in groups] == order, sort


# ---------------------------------------------------------------- names


def test_a_name_is_looked_up_once_and_never_waited_for() -> None:
    asked: list[str] = []
    go = threading.Event()

    def find(address: str) -> str:
        asked.append(address)
        assert go.wait(30)
        if address == "10.0.0.2":
            raise OSError("no name")
        return "router.example"

    names = Names(find)
    assert names.get("10.0.0.1") is None  # the lookup hangs, the caller does not
    assert names.get("10.0.0.1") is None
    assert names.get("10.0.0.2") is None
    go.set()
    end = time.monotonic() + 30
    while names.get("10.0.0.1") is None and time.monotonic() < end:
        time.sleep(0.01)
    assert names.get("10.0.0.1") == "router.example"
    assert names.get("10.0.0.2") is None
    assert sorted(asked) == ["10.0.0.1", "10.0.0.2"]


# ---------------------------------------------------------------- several interfaces

IN, OUT = 1, 2
PORT, COUNTED_IN, HOST = 1, 2, 4
LO = Link(1, "lo", is_loopback=True)
ETH0, ETH1 = Link(2, "eth0"), Link(3, "eth1")
BRIDGE = Link(10, "br0", "bridge")
A, B = Link(11, "a", "veth", master=10), Link(12, "b", "veth", master=10)


def test_interfaces_that_share_no_frames_count_both_directions() -> None:
    made = plan([LO, ETH0, ETH1], [1, 2, 3])
    assert made.rules == {1: (0, OUT, 0), 2: (0, IN | OUT, 0), 3: (0, IN | OUT, 0)}
    assert made.remarks == []
    assert plan([LO, ETH0], [1, 2], IN).rules == {1: (0, IN, 0), 2: (0, IN, 0)}


def test_a_bridge_counts_what_the_host_sends_and_its_ports_what_comes_in() -> None:
    made = plan([LO, BRIDGE, A, B], [1, 10, 11, 12])
    port = PORT | COUNTED_IN | HOST
    assert made.rules[10] == (10, OUT, 0)
    assert made.rules[11] == made.rules[12] == (10, IN | OUT, port)
    (remark,) = made.remarks
    assert "br0" in remark
    assert "counted once" in remark


def test_ports_without_their_bridge_count_a_forwarded_frame_once() -> None:
    made = plan([BRIDGE, A, B], [11, 12])
    assert made.rules == dict.fromkeys((11, 12), (10, IN | OUT, PORT | COUNTED_IN))
    assert len(made.remarks) == 1


def test_a_bridge_with_some_of_its_ports_says_what_is_missing() -> None:
    made = plan([BRIDGE, A, B], [10, 11])
    assert made.rules[10] == (10, OUT, 0)
    assert made.rules[12] == (10, 0, PORT | HOST)  # known, not watched: its frames leave by port a
    assert "come in on b for the host are not counted" in made.remarks[1]


def test_a_bridge_alone_counts_everything_that_it_passes() -> None:
    made = plan([BRIDGE, A, B], [10])
    assert made.rules[10] == (0, IN | OUT, 0)
    assert made.remarks == []


@pytest.mark.parametrize(
    ("upper", "lowers"),
    [
        (Link(20, "eth0.5", "vlan", link=2), [ETH0]),
        (Link(20, "mac0", "macvlan", link=2), [ETH0]),
        (Link(20, "bond0", "bond"), [Link(2, "eth0", master=20), Link(3, "eth1", master=20)]),
    ],
)
def test_what_is_on_top_of_watched_interfaces_is_not_counted(
    upper: Link, lowers: list[Link]
) -> None:
    every = [*lowers, upper]
    made = plan(every, [link.index for link in every])
    assert made.rules == {link.index: (0, IN | OUT, 0) for link in lowers}
    assert made.remarks[0].startswith(f"{upper.name} is not counted")
    assert plan(every, [20]).rules == {20: (0, IN | OUT, 0)}


def test_a_bridge_over_a_vlan_counts_on_the_interface_below() -> None:
    vlan = Link(20, "eth0.5", "vlan", link=2, master=10)
    made = plan([ETH0, BRIDGE, A, vlan], [2, 10, 11, 20])
    assert made.rules[10][1] == 0
    assert made.rules[20] == (10, 0, PORT | COUNTED_IN)
    assert made.rules[2] == (10, IN | OUT, PORT | COUNTED_IN)


def test_both_ends_of_a_veth_pair_count_what_leaves_them() -> None:
    one, other = Link(5, "v0", "veth", link=6), Link(6, "v1", "veth", link=5)
    assert plan([one, other], [5, 6]).rules == {5: (0, OUT, 0), 6: (0, OUT, 0)}
    assert plan([one, other], [5]).rules == {5: (0, IN | OUT, 0)}
