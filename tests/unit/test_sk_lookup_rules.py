# SPDX-License-Identifier: Apache-2.0
"""sk_lookup's rules: their text, their precedence, and which sockets a target means."""

from __future__ import annotations

import random
from array import array
from ipaddress import ip_address, ip_network

import pytest

from bpfkit.net.sockets.listeners import Listener
from bpfkit.sk_lookup.rules import NUMBERS, PROTOS, Rule, parse_rule, tables
from bpfkit.sk_lookup.targets import Target, choose, several


@pytest.mark.parametrize(
    ("text", "shown", "facts"),
    [
        ("5202:5201", "5202:5201", ("both", "", 5202, 5202, 5201)),
        ("6000-6999:5201", "6000-6999:5201", ("both", "", 6000, 6999, 5201)),
        ("1-65535:1", "1-65535:1", ("both", "", 1, 65535, 1)),
        ("tcp/80:8080", "tcp/80:8080", ("tcp", "", 80, 80, 8080)),
        ("192.0.2.0/24:80:81", "192.0.2.0/24:80:81", ("both", "192.0.2.0/24", 80, 80, 81)),
        ("192.0.2.7:80:81", "192.0.2.7/32:80:81", ("both", "192.0.2.7/32", 80, 80, 81)),
        (
            "udp/2001:db8::/64:53:5353",
            "udp/[2001:db8::/64]:53:5353",
            ("udp", "2001:db8::/64", 53, 53, 5353),
        ),
        (
            "[::ffff:192.0.2.0/120]:80:81",
            "192.0.2.0/24:80:81",
            ("both", "192.0.2.0/24", 80, 80, 81),
        ),
        ("[::1]:53-54:5353", "[::1/128]:53-54:5353", ("both", "::1/128", 53, 54, 5353)),
    ],
)
def test_a_rule_reads_as_it_is_shown(text: str, shown: str, facts: tuple[object, ...]) -> None:
    for rule in (parse_rule(text), parse_rule(shown)):
        assert str(rule) == shown
        where = rule.prefix_text
        assert (rule.proto_text, where, rule.first, rule.last, rule.port) == facts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("5202", "PORTS:PORT"),
        ("", "PORTS:PORT"),
        ("x:5201", "'x' is not a port"),
        ("0:5201", "'0' is not a port"),
        ("65536:1", "'65536' is not a port"),
        ("5202:", "'' is not a port"),
        ("-5:1", "'' is not a port"),
        ("7000-6000:5201", "7000 is above 6000"),
        ("192.0.2.1/24:80:81", "host bits"),
        ("192.0.2.0/33:80:81", "192.0.2.0/33"),
        ("example.net:80:81", "not an address or a prefix"),
        (":80:81", "not an address or a prefix"),
        ("fe80::1%eth0:80:81", "interface"),
        ("²:1", "is not a port"),
        ("sctp/80:81", "'sctp/80' is not a port"),
    ],
)
def test_nonsense_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_rule(text)
    assert reason in str(caught.value)


def in_force(rules: list[Rule], proto: str, address: str, port: int) -> int:
    """The number of the rule for a packet, found the plain way: by looking at all of them."""
    where = ip_address(address)
    best = (0, 0, 0)
    number = 0
    for i, rule in enumerate(rules, start=1):
        text = rule.prefix_text
        if not rule.protos & PROTOS[proto] or not rule.first <= port <= rule.last:
            continue
        if text and where not in ip_network(text):
            continue
        rank = (rule.length if text else -1, rule.first - rule.last, i)
        if not number or rank > best:
            best, number = rank, i
    return number


def looked_up(made: dict[tuple[int, int, int, bytes], bytes], proto: str, address: str) -> array:  # type: ignore[type-arg]
    """The ports of the longest prefix that has the address, as the trie finds it."""
    where = ip_address(address)
    best, cells = -1, bytes(2 * 65536)
    for (number, family, length, raw), table in made.items():
        if (number, family) != (NUMBERS[proto], where.version):
            continue
        network = ip_network((raw[: 4 if family == 4 else 16], length))
        if where in network and length > best:
            best, cells = length, table
    found = array("H")
    found.frombytes(cells)
    return found


