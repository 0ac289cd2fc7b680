# SPDX-License-Identifier: Apache-2.0
"""xdp_lb's options, its backends file, and when a backend counts as ill; nothing is loaded."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from running import run

from bpfkit.core.errors import InputError
from bpfkit.xdp_lb.balancer import Backend, Service, parse_backend, read_backends
from bpfkit.xdp_lb.health import Health, connect_all

VIP = ["-i", "lo", "--vip", "198.51.100.1:80/tcp"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("198.51.100.1:80", "198.51.100.1:80/tcp"),
        ("198.51.100.1:65535/udp", "198.51.100.1:65535/udp"),
        ("[2001:DB8:0::1]:443/tcp", "[2001:db8::1]:443/tcp"),
        ("[2001:db8::1]:9/sctp", "[2001:db8::1]:9/sctp"),
    ],
)
def test_services(text: str, said: str) -> None:
    assert str(Service.parse(text)) == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "198.51.100.1",
        "198.51.100.1:0/tcp",
        "198.51.100.1:65536/tcp",
        "198.51.100.1:-1/tcp",
        "198.51.100.1:http/tcp",
        "198.51.100.1:80/",
        "198.51.100.1:80/icmp",
        "198.51.100:80/tcp",
        "2001:db8::1:80/tcp",
        "[2001:db8::1]/tcp",
        "224.0.0.1:80/tcp",
        "0.0.0.0:80/tcp",
        "[fe80::1%eth0]:80/tcp",
        "[fe80::1]:80/tcp",
        "198.51.100.1/32:80/tcp",
        "localhost:80/tcp",
    ],
)
def test_services_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        Service.parse(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.2", ("10.0.0.2", 1)),
        ("10.0.0.2,weight=3", ("10.0.0.2", 3)),
        ("FD00:0::2 weight=0", ("fd00::2", 0)),
    ],
)
def test_backends(text: str, found: tuple[str, int]) -> None:
    assert parse_backend(text) == found


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "10.0.0.2:80", "10.0.0.2,3", "10.0.0.2,weight=101", "::", "ff02::1"]
)
def test_backends_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        parse_backend(text)


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "backends"
    path.write_text("# three\n10.0.0.2 weight=2\n\n  fd00::2 # the second\n10.0.0.3,weight=0\n")
    assert read_backends(str(path)) == {"10.0.0.2": 2, "fd00::2": 1, "10.0.0.3": 0}


@pytest.mark.parametrize("line", ["10.0.0", "10.0.0.2", "10.0.0.9 wait=1"])
def test_a_bad_line_has_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "backends"
    path.write_text(f"10.0.0.2\n# and\n{line}\n")
    with pytest.raises(InputError, match=r"backends:3: "):
        read_backends(str(path))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "backends"
    with pytest.raises(InputError, match="cannot read"):
        read_backends(str(path))
    path.write_bytes(b"\xff\xfe\0")
    with pytest.raises(InputError, match="not a text file"):
        read_backends(str(path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--vip", "198.51.100.1:80/tcp"], "--vip needs --interface"),
        (["-i", "lo"], "needs --vip"),
        (VIP, "--backend"),
        ([*VIP, "--backend", "10.0.0.2:80"], "10.0.0.2:80"),
        ([*VIP, "--backend", "10.0.0.2", "--backend", "10.0.0.2"], "twice"),
        ([*VIP, "--backend", "198.51.100.1"], "own packets"),
        ([*VIP, *VIP, "--backend", "10.0.0.2"], "twice"),
        (["-i", "lo", "--vip", "198.51.100.1:99999/tcp", "--backend", "10.0.0.2"], "99999"),
        (["-i", "lo", "--vip", "198.51.100.1:53/udp", "--backend", "10.0.0.2"], "--health-port"),
        ([*VIP, "--backend", "10.0.0.2", "--table", "4096"], "prime"),
        ([*VIP, "--backend", "10.0.0.2", "--health-port", "0"], "--health-port"),
        ([*VIP, "--backend", "10.0.0.2", "--table", "65539"], "prime"),
        ([*VIP, "--backend", "10.0.0.2", "--health-interval", "nan"], "--health-interval"),
        ([*VIP, "--backends", "no/such/file"], "no/such/file"),
        (["--check", *VIP, "--backend", "10.0.0.2"], "--check"),
    ],
)
def test_usage(arguments: list[str], words: str) -> None:
    done = run("xdp_lb", *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and len(done.stderr.splitlines()) <= 2


def test_health_changes_after_answers_in_a_row() -> None:
    health = Health(rise=2, fall=3)
    assert health.update({"a": "", "b": "refused"}) == ["a", "b"], "the first counts at once"
    assert health.is_up("a") and not health.is_up("b") and not health.is_up("c")
    answers = ["x", "x", "", "x", "x", "x", "", "x", "", ""]
    changes = [bool(health.update({"a": why, "b": "refused"})) for why in answers]
    assert changes == [False] * 5 + [True] + [False] * 3 + [True]
    assert health.why == {"a": "", "b": "refused"}
    health.update({"b": ""})
    assert "a" not in health.why, "who is not asked is forgotten"
    assert health.update({"a": "late", "b": ""}) == ["a", "b"]


def test_connections_to_all_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = connect_all(["127.0.0.1", "127.0.0.2", "::1"], port, 1)
    assert found["127.0.0.1"] == ""
    assert "refused" in found["127.0.0.2"] and "refused" in found["::1"]
    assert connect_all([], 1) == {}


def test_states_of_a_backend() -> None:
    one = Backend("10.0.0.2", 1, 0, 1)
    assert one.target_state == 0 and "not checked" in one.state_text
    one.down_reason = ""
    assert one.target_state == 0 and "MAC" in one.state_text
    one.mac = bytes(5) + b"\1"
    assert one.target_state == 1
    one.weight = 0
    assert one.target_state == 2
    one.down_reason = "no answer"
    assert one.target_state == 0
