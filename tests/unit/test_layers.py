# SPDX-License-Identifier: Apache-2.0
"""The check of the layers finds what it is there for: an import inside a function as well."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINTER = ROOT / ".venv" / "bin" / "lint-imports"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what import-linter reads."""
    if not LINTER.exists():
        pytest.skip("import-linter is not installed: tools/bootstrap.sh check installs it")
    for name in ("bpfkit", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(tree: Path) -> str:
    done = subprocess.run(
        [LINTER, "--no-cache", "--no-logo"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


def test_each_kind_of_import_that_the_layers_forbid_is_found(tree: Path) -> None:
    planted = {
        "planted.py": "def f():\n    import bpfkit.sockex1\n    import bpfkit.commands.list\n",
        "net/planted.py": "def f():\n    import bpfkit.sockex2\n    import bpfkit.show.text\n",
        "show/planted.py": "def f():\n    import bpfkit.core.kernel.syscall\n",
        "core/planted.py": (
            "def f():\n    import rich\n    import bcc\n    import bpfkit.app.base\n"
        ),
        "innocent.py": "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    import bpfkit.sockex1\n",
    }
    for name, text in planted.items():
        (tree / "bpfkit" / name).write_text(text)
    said = lint(tree)
    for line in (
        "bpfkit.planted -> bpfkit.sockex1 (line 2)",
        "bpfkit.planted -> bpfkit.commands.list (line 3)",
        "bpfkit.net.planted -> bpfkit.sockex2 (line 2)",
        "bpfkit.core.planted -> rich (line 2)",
        "bpfkit.core.planted -> bcc (l.3)",
        "bpfkit.core.planted -> bpfkit.app.base (l.4)",
        "bpfkit.net.planted -> bpfkit.show.text (l.3)",
        "bpfkit.show.planted -> bpfkit.core.kernel.syscall (l.2)",
    ):
        assert line in said
    assert "innocent" not in said
