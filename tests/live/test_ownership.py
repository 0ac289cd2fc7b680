# SPDX-License-Identifier: Apache-2.0
"""What bpfkit leaves to nobody: filters found again by what they are, and records by their owner.

The observables are tc's and ip's own words and what passes, not bpfkit's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, Running, command

from bpfkit.net.links.lab import pair_lab
from bpfkit.net.links.netns import NetNS

ALTERNATIVE = "an-alternative-name-of-more-than-15-characters"
PROGRAM = ("tc_drop_tcp", "--attach", "clsact", "--no-demo")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NetNS]:
    """A namespace with an interface eth0, and records of its own."""
    monkeypatch.setenv("BPFKIT_RUN", str(tmp_path / "run"))
    with pair_lab() as lab:
        yield lab["client"]


def tc(ns: NetNS, *words: str) -> str:
    return ns.check_output(["tc", *words])


def clean(ns: NetNS) -> str:
    argv = [sys.executable, "-m", "bpfkit", "clean"]
    return ns.check_output(argv)


def renamed(ns: NetNS, old: str, new: str) -> None:
    for words in (("set", old, "down"), ("set", old, "name", new), ("set", new, "up")):
        ns.check_output(["ip", "link", *words])


def test_a_filter_goes_with_its_program_from_a_renamed_interface(place: NetNS) -> None:
    before = tc(place, "qdisc", "show").replace("eth0", "new0")
    with Running(*PROGRAM, "-i", "eth0", ns=place) as program:
        renamed(place, "eth0", "new0")
        assert "tc_drop_tcp" in tc(place, "filter", "show", "dev", "new0", "egress")
        assert program.end()[0] == 0, program.said
    assert tc(place, "filter", "show", "dev", "new0", "egress") == ""
    assert tc(place, "qdisc", "show") == before


def test_a_killed_programs_filter_is_found_under_another_name(place: NetNS) -> None:
    with Running(*PROGRAM, "-i", "eth0", ns=place) as program:
        program.process.kill()
        program.process.wait(10)
    renamed(place, "eth0", "new0")
    assert "tc_drop_tcp" in tc(place, "filter", "show", "dev", "new0", "egress")
    assert "removed clsact" in clean(place)
    assert tc(place, "filter", "show", "dev", "new0", "egress") == ""
    assert "clsact" not in tc(place, "qdisc", "show")
    assert "nothing" in clean(place)


def test_a_record_stays_until_its_filter_was_seen_to_be_gone(
    place: NetNS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bpfkit.core import records
    from bpfkit.net.attach import clsact

    with Running(*PROGRAM, "-i", "eth0", ns=place) as program:
        program.process.kill()
        program.process.wait(10)

    def refused(*_: object) -> None:
        raise OSError(16, "busy")

    with monkeypatch.context() as patched:
        patched.setattr(clsact, "_filter", refused)
        assert records.reap() == []
    assert len(list((tmp_path / "run").iterdir())) == 1
    assert len(records.reap()) == 1
    assert tc(place, "filter", "show", "dev", "eth0", "egress") == ""


def test_a_mount_point_that_is_no_utf8_leads_to_its_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The namespace is held by a bind mount only, whose name no text encoding knows."""
    monkeypatch.setenv("BPFKIT_RUN", str(tmp_path / "run"))
    name = bytes(tmp_path) + b"/n\xe9 t\\n"
    Path(os.fsdecode(name)).touch()
    with pair_lab() as lab:
        ns = lab["client"]
        with Running(*PROGRAM, "-i", "eth0", ns=ns) as program:
            program.process.kill()
            program.process.wait(10)
        subprocess.run(
            ["mount", "--bind", f"/proc/self/fd/{ns.fd}", name], check=True, pass_fds=[ns.fd]
        )
        try:
            inode = ns.inode
            lab.close()
            with NetNS.from_path(os.fsdecode(name)) as held:
                assert held.inode == inode
                assert "tc_drop_tcp" not in tc(held, "filter", "show")
            argv = [sys.executable, "-m", "bpfkit", "clean"]
            done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
            assert "removed clsact" in done.stdout
        finally:
            subprocess.run(["umount", name], check=True)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare (util-linux) is missing")
