# SPDX-License-Identifier: Apache-2.0
"""cgroup_sock: what socket(2), bind(2) and getsockopt(2) give to the processes of the cgroup."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from running import Row, command, run, run_script

from bpfkit.core.cgroups import Cgroup
from bpfkit.net.links.netns import NetNS

HEAD = """
import errno, json, socket, sys
from socket import *
def attempt(function, *args):
    try:
        function(*args)
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
"""


@pytest.fixture
def ns() -> Iterator[NetNS]:
    with NetNS.new("sock") as namespace:
        yield namespace


def attempts(ns: NetNS, script: str, *options: str) -> tuple[object, list[Row]]:
    """What a Python child prints as JSON, and the program's rows."""
    said, rows = run_script(ns, "cgroup_sock", HEAD + script, *options)
    return json.loads(said.splitlines()[0]), rows


def denials(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.get("event") == "denied"]


KINDS = """
kinds = [(f, t) for f in (AF_INET, AF_INET6) for t in (SOCK_STREAM, SOCK_DGRAM)]
kinds.append((AF_UNIX, SOCK_STREAM))
print(json.dumps([attempt(socket, *kind) for kind in kinds]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], ["done"] * 5),
        (["--deny-family", "inet6"], ["done", "done", "EPERM", "EPERM", "done"]),
        (["--deny-family", "ipv4"], ["EPERM", "EPERM", "done", "done", "done"]),
        (["--deny-type", "dgram"], ["done", "EPERM", "done", "EPERM", "done"]),
        (["--deny-type", "/udp"], ["done", "EPERM", "done", "EPERM", "done"]),
        (["--deny-type", "stream/tcp"], ["EPERM", "done", "EPERM", "done", "done"]),
        (["--deny-type", "stream/sctp"], ["done"] * 5),
    ],
)
def test_sockets_are_denied_by_family_type_and_protocol(
    ns: NetNS, options: list[str], wanted: list[str]
) -> None:
    """A UNIX socket is none of these hooks' business."""
    got, rows = attempts(ns, KINDS, *options)
    assert got == wanted
    assert len(denials(rows)) == wanted.count("EPERM")
    counted = [row for row in rows if "created" in row]
    assert sum(row["created"] for row in counted) == wanted[:4].count("done")
    assert sum(row["denied"] for row in counted) == wanted.count("EPERM")


BINDS = """
def bind(family, kind, host, port):
    sock = socket(family, kind)
    sock.bind((host, port))
    again = socket(family, kind)  # a port that was denied is free again
    sock.close()
    again.close()
print(json.dumps([attempt(bind, *case) for case in [
    (AF_INET, SOCK_STREAM, "127.0.0.1", 5201), (AF_INET, SOCK_DGRAM, "0.0.0.0", 5201),
    (AF_INET6, SOCK_STREAM, "::1", 5201), (AF_INET6, SOCK_DGRAM, "::", 5201),
    (AF_INET, SOCK_STREAM, "127.0.0.1", 6500), (AF_INET, SOCK_STREAM, "127.0.0.1", 5999),
    (AF_INET, SOCK_STREAM, "127.0.0.1", 7000)]]), file=sys.stderr)
"""


def test_binds_are_denied_by_port_and_range(ns: NetNS) -> None:
    options = ["--deny-bind", "5201", "--deny-bind", "6000-6999"]
    got, rows = attempts(ns, BINDS, *options)
    assert got == ["EPERM"] * 5 + ["done"] * 2
    seen = [(row["address"], row["port"], row["type"]) for row in denials(rows)]
    assert seen == [
        ("127.0.0.1", 5201, "stream"),
        ("0.0.0.0", 5201, "dgram"),
        ("::1", 5201, "stream"),
        ("::", 5201, "dgram"),
        ("127.0.0.1", 6500, "stream"),
    ]
    assert {row["what"] for row in denials(rows)} == {"bind"}


