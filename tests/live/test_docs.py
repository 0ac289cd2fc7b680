# SPDX-License-Identifier: Apache-2.0
"""The guides and the reference build without a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_guides_and_the_reference_build_without_warnings(tmp_path):
    pytest.importorskip("sphinx", reason="Sphinx is not installed")
    pytest.importorskip("myst_parser", reason="MyST is not installed (python3-myst-parser)")
    argv = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    places = (tmp_path / "doctrees", ROOT / "tools" / "docs", tmp_path / "html")
    argv += ["-d", *map(str, places)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "html" / "reference.html").read_text()
    for name in ("bpfkit.load", "attach_xdp", "attach_cgroup", "pair_lab", "RingBuffer"):
        assert name in reference
