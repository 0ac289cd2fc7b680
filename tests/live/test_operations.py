# SPDX-License-Identifier: Apache-2.0
"""The service of tools/docs/operations.md, under this test as the service manager."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bpfkit.net.attach.xdp import attached
from bpfkit.net.links.lab import Lab, pair_lab
from bpfkit.net.traffic.probes import Listener, tcp_answers

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "tools" / "docs" / "operations.md").read_text()
PROGRAM = "/opt/bpfkit/bin/bpfkit"
RULES = "/etc/bpfkit/rules"


def block(language: str, first: str) -> str:
    """The block of the page that begins with this."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    (found,) = (text for text in blocks if text.startswith(first))
    return str(found)


UNIT = block("ini", "# /etc/systemd/system/bpfkit-firewall@.service\n")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with pair_lab() as made:
        yield made


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "bpfkit-firewall@eth0.service"
    path.write_text(UNIT.replace(PROGRAM, sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=120
    )
    assert path.name not in done.stderr  # other units of the machine may have faults


def test_the_unit_starts_reloads_and_stops(lab: Lab, tmp_path: Path) -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT)
    service = unit["Service"]
    assert service["Type"] == "notify"
    capabilities = ",".join(f"+{c[4:].lower()}" for c in service["CapabilityBoundingSet"].split())
    rules = tmp_path / "rules"

    def command(name: str) -> list[str]:
        text = service[name].replace("%i", "eth0").replace(RULES, str(rules))
        words = shlex.split(text.replace(PROGRAM, f"{sys.executable} -m bpfkit"))
        return ["setpriv", f"--bounding-set=-all,{capabilities}", "--no-new-privs", *words]

    server, ns = lab["server"], lab["client"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(tmp_path / "notify")}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with (
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager,
        closing(Listener(server)) as listener,
    ):
        manager.bind(environ["NOTIFY_SOCKET"])
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        manager.settimeout(60)

        def told() -> tuple[bytes, int]:
            text, [(_, _, credentials)], *_ = manager.recvmsg(999, 64)
            return text, struct.unpack("iii", credentials)[0]

        def passes() -> bool:
            return tcp_answers("10.77.0.2", listener.port, ns=ns, timeout=0.5)

        rules.write_text(block("text", f"# {RULES}") + "10.77.0.1\n")
        assert passes()
        process = server.popen(command("ExecStart"), env=environ, cwd=tmp_path, **pipes)
        try:
            text, pid = told()
            assert text.startswith(b"READY=1") and pid == process.pid  # NotifyAccess=main
            assert not passes()

            rules.write_text(block("text", f"# {RULES}"))
            reload = server.popen(command("ExecReload"), env=environ, cwd=tmp_path, **pipes)
            reload.communicate(timeout=60)
            assert reload.returncode == 0
            assert passes()

            rules.write_text("10.77.0.1\nnonsense\n")
            reload = server.popen(command("ExecReload"), env=environ, cwd=tmp_path, **pipes)
            assert "no rule was changed" in reload.communicate(timeout=60)[1]
            assert reload.returncode == 2
            assert passes()

            process.terminate()  # systemctl stop
            assert told() == (b"STOPPING=1", process.pid)
            process.communicate(timeout=60)
            assert process.returncode == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
    assert server.run(attached, lab.interface("server:eth0").index) == []
