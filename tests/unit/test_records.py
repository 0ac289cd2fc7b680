# SPDX-License-Identifier: Apache-2.0
"""Ownership records: undone once, by whoever comes first, and never in a start's way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfkit.core import records


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record of a process that is gone."""
    monkeypatch.setenv("BPFKIT_RUN", str(tmp_path))
    path = tmp_path / f"{os.getpid()}-1-1"  # this pid, another start time
    path.write_text(json.dumps({"kind": "test", "data": {"number": 7}}))
    return path


def _undo_by(monkeypatch: pytest.MonkeyPatch, function: Callable[[object], None]) -> None:
    """Let records of the kind ``test`` be undone by ``function``."""
    monkeypatch.setattr(
        records, "find_entry", lambda *entry: {("undo", "test"): function}.get(entry)
    )


def test_undone_once(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undone: list[object] = []
    _undo_by(monkeypatch, undone.append)
    assert records.reap() == ["test of a killed bpfkit (number 7)"]
    assert records.reap() == [] and undone == [{"number": 7}] and not left.exists()


def test_two_starts_at_once(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _undo_by(monkeypatch, lambda _: left.unlink())
    assert records.reap() == []
    listed = [left.name]
    monkeypatch.setattr(records.os, "listdir", lambda _: listed)
    assert records.reap() == []  # gone between the list and the look


def _raises(error: Exception) -> Callable[[object], None]:
    def undo(_: object) -> None:
        raise error

    return undo


@pytest.mark.parametrize(
    "error", [ImportError("no pyroute2"), RuntimeError("refused"), OSError(1, "no")]
)
def test_what_cannot_be_undone_stays_and_stops_nobody(
    left: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    _undo_by(monkeypatch, _raises(error))
    assert records.reap() == []
    assert left.exists()


def test_the_living_keep_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPFKIT_RUN", str(tmp_path))
    record = records.Record("test", {"number": 7})
    assert records.reap() == [] and Path(record.path).exists()
    record.done()
    record.done()
    assert list(tmp_path.iterdir()) == []