def test_the_tables_hold_the_longest_prefix_then_the_narrowest_range_then_the_latest_rule() -> None:
    prefixes = ("", "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "::/0", "2001:db8::/32")
    addresses = ("10.1.2.3", "10.1.9.9", "10.9.9.9", "192.0.2.1", "2001:db8::1", "::1")
    chance = random.Random(10)
    for _ in range(20):
        texts = []
        for _ in range(chance.randrange(1, 12)):
            low = chance.randrange(1, 40)
            high = chance.choice((low, low, low + chance.randrange(20)))
            prefix = chance.choice(prefixes)
            proto = chance.choice(("", "tcp/", "udp/"))
            texts.append(f"{proto}{prefix}{':' if prefix else ''}{low}-{high}:7")
        rules = [parse_rule(text) for text in texts]
        made = tables(enumerate(rules, start=1))
        for proto in PROTOS:
            for address in addresses:
                cells = looked_up(made, proto, address)
                wanted = [in_force(rules, proto, address, port) for port in range(65)]
                assert list(cells[:65]) == wanted, (texts, proto, address)
                assert not any(cells[65:])


def test_a_thousand_single_ports_share_one_table() -> None:
    rules = [parse_rule(f"{port}:5201") for port in range(10000, 11000)]
    made = tables(enumerate(rules, start=1))
    assert len(made) == 4  # TCP and UDP, IPv4 and IPv6
    assert len({id(table) for table in made.values()}) == 1


def listener(proto: str, address: str, port: int = 5201, **more: object) -> Listener:
    where = ip_address(address)
    one = Listener(proto, where.version, where.packed, port)
    one.inode = abs(hash((proto, address, port, str(more)))) % 100000 + 1
    for name, value in more.items():
        setattr(one, name, value)
    return one


def names(kinds: dict[tuple[str, int], list[Listener]]) -> dict[tuple[str, int], str]:
    return {kind: " ".join(str(one) for one in found) for kind, found in kinds.items() if found}


def test_a_dual_stack_socket_takes_both_families() -> None:
    dual = listener("tcp", "::", v6only=False)
    kinds = choose([dual], Target(5201))
    assert names(kinds) == {("tcp", 4): "tcp [::]:5201", ("tcp", 6): "tcp [::]:5201"}


def test_a_pair_of_sockets_serves_its_own_family_each() -> None:
    four, six = listener("tcp", "0.0.0.0"), listener("tcp", "::", v6only=True)
    kinds = choose([six, four], Target(5201))
    assert names(kinds) == {("tcp", 4): "tcp 0.0.0.0:5201", ("tcp", 6): "tcp [::]:5201"}


def test_a_family_without_listener_gets_the_other_ones_so_that_the_kernel_says_why() -> None:
    kinds = choose([listener("udp", "127.0.0.1")], Target(5201))
    assert names(kinds) == {("udp", 4): "udp 127.0.0.1:5201", ("udp", 6): "udp 127.0.0.1:5201"}


def test_without_an_address_the_wildcard_is_meant_and_with_one_the_bound_socket() -> None:
    every, one = listener("tcp", "0.0.0.0"), listener("tcp", "10.0.0.1")
    assert choose([one, every], Target(5201))["tcp", 4][0] is every
    chosen = choose([every, one], Target(5201, ip_address("10.0.0.1").packed))["tcp", 4]
    assert chosen[0] is one
    other = choose([every, one], Target(5201, ip_address("10.0.0.2").packed))["tcp", 4]
    assert other == [every]  # it gets the packets to 10.0.0.2


def test_several_addresses_without_a_wildcard_are_named() -> None:
    first, second = listener("tcp", "10.0.0.2"), listener("tcp", "10.0.0.1")
    assert several([first, second]) == ["10.0.0.1", "10.0.0.2"]
    assert several([first, second, listener("tcp", "0.0.0.0")]) == []
    assert several([first, listener("udp", "10.0.0.1")]) == []


def test_after_the_process_has_ended_only_the_same_user_takes_its_place() -> None:
    mine, other = listener("tcp", "::", uid=7), listener("tcp", "::", uid=8)
    target = Target(5201, pid=1, uid=7)
    assert choose([mine, other], target)["tcp", 6] == [mine]
    assert choose([mine, other], target, frozenset([other.inode]))["tcp", 6] == [other]


def test_a_rule_covers_the_sockets_that_it_takes_packets_from() -> None:
    cases = [
        ("5202:5201", listener("tcp", "0.0.0.0", 5202), True),
        ("5202:5201", listener("tcp", "0.0.0.0", 5203), False),
        ("udp/5202:5201", listener("tcp", "0.0.0.0", 5202), False),
        ("192.0.2.0/24:1-9:5201", listener("tcp", "0.0.0.0", 5), True),
        ("192.0.2.0/24:1-9:5201", listener("tcp", "192.0.2.9", 5), True),
        ("192.0.2.0/24:1-9:5201", listener("tcp", "192.0.3.9", 5), False),
        ("192.0.2.0/24:1-9:5201", listener("tcp", "::", 5), True),
        ("2001:db8::/64:1-9:5201", listener("tcp", "0.0.0.0", 5), False),
        ("2001:db8::/64:1-9:5201", listener("tcp", "2001:db8::5", 5), True),
    ]
    for text, one, covered in cases:
        rule = parse_rule(text)
        assert rule.covers(one.proto, one.family, one.address, one.port) == covered, (text, one)
