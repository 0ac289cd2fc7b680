# SPDX-License-Identifier: Apache-2.0
"""sockops: rules of --set, and the percentiles of --where."""

from __future__ import annotations

import ipaddress
import random
import statistics

import pytest

from bpfkit.core.errors import InputError
from bpfkit.sockops.rules import OPTIONS, parse_rules
from bpfkit.sockops.where import middle_of, quantile


@pytest.mark.parametrize(
    ("text", "version", "prefix"),
    [
        ("10.0.0.0/8:iw=4", 4, "::ffff:10.0.0.0/104"),
        ("192.0.2.7:iw=4", 4, "::ffff:192.0.2.7/128"),
        ("0.0.0.0/0:iw=4", 4, "::ffff:0.0.0.0/96"),
        ("2001:db8::/32:iw=4", 6, "2001:db8::/32"),
        ("::1:iw=4", 6, "::1/128"),
        ("[2001:db8::7]:iw=4", 6, "2001:db8::7/128"),
        ("::/0:iw=4", 6, "::/0"),
    ],
)
def test_a_prefix_becomes_a_key_of_the_trie(text: str, version: int, prefix: str) -> None:
    (rule,) = parse_rules([text])
    network = ipaddress.ip_network(prefix)
    length, rest = rule.key()
    assert length == 32 + network.prefixlen
    assert rest == version.to_bytes(4, "little") + network.network_address.packed


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("initial_rto=100ms", "initial_rto", 25),
        ("initial_rto=0.5s", "initial_rto", 125),
        ("initial_rto=1ms", "initial_rto", 1),
        ("cc=reno", "cc", "reno"),
        ("tos=16", "tos", 16),
        ("tos=0xb8", "tos", 0xB8),
        ("sndbuf=64k", "sndbuf", 64_000),
        ("rcvbuf=2M", "rcvbuf", 2_000_000),
        ("iw=4", "iw", 4),
        ("pacing=10M", "pacing", 10_000_000),
        ("pacing=80mbit", "pacing", 10_000_000),
    ],
)
def test_an_option_has_its_unit(setting: str, name: str, value: object) -> None:
    (rule,) = parse_rules([f"10.0.0.0/8:{setting}"])
    struct = rule.value(hz=250)
    assert struct[name] == value
    assert struct["options"] == 1 << OPTIONS.index(name)


def test_a_rule_may_have_several_options() -> None:
    (rule,) = parse_rules(["10.0.0.0/8:cc=reno,tos=16,iw=2"])
    assert rule.values == {"cc": "reno", "tos": 16, "iw": 2}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.0/8",
        "10.0.0.0/8:",
        ":cc=reno",
        "10.0.0.1/8:cc=reno",
        "10.0.0.0/33:cc=reno",
        "10.0.0/8:cc=reno",
        "example.org:cc=reno",
        "2001:db8::/129:cc=reno",
        "10.0.0.0/8:cc=no_such_algorithm",
        "10.0.0.0/8:cc=",
        "10.0.0.0/8:cc=" + "x" * 40,
        "10.0.0.0/8:speed=1",
        "10.0.0.0/8:iw",
        "10.0.0.0/8:iw=4,iw=5",
        "10.0.0.0/8:iw=0",
        "10.0.0.0/8:iw=-1",
        "10.0.0.0/8:iw=1.5",
        "10.0.0.0/8:tos=256",
        "10.0.0.0/8:tos=0xg",
        "10.0.0.0/8:initial_rto=100",
        "10.0.0.0/8:initial_rto=0ms",
        "10.0.0.0/8:initial_rto=1h",
        "10.0.0.0/8:pacing=5G",
        "10.0.0.0/8:sndbuf=nan",
        "10.0.0.0/8:sndbuf=1e9",
        "10.0.0.0/8:sndbuf=\u0663k",
    ],
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_rules([text])
    assert len(str(caught.value).splitlines()) <= 2


def test_two_rules_for_one_prefix_are_refused() -> None:
    with pytest.raises(InputError, match="two rules"):
        parse_rules(["10.0.0.0/8:iw=4", "10.0.0.0/8:tos=1"])


def bucket_of(ns: int) -> int:
    """The C side's bucket_of()."""
    if ns < 8:
        return ns
    power = ns.bit_length() - 1
    return (power - 2) * 8 + (ns >> (power - 3)) - 8


@pytest.mark.parametrize("ns", [0, 1, 7, 8, 9, 15, 16, 17, 1000, 123_456, 10**9, 2**40 + 12345])
def test_a_bucket_stands_for_a_duration_near_it(ns: int) -> None:
    assert abs(middle_of(bucket_of(ns)) - ns) <= max(0.5, ns / 15)


def test_quantiles_are_those_of_the_durations() -> None:
    chance = random.Random(5)
    durations = [int(chance.lognormvariate(10, 1.5)) for _ in range(20_000)]
    buckets: dict[int, int] = {}
    for ns in durations:
        buckets[bucket_of(ns)] = buckets.get(bucket_of(ns), 0) + 1
    cuts = statistics.quantiles(durations, n=100)
    assert quantile(buckets, 0.50) == pytest.approx(cuts[49], rel=0.08)
    assert quantile(buckets, 0.99) == pytest.approx(cuts[98], rel=0.08)
    assert quantile(buckets, 1.0) == pytest.approx(max(durations), rel=0.08)
    assert quantile({}, 0.5) == 0.0
