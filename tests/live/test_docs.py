# SPDX-License-Identifier: Apache-2.0
"""The guides, the notebooks and the reference build without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

for module in ("sphinx", "myst_parser", "nbformat"):
    pytest.importorskip(module, reason=f"{module} is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    path = tmp_path_factory.mktemp("site")
    argv = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    places = (path / "doctrees", ROOT / "tools" / "docs", path / "html")
    argv += ["-d", *map(str, places)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return path / "html"


def test_the_reference_has_the_public_names(site):
    reference = (site / "reference.html").read_text()
    for name in ("bpfkit.load", "attach_xdp", "attach_cgroup", "pair_lab", "RingBuffer"):
        assert name in reference


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_page_with_its_committed_outputs(site, path):
    import nbformat

    page = (site / "notebooks" / f"{path.stem}.html").read_text()
    assert f'href="notebooks/{path.stem}.html"' in (site / "index.html").read_text()
    text = unescape(re.sub(r"<[^>]+>", "", page))
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        assert cell.source.rstrip() in text
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "error":
                assert f"{output.ename}: {output.evalue}".rstrip() in text
            elif "text/html" in data:
                assert data["text/html"].rstrip() in page
            elif "image/png" in data:
                assert "".join(data["image/png"].split()) in page
            else:
                assert data.get("text/plain", output.get("text", "")).rstrip() in text