def test_a_port_that_the_kernel_chooses_is_judged_too(ns: NetNS) -> None:
    ns.sysctl("net.ipv4.ip_local_port_range", "40000 40010")
    script = (
        "sock = socket()\n"
        "print(json.dumps(attempt(sock.bind, ('127.0.0.1', 0))), file=sys.stderr)\n"
    )
    got, _ = attempts(ns, script, "--deny-bind", "40000-40010")
    assert got == "EPERM"


def test_new_sockets_get_mark_priority_and_interface(ns: NetNS) -> None:
    script = (
        "for f in (AF_INET, AF_INET6):\n"
        "    s = socket(f, SOCK_STREAM)\n"
        "    o = [s.getsockopt(SOL_SOCKET, n) for n in (SO_MARK, SO_PRIORITY)]\n"
        "    o.append(s.getsockopt(SOL_SOCKET, 25, 16).rstrip(b'\\0').decode())\n"
        "    if f == AF_INET: first = o\n"
        "print(json.dumps([first, o]), file=sys.stderr)\n"
    )
    options = ["--mark", "0x2a", "--priority", "6", "--bind-to", "lo"]
    got, _ = attempts(ns, script, *options)
    assert got == [[42, 6, "lo"], [42, 6, "lo"]]
    got, _ = attempts(ns, script)
    assert got == [[0, 0, ""], [0, 0, ""]]


def test_sockets_in_use_are_those_not_released(ns: NetNS) -> None:
    """Two are closed, one lives on in a process that the program leaves alone."""
    script = (
        "a, b, c = socket(), socket(), socket(AF_INET, SOCK_DGRAM)\n"
        "a.close()\n"
        "print('1', file=sys.stderr)\n"
    )
    _, rows = attempts(ns, script)
    counted = {row["type"]: row for row in rows if "created" in row}
    assert counted["stream"]["created"] == 2
    assert counted["dgram"]["created"] == 1
    assert counted["stream"]["released"] <= 2


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_cannot_listen_on_a_denied_port(ns: NetNS, tmp_path: object) -> None:
    conf = f"{tmp_path}/nginx.conf"
    with open(conf, "w") as file:
        file.write(
            f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
            "http { access_log off; server { listen 127.0.0.1:8080; } }\n"
        )
    words = ["nginx", "-c", conf, "-p", str(tmp_path), "-t"]
    with ns.popen(
        command("cgroup_sock", "--deny-bind", "8080", "--", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "bind() to 127.0.0.1:8080 failed (1: Operation not permitted)" in said


def test_an_existing_cgroup_is_served_by_two_programs_and_bpftool_lists_both() -> None:
    with Cgroup.new("two") as group:
        words = command("cgroup_sock", "--cgroup", group.path, "--mark", "5", "-c", "1000")
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as first:
            try:
                script = "import socket; exit(socket.socket().getsockopt(1, 36))"
                for _ in range(100):
                    done = group.run(["/usr/bin/python3", "-c", script])
                    if done.returncode == 5:
                        break
                assert done.returncode == 5
                inner = command("cgroup_sock", "--cgroup", group.path, "--priority", "3", "--")
                listed = subprocess.run(
                    [*inner, "bpftool", "cgroup", "show", group.path],
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=True,
                ).stdout
                assert listed.count("created") == 2
            finally:
                first.terminate()
                first.communicate(timeout=20)


def test_bad_input_is_named() -> None:
    for words, text in (
        (["--deny-family", "packet"], "inet and inet6 sockets only"),
        (["--deny-family", "klingon"], "no address family klingon"),
        (["--deny-type", "strem"], "no socket type strem"),
        (["--deny-type", "raw/nosuch"], "no protocol nosuch"),
        (["--deny-bind", "0"], "is not a port"),
        (["--deny-bind", "9-3"], "is not a port"),
        (["--bind-to", "nosuch0"], "no interface nosuch0"),
        (["--mark", "-1"], "is not a number"),
    ):
        done = run("cgroup_sock", *words, "--", "true")
        assert done.returncode == 2, done.stderr
        assert text in done.stderr
        assert len(done.stderr.splitlines()) <= 2
    assert not [path for path in os.listdir(".") if path.startswith("bpfkit-")]
