# SPDX-License-Identifier: Apache-2.0
"""What a hurried user types: refused before anything is made, in two lines that say what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bpfkit.app.base import App
from bpfkit.core import log
from bpfkit.core.compile import cache, compiler
from bpfkit.core.compile.source import Source
from bpfkit.core.errors import InputError, UnsupportedError
from bpfkit.net.links.interfaces import Interface
from bpfkit.net.packets.pcap import PcapReader

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


def run(
    module: str, *args: str, nobody: bool = False, **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"bpfkit.{module}", *args],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        user=NOBODY if nobody else None,
        extra_groups=[] if nobody else None,
    )


def test_an_address_label_is_not_taken_for_its_interface() -> None:
    with pytest.raises(InputError, match=r"no network interface named 'lo:1': there are .*lo"):
        Interface.find("lo:1")


@pytest.mark.parametrize("sockets", ["33", "100000"])
def test_more_sockets_than_the_kernel_can_let_go_of_are_refused_at_once(sockets: str) -> None:
    done = run("fanout", "--sockets", sockets)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"fanout: --sockets {sockets} is too many: at most 32")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x28\xb5\x2f\xfd rest", "zstdcat"),
        (b"BZh91AY rest", "bzcat"),
        (b"\xfd7zXZ rest", "xzcat"),
        (b"\x04\x22\x4d\x18 rest", "lz4cat"),
        (b"snoop\0\0\0 rest", "editcap"),
    ],
)
def test_a_capture_in_another_wrapping_says_how_to_unwrap_it(
    content: bytes, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "capture"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        PcapReader(path)
    first, second = str(caught.value).splitlines()
    assert first == f"{path}: bad capture file: neither a pcap nor a pcapng file"
    assert says in second


def test_figures_in_plain_lines_have_no_blanks() -> None:
    class Plain(App):
        name = "plain"

    app = Plain(cast("Any", SimpleNamespace()))
    lines = list(app.lines([{"socket": 0, "bytes": 1234567, "why": None, "on": True}]))
    assert [line.split() for line in lines] == [
        ["socket", "bytes", "why", "on"],
        ["0", "1234567", "-", "yes"],
    ]


@pytest.mark.parametrize("text", ["lots", "-1", "1e6", "0", ""])
def test_a_cache_bound_that_is_none_is_the_default(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BPFKIT_CACHE_BYTES", text)
    assert cache.Cache(str(tmp_path)).bound == cache.Cache(str(tmp_path), 64 << 20).bound


def test_a_cache_bound_that_is_none_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BPFKIT_CACHE_BYTES", "lots")
    log.set_verbose(True)
    try:
        cache.Cache(str(tmp_path))
    finally:
        log.set_verbose(False)
    assert "BPFKIT_CACHE_BYTES=lots is no number of bytes" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_each_missing_capability_is_named_once() -> None:
    done = run("truncate", "--check", nobody=True)
    assert done.returncode == 77
    missing = done.stderr.partition("(missing ")[2].rstrip(")\n").split(", ")
    assert sorted(missing) == ["CAP_BPF", "CAP_NET_RAW", "CAP_SYS_ADMIN"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_capture_takes_no_right_to_sockets() -> None:
    done = run("sockex3", "--pcap", os.devnull, nobody=True)
    assert done.returncode == 77
    assert "(missing CAP_BPF)" in done.stderr


def test_an_interpreter_that_is_too_old_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = tmp_path / "python"
    old.write_text(
        "#!/bin/sh\ncat > /dev/null\n"
        "echo 'SyntaxError: future feature annotations is not defined' >&2\nexit 1\n"
    )
    old.chmod(0o755)
    monkeypatch.setenv("BPFKIT_BCC_PYTHON", str(old))
    with pytest.raises(UnsupportedError, match="is too old"):
        compiler.compile_source(Source.find("socket/sockex1.bpf.c"))
