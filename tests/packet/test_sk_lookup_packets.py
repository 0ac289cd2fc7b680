# SPDX-License-Identifier: Apache-2.0
"""sk_lookup by packet runs: which socket is selected, and which error the kernel answers.

BPF_PROG_TEST_RUN gives back the cookie of the selected socket, which is compared with the socket's
own (SO_COOKIE).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

import bpfkit
from bpfkit.core.maps.base import Map
from bpfkit.core.object import Object
from bpfkit.net.links.netns import NetNS
from bpfkit.sk_lookup.control import ERRORS, MAPS, Steering, port_table
from bpfkit.sk_lookup.rules import parse_rule
from bpfkit.sk_lookup.targets import Target

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
SK_PASS = 1
EACH = 8


def context(proto: int, local: str, port: int, remote: str = "", remote_port: int = 40000) -> bytes:
    """struct bpf_sk_lookup: remote_port in network order, local_port in host order."""
    here = ip_address(local)
    there = ip_address(remote or ("198.51.100.1" if here.version == 4 else "2001:db8:ffff::1"))

    def words(address: object) -> bytes:
        raw = address.packed  # type: ignore[attr-defined]
        return raw.ljust(20, b"\0") if len(raw) == 4 else bytes(4) + raw

    family = socket.AF_INET if here.version == 4 else socket.AF_INET6
    return (
        struct.pack("=QII", 0, family, proto)
        + words(there)
        + struct.pack("!HH", remote_port, 0)
        + words(here)
        + struct.pack("=III", port, 0, 0)
    )


class Lab:
    """The program, its rules, and sockets in a namespace."""

    def __init__(self, stack: ExitStack, **sizes: int) -> None:
        self.ns = stack.enter_context(NetNS.new("sk-lookup"))
        ports: Map = stack.enter_context(port_table())
        source = "sock/sk_lookup.bpf.c"
        self.object: Object = stack.enter_context(
            bpfkit.load(source, reuse_maps={"ports": ports}, max_entries=sizes)
        )
        self.program = self.object.programs["sk_lookup"]
        self.steering = Steering({name: self.object[name] for name in MAPS})
        self._stack = stack

    def socket(self, kind: int, address: str, port: int = 5201, *, v6only: bool = False) -> int:
        """A listening socket; returns its cookie."""
        six = ":" in address
        sock = self.ns.socket(socket.AF_INET6 if six else socket.AF_INET, kind)
        self.last = self._stack.enter_context(socket.socket(fileno=sock.detach()))
        if six:
            self.last.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        self.last.bind((address, port))
        if kind == socket.SOCK_STREAM:
            self.last.listen()
        return int.from_bytes(self.last.getsockopt(socket.SOL_SOCKET, 57, 8), "little")

    def put(self, *slots: int) -> None:
        for slot in slots:
            self.object["sockets"][slot] = self.last

    def add(self, *texts: str) -> None:
        self.steering.add([(rule, Target(rule.port)) for rule in map(parse_rule, texts)])

    def selected(self, *packet: object) -> int:
        """The cookie of the socket selected for a packet; 0: none."""
        result = self.program.run(ctx=context(*packet))  # type: ignore[arg-type]
        assert result.retval == SK_PASS
        return int.from_bytes(result.ctx[:8], "little")

    def counts(self, number: int = 1) -> dict[str, int]:
        counts = self.steering.counts(number)
        total = counts["assigned"] + counts["misses"] + sum(counts[name] for name in ERRORS)
        assert counts["lookups"] == total
        return {name: value for name, value in counts.items() if value}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(stack)


def test_a_steered_port_gets_the_listeners_socket_and_its_neighbours_none(lab: Lab) -> None:
    cookie = lab.socket(socket.SOCK_STREAM, "::")
    lab.put(0, 2)
    lab.add("5202:5201")
    for local in ("127.0.0.1", "192.0.2.7", "::1", "2001:db8::7"):
        assert lab.selected(TCP, local, 5202) == cookie
        assert [lab.selected(TCP, local, port) for port in (5201, 5203, 1, 65535)] == [0] * 4
    assert lab.counts() == {"lookups": 4, "assigned": 4}


@pytest.mark.parametrize("ends", [(6000, 6999), (1, 65535), (63, 64), (64, 127), (65535, 65535)])
def test_a_range_ends_exactly_where_it_says(lab: Lab, ends: tuple[int, int]) -> None:
    cookie = lab.socket(socket.SOCK_STREAM, "::")
    lab.put(0, 2)
    low, high = ends
    lab.add(f"tcp/{low}-{high}:5201")
    for port in {low - 1, low, (low + high) // 2, high, high + 1} & set(range(65536)):
        found = lab.selected(TCP, "127.0.0.1", port)
        assert found == (cookie if low <= port <= high else 0), port
        assert lab.selected(UDP, "127.0.0.1", port) == 0


def test_a_prefix_ends_exactly_where_it_says(lab: Lab) -> None:
    cookie = lab.socket(socket.SOCK_STREAM, "::")
    lab.put(0, 2)
    lab.add("192.0.2.64/26:80:5201", "[2001:db8:0:40::/58]:80:5201")
    cases = {
        "192.0.2.63": 0,
        "192.0.2.64": cookie,
        "192.0.2.127": cookie,
        "192.0.2.128": 0,
        "2001:db8:0:3f:ffff::": 0,
        "2001:db8:0:40::": cookie,
        "2001:db8:0:7f:ffff:ffff:ffff:ffff": cookie,
        "2001:db8:0:80::": 0,
    }
    assert {local: lab.selected(TCP, local, 80) for local in cases} == cases


def test_the_longer_prefix_wins_and_falls_back_on_the_shorter_for_other_ports(lab: Lab) -> None:
    first = lab.socket(socket.SOCK_STREAM, "0.0.0.0", 5201)
    lab.put(0)
    second = lab.socket(socket.SOCK_STREAM, "0.0.0.0", 5301)
    lab.put(EACH)
    lab.add("80-90:5201", "192.0.2.7:80:5301")
    assert lab.selected(TCP, "192.0.2.7", 80) == second
    assert lab.selected(TCP, "192.0.2.7", 81) == first
    assert lab.selected(TCP, "192.0.2.8", 80) == first


def test_each_error_of_the_kernel_is_counted_by_its_name(lab: Lab) -> None:
    lab.add("5202:5201")
    lab.socket(socket.SOCK_STREAM, "0.0.0.0")
    lab.put(2, 4)  # an IPv4 socket for IPv6, a TCP one for UDP
    assert lab.selected(TCP, "::1", 5202) == 0
    assert lab.counts() == {"lookups": 1, "eafnosupport": 1}
    assert lab.selected(UDP, "127.0.0.1", 5202) == 0
    assert lab.counts() == {"lookups": 2, "eafnosupport": 1, "eprototype": 1}
    assert lab.selected(TCP, "127.0.0.1", 5202) == 0
    assert lab.counts() == {"lookups": 3, "eafnosupport": 1, "eprototype": 1, "misses": 1}


def test_an_ipv6_only_socket_refuses_ipv4(lab: Lab) -> None:
    cookie = lab.socket(socket.SOCK_STREAM, "::", v6only=True)
    lab.put(0, 2)
    lab.add("tcp/5202:5201")
    assert lab.selected(TCP, "::1", 5202) == cookie
    assert lab.selected(TCP, "127.0.0.1", 5202) == 0
    assert lab.counts() == {"lookups": 2, "assigned": 1, "eafnosupport": 1}


def test_a_udp_socket_that_connects_is_refused(lab: Lab) -> None:
    cookie = lab.socket(socket.SOCK_DGRAM, "127.0.0.1")
    lab.put(4)
    lab.add("udp/5202:5201")
    assert lab.selected(UDP, "127.0.0.1", 5202) == cookie
    lab.last.connect(("127.0.0.1", 9))
    assert lab.selected(UDP, "127.0.0.1", 5202) == 0
    assert lab.counts() == {"lookups": 2, "assigned": 1, "esocktnosupport": 1}


def test_the_spare_socket_takes_over_at_once(lab: Lab) -> None:
    lab.socket(socket.SOCK_STREAM, "127.0.0.1", 5201)
    lab.put(0)
    first = lab.last
    spare = lab.socket(socket.SOCK_STREAM, "127.0.0.1", 5301)
    lab.put(1)
    lab.add("5202:5201")
    first.close()
    assert lab.selected(TCP, "127.0.0.1", 5202) == spare
    lab.last.close()
    assert lab.selected(TCP, "127.0.0.1", 5202) == 0
    assert lab.counts() == {"lookups": 2, "assigned": 1, "misses": 1}


def test_a_reply_of_the_server_is_not_steered_back_to_it(lab: Lab) -> None:
    """The client's own address and port are covered by the rule, too."""
    cookie = lab.socket(socket.SOCK_DGRAM, "0.0.0.0")
    lab.put(4)
    lab.add("udp/192.0.2.0/24:1-65535:5201")
    assert lab.selected(UDP, "192.0.2.1", 53, "192.0.2.9", 40000) == cookie
    assert lab.selected(UDP, "192.0.2.9", 40000, "192.0.2.1", 53) == 0
    assert lab.selected(UDP, "192.0.2.9", 40000, "192.0.2.1", 54) == cookie  # from elsewhere
    assert lab.counts() == {"lookups": 2, "assigned": 2}


