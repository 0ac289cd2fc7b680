# SPDX-License-Identifier: Apache-2.0
"""cgroup_sysctl: what processes get, what the kernel has, and what the events say.

Only parameters of network namespaces made here are written.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Row, command, run

from bpfkit import cgroup_sysctl
from bpfkit.app.lifecycle import main
from bpfkit.core.cgroups import Cgroup
from bpfkit.net.links.netns import NetNS

TTL = "net.ipv4.ip_default_ttl"
PATH = "/proc/sys/net/ipv4/ip_default_ttl"


@pytest.fixture
def ns() -> Iterator[NetNS]:
    with NetNS.new("sysctl") as namespace:
        yield namespace


def inside(ns: NetNS, *words: str) -> tuple[list[Row], subprocess.CompletedProcess[str]]:
    """The program around a command, in a network namespace; its JSON rows."""
    with ns.popen(
        command("cgroup_sysctl", "--json", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out, said = process.communicate(timeout=60)
    done = subprocess.CompletedProcess(words, process.returncode, out, said)
    return [json.loads(line) for line in out.splitlines()], done


def events(rows: list[Row], kind: str) -> list[Row]:
    return [row for row in rows if row.get("event") == kind]


def test_a_denied_write_is_eperm_and_changes_nothing(ns: NetNS) -> None:
    script = (
        f"import os\nfd = os.open('{PATH}', 1)\n"
        "try: os.write(fd, b'7')\nexcept OSError as error: exit(error.errno)"
    )
    rows, done = inside(ns, "--deny", f"{TTL}:w", "--", "/usr/bin/python3", "-c", script)
    assert done.returncode == 1  # EPERM
    assert ns.sysctl(TTL) == "64"
    (event,) = events(rows, "write")
    assert (event["name"], event["old"], event["new"], event["result"]) == (
        TTL,
        "64",
        "7",
        "denied",
    )
    assert event["comm"] == "python3"


def test_reads_and_writes_are_logged_with_old_and_new_value(ns: NetNS) -> None:
    rows, done = inside(ns, "--", "sh", "-c", f"read x < {PATH}; echo 33 > {PATH}")
    assert done.returncode == 0, done.stderr
    assert ns.sysctl(TTL) == "33"
    assert {(e["name"], e["old"], e["result"]) for e in events(rows, "read")} == {
        (TTL, "64", "allowed")
    }
    (event,) = events(rows, "write")
    assert (event["old"], event["new"]) == ("64", "33")
    assert not event["old_truncated"]
    assert not event["new_truncated"]
    counted = [row for row in rows if "reads" in row]
    assert [(row["name"], row["writes"], row["denied"]) for row in counted] == [(TTL, 1, 0)]


@pytest.mark.parametrize(("wrote", "value"), [("99", "42"), ("128", "5")])
def test_a_write_is_replaced_and_happens_once(ns: NetNS, wrote: str, value: str) -> None:
    rows, done = inside(ns, "--set", f"{TTL}={value}", "--", "sh", "-c", f"echo {wrote} > {PATH}")
    assert done.returncode == 0, done.stderr
    assert ns.sysctl(TTL) == value
    (event,) = events(rows, "write")
    assert (event["new"], event["set"], event["result"]) == (wrote, value, "replaced")


def test_a_longer_value_is_written_and_write_returns_its_length(ns: NetNS) -> None:
    script = f"import os\nprint(os.write(os.open('{PATH}', 1), b'9'))"
    rows, done = inside(ns, "--set", f"{TTL}=120", "--", "/usr/bin/python3", "-c", script)
    assert done.returncode == 0, done.stderr
    assert ns.sysctl(TTL) == "120"
    assert done.stderr == "3\n"  # the kernel's doing: one byte was asked for
    assert len(events(rows, "write")) == 1


def test_a_denied_directory_denies_what_is_below_except_what_is_allowed(ns: NetNS) -> None:
    words = ["--deny", "net.ipv4.:w", "--allow", TTL, "--"]
    _, done = inside(ns, *words, "sh", "-c", f"echo 9 > {PATH}")
    assert (done.returncode, ns.sysctl(TTL)) == (0, "9")
    _, done = inside(ns, *words, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    assert done.returncode != 0
    assert ns.sysctl("net.ipv4.ip_forward") == "0"
    _, done = inside(ns, *words, "cat", "/proc/sys/net/ipv4/conf/lo/forwarding")
    assert done.returncode == 0  # writes only


def test_denied_reads_fail(ns: NetNS) -> None:
    rows, done = inside(ns, "--deny", TTL, "--", "cat", PATH)
    assert done.returncode == 1
    assert "Operation not permitted" in done.stderr
    assert {event["result"] for event in events(rows, "read")} == {"denied"}


def test_a_long_value_is_marked_as_cut(ns: NetNS) -> None:
    """ip_local_reserved_ports takes thousands of ports; an event has 255 bytes."""
    name = "net/ipv4/ip_local_reserved_ports"
    ports = ",".join(str(port) for port in range(1000, 2000, 2))
    script = f"import sys; open('/proc/sys/{name}', 'w').write('{ports}')"
    rows, done = inside(ns, "--", "/usr/bin/python3", "-c", script)
    assert done.returncode == 0, done.stderr
    (event,) = events(rows, "write")
    assert event["new_truncated"]
    assert ports.startswith(event["new"][:200])
    assert len(event["new"]) <= 255


def test_names_with_dots_of_their_own_go_by_slashes(ns: NetNS) -> None:
    with ns.entered():
        subprocess.run(["ip", "link", "add", "eth0.7", "type", "dummy"], capture_output=True)
    path = "net/ipv4/conf/lo/forwarding"
    rows, done = inside(ns, "--deny", f"{path}:w", "--", "sh", "-c", f"echo 1 > /proc/sys/{path}")
    assert done.returncode != 0
    assert events(rows, "write")[0]["name"] == "net.ipv4.conf.lo.forwarding"


def test_a_program_of_an_outer_cgroup_stays_and_counts_too(ns: NetNS) -> None:
    """Two copies, one in the other's cgroup: the outer one's denial holds for the inner."""
    with Cgroup.new("outer") as outer:
        words = command("cgroup_sysctl", "--", "sh", "-c", f"echo 11 > {PATH}")
        denied = command(
            "cgroup_sysctl", "--cgroup", outer.path, "--deny", f"{TTL}:w", "--", *words
        )
        with ns.popen(denied, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            _, said = process.communicate(timeout=60)
        assert process.returncode != 0
        assert "result denied" in said
        assert "result allowed" in said  # the inner copy's view
    assert ns.sysctl(TTL) == "64"


def test_bad_input_is_named(tmp_path: Path) -> None:
    for words, text in (
        (["--deny", "net.ipv4.ip_forwart"], "nearest: net.ipv4.ip_forward"),
        (["--set", "net.ipv4.ip_forward"], "has no value"),
        (["--set", "net.ipv4.=1"], "is a directory"),
        (["--set", f"net.ipv4.ip_forward={'1' * 300}"], "too long"),
        (["--deny", ""], "no kernel parameter"),
    ):
        done = run("cgroup_sysctl", *words, "--", "true")
        assert done.returncode == 2, done.stderr
        assert text in done.stderr
        assert len(done.stderr.splitlines()) <= 2
    assert os.listdir(tmp_path) == []


def test_where_the_kernel_ignores_values_set_is_refused_and_the_demo_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cgroup_sysctl, "takes_new_values", lambda: False)
    words = ["--set", f"{TTL}=50", "--", "true"]
    assert main(cgroup_sysctl.CgroupSysctl, words) == 77
    assert "--set has no effect here: this kernel ignores" in capsys.readouterr().err
    assert main(cgroup_sysctl.CgroupSysctl, ["--check"]) == 0
    said = capsys.readouterr()
    assert "the demo sets no value" in said.err
    assert f"write of 99 to {TTL}: done, the kernel has 99" in said.out
