# SPDX-License-Identifier: Apache-2.0
"""Somebody else removes the attachment: the program says so and ends with status 1.

Each kind is removed by the kernel's own tools, not by bpfkit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import Running, path_of

import bpfkit
from bpfkit.core.kernel import syscall
from bpfkit.net.links.lab import Lab, pair_lab, router_lab


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("BPFKIT_RUN", str(tmp_path / "run"))
    with pair_lab() as lab:
        yield lab


def told(program: Running, what: str) -> None:
    """It ends by itself, with the reason."""
    status, _, said = program.wait(15)
    assert status == 1, said
    assert what in said
    assert "Traceback" not in said


TC = ("tc_drop_tcp", "--attach", "clsact", "-i", "eth0")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["qdisc", "del", "dev", "eth0", "clsact"], id="the qdisc"),
        pytest.param(["filter", "del", "dev", "eth0", "egress"], id="the filter"),
    ],
)
def test_clsact_that_is_removed_is_noticed(lab: Lab, words: list[str]) -> None:
    ns = lab["client"]
    with Running(*TC, ns=ns) as program:
        ns.check_output(["tc", *words])
        told(program, "the program was detached from eth0")


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_either_filter_of_two_is_noticed(lab: Lab, direction: str) -> None:
    ns = lab["client"]
    words = ("tc_classifier", "--attach", "clsact", "-i", "eth0")
    with Running(*words, ns=ns) as program:
        ns.check_output(["tc", "filter", "del", "dev", "eth0", direction])
        told(program, "the program was detached from eth0")


def test_a_filter_that_takes_our_place_is_not_taken_for_ours(lab: Lab) -> None:
    ns = lab["client"]
    source = """
    #include <bpfkit/bpfkit.h>
    #include <uapi/linux/bpf.h>
    SEC("tc") int other(struct __sk_buff *skb) { return 0; }
    """
    with bpfkit.load(source) as other, Running(*TC, ns=ns) as program:
        ns.check_output(["tc", "filter", "del", "dev", "eth0", "egress"])
        index = lab.interface("client:eth0").index
        link = ns.run(other.programs["other"].attach_tc, index, "egress", "clsact")
        told(program, "the program was detached from eth0")
        assert "other" in ns.check_output(["tc", "filter", "show", "dev", "eth0", "egress"])
        link.close()


@pytest.mark.parametrize("kind", ["tcx", "xdp"])
def test_a_link_that_is_detached_is_noticed(lab: Lab, kind: str) -> None:
    ns = lab["client"]
    words = {"tcx": ("tc_drop_tcp", "--attach", "tcx"), "xdp": ("xdp_drop_tcp",)}[kind]
    before = links()
    with Running(*words, "-i", "eth0", ns=ns) as program:
        for number in links() - before:
            detach(number)
        told(program, "the program was detached from eth0")


def test_a_link_to_a_namespace_that_is_detached_is_noticed(lab: Lab) -> None:
    """A netfilter link is not: after BPF_LINK_DETACH the kernel tells the same of it as before."""
    before = links()
    where = ("--netns", path_of(lab["client"]))
    with Running("flow_dissector", *where, "--json", ready=lambda row: True) as program:
        done = [detach(number) for number in links() - before]
        assert any(done)
        told(program, "the program was detached from")


def test_a_route_that_goes_with_a_link_flap_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BPFKIT_RUN", str(tmp_path / "run"))
    with router_lab() as lab:
        ns = lab["client"]
        words = ["lwt_out", "--netns", path_of(ns), "--route", "10.99.0.0/24", "-i", "eth0"]
        with Running(*words, "--json", "-t", "0.2", ready="", may_end=True) as program:
            wait_for(lambda: "10.99.0.0/24" in ns.check_output(["ip", "route"]))
            ns.check_output(["ip", "link", "set", "eth0", "down"])
            ns.check_output(["ip", "link", "set", "eth0", "up"])
            assert "10.99.0.0/24" not in ns.check_output(["ip", "route"])
            told(program, "the program was detached from route 10.99.0.0/24")


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    import time

    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def links() -> set[int]:
    found, number = set(), 0
    while True:
        try:
            number = syscall.next_id(31, number) or 0
        except OSError:
            return found
        if not number:
            return found
        found.add(number)


def detach(number: int) -> bool:
    """BPF_LINK_DETACH, as ``bpftool link detach`` does."""
    try:
        fd = syscall.link_get_fd_by_id(number)
    except OSError:
        return False
    try:
        syscall.link_detach(fd)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
