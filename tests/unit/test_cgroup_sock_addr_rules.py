# SPDX-License-Identifier: Apache-2.0
"""Rules of cgroup_sock_addr as text: what is taken, and what is refused."""

from __future__ import annotations

import errno
from ipaddress import ip_address

import pytest

from bpfkit.cgroup_sock_addr.rules import error_number, make_rules, parse_place
from bpfkit.core.errors import InputError, UsageError


@pytest.mark.parametrize(
    ("text", "proto", "host", "length", "port"),
    [
        ("192.0.2.1:80", 0, "192.0.2.1", 32, 80),
        ("192.0.2.77/24:80", 0, "192.0.2.0", 24, 80),
        ("tcp/0.0.0.0/0", 6, "0.0.0.0", 0, 0),
        ("udp/192.0.2.1:*", 17, "192.0.2.1", 32, 0),
        ("[2001:db8::1]:443", 0, "2001:db8::1", 128, 443),
        ("[2001:db8::/32]:443", 0, "2001:db8::", 32, 443),
        ("[2001:db8::1]/32:443", 0, "2001:db8::", 32, 443),
        ("[2001:db8::1]", 0, "2001:db8::1", 128, 0),
        ("tcp/2001:db8::/32", 6, "2001:db8::", 32, 0),
        ("[::ffff:192.0.2.1]:80", 0, "192.0.2.1", 32, 80),
        ("[::ffff:192.0.2.0/120]:80", 0, "192.0.2.0", 24, 80),
    ],
)
def test_a_place_has_a_protocol_a_prefix_and_a_port(
    text: str, proto: int, host: str, length: int, port: int
) -> None:
    place = parse_place(text)
    assert (place.proto, place.hosts, place.port) == (proto, [(ip_address(host), length)], port)


def test_a_unix_place_is_a_path_or_an_abstract_name() -> None:
    path, name = parse_place("unix:/run/a=b"), parse_place("unix:@name")
    assert path.path == b"/run/a=b".ljust(108, b"\0")
    assert path.path_len == 9
    assert name.path == b"\0name".ljust(108, b"\0")
    assert name.path_len == 5
    assert parse_place("unix:/" + "x" * 106).path_len == 108
    assert parse_place("unix:@" + "x" * 107).path_len == 108


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("192.0.2.1:0", "'0' is not a port"),
        ("192.0.2.1:65536", "'65536' is not a port"),
        ("192.0.2.1:http", "'http' is not a port"),
        ("192.0.2.0/33:80", "is not a prefix"),
        ("name.invalid/8:80", "'name.invalid' is not an address"),
        (":80", "names no host"),
        ("", "names no host"),
        ("[2001:db8::1", "write [ADDRESS]:PORT"),
        ("[2001:db8::1]80", "write [ADDRESS]:PORT"),
        ("unix:", "names no path"),
        ("unix:@", "names no path"),
        ("unix:/" + "x" * 107, "too long"),
        ("unix:@" + "x" * 108, "too long"),
    ],
)
def test_what_is_no_place_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_place(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("redirect", "192.0.2.1:80", "write FROM=TO"),
        ("redirect", "192.0.2.1:80=", "write FROM=TO"),
        ("redirect", "192.0.2.1:80=[::1]:80", "has no IPv4 address"),
        ("redirect", "[2001:db8::1]:80=127.0.0.1:80", "has no IPv6 address"),
        ("redirect", "192.0.2.1:80=127.0.0.0/8:80", "is a prefix"),
        ("redirect", "192.0.2.1:80=tcp/127.0.0.1:80", "in front of FROM only"),
        ("redirect", "192.0.2.1:80=unix:/run/x", "a UNIX socket stays one"),
        ("redirect", "unix:/run/x=127.0.0.1:80", "write FROM=TO"),
        ("bind", "unix:/run/x=unix:/run/y", "no bind hook"),
        ("allow", "unix:/run/x", "no exceptions"),
    ],
)
def test_what_cannot_be_redirected_is_refused(option: str, text: str, said: str) -> None:
    words = {"redirect": [], "deny": [], "allow": [], "bind": [], option: [text]}
    with pytest.raises((UsageError, InputError)) as caught:
        make_rules(**words)
    assert said in str(caught.value)


def test_two_rules_for_the_same_address_are_refused() -> None:
    with pytest.raises(UsageError, match=r"two rules for 192\.0\.2\.1/24:80"):
        make_rules(["192.0.2.0/24:80=127.0.0.1:1"], ["192.0.2.1/24:80"], [], [])
    # A bind is another matter than a connect, and so is another port or protocol.
    make_rules(["192.0.2.1:80=127.0.0.1:1", "tcp/192.0.2.1:80=127.0.0.1:2"], [], [], [])
    make_rules(["0.0.0.0:80=127.0.0.1:1"], [], [], ["0.0.0.0:80=127.0.0.1:1"])


def test_a_name_without_an_address_of_the_targets_family_is_said_to_escape() -> None:
    (rule,) = make_rules(["localhost:80=127.0.0.1:8080"], [], [], [])
    hosts = {str(host) for host, _ in rule.source.hosts}
    assert set(rule.escapes) == {host for host in hosts if ":" in host}


def test_errors_have_the_kernels_names() -> None:
    assert error_number("EHOSTUNREACH") == errno.EHOSTUNREACH
    assert error_number("eacces") == errno.EACCES
    for name in ("EFOO", "errorcode", "113", ""):
        with pytest.raises(InputError):
            error_number(name)
