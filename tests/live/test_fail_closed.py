# SPDX-License-Identifier: Apache-2.0
"""Output, events and files fail: programs that protect an interface stay attached, and say so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bpfkit.net.attach.xdp import attached
from bpfkit.net.links.interfaces import Interface
from bpfkit.net.links.lab import Lab, pair_lab
from bpfkit.net.traffic.ping import ping
from bpfkit.net.traffic.probes import Listener, tcp_answers

ROOT = Path(__file__).resolve().parents[2]

#: Program -> arguments; each keeps TCP or a ping out of the server.
PROGRAMS = {
    "xdp_firewall": ["-i", "eth0", "--rule", "10.77.0.0/16"],
    "xdp_drop_tcp": ["-i", "eth0"],
    "xdp_drop_icmp": ["-i", "eth0"],
    "tc_drop_tcp": ["-i", "eth0", "--direction", "ingress"],
    "netfilter": ["--drop", "icmp", "--hook", "input"],
}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with pair_lab() as made:
        yield made


def start(lab: Lab, name: str, *args: str, out: object, errors: object) -> subprocess.Popen[str]:
    netns = f"/proc/{os.getpid()}/fd/{lab['server'].fd}"
    return subprocess.Popen(
        [sys.executable, "-m", f"bpfkit.{name}", *PROGRAMS[name], "--netns", netns, "-t", "0.1",
         *args],
        cwd=ROOT, stdout=out, stderr=errors, text=True,
    )  # type: ignore[call-overload,no-any-return]  # fmt: skip


def keeps_out(lab: Lab, name: str, listener: Listener, timeout: float = 0.3) -> bool:
    client = lab["client"]
    if name.endswith("tcp"):
        return not tcp_answers("10.77.0.2", listener.port, ns=client, timeout=timeout)
    return not ping("10.77.0.2", ns=client, timeout=timeout).received


def wait_until_kept_out(lab: Lab, name: str, listener: Listener) -> None:
    deadline = time.monotonic() + 30
    while not keeps_out(lab, name, listener, 1.0):
        assert time.monotonic() < deadline


@pytest.mark.parametrize("failure", ["full", "full json", "no reader", "all full"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_output_that_fails_ends_no_protection(lab: Lab, name: str, failure: str) -> None:
    reader, writer = os.pipe()
    with closing(Listener(lab["server"])) as listener, open("/dev/full", "w") as full:
        assert not keeps_out(lab, name, listener)
        out = writer if failure == "no reader" else full
        errors = full if failure == "all full" else subprocess.PIPE
        args = ["--json"] if failure == "full json" else []
        process = start(lab, name, *args, out=out, errors=errors)
        os.close(writer)
        try:
            if failure == "no reader":
                time.sleep(0.3)
            os.close(reader)
            wait_until_kept_out(lab, name, listener)
            for _ in range(3):
                time.sleep(0.3)
                assert process.poll() is None, process.communicate()
                assert keeps_out(lab, name, listener)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=30)
            if failure != "all full":
                assert process.returncode == 0, said
                assert said.count("stays attached") == 1, said
                assert "lost output: " in said
            assert not keeps_out(lab, name, listener)
        finally:
            process.kill()
            process.communicate()


def test_an_observer_ends_with_its_output(lab: Lab) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m bpfkit.sockex1 -i lo --no-demo -t 0.1 > /dev/full"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "cannot write to standard output" in done.stderr


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_a_disk_that_fills_and_is_freed(lab: Lab, tmp_path: Path) -> None:
    """The recording goes on when there is space again, and the file is always well-formed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=True)
    try:
        path, filler = disk / "dropped.pcapng", disk / "filler"
        output = disk / "output"
        with open(output, "w") as out, closing(Listener(lab["server"])) as listener:
            process = start(
                lab, "xdp_firewall", "--json", "--write", str(path), out=out, errors=subprocess.PIPE
            )
            try:
                wait_until_kept_out(lab, "xdp_firewall", listener)
                time.sleep(0.5)
                with filler.open("wb", buffering=0) as file:
                    try:
                        while True:
                            file.write(bytes(256))
                    except OSError:
                        pass
                    sock = lab["client"].socket(2, 2)
                    for i in range(300):
                        sock.sendto(b"x%06d" % i + bytes(400), ("10.77.0.2", 9))
                    time.sleep(1)
                    assert process.poll() is None
                    assert keeps_out(lab, "xdp_firewall", listener)
                filler.unlink()
                time.sleep(0.5)
                sock.sendto(b"space again", ("10.77.0.2", 9))
                sock.close()
                time.sleep(1)
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=30)
                assert process.returncode == 0, said
            finally:
                process.kill()
                process.communicate()
        text = subprocess.run(
            ["tshark", "-r", str(path), "-T", "fields", "-e", "udp.payload"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "cut short" not in text.stderr and b"space again".hex() in text.stdout
        assert said.count(f"cannot write {path}") == 1
        assert said.count("cannot write to standard output") == 1
        rows = []
        for line in output.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                pass  # the line at which the disk was full
        summary = [row for row in rows if "summary" in row][-1]
        recorded = sum(bool(line) for line in text.stdout.splitlines())
        assert summary["unwritten"] > 0
        assert summary["unwritten"] + recorded >= 301
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", ["xdp_firewall", "xdp_drop_tcp"])
def test_the_program_is_gone_after_an_orderly_end(lab: Lab, name: str) -> None:
    """What goes on without its output still ends when it is told to."""
    with open("/dev/full", "w") as full:
        process = start(lab, name, "-c", "3", out=full, errors=subprocess.DEVNULL)
        assert process.wait(60) == 0
    index = lab["server"].run(Interface.find, "eth0").index
    assert not lab["server"].run(attached, index)