def test_a_live_program_of_another_pid_namespace_keeps_its_filter(place: NetNS) -> None:
    argv = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        *command(*PROGRAM, "-i", "eth0"),
    ]
    with place.popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "(program " in process.stderr.readline()
        try:
            assert "nothing" in clean(place)
            assert "tc_drop_tcp" in tc(place, "filter", "show", "dev", "eth0", "egress")
        finally:
            process.kill()
    deadline = time.monotonic() + 5
    while "removed clsact" not in clean(place):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert tc(place, "filter", "show", "dev", "eth0", "egress") == ""


def test_starts_and_ends_at_once_all_succeed(place: NetNS) -> None:
    before = tc(place, "qdisc", "show")
    for _ in range(3):
        argv = command(*PROGRAM, "-i", "eth0", "-c", "1", "-t", "0.05")
        many = [
            place.popen(
                argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            for _ in range(6)
        ]
        for one in many:
            _, said = one.communicate(timeout=60)
            assert one.returncode == 0, said
    assert tc(place, "qdisc", "show") == before


def test_an_ingress_qdisc_is_shared_for_ingress(place: NetNS) -> None:
    tc(place, "qdisc", "add", "dev", "eth0", "ingress")
    before = tc(place, "qdisc", "show")
    with Running(*PROGRAM, "-i", "eth0", "--direction", "ingress", ns=place) as program:
        assert "tc_drop_tcp" in tc(place, "filter", "show", "dev", "eth0", "ingress")
        assert program.end()[0] == 0, program.said
    assert tc(place, "filter", "show", "dev", "eth0", "ingress") == ""
    assert tc(place, "qdisc", "show") == before


def test_an_ingress_qdisc_has_no_egress(place: NetNS) -> None:
    tc(place, "qdisc", "add", "dev", "eth0", "ingress")
    done = place.run(
        subprocess.run,
        command(*PROGRAM, "-i", "eth0"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "kind ingress is in clsact's place" in done.stderr
    assert "tcx" in done.stderr


def test_the_last_preference_may_be_taken(place: NetNS, tmp_path: Path) -> None:
    with (
        Running(*PROGRAM, "-i", "eth0", "--priority", "65535", ns=place) as first,
        Running(*PROGRAM, "-i", "eth0", ns=place) as second,
    ):
        shown = tc(place, "filter", "show", "dev", "eth0", "egress")
        assert "pref 65534 " in shown
        assert "pref 65535 " in shown
        assert first.end()[0] == 0, first.said
        assert second.end()[0] == 0, second.said
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("kind", ["full", "foreign", "a file"])
def test_no_record_no_filter(
    place: NetNS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Where nothing can be written down nothing is attached, and the reason is given."""
    run = tmp_path / "records"
    run.mkdir()
    mounted = False
    why = "No space left"
    if kind == "full":
        argv = ["mount", "-t", "tmpfs", "-o", "nr_inodes=1,mode=700", "none", str(run)]
        subprocess.run(argv, check=True)
        mounted = True
    elif kind == "foreign":
        os.chown(run, 65534, 65534)
        why = "belongs to uid 65534"
    else:
        run.rmdir()
        run.touch()
        why = "Not a directory"
    monkeypatch.setenv("BPFKIT_RUN", str(run))
    try:
        done = place.run(
            subprocess.run,
            command(*PROGRAM, "-i", "eth0", "-c", "1"),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        if mounted:
            subprocess.run(["umount", str(run)], check=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert why in done.stderr
    assert "bug" not in done.stderr
    assert "BPFKIT_RUN" in done.stderr
    assert "clsact" not in tc(place, "qdisc", "show")


@pytest.mark.parametrize("name", ["other", ALTERNATIVE])
def test_an_alternative_name_is_the_same_interface(place: NetNS, name: str) -> None:
    """The firewall is found by it, and a port is not taken twice."""
    place.check_output(["ip", "link", "property", "add", "dev", "eth0", "altname", name])

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return place.run(
            subprocess.run,
            command(*words),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    with Running("xdp_firewall", "-i", name, "--no-demo", ns=place) as program:
        assert "XDP native on eth0" in program.said
        for words in (("add", "10.9.0.0/16"), ("list",), ("del", "10.9.0.0/16")):
            for interface in ("eth0", name):
                if words[0] == "list" or interface == name:
                    done = run("xdp_firewall", *words, "-i", interface)
                    assert done.returncode == 0, done.stderr
        assert program.end()[0] == 0
    done = run("xdp_redirect", "-i", "eth0", "--to", name, "-c", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"port {name} is given twice: it is eth0 as well" in done.stderr
    assert "process" not in done.stderr
