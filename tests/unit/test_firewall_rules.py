# SPDX-License-Identifier: Apache-2.0
"""Rules as text: what is taken, what is refused and how, and a file of many at once."""

from __future__ import annotations

import random
from ipaddress import ip_network
from pathlib import Path

import pytest

from bpfkit.core.errors import InputError
from bpfkit.xdp_firewall import rules as firewall_rules
from bpfkit.xdp_firewall.rules import RuleSet, parse_data, parse_file, parse_rule

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "is_"),
    [
        ("192.0.2.0/24", "deny 192.0.2.0/24"),
        ("  deny   192.0.2.7 ", "deny 192.0.2.7"),
        ("192.0.2.7/32", "deny 192.0.2.7"),
        ("allow 192.0.2.77/24", "allow 192.0.2.0/24"),
        ("0.0.0.0/0", "deny 0.0.0.0/0"),
        ("2001:DB8::/32", "deny 2001:db8::/32"),
        ("allow 2001:db8::1", "allow 2001:db8::1"),
        ("::/0", "deny ::/0"),
        ("::ffff:192.0.2.1/120", "deny ::ffff:192.0.2.0/120"),
        ("tcp/443", "deny tcp/443"),
        ("allow udp/1000-2000", "allow udp/1000-2000"),
        ("udp/7-7", "deny udp/7"),
        ("sctp/0-65535", "deny sctp/0-65535"),
        ("proto gre", "deny proto gre"),
        ("proto 47", "deny proto gre"),
        ("allow proto 253", "allow proto 253"),
        ("proto icmpv6", "deny proto ipv6-icmp"),
    ],
)
def test_rules(text: str, is_: str) -> None:
    assert str(parse_rule(text)) == is_
    assert str(parse_rule(str(parse_rule(text)))) == is_


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.0/33", "0 to 32"),
        ("192.0.2.0/-1", "0 to 32"),
        ("192.0.2.0/", "0 to 32"),
        ("192.0.2.0/024", "0 to 32"),
        ("192.0.2.0/255.255.255.0", "0 to 32"),
        ("2001:db8::/129", "0 to 128"),
        ("192.0.2", "not an IPv4 or IPv6 address"),
        ("192.0.2.256", "not an IPv4 or IPv6 address"),
        ("192.0.02.1", "not an IPv4 or IPv6 address"),
        ("fe80::1%eth0", "not an IPv4 or IPv6 address"),
        ("example.org", "not an IPv4 or IPv6 address"),
        ("192.0.2.1\0", "not an IPv4 or IPv6 address"),
        ("tcp/65536", "not a port"),
        ("tcp/-1", "not a port"),
        ("tcp/", "not a port"),
        ("tcp/http", "not a port"),
        ("tcp/٣", "not a port"),
        ("tcp/5-", "not a port"),
        ("tcp/9-5", "greater than the last"),
        ("icmp/8", "not an IPv4 or IPv6 address"),
        ("proto 256", "is not a protocol"),
        ("proto bogus", "is not a protocol"),
        ("proto", "not an IPv4 or IPv6 address"),
        ("deny", "is not a rule"),
        ("", "is not a rule"),
        ("drop 192.0.2.1", "is not a rule"),
        ("192.0.2.1 192.0.2.2", "is not a rule"),
    ],
)
def test_what_is_no_rule(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_rule(text)


def entries(rules: RuleSet) -> dict[tuple[int, bytes], int]:
    """Map key -> action, as a map would have it: deny stays where a prefix is both."""
    found = {}
    for (family, action), keys in sorted(rules.prefixes.items(), key=lambda one: one[0][1]):
        size = 8 if family == 4 else 24
        for at in range(0, len(keys), size):
            found[family, bytes(keys[at : at + size])] = action
    return found


def lines_of(rng: random.Random, count: int) -> list[str]:
    found = []
    for _ in range(count):
        bits = rng.choice((32, 128))
        length = rng.randrange(bits + 1)
        address = rng.getrandbits(bits)
        net = ip_network((address >> bits - length << bits - length, length))
        text = str(net) if length < bits or rng.random() < 0.5 else str(net.network_address)
        if rng.random() < 0.1:  # host bits that are not zero
            text = f"{ip_network((address, bits)).network_address}/{length}"
        found.append(text)
    return found


def test_many_lines_are_the_same_as_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall_rules, "_CHUNK", 50)
    rng = random.Random(1)
    for kind in range(4):
        lines = lines_of(rng, 500)
        for i in range(len(lines)):
            luck = rng.random()
            if kind and luck < 0.2:
                lines[i] = rng.choice(("allow ", "deny  ", "\tallow\t", "deny ")) + lines[i]
            if kind > 1 and luck > 0.9:
                lines[i] += rng.choice(("  # why", " ", "\r", "#x"))
            if kind > 2 and 0.3 < luck < 0.4:
                lines[i] = rng.choice(("", "# only this", "tcp/80", "proto gre", " "))
        many = parse_data("\n".join(lines).encode(), "x")
        texts = [line.partition("#")[0].strip() for line in lines]
        each = RuleSet(parse_rule(text) for text in texts if text)
        assert entries(many) == entries(each)
        assert [str(rule) for rule in many.others] == [str(rule) for rule in each.others]
        for family in (4, 6):
            assert many.count(family) == each.count(family)
            assert many.lengths(family) == each.lengths(family)


@pytest.mark.parametrize(
    "bad",
    [
        "300.1.1.1/8",
        "1.2.3.4/33",
        "24/5.6.7.8/24",
        "1.2.3.4/8/9",
        "/24",
        "allow",
        "deny #",
        "é",
        ":",
    ],
)
@pytest.mark.parametrize("at", [0, 49, 50, 51, 149])
@pytest.mark.parametrize("plain", [True, False])
def test_the_bad_line_is_named(
    monkeypatch: pytest.MonkeyPatch, bad: str, at: int, plain: bool
) -> None:
    monkeypatch.setattr(firewall_rules, "_CHUNK", 50)
    lines = ["1.2.3.4" if i % 3 else "10.0.0.0/8" for i in range(150)]
    if not plain:
        lines[7 if at != 7 else 8] = "# a comment"
    lines[at] = bad
    if at < 140:
        lines[140] = "worse"
    with pytest.raises(InputError, match=f"rules.txt, line {at + 1}: ") as failure:
        parse_data("\n".join(lines).encode(), "rules.txt")
    assert failure.value.exit_status == 2


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_bytes(b"")
    assert not any(parse_file(str(path)).prefixes.values())
    path.write_bytes(b"192.0.2.0/24\r\nallow 2001:db8::1\r\n# \xff\xfe\r\ntcp/80\r\n\r\n")
    rules = parse_file(str(path))
    assert (rules.count(4), rules.count(6), len(rules.others)) == (1, 1, 1)
    for wrong in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="cannot read rules from"):
            parse_file(str(wrong))


def test_both_allowed_and_denied_is_denied() -> None:
    for text in ("allow 10.0.0.0/8\ndeny 10.0.0.0/8", "10.0.0.0/8\nallow 10.0.0.1/8"):
        assert set(entries(parse_data(text.encode(), "x")).values()) == {2}
