# SPDX-License-Identifier: Apache-2.0
"""cgroup_sockopt: what setsockopt(2) and getsockopt(2) give to the processes of the cgroup."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from running import Row, run, run_script

from bpfkit.cgroup_sockopt.names import find_option, option_name
from bpfkit.net.links.netns import NetNS

HEAD = """
import errno, json, struct, sys
from socket import *
def attempt(function, *args):
    try:
        result = function(*args)
        return result.hex() if isinstance(result, bytes) else result
    except OSError as error:
        return errno.errorcode[error.errno]
def show(*results):
    print(json.dumps(results), file=sys.stderr)
s = socket()
"""


@pytest.fixture
def ns() -> Iterator[NetNS]:
    with NetNS.new("sockopt") as namespace:
        yield namespace


def results(ns: NetNS, script: str, *options: str) -> tuple[list[Any], list[Row]]:
    """What a Python child prints as JSON, and the program's rows."""
    said, rows = run_script(ns, "cgroup_sockopt", HEAD + script, *options)
    return json.loads(said.splitlines()[-1]), rows


def uses(rows: list[Row], kind: str, option: str) -> list[Row]:
    return [row for row in rows if row.get("event") == kind and row["option"] == option]


def test_options_are_watched_and_left_alone_without_rules(ns: NetNS) -> None:
    script = """
show(attempt(s.setsockopt, SOL_SOCKET, SO_KEEPALIVE, 1),
     attempt(s.getsockopt, SOL_SOCKET, SO_KEEPALIVE),
     attempt(s.getsockopt, SOL_SOCKET, 9999),
     attempt(s.getsockopt, IPPROTO_TCP, TCP_CONGESTION, 16))
"""
    got, rows = results(ns, script)
    assert got[:3] == [None, 1, "ENOPROTOOPT"]
    (event,) = uses(rows, "set", "SO_KEEPALIVE")
    assert (event["value"], event["size"], event["result"]) == (1, 4, "allowed")
    assert uses(rows, "get", "1:9999")[0]["result"] == "ENOPROTOOPT"
    name = uses(rows, "get", "TCP_CONGESTION")[0]["value"]
    assert bytes.fromhex(got[3]).rstrip(b"\0").decode() == name
    counted = {row["option"]: row for row in rows if "sets" in row}
    assert (counted["SO_KEEPALIVE"]["sets"], counted["SO_KEEPALIVE"]["gets"]) == (1, 1)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("SO_PRIORITY", ["EPERM", "EPERM"]),
        ("SO_PRIORITY:set", ["EPERM", 0]),
        ("so_priority:get", [None, "EPERM"]),
        ("1:12", ["EPERM", "EPERM"]),
    ],
)
def test_an_option_is_denied(ns: NetNS, rule: str, wanted: list[object]) -> None:
    script = """
show(attempt(s.setsockopt, SOL_SOCKET, SO_PRIORITY, 5),
     attempt(s.getsockopt, SOL_SOCKET, SO_PRIORITY))
"""
    got, rows = results(ns, script, "--deny", rule)
    assert got == wanted
    (row,) = [row for row in rows if row.get("option") == "SO_PRIORITY" and "sets" in row]
    assert row["denied"] == wanted.count("EPERM")


def test_what_is_set_is_forced(ns: NetNS) -> None:
    script = """
show(attempt(s.setsockopt, IPPROTO_TCP, TCP_CONGESTION, b"cubic"),
     attempt(s.getsockopt, IPPROTO_TCP, TCP_CONGESTION, 16),
     attempt(s.setsockopt, IPPROTO_IP, IP_TTL, 3), attempt(s.getsockopt, IPPROTO_IP, IP_TTL))
"""
    got, rows = results(ns, script, "--set", "TCP_CONGESTION=reno", "--set", "IP_TTL=0x2a")
    assert bytes.fromhex(got[1]).rstrip(b"\0") == b"reno"
    assert got[2:] == [None, 42]
    (event,) = uses(rows, "set", "TCP_CONGESTION")
    assert (event["value"], event["rule"], event["result"]) == ("cubic", "reno", "changed")


