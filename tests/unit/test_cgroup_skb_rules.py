# SPDX-License-Identifier: Apache-2.0
"""cgroup_skb: rules in text, and which of them decides."""

from __future__ import annotations

import ipaddress
import random

import pytest

from bpfkit.cgroup_skb.rules import ALLOW, DENY, REJECT, Rule, parse_rule, resolve
from bpfkit.core.errors import InputError


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("192.0.2.1", "deny 192.0.2.1/32"),
        ("192.0.2.77/24", "deny 192.0.2.0/24"),
        ("192.0.2.0/24:443", "deny 192.0.2.0/24:443"),
        ("0.0.0.0/0:25", "deny 0.0.0.0/0:25"),
        ("2001:db8::1", "deny 2001:db8::1/128"),
        ("2001:db8::/32", "deny 2001:db8::/32"),
        ("[2001:db8::/32]:443", "deny [2001:db8::/32]:443"),
        ("[2001:db8::]/32:443", "deny [2001:db8::/32]:443"),
        ("[::1]", "deny ::1/128"),
        ("[::1]:80", "deny [::1/128]:80"),
        ("::ffff:192.0.2.77/120", "deny 192.0.2.0/24"),  # IPv4 to the packet
        ("[::ffff:192.0.2.1]:80", "deny 192.0.2.1/32:80"),
        ("::ffff:0:0/95", "deny ::fffe:0:0/95"),
    ],
)
def test_a_rule_is_a_prefix_and_perhaps_a_port(text: str, says: str) -> None:
    assert str(parse_rule(text, DENY)) == says


@pytest.mark.parametrize(
    "text",
    "192.0.2.0/33 2001:db8::/129 192.0.2 192.0.2.1: 192.0.2.1:0 192.0.2.1:65536 192.0.2.1:http "
    "[::1 [::1]80 [::1/64]/64 ::1]:80 example.com :80 /8 192.0.2.0/-1 192.0.2.1:+80".split(),
)
def test_what_is_no_rule_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(InputError, match="is not PREFIX"):
        parse_rule(text, DENY)


def by_search(rules: list[Rule], default: int, address: bytes, port: int | None) -> int:
    """The action by looking at every rule, with the standard library's prefixes."""
    best = (-1, False)
    action = default
    for rule in rules:
        network = ipaddress.ip_network((rule.address, rule.length))
        if len(rule.address) != len(address) or ipaddress.ip_address(address) not in network:
            continue
        if rule.port not in (None, port):
            continue
        rank = rule.length, rule.port is not None
        if rank >= best:
            best, action = rank, rule.action
    return action


@pytest.mark.parametrize("seed", range(8))
def test_one_lookup_in_the_table_finds_what_a_search_of_all_rules_finds(seed: int) -> None:
    rng = random.Random(seed)

    def address(size: int) -> bytes:
        return bytes(rng.choice([0, 128, 255]) for _ in range(size))

    rules = [
        Rule(
            rng.choice([ALLOW, DENY, REJECT]),
            network.network_address.packed,
            network.prefixlen,
            rng.choice([None, 80, 443]),
        )
        for size in (4, 16)
        for _ in range(30)
        for network in [
            ipaddress.ip_network((address(size), rng.randrange(8 * size + 1)), strict=False)
        ]
    ]
    default = rng.choice([ALLOW, DENY])
    table = resolve(rules, default)
    for _ in range(2000):
        target, port = address(rng.choice([4, 16])), rng.choice([None, 80, 443, 22])
        found = (default, 0)
        longest = -1
        for (prefix, length), value in table.prefixes.items():
            inside = len(prefix) == len(target) and ipaddress.ip_address(
                target
            ) in ipaddress.ip_network((prefix, length))
            if inside and length > longest:
                longest, found = length, value
        action, group = found
        if group and port is not None:
            action = table.ports.get((group, port), action)
        assert action == by_search(rules, default, target, port)
