#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Run the notebooks and keep their outputs: ``tools/notebooks.py [--check] [NOTEBOOK …]``.

The notebooks are committed with their outputs, so that they can be read where there is no kernel to
run them.  ``--check`` runs them and compares the form of the outputs with the committed ones: the
same cells, the same kinds of output.  Figures differ from run to run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "notebooks"
#: A cell of this tag ends with an error, which is what it shows.
RAISES = "raises-exception"


def execute(path: Path, timeout: int = 180) -> nbformat.NotebookNode:
    """Run a notebook in an empty directory; returns it with its outputs.

    :raises nbclient.exceptions.CellExecutionError: a cell failed that must not.
    """
    notebook = nbformat.read(path, as_version=4)
    # Whatever killed runs left goes now: %load_ext would say so in the notebook.
    subprocess.run([sys.executable, "-m", "bpfkit", "clean"], cwd=ROOT, capture_output=True)
    with tempfile.TemporaryDirectory() as directory:
        for name, value in {
            "PYTHONPATH": os.fspath(ROOT),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "IPYTHONDIR": directory,
            "MPLCONFIGDIR": directory,
        }.items():
            os.environ[name] = value
        client = nbclient.NotebookClient(notebook, timeout=timeout, kernel_name="python3")
        # execute() would keep an event loop open for the rest of the process.
        done = asyncio.run(client.async_execute(cwd=directory))
    for cell in done.cells:
        cell.metadata.pop("execution", None)  # times, which differ every time
        for output in cell.get("outputs", ()):
            if output.output_type == "display_data":
                output.get("transient", {}).clear()
    done.metadata = notebook.metadata
    done.metadata["language_info"] = {"name": "python"}
    return done


def form(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """The kinds of output of each cell, in order; consecutive ones of a kind count once."""
    found = []
    for cell in notebook.cells:
        kinds: list[str] = []
        for output in cell.get("outputs", ()):
            kind = output.output_type
            if kind in ("display_data", "execute_result"):
                kind = "+".join(sorted(output.data))
            elif kind == "error":
                kind = f"error {output.ename}"
            if kinds[-1:] != [kind]:
                kinds.append(kind)
        found.append(kinds)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    options = parser.parse_args()
    bad = 0
    for path in options.notebooks or sorted(HOME.glob("*.ipynb")):
        before = nbformat.read(path, as_version=4)
        done = execute(path)
        if options.check:
            same = form(before) == form(done)
            print(f"{path.name}: {'the same form' if same else 'OUTPUTS DIFFER in form'}")
            bad += not same
        else:
            nbformat.write(done, path)
            print(f"{path.name}: {sum(bool(kinds) for kinds in form(done))} cells with outputs")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
