# SPDX-License-Identifier: Apache-2.0
"""Interfaces and processes whose names are no UTF-8, or drive a terminal: programs work on them.

``ip`` renames the interface while the program runs, too.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, command

from bpfkit.net.links.lab import Lab, pair_lab
from bpfkit.net.links.netns import NetNS

NAME = b"f\xe9w\x1b[31m"
SHOWN = "f\\xe9w\\x1b[31m"
PROGRAMS = {
    "sockex1": (),
    "sockex3": (),
    "sock_example": (),
    "fanout": (),
    "xdp_firewall": (),
    "xdp_drop_tcp": (),
    "xdp_drop_icmp": (),
    "xdp_drop_world": (),
    "tc_drop_tcp": ("--attach", "clsact"),
    "tc_classifier": (),
    "xdp_cpumap": ("--mode", "generic"),
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("BPFKIT_RUN", str(tmp_path / "run"))
    with pair_lab() as lab:
        yield lab


def rename(ns: NetNS, old: bytes, new: bytes) -> None:
    for words in ([b"set", old, b"down"], [b"set", old, b"name", new], [b"set", new, b"up"]):
        ns.check_output(["ip", "link", *map(os.fsdecode, words)])


def start(ns: NetNS, name: str, interface: bytes, *words: str) -> subprocess.Popen[bytes]:
    argv = [os.fsencode(word) for word in command(name, "-i")]
    more = [os.fsencode(word) for word in (*words, "-c", "3", "-t", "0.3")]
    return ns.popen(
        [*argv, interface, *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def clean(out: bytes, said: bytes) -> None:
    for text in (out, said):
        text.decode()  # what is printed is UTF-8
        assert b"\x1b" not in text
    assert b"internal error" not in said
    assert b"Traceback" not in said


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_interface_with_such_a_name(lab: Lab, name: str) -> None:
    ns = lab["client"]
    rename(ns, b"eth0", NAME)
    with start(ns, name, NAME, *PROGRAMS[name]) as process:
        out, said = process.communicate(timeout=60)
    clean(out, said)
    assert process.returncode == 0, said
    if b"(program " in said:
        assert SHOWN in said.decode()


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_interface_that_is_renamed_to_such_a_name(lab: Lab, name: str) -> None:
    ns = lab["client"]
    with start(ns, name, b"eth0", *PROGRAMS[name], "-c", "20") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        rename(ns, b"eth0", NAME)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
    clean(first + out, said)
    assert process.returncode == 0, said
    assert ns.check_output(["tc", "filter", "show"]) == ""


def test_the_holder_of_a_program_may_have_such_a_name(lab: Lab) -> None:
    """Its comm is printed where it is in the way."""
    ns = lab["client"]
    code = (
        "import sys; open('/proc/self/comm', 'wb').write(bytes.fromhex(sys.argv.pop(1)))\n"
        "from bpfkit.app.lifecycle import main\n"
        "from bpfkit.xdp_drop_tcp import XdpDropTcp\n"
        "main(XdpDropTcp, ['-i', 'eth0', '-t', '0.2'])"
    )
    argv = [command("x")[0], "-c", code, NAME.hex()]
    with ns.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stderr is not None
        assert b"(program " in holder.stderr.readline()
        try:
            with start(ns, "xdp_firewall", b"eth0") as process:
                out, said = process.communicate(timeout=60)
        finally:
            holder.send_signal(signal.SIGINT)
            holder.communicate(timeout=20)
    clean(out, said)
    assert process.returncode == 1
    assert f"({SHOWN})" in said.decode()
