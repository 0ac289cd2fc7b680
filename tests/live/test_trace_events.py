# SPDX-License-Identifier: Apache-2.0
"""opensnoop, tcpconnect and execs show every event of a parallel workload once, and as it was.

The judge is the workload itself (tools/bench/trace_workload.c), whose threads write down what their
calls returned: paths and descriptors, ports and errnos, process ids and arguments.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trace_events", BENCH / "trace_events.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trace_events"] = module  # NamedTuple looks its annotations up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    tool = str(tmp_path_factory.mktemp("workload") / "trace_workload")
    subprocess.run(
        ["cc", "-O2", "-pthread", "-o", tool, str(BENCH / "trace_workload.c")], check=True
    )
    return tool


@pytest.mark.parametrize(
    ("name", "count"), [("opensnoop", 4000), ("tcpconnect", 4000), ("execs", 600)]
)
def test_every_event_is_shown_once_or_counted_as_lost(
    bench: ModuleType, workload: str, tmp_path: Path, name: str, count: int
) -> None:
    (outcome,) = bench.run(name, workload, count, 8, str(tmp_path), False)
    assert outcome.made == count
    assert outcome.is_right, outcome
    assert outcome.seen > count / 2


def test_a_comparison_tells_missing_double_and_wrong_events(bench: ModuleType) -> None:
    made = [("/a", 3), ("/b", -2), ("/c", 4)]
    assert bench.compared(made, made, 0).is_right
    assert bench.compared(made, made[:2], 1).is_right
    assert not bench.compared(made, made[:2], 0).is_right
    assert not bench.compared(made, [*made, ("/a", 3)], 0).is_right
    assert not bench.compared(made, [*made, ("/d", 3)], 0).is_right
