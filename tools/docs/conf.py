# SPDX-License-Identifier: Apache-2.0
"""Sphinx: ``make docs`` builds the guides, the notebooks and the reference from the docstrings.

The notebooks are read where they are, with the outputs that are committed: :class:`NotebookParser`
hands them to MyST's parser as one Markdown page each.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from myst_parser.parsers.sphinx_ import MystParser

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

project = "bpfkit"
author = "the bpfkit authors"
extensions = ["sphinx.ext.autodoc", "myst_parser"]
source_suffix = {".md": "markdown", ".ipynb": "notebook"}
master_doc = "index"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Types of optional packages, and names that only type checkers import.
autodoc_mock_imports: list[str] = []
html_theme = "alabaster"
html_theme_options = {
    "description": "the eBPF workbench",
    "fixed_sidebar": True,
    "page_width": "1240px",
    "body_max_width": "1000px",
}
html_static_path = ["static"]
html_css_files = ["notebooks.css"]
html_copy_source = False
exclude_patterns = ["**/.ipynb_checkpoints"]


def _directive(head: str, text: str) -> str:
    return f"``````{head}\n{text.rstrip()}\n``````"


def _output(output: Any) -> str:
    """What a browser can show of one output."""
    if output.output_type == "error":
        data = {"text/plain": "\n".join(output.traceback)}
    else:
        data = output.get("data") or {"text/plain": output.text}
    if "text/html" in data:
        return _directive("{raw} html", data["text/html"])
    if "image/png" in data:
        image = "".join(data["image/png"].split())
        text = escape(data["text/plain"])
        return _directive("{raw} html", f'<img alt="{text}" src="data:image/png;base64,{image}">')
    return _directive("{code-block} text", f":class: output\n\n{data['text/plain']}")


def markdown(notebook: Any) -> str:
    """A notebook as one page in MyST's Markdown."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        language = "c" if cell.source.startswith("%%bpf") else "python"
        parts.append(_directive(f"{{code-block}} {language}", cell.source))
        parts += [_output(output) for output in cell.outputs]
    return "\n\n".join(parts)


class NotebookParser(MystParser):
    """Reads ``.ipynb``."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: Any) -> None:
        super().parse(markdown(nbformat.reads(inputstring, as_version=4)), document)


def _links(app: Any, docname: str, source: list[str]) -> None:
    """Links are written for the tree; the pages stand together."""
    source[0] = source[0].replace("](../../notebooks/", "](notebooks/")
    source[0] = source[0].replace("](../tools/docs/", "](../")


def setup(app: Any) -> None:
    app.add_source_parser(NotebookParser)
    app.connect("source-read", _links)