def test_what_a_client_asked_for_last_is_remembered_and_a_direct_request_forgets_it(
    lab: Lab,
) -> None:
    lab.socket(socket.SOCK_DGRAM, "0.0.0.0")
    lab.put(4)
    lab.add("udp/5202-5203:5201")
    flows = lab.object["flows"]
    for port in (5202, 5203):
        lab.selected(UDP, "192.0.2.1", port)
        ((key, flow),) = flows.items()
        assert (key.client_port, key.server_port, flow.port) == (40000, 5201, port)
    lab.selected(UDP, "192.0.2.1", 5201)
    assert flows.items() == []


def test_more_clients_than_flows_are_steered_all_the_same() -> None:
    with ExitStack() as stack:
        lab = Lab(stack, flows=64)
        cookie = lab.socket(socket.SOCK_DGRAM, "0.0.0.0")
        lab.put(4)
        lab.add("udp/5202:5201")
        for port in range(1000, 2000):
            assert lab.selected(UDP, "192.0.2.1", 5202, "198.51.100.9", port) == cookie
        known = {key.client_port for key, _ in lab.object["flows"].items()}
    assert len(known) <= 64
    assert 1999 in known


def test_a_thousand_rules_each_with_its_counter(lab: Lab) -> None:
    cookie = lab.socket(socket.SOCK_STREAM, "::")
    lab.put(0, 2)
    lab.add(*(f"{port}:5201" for port in range(10000, 11000)))
    entries = lab.steering.entries()
    assert [entry.rule.first for entry in entries] == list(range(10000, 11000))
    for entry in entries[::97]:
        assert lab.selected(TCP, "127.0.0.1", entry.rule.first) == cookie
        assert lab.counts(entry.number) == {"lookups": 1, "assigned": 1}


