# SPDX-License-Identifier: Apache-2.0
"""Sphinx: ``make docs`` builds the guides and the reference from the docstrings."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

project = "bpfkit"
author = "the bpfkit authors"
extensions = ["sphinx.ext.autodoc", "myst_parser"]
source_suffix = {".md": "markdown"}
master_doc = "index"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Types of optional packages, and names that only type checkers import.
autodoc_mock_imports: list[str] = []
html_theme = "alabaster"
html_theme_options = {"description": "the eBPF workbench", "fixed_sidebar": True}
exclude_patterns: list[str] = []
