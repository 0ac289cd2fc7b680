# SPDX-License-Identifier: Apache-2.0
"""Runs that the kernel leaves out, because the program is running already on that CPU, are counted
and reported by every tracing program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from bpfkit.app.trace import TraceApp
from bpfkit.core.errors import BpfkitError
from bpfkit.core.kernel.asm import add, assemble, call, exit_, mov, r0, r1, r2, r10, st, u32
from bpfkit.core.program import Program

PACKET = bytes(64)
TIMES = 5


def printing() -> bytes:
    """A program that prints, which runs the programs on the tracepoint bpf_trace_printk."""
    return bytes(
        assemble(
            st(u32, r10 + -8, int.from_bytes(b"x\n\0\0", "little")),
            mov(r1, r10),
            add(r1, -8),
            mov(r2, 4),
            call("trace_printk"),
            mov(r0, 0),
            exit_(),
        )
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to load programs")
def test_a_run_within_the_programs_own_run_is_reported_as_lost() -> None:
    """A program on bpf_trace_printk that itself prints: the kernel does not run it for its own
    print, and says so in recursion_misses, which bpftool shows too."""
    if not _kernel_counts():
        pytest.skip("the kernel's BTF has no recursion_misses (5.12)")
    printer = Program.from_insns("socket_filter", printing(), name="printer")
    watcher = Program.from_insns("raw_tracepoint", printing(), name="watcher")
    try:
        try:
            watcher.attach_raw_tracepoint("bpf_trace_printk")
        except BpfkitError as error:
            pytest.skip(f"no tracepoint bpf_trace_printk: {error}")
        app = TraceApp.__new__(TraceApp)
        app.object = SimpleNamespace(programs={"watcher": watcher})  # type: ignore[assignment]
        assert app.missed() == 0
        for _ in range(TIMES):
            printer.run(PACKET)
        missed = app.missed()
        assert missed >= TIMES  # others may print, too
        if shutil.which("bpftool"):
            shown = subprocess.run(
                ["bpftool", "-j", "prog", "show", "id", str(watcher.id)],
                capture_output=True,
                text=True,
                check=True,
            )
            told = json.loads(shown.stdout).get("recursion_misses", 0)
            assert missed <= told <= app.missed()
    finally:
        watcher.close()
        printer.close()


def _kernel_counts() -> bool:
    """Whether struct bpf_prog_info of the kernel's BTF has the member."""
    from bpfkit.core.types.btf import vmlinux

    btf = vmlinux()
    number = btf.find("bpf_prog_info", "struct") if btf is not None else None
    if btf is None or number is None:
        return False
    return any(member.name == "recursion_misses" for member in btf.members(number))


def test_every_tracing_program_reports_them() -> None:
    """Each takes its events from source_of(), or reads missed() itself."""
    from pathlib import Path

    import bpfkit
    from bpfkit.commands.catalog import programs

    root = Path(bpfkit.__file__).parent
    tracing = [cls for cls in programs() if issubclass(cls, TraceApp)]
    assert len(tracing) >= 10
    for cls in tracing:
        place = root / cls.name
        files = list(place.glob("*.py")) if place.is_dir() else [root / f"{cls.name}.py"]
        text = "".join(file.read_text() for file in files)
        assert "self.source_of(" in text or "self.missed()" in text, cls.name