def test_an_edit_that_was_killed_is_completed_by_the_next_one(lab: Lab) -> None:
    cookie = lab.socket(socket.SOCK_STREAM, "::")
    lab.put(0, 2)
    lab.add("5202:5201", "5203:5201")
    # As an editor leaves it that dies between the rule and the tables.
    lab.object["state"][1] = 1
    lab.object["rules"][2] = bytes(32)
    assert lab.selected(TCP, "127.0.0.1", 5203) == cookie
    assert lab.steering.unfinished
    lab.steering.finish_edit()
    assert not lab.steering.unfinished
    assert [lab.selected(TCP, "127.0.0.1", port) for port in (5202, 5203)] == [cookie, 0]


def test_a_deleted_rule_lets_go_of_its_listener_and_a_new_one_starts_at_zero(lab: Lab) -> None:
    lab.socket(socket.SOCK_STREAM, "::")
    lab.put(0, 2)
    lab.add("5202:5201")
    lab.selected(TCP, "127.0.0.1", 5202)
    lab.steering.delete([parse_rule("5202:5201")])
    assert lab.selected(TCP, "127.0.0.1", 5202) == 0
    assert lab.object["sockets"].keys() == []
    assert len(lab.object["tables"]) == len(lab.object["places"]) == 0
    lab.add("5204:5201")
    assert lab.counts() == {}


def test_too_many_rules_change_nothing(lab: Lab) -> None:
    most = lab.object["rules"].max_entries - 1
    lab.add(*(f"{port}:5201" for port in range(1, most)))
    with pytest.raises(bpfkit.BpfkitError, match="no room for 2 rules"):
        lab.add("50001:5201", "50002:5201")
    assert len(lab.steering.entries()) == most - 1
    assert not lab.steering.unfinished
