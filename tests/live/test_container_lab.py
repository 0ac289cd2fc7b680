# SPDX-License-Identifier: Apache-2.0
"""The container lab: the matrix as users run it, against tcpdump, on a container of somebody's."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, Running, path_of, run
from scapy.layers.inet import ICMP, TCP
from scapy.utils import rdpcap

import bpfkit
from bpfkit.container_lab.cable import Cable
from bpfkit.container_lab.scene import PROBES, STATES, Scene, expected, scene_of_lab
from bpfkit.container_lab.webserver import PAGE, WebServer
from bpfkit.core.errors import UnsupportedError
from bpfkit.net.links.lab import Lab, bridge_lab
from bpfkit.net.links.netns import NetNS

FIELDS = ["ts", "round", "state", "probe", "expected", "answered", "captured"]


def at_work(somebody: Somebody, *args: str, state: str = "") -> Running:
    """Somebody's cable: ready at the first row, or that of a state."""
    options = ["--json", *args, *somebody.options()]
    return Running("container_lab", *options, ready=lambda row: state in ("", row["state"]))


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_check_passes() -> None:
    done = run("container_lab", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "IPv4 xdp+tc: container-bridge-tcp not answered, not captured" in done.stdout
    assert "IPv6 xdp+tc: container-bridge-tcp not answered, not captured" in done.stdout


def test_rows_of_the_matrix() -> None:
    found = rows(run("container_lab", "--json"))
    assert len(found) == 35
    assert all(list(row) == FIELDS for row in found)
    assert all(type(row[name]) is bool for row in found for name in FIELDS[4:])
    states = list(dict.fromkeys(row["state"] for row in found))
    assert states == ["none", "xdp", "xdp+tc", "tc", "none-again"]
    assert all(row["expected"] == row["answered"] for row in found)
    captured = {(row["state"], row["probe"]): row["captured"] for row in found}
    # XDP drops before the tap on the way in, tc before the tap on the way out
    assert captured["none", "container-outside-tcp"] and captured["none", "host-container-http"]
    assert not captured["xdp", "container-outside-tcp"] and captured["xdp", "host-container-http"]
    assert captured["tc", "container-outside-tcp"] and not captured["tc", "host-container-http"]
    assert not captured["xdp+tc", "container-bridge-tcp"]
    assert not captured["xdp+tc", "host-container-syn"]


def test_ipv6_and_rounds() -> None:
    found = rows(run("container_lab", "--json", "--ipv6", "-c", "2"))
    assert [row["round"] for row in found] == [0] * 35 + [1] * 35
    assert all(row["expected"] == row["answered"] for row in found)


def test_stream_loses_only_while_the_programs_are_on() -> None:
    found = rows(run("container_lab", "--json", "--stream"))
    assert [row["programs"] for row in found] == ["off", "off", "on", "on", "off", "off"]
    assert all(row["sent"] == 20 for row in found)
    assert [row["received"] for row in found] == [20, 20, 0, 0, 20, 20]


# -- in this process

Made = tuple[Lab, Scene, Cable]


@contextlib.contextmanager
def made(**how: str) -> Iterator[Made]:
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(bridge_lab())
        scene = stack.enter_context(scene_of_lab(lab))
        programs = {}
        for kind, source in (("xdp", "xdp/xdp_drop_tcp"), ("tc", "tc/tc_drop_tcp")):
            loaded = stack.enter_context(bpfkit.load(f"{source}.bpf.c"))
            programs[kind] = next(iter(loaded.programs.values()))
        yield lab, scene, stack.enter_context(Cable(scene.device, scene.host, programs, **how))


@pytest.mark.parametrize(("how", "mode"), [("tcx", "generic"), ("clsact", "native")])
def test_tools_show_each_state(how: str, mode: str) -> None:
    """``ip link``, ``tc`` and ``bpftool``, in all states, by both ways to attach."""
    with made(how=how, mode=mode) as (lab, scene, cable):
        for state in STATES:
            try:
                cable.switch(state)
            except UnsupportedError as error:
                pytest.skip(str(error))
            verdicts = list(cable.verify(state, cable.view()))
            assert [text for good, text in verdicts if not good] == []
            link = lab["host"].check_output(["ip", "link", "show", "dev", "c0"])
            assert (f"prog/xdp id {cable.programs['xdp'].id} " in link) == ("xdp" in state)
            assert (" xdpgeneric " in link) == ("xdp" in state and mode == "generic")
            filters = lab["host"].check_output("tc filter show dev c0 egress".split())
            assert ("tc_drop_tcp" in filters) == ("tc" in state and how == "clsact")
            assert scene.probe_all(state) == {probe: expected(state, probe) for probe in PROBES}
        assert cable.mode == mode
        # The verdicts are not always good: what is there is not what "none" says.
        cable.switch("xdp")
        assert not all(good for good, _ in cable.verify("none", cable.view()))


@pytest.mark.skipif(not shutil.which("tcpdump"), reason="tcpdump is not installed")
def test_tcpdump_sees_what_captured_says(tmp_path: Path) -> None:
    """A capture of somebody else's on the same device, judged by scapy: how many probes it saw."""
    with made() as (lab, scene, cable):
        for state in STATES:
            cable.switch(state)
            path = tmp_path / f"{state}.pcap"
            dump = lab["host"].popen(
                ["tcpdump", "--immediate-mode", "-Un", "-i", "c0", "-Z", "root", "-w", str(path)],
                stderr=subprocess.PIPE,
                text=True,
            )
            assert dump.stderr is not None and "listening on" in dump.stderr.readline()
            found = scene.probe_all(state)
            time.sleep(0.3)
            dump.send_signal(signal.SIGINT)
            dump.communicate(timeout=30)
            packets = rdpcap(str(path))
            # A SYN to each server, an echo request to each address: one per probe that was seen.
            syns = {p[TCP].sport for p in packets if TCP in p and p[TCP].flags == "S"}
            pings = {p[ICMP].id for p in packets if ICMP in p and p[ICMP].type == 8}
            seen = [probe for probe, (_, captured) in found.items() if captured]
            assert len(pings) == sum(probe.endswith("-ping") for probe in seen) == 2
            assert len(syns) == len(seen) - 2, (state, syns, seen)
            assert found == {probe: expected(state, probe) for probe in PROBES}


# -- a container of somebody's


class Somebody:
    """Host, container (a process with its own mounts and pids) and outside, not named as ours."""

    def __init__(self) -> None:
        self.lab = Lab("somebody's")
        try:
            self._build()
        except BaseException:
            self.lab.close()
            raise
        # In front of all its children: each is 1 in a pid namespace of its own.
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sleep", "300"]
        self.process = self.lab["box"].popen(argv)
        self.host = path_of(self.lab["machine"])

    def _build(self) -> None:
        lab = self.lab
        for name in ("box", "machine", "world"):
            lab.namespace(name)
        lab.forward("machine")
        lab.veth("box:net7", "machine:veth7", addresses=(["10.9.0.2/24", "fd09::2/64"], []))
        lab.bridge("machine:br7", ["machine:veth7"], addresses=["10.9.0.1/24", "fd09::1/64"])
        lab.veth(
            "machine:up7", "world:eth0", addresses=(["10.8.0.1/24"], ["10.8.0.2/24", "fd08::2/64"])
        )
        lab.route("box", "default", via="10.9.0.1")
        lab.route("box", "default6", via="fd09::1")
        lab.route("world", "default", via="10.8.0.1")
        lab.ready()

    def options(self) -> list[str]:
        return ["--container", str(self.process.pid), "--netns", self.host, "--yes"]

    def tc(self, *args: str) -> str:
        return self.lab["machine"].check_output(["tc", *args])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.lab.close()


@pytest.fixture
def somebody() -> Iterator[Somebody]:
    made = Somebody()
    yield made
    made.close()


def test_cable_of_a_real_container(somebody: Somebody) -> None:
    with WebServer(somebody.lab["world"], kind="python") as world:
        done = run(
            "container_lab", "--json", *somebody.options(), "--outside", f"10.8.0.2:{world.port}"
        )
        found = rows(done)
    assert "veth7, a port of br7, the other end of the container's net7 (10.9.0.2" in done.stderr
    assert len(found) == 35 and all(list(row) == FIELDS for row in found)
    for row in found:
        wanted = expected(row["state"], row["probe"])
        assert (row["answered"], row["captured"]) == wanted, row


def test_a_container_is_interrupted_only_after_yes(somebody: Somebody) -> None:
    """Neither without --yes nor with --probe-only does a program reach the cable."""
    ns = somebody.lab["machine"]
    options = [word for word in somebody.options() if word != "--yes"]
    with ns.popen(["ip", "-o", "monitor", "link"], stdout=subprocess.PIPE, text=True) as monitor:
        refused = run("container_lab", *options)
        assert refused.returncode == 2
        assert "interrupts the TCP traffic" in refused.stderr
        assert "--yes" in refused.stderr and "--probe-only" in refused.stderr
        probed = run("container_lab", "--json", "--probe-only", *options)
        found = rows(probed)
        assert {row["state"] for row in found} == {"none"}
        assert all(
            (row["answered"], row["captured"]) == (True, True)
            for row in found
            if row["probe"] == "host-container-ping"
        )
        assert "nothing was attached" in probed.stderr
        monitor.terminate()
        said = monitor.communicate()[0]
    assert "xdp" not in said
    help_text = " ".join(run("container_lab", "--help").stdout.split())
    assert "INTERRUPTS ITS TCP TRAFFIC" in help_text


def test_the_end_says_how_long_the_container_was_interrupted(somebody: Somebody) -> None:
    done = run("container_lab", "--json", *somebody.options())
    (line,) = [text for text in done.stderr.splitlines() if "summary:" in text]
    assert "TCP over veth7 was interrupted once, for " in line  # from the second state to the fifth
    assert "no program of this run stays" in line
    assert "prog/xdp" not in somebody.lab["machine"].check_output(["ip", "link"])


def test_what_cannot_be_asked_is_left_out_with_a_reason(somebody: Somebody) -> None:
    done = run("container_lab", "--json", *somebody.options(), "--outside", "10.8.0.2:1")
    found = rows(done)
    assert "left out container-outside-tcp: not answered without the programs either" in done.stderr
    assert len(found) == 30
    done = run("container_lab", "--json", "--ipv6", *somebody.options())
    assert len(rows(done)) == 25
    assert "left out container-outside-ping: no outside address was given" in done.stderr


def test_what_is_on_the_cable_stays(somebody: Somebody) -> None:
    ns = somebody.lab["machine"]
    with (
        bpfkit.load("tc/tc_classifier.bpf.c") as tc,
        bpfkit.load("xdp/xdp_drop_icmp.bpf.c") as xdp,
        ns.entered(),
    ):
        index = somebody.lab.interface("machine:veth7").index
        with tc.programs["tc_classifier_out"].attach_tc(index, "egress", "clsact"):
            before = somebody.tc("filter", "show", "dev", "veth7", "egress")
            assert rows(run("container_lab", "--json", *somebody.options()))
            assert somebody.tc("filter", "show", "dev", "veth7", "egress") == before
            assert "clsact" in somebody.tc("qdisc", "show", "dev", "veth7")
        with next(iter(xdp.programs.values())).attach_xdp(index):
            done = run("container_lab", *somebody.options())
            assert done.returncode == 1
            assert "already attached: program" in done.stderr and "xdp_drop_icmp" in done.stderr
            assert f"of process {os.getpid()}" in done.stderr
    assert "clsact" not in somebody.tc("qdisc", "show", "dev", "veth7")


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_gone(pid: int) -> bool:
    """Ended; what is left for init to collect counts as ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def test_second_copy_and_kill(somebody: Somebody) -> None:
    with at_work(somebody, "-c", "9", state="xdp+tc") as first:
        second = run("container_lab", *somebody.options())
        assert second.returncode == 1
        assert f"process {first.process.pid} is using it" in second.stderr
        children = _children(first.process.pid)
        assert children or not shutil.which("nginx", path="/usr/sbin:/usr/bin")
    deadline = time.monotonic() + 10
    while not all(map(_is_gone, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(_is_gone, children))
    # What was attached by netlink is taken away by the next start.
    cleaned = subprocess.run(
        [sys.executable, "-m", "bpfkit", "clean"], capture_output=True, cwd=ROOT, check=True
    )
    assert cleaned.returncode == 0
    assert "clsact" not in somebody.tc("qdisc", "show", "dev", "veth7")
    assert "prog/xdp" not in somebody.lab["machine"].check_output(["ip", "link"])


def test_interrupted(somebody: Somebody) -> None:
    with at_work(somebody, "--check") as program:
        status, _, errors = program.end()
    assert status == 1 and "interrupted, nothing was verified" in errors
    assert "clsact" not in somebody.tc("qdisc", "show", "dev", "veth7")


def test_cable_removed(somebody: Somebody) -> None:
    with at_work(somebody) as program:
        somebody.lab["machine"].check_output(["ip", "link", "del", "veth7"])
        status, _, errors = program.wait()
    assert status == 1 and "veth7" in errors.splitlines()[-1], errors
    assert "Traceback" not in errors and "bug" not in errors


def test_no_container(somebody: Somebody) -> None:
    pid = str(somebody.process.pid)
    alone = NetNS.new()
    flat = Lab("flat")
    flat.namespace("box")
    flat.bridge("box:br0", addresses=["10.6.0.2/24"])
    flat.route("box", "default", via="10.6.0.1")
    own = f"/proc/{os.getpid()}/fd/"
    for options, said in (
        (["--yes", "--container", str(2**22 + 1)], "no such process"),
        (["--yes", "--container", str(os.getpid())], "is in the host's network namespace"),
        (["--yes", "--container", pid], "is in another network namespace"),
        (["--yes", "--container", f"{own}{alone.fd}"], "no device but lo"),
        (["--yes", "--container", f"{own}{flat['box'].fd}"], "br0 of the container"),
        (["--yes", "--container", f"{own}{flat['box'].fd}"], "it is a bridge"),
        (["--yes"], "--yes needs --container"),
        (["--probe-only"], "--probe-only needs --container"),
        (["--container", pid, "--probe-only", "--stream"], "attaches nothing"),
        (["--outside", "10.8.0.2:80"], "--outside needs --container"),
        (["--container", pid, "--outside", "10.8.0.2"], "not ADDRESS:PORT"),
        (["--container", pid, "--yes", "--outside", "[fd08::2]:80"], "not an IPv4 address"),
    ):
        done = run("container_lab", *options)
        assert done.returncode == 2, (options, done.stderr)
        assert said in done.stderr and "Traceback" not in done.stderr
    alone.close()
    flat.close()


# -- the web server


@pytest.mark.parametrize("kind", ["nginx", "python"])
@pytest.mark.parametrize("address", ["", "127.0.0.1", "::1"])
def test_web_server(kind: str, address: str) -> None:
    if kind == "nginx" and not shutil.which("nginx", path="/usr/sbin:/usr/bin"):
        pytest.skip("nginx is not installed")
    with NetNS.new() as ns, WebServer(ns, address=address, kind=kind) as server:
        host = "[::1]" if address == "::1" else "127.0.0.1"
        page = ns.check_output(["curl", "-sSi", "-m", "5", f"http://{host}:{server.port}/"])
    head, _, body = page.replace("\r", "").partition("\n\n")
    assert " 200 " in head.splitlines()[0] and body == PAGE
    assert f"Server: {server.software}" in head.splitlines()


def test_web_server_without_nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "nginx"
    broken.write_text("#!/bin/sh\necho 'it is broken' >&2\nexit 1\n")
    broken.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with NetNS.new() as ns, WebServer(ns) as server:
        assert "Python/" in server.software and server.why
        page = ns.check_output(["curl", "-sS", "-m", "5", f"http://127.0.0.1:{server.port}/"])
    assert page == PAGE
