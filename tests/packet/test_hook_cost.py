# SPDX-License-Identifier: Apache-2.0
"""tools/bench/hook_cost.py: a row for every XDP and tc program, with the right verdict."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"
TYPES = {"BPF_PROG_TYPE_XDP", "BPF_PROG_TYPE_SCHED_CLS", "BPF_PROG_TYPE_SCHED_ACT"}
#: What the program's name promises for each kind of packet.
DROPPED = {
    "xdp_drop_world": ("TCP", "ICMP"),
    "xdp_drop_tcp": ("TCP",),
    "tc_drop_tcp": ("TCP",),
    "xdp_drop_icmp": ("ICMP",),
}


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hook_cost", BENCH / "hook_cost.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hook_cost"] = module  # NamedTuple looks its annotations up there
    spec.loader.exec_module(module)
    return module


def test_every_xdp_and_tc_program_has_a_row_for_each_kind_of_packet(bench: ModuleType) -> None:
    argv = [sys.executable, "-m", "bpfkit", "list", "--json"]
    listed = [json.loads(line) for line in subprocess.check_output(argv, text=True).splitlines()]
    # container_lab has no source of its own: it attaches xdp_drop_tcp and tc_drop_tcp
    wanted = {
        row["name"]
        for row in listed
        if TYPES & set(row["types"]) and row["source"].endswith(".bpf.c")
    } - bench.OTHERS
    assert {"xdp_drop_world", "tc_drop_tcp", "tc_action"} <= wanted
    costs = list(bench.measure([], rounds=1, repeat=100, singles=2))
    assert {cost.program.split()[0] for cost in costs} == wanted
    for program in {cost.program for cost in costs}:
        own = [cost for cost in costs if cost.program == program]
        assert [cost.packet for cost in own] == list(bench.PACKETS), program
        assert all(cost.ours > 0 and cost.base > 0 for cost in own), program
    for cost in costs:
        if cost.program in DROPPED:
            dropped = cost.packet.startswith(DROPPED[cost.program])
            names = ("XDP_DROP", "TC_ACT_SHOT") if dropped else ("XDP_PASS", "TC_ACT_UNSPEC")
            assert cost.verdict in names, cost


def test_a_program_that_changes_its_packet_is_run_on_fresh_ones(bench: ModuleType) -> None:
    from bpfkit.core.kernel import asm
    from bpfkit.core.program import Program

    # the first byte of the packet, plus one
    code = asm.assemble(
        asm.ldx(asm.u32, asm.r2, asm.r1 + 0),
        asm.ldx(asm.u32, asm.r3, asm.r1 + 4),
        asm.mov(asm.r4, asm.r2),
        asm.add(asm.r4, 1),
        asm.jgt(asm.r4, asm.r3, "out"),
        asm.ldx(asm.u8, asm.r4, asm.r2 + 0),
        asm.add(asm.r4, 1),
        asm.stx(asm.u8, asm.r2 + 0, asm.r4),
        asm.label("out"),
        asm.mov(asm.r0, 2),
        asm.exit_(),
    )
    frame = next(iter(bench.PACKETS.values()))
    with Program.from_insns("XDP", bytes(code), name="adds_one") as program:
        with bench.baseline(6) as base:
            assert bench.compare(program, base, frame, 1, 100, 3)[2]
            assert not bench.compare(base, base, frame, 1, 100, 3)[2]


def test_tables(bench: ModuleType) -> None:
    def run(*options: str) -> list[str]:
        argv = [sys.executable, BENCH / "hook_cost.py", "-n1", "--repeat", "10", *options]
        return subprocess.check_output(argv, text=True).splitlines()

    text = run("xdp_drop_world", "tc_drop_tcp")
    assert len(text) == 1 + 2 * len(bench.PACKETS)
    assert text[0].split()[:3] == ["program", "packet", "verdict"]
    markdown = run("xdp_drop_world", "tc_drop_tcp", "--markdown")
    # titles, rule, two baselines, two programs
    assert len(markdown) == 6
    assert all(line.count("|") == 2 + len(bench.PACKETS) for line in markdown)


def test_unknown_program() -> None:
    argv = [sys.executable, BENCH / "hook_cost.py", "xdp_drop_wrold"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2
    assert "xdp_drop_world" in done.stderr
    assert "Traceback" not in done.stderr
