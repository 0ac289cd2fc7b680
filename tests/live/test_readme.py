# SPDX-License-Identifier: Apache-2.0
"""The documents are true: each command shown runs; CI runs the two set-up commands of README.md."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bpfkit.core.kernel.constants import PROG_TYPES

ROOT = Path(__file__).resolve().parents[2]
USE = ROOT / "bpfkit" / "README.md"
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "bpfkit/README.md",
    "tools/bench/README.md",
    "tools/docs/operations.md",
    "tools/vm.md",
]
#: Commands that install packages or run the tests themselves: CI runs the one, which runs this.
SETUP = {"sudo tools/bootstrap.sh run", "sudo tools/bootstrap.sh test"}
SELF = {*SETUP, "tools/bootstrap.sh check"}


def commands():
    for name in DOCUMENTS:
        for block in re.findall(r"```console\n(.*?)```", (ROOT / name).read_text(), re.S):
            for line in block.splitlines():
                if line.startswith("$ "):
                    yield line[2:]


def snippets():
    for name in DOCUMENTS:
        yield from re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with what the commands name."""
    scapy = pytest.importorskip("scapy.all", reason="scapy is not installed")
    path = tmp_path_factory.mktemp("readme")
    packets = [
        scapy.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        / scapy.IP(src="192.0.2.1", dst=f"192.0.2.{n}")
        / scapy.TCP(dport=80)
        for n in range(2, 30)
    ]
    scapy.wrpcapng(str(path / "capture.pcapng"), packets)
    for name in ("tools", "bpfkit", "bpf_c", "tests"):
        (path / name).symlink_to(ROOT / name)
    return path


@pytest.mark.parametrize("command", [c for c in commands() if c not in SELF])
def test_command_of_the_documentation_runs(command, place):
    argv = shlex.split(command.removeprefix("sudo "))
    if argv[0] == "python3":
        argv[0] = sys.executable
    done = subprocess.run(
        argv,
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_two_terminals_of_the_readme(tmp_path):
    """The first command goes on while those of the other terminal run, on a cable's end."""
    from bpfkit.net.links.lab import pair_lab

    blocks = re.findall(r"```sh\n(.*?)```", USE.read_text(), re.S)
    (block,) = (found for found in blocks if "# in another terminal" in found)
    first, others = ([*map(shlex.split, part.splitlines())] for part in block.split("# in another"))
    (tmp_path / "prefixes.txt").write_text("198.51.100.0/24\nallow 2001:db8::7\n")
    with pair_lab() as lab:
        server = lab["server"]

        def start(argv, **options):
            assert argv[:3] == ["sudo", "python3", "-m"]
            command = [sys.executable, *argv[2:]]
            env = os.environ | {"PYTHONPATH": str(ROOT)}
            return server.popen(command, cwd=tmp_path, env=env, text=True, **options)

        firewall = start(*first, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            assert "on eth0" in firewall.stderr.readline()
            for argv in others[1:]:  # the first line is the end of the comment
                done = start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                out, errors = done.communicate(timeout=60)
                assert done.returncode == 0, errors
            assert "198.51.100.0/24" in out and "192.0.2.0/24" not in out  # after `load`
            firewall.send_signal(signal.SIGINT)
            _, errors = firewall.communicate(timeout=60)
            assert firewall.returncode == 0, errors
        finally:
            if firewall.poll() is None:
                firewall.kill()
                firewall.communicate()
    assert (tmp_path / "dropped.pcapng").exists()


@pytest.mark.parametrize("snippet", list(snippets()), ids=lambda s: s.split("\n", 1)[0])
def test_python_of_the_documentation_runs(snippet):
    expected = re.findall(r"print\(.*\)  # ([^:\n]+)", snippet)
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == snippet.count("print(")
    for line, said in zip(lines, expected, strict=False):
        assert line.startswith(said.split(":")[0].strip()) or said.startswith(line)


def test_both_setup_commands_are_shown_and_ci_runs_the_second():
    shown = set(commands())
    assert shown >= SETUP
    assert "tools/bootstrap.sh test" in (ROOT / ".ci" / "run").read_text()


def test_run_command_of_the_readme_shows_flows():
    done = subprocess.run(
        ["tools/bootstrap.sh", "run", "sockex3", "-c", "1", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0
    assert '"proto":' in done.stdout.replace('": ', '":').replace(" ", "")


def test_every_program_is_in_the_table_and_every_link_leads_somewhere():
    text = (ROOT / "README.md").read_text()
    import json

    listed = subprocess.run(
        [sys.executable, "-m", "bpfkit", "list", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    for line in listed.stdout.splitlines():
        row = json.loads(line)
        assert f"| `{row['name']}` |" in text
        assert all(name.removeprefix("BPF_PROG_TYPE_") in PROG_TYPES for name in row["types"])
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
            if "://" not in target:
                assert (ROOT / document).parent.joinpath(target).exists(), target
