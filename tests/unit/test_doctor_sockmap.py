# SPDX-License-Identifier: Apache-2.0
"""The form of ``doctor sockmap``: the answers here are made up."""

from __future__ import annotations

import errno
import json

import pytest

from bpfkit.__main__ import main
from bpfkit.commands import sockmap_report as report
from bpfkit.core.features import INCONCLUSIVE, NOT_SUPPORTED, WORKS, Feature, system
from bpfkit.core.features.sockmap import ABSENT, behaviour, entering, obstacle, table
from bpfkit.core.features.sockmap.redirect import Cell
from bpfkit.core.kernel import syscall


def _answers(state: str) -> list[Feature]:
    names = ["fionread", "splice", *behaviour._EXPERIMENTS]
    why = "" if state == WORKS else "a reason in words that is long enough to be wrapped " * 3
    parts = [Feature(part, state, why) for part in ("in a map", "redirected")]
    return [Feature(n, state, why, parts=parts if n == "fionread" else ()) for n in names]


def _entrants() -> list[Feature]:
    names = [*entering._ENTRANTS, "two maps, the second without program"]
    return [Feature(name, NOT_SUPPORTED, value="EOPNOTSUPP") for name in names]


def _cells(result: str, step: str = "") -> list[Cell]:
    cells = []
    for hook in (table.SK_SKB, table.SK_MSG):
        for source in table.KINDS:
            for target in table.KINDS:
                for direction in ("ingress", "egress"):
                    cell = Cell(hook, direction, source, target)
                    cell.result, cell.step = result, step
                    cells.append(cell)
    return cells


@pytest.mark.parametrize("state", [WORKS, NOT_SUPPORTED, INCONCLUSIVE])
@pytest.mark.parametrize("result", ["ok", "refused", "not run", "lost", "corrupt", "absent"])
def test_no_line_is_wider_than_80_columns(state: str, result: str) -> None:
    lines = report.text(_answers(state), _entrants(), _cells(result))
    assert [line for line in lines if len(line) > 80] == []


def test_an_errno_in_the_matrix_is_explained_below_it() -> None:
    lines = report.text([], [], _cells("EOPNOTSUPP", "source enters"))
    assert lines.count("  e1: EOPNOTSUPP (source enters)") == 2  # one table for each hook
    assert max(map(len, lines)) <= 80


def test_every_answer_has_a_sentence_for_each_outcome() -> None:
    for answer in _answers(WORKS) + _answers(NOT_SUPPORTED):
        meaning, _ = report._meaning(answer)
        assert meaning.endswith(".") and "{" not in meaning
    assert all(report._meaning(answer) == ("", "") for answer in _answers(INCONCLUSIVE))


def test_rows_say_what_they_are() -> None:
    found = report.rows(_answers(NOT_SUPPORTED), _entrants(), _cells("lost"))
    kinds = [row["what"] for row in found]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "behaviour": 13,
        "entry": 17,
        "redirect": 100,
    }
    json.dumps(found)


def test_what_the_machine_lacks_leaves_nothing_undetermined() -> None:
    absent = Feature("vsock, connected", INCONCLUSIVE, "no vsock", value=ABSENT)
    failed = Feature("MSG_PEEK", INCONCLUSIVE, "the data did not arrive")
    assert report._undetermined([absent, failed]) == [failed]


@pytest.mark.parametrize(
    "config, why",
    [
        ({"BPF_SYSCALL": "y", "NET": "y", "INET": "y"}, "CONFIG_BPF_STREAM_PARSER is not set"),
        ({}, "no sockmap in this kernel (CONFIG_BPF_STREAM_PARSER)"),
    ],
)
def test_a_kernel_without_sockmap_is_status_77_with_the_config(
    config: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(syscall, "map_create", refuse)
    monkeypatch.setattr(system, "kernel_config", lambda: config)
    assert main(["doctor", "sockmap"]) == 77
    out, err = capsys.readouterr()
    assert out == "" and why in err and "Traceback" not in err


def test_no_privilege_is_status_77(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from bpfkit.core.features import privileges

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(syscall, "map_create", refuse)
    monkeypatch.setattr(privileges, "capabilities", frozenset)
    assert main(["doctor", "sockmap", "--json"]) == 77
    out, err = capsys.readouterr()
    assert out == "" and "CAP_BPF and CAP_NET_ADMIN" in err


def test_an_unknown_subject_is_bad_usage(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor", "sockmop"]) == 2
    assert "sockmap" in capsys.readouterr().err


def test_errnos_have_the_kernels_names() -> None:
    assert table.errno_name(OSError(95, "")) == "EOPNOTSUPP"
    assert table.errno_name(OSError(16, "")) == "EBUSY"
    assert obstacle(table.Absent(97, "no vsock sockets here")) == "no vsock sockets here"