def test_a_value_that_has_no_room_is_refused_not_cut(ns: NetNS) -> None:
    """The kernel's buffer has 32 bytes at least."""
    script = 'show(attempt(s.setsockopt, SOL_SOCKET, SO_BINDTODEVICE, b"lo"))\n'
    got, rows = results(ns, script, "--set", f"SO_BINDTODEVICE={'x' * 40}")
    assert got == ["EPERM"]
    assert "no room" in uses(rows, "set", "SO_BINDTODEVICE")[0]["why"]


def test_what_a_get_returns_is_faked_and_an_error_becomes_success(ns: NetNS) -> None:
    script = """
show(attempt(s.getsockopt, IPPROTO_IP, IP_TTL), attempt(s.getsockopt, SOL_SOCKET, 4711),
     attempt(s.getsockopt, IPPROTO_TCP, TCP_CONGESTION, 4))
"""
    fakes = ["IP_TTL=7", "1:4711=9", "TCP_CONGESTION=hex:6162636465"]
    got, _ = results(ns, script, *[word for fake in fakes for word in ("--fake", fake)])
    assert got == [7, 9, "61626364"]  # as much as there was room for


def test_a_value_larger_than_a_page_passes_unchanged(ns: NetNS) -> None:
    """A source filter of 1100 addresses: 4416 bytes, set and read back."""
    ns.sysctl("net.ipv4.igmp_max_msf", 2000)
    script = """
u = socket(AF_INET, SOCK_DGRAM)
group = inet_aton("239.1.2.3")
u.setsockopt(IPPROTO_IP, IP_ADD_MEMBERSHIP, group + inet_aton("127.0.0.1"))
sources = b"".join(struct.pack("!I", 0x0a000001 + i) for i in range(1100))
head = group + inet_aton("127.0.0.1") + struct.pack("=II", 1, 1100)
set_ = attempt(u.setsockopt, IPPROTO_IP, 41, head + sources)
room = head[:12] + struct.pack("=I", 1100) + bytes(4400)
import ctypes
buffer = ctypes.create_string_buffer(head + bytes(4400), 4416)
size = ctypes.c_uint(4416)
libc = ctypes.CDLL(None)
status = libc.getsockopt(u.fileno(), 0, 41, buffer, ctypes.byref(size))
show(set_, status, size.value, buffer.raw[16:] == sources)
"""
    got, rows = results(ns, script, "--set", "IP_TTL=9")
    assert got == [None, 0, 4416, True]
    (event,) = uses(rows, "set", "IP_MSFILTER")
    assert (event["size"], event["truncated"], event["result"]) == (4416, True, "allowed")
    got, _ = results(ns, script, "--deny", "0:41:set")
    assert got[0] == "EPERM"


def test_names_and_numbers_of_options_go_both_ways() -> None:
    for name, option in (
        ("SO_SNDBUF", (1, 7)),
        ("TCP_NODELAY", (6, 1)),
        ("IP_TOS", (0, 1)),
        ("IPV6_V6ONLY", (41, 26)),
        ("UDP_SEGMENT", (17, 103)),
        ("SO_ATTACH_BPF", (1, 50)),
    ):
        assert find_option(name) == option
        assert option_name(*option) == name
    assert option_name(1, 4711) == "1:4711"


def test_bad_input_is_named() -> None:
    for words, text in (
        (["--deny", "SO_SNDBUFF"], "nearest: SO_SNDBUF"),
        (["--deny", "nosuch"], "no socket option nosuch"),
        (["--set", "SO_SNDBUF"], "has no value"),
        (["--set", "SO_SNDBUF=hex:zz"], "no hexadecimal number"),
        (["--set", "SO_SNDBUF=99999999999"], "no 32-bit number"),
        (["--set", f"TCP_CONGESTION={'x' * 65}"], "not 1 to 64 bytes"),
        (["--set", "IP_TTL=1", "--fake", "IP_TTL=2"], "two values for IP_TTL"),
    ):
        done = run("cgroup_sockopt", *words, "--", "true")
        assert done.returncode == 2, done.stderr
        assert text in done.stderr
        assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize("option", ["1:999999999999", "-2147483649:1", "0x100000000:1"])
def test_an_option_of_more_than_32_bits_is_bad_input(option: str) -> None:
    done = run("cgroup_sockopt", f"--deny={option}", "--", "true")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert option in done.stderr and "32 bits" in done.stderr
