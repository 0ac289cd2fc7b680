# SPDX-License-Identifier: Apache-2.0
"""BPFKIT_LOG and --log: what programs, and the kernel about them, write (BPF streams)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import bpfkit
from bpfkit.core import streams
from bpfkit.core.errors import UnsupportedError
from bpfkit.core.kernel.asm import assemble, exit_, ja, may_goto, mov, r0
from bpfkit.core.program import Program

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
#include <bpfkit/bpfkit.h>
#include <bpfkit/log.h>
#include <uapi/linux/bpf.h>

LOAD_CONST(0, log, 0);

SEC("xdp")
int talk(struct xdp_md *ctx)
{
	u32 len = ctx->data_end - ctx->data, addr = 0x0100007f;

	if (log()) {
		BPFKIT_LOG("a packet\\n");
		BPFKIT_LOG("%u bytes, %d, from %pI4, ", len, -5, (u64)&addr);
		BPFKIT_LOG("%llx\\n", 0x123456789abcULL);
	}
	return XDP_PASS;
}
"""


def why_not() -> str:
    try:
        streams.require_streams()
    except UnsupportedError as error:
        return error.why
    return ""


@pytest.fixture
def writing() -> None:
    """Skips where programs cannot write."""
    why = why_not()
    if why:
        pytest.skip(why)


@pytest.fixture
def lines() -> Iterator[list[tuple[str, int, str]]]:
    """What a follower hears."""
    heard: list[tuple[str, int, str]] = []
    with streams.Follower(lambda *line: heard.append(line)):
        yield heard


def test_without_the_constant_it_loads_and_runs_everywhere() -> None:
    """The call that this kernel may not have cannot be reached."""
    with bpfkit.load(SOURCE) as obj:
        assert obj.programs["talk"].run(bytes(100)).retval == 2
        assert list(obj.maps) == []  # the texts are in no map of the source's


@pytest.mark.usefixtures("writing")
def test_a_program_writes_and_what_is_read_is_taken() -> None:
    with bpfkit.load(SOURCE, consts={"log": 1}) as obj:
        program = obj.programs["talk"]
        assert program.read_stream() == ""
        assert program.run(bytes(100)).retval == 2
        wanted = "a packet\n100 bytes, -5, from 127.0.0.1, 123456789abc\n"
        assert program.read_stream() == wanted
        assert program.read_stream() == "" == program.read_stream(streams.STDERR)


@pytest.mark.usefixtures("writing")
def test_a_follower_hears_whole_lines_until_the_end(lines: list[tuple[str, int, str]]) -> None:
    with bpfkit.load(SOURCE, consts={"log": 1}) as obj:
        obj.programs["talk"].run(bytes(60))
        deadline = time.monotonic() + 30
        while len(lines) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        live = list(lines)
        obj.programs["talk"].run(bytes(61))
    said = [("talk", 1, "a packet"), ("talk", 1, "60 bytes, -5, from 127.0.0.1, 123456789abc")]
    assert live == said
    assert lines[2:] == [said[0], ("talk", 1, said[1][2].replace("60", "61"))]


@pytest.mark.usefixtures("writing")
def test_the_kernel_tells_of_a_loop_that_it_ended(lines: list[tuple[str, int, str]]) -> None:
    """may_goto ends a loop after a quarter of a second."""
    endless = assemble(may_goto(1), ja(-2), mov(r0, 0), exit_())
    with Program.from_insns("xdp", endless, name="endless") as program:
        program.run(bytes(64))
    assert ("endless", 2, "ERROR: Timeout detected for may_goto instruction") in lines


def test_log_of_a_program_shows_lines_or_says_what_is_missing() -> None:
    words = [sys.executable, "-m", "bpfkit.xdp_drop_icmp", "--log", "--check", "-c", "1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    why = why_not()
    if why:
        assert done.returncode == 77 and why in done.stderr, done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    head = "xdp_drop_icmp: [xdp_drop_icmp] dropped: ICMP"
    assert f"{head} type 8 from 127.0.0.1, 98 bytes\n" in done.stderr
    assert f"{head}v6 type 128 from ::1, 118 bytes\n" in done.stderr
