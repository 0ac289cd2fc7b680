# SPDX-License-Identifier: Apache-2.0
"""tools/bench/lb_cost.py and firewall.py: they run, and their rows say what they must."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"


def test_lb_cost(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("lb_cost", BENCH / "lb_cost.py")
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    bench.FLOWS = 300
    bench.costs(1)
    bench.disruption()
    lines = capsys.readouterr().out.splitlines()
    costs = [line for line in lines if line.startswith("IPv")]
    assert len(costs) == 3 and all(float(line.split()[-1]) > 0 for line in costs)
    rows = [line.split() for line in lines if re.match(r" +\d+ +[-+]1 ", line)]
    assert [(row[0], row[1]) for row in rows] == [
        (n, c) for n in ("3", "10", "100") for c in ("-1", "+1")
    ]
    for row in rows:
        if row[1] == "+1":
            assert row[4] == "0", "no remembered flow moves when a backend comes back"
        else:
            assert float(row[3][:-1]) <= float(row[2][:-1]) < float(row[3][:-1]) + 1.0


def test_firewall() -> None:
    argv = [sys.executable, str(BENCH / "firewall.py")]
    argv += ["--count", "2000", "--repeat", "200", "--front", "bits"]
    out = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, timeout=120).stdout
    rows = [line.split()[-3:] for line in out.splitlines() if line.startswith("bits, ")]
    assert len(rows) == 12  # two families, four cases, two of them with events too
    assert all(float(few) > 0 and float(many) > 0 for few, many, _ in rows)
