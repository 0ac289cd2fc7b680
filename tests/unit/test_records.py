# SPDX-License-Identifier: Apache-2.0
"""Ownership records when several bpfkit start at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bpfkit.core import records


def test_a_record_that_another_start_reaps_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BPFKIT_RUN", str(tmp_path))
    first, second = (tmp_path / f"4194305-1-{number}" for number in (1, 2))
    for path in (first, second):
        path.write_text(json.dumps({"kind": "test", "data": {}}))

    def undo(_: dict[str, Any]) -> None:
        """Whichever is undone first, the other start has taken both records away by then."""
        first.unlink(missing_ok=True)
        second.unlink(missing_ok=True)

    monkeypatch.setitem(records.undoers, "test", undo)
    assert records.reap() == []
    assert capsys.readouterr().err == ""


def test_records_of_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPFKIT_RUN", str(tmp_path))
    assert records.recorded("clsact") == []
    (tmp_path / "garbage").write_text("{")
    mine = records.Record("clsact", {"ifindex": 3})
    other = records.Record("route", {"oif": 3})
    assert records.recorded("clsact") == [{"ifindex": 3}]
    mine.done()
    other.done()
    assert records.recorded("clsact") == []
