# SPDX-License-Identifier: Apache-2.0
"""The notebooks run from the first cell to the last, and their committed outputs have that form."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SERIES = [
    "00-library",
    "01-sockex3",
    "02-packet-path",
    "03-sockets-and-cgroups",
    "04-tracing",
    "05-maps",
    "06-your-own-program",
    "07-writing-c",
    "08-cookbook",
    "09-troubleshooting",
]

for module in ("nbformat", "nbclient", "ipykernel", "matplotlib", "pandas"):
    pytest.importorskip(module, reason=f"{module} is not installed")
sys.path.insert(0, str(ROOT / "tools"))


def test_the_series_is_complete():
    assert [path.stem for path in NOTEBOOKS] == SERIES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_teaches_from_question_to_exercise(path):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "**Question.**" in text
    assert "## Exercises" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_committed_outputs_have_that_form(path, monkeypatch):
    import nbformat

    import notebooks

    for name in ("PYTHONPATH", "MPLBACKEND", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # execute() sets them: put back afterwards
    done = notebooks.execute(path)
    assert notebooks.form(done) == notebooks.form(nbformat.read(path, as_version=4)), (
        "tools/notebooks.py writes the outputs anew"
    )
