# SPDX-License-Identifier: Apache-2.0
"""How core is put together: kinds that register themselves, lazy imports, no import upwards."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bpfkit
from bpfkit.core import maps
from bpfkit.core.entries import find_entry
from bpfkit.core.kernel.capabilities import CAPABILITIES, capability_bit
from bpfkit.core.kernel.constants import MAP_TYPES
from bpfkit.core.maps.base import Map, map_class

ROOT = Path(bpfkit.__file__).parent


def _modules_after(code: str) -> set[str]:
    """The bpfkit modules that a fresh interpreter has loaded after ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT.parent)},
    )
    return {name for name in done.stdout.split() if name.startswith("bpfkit")}


def test_a_kind_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    from bpfkit.core.maps import base

    monkeypatch.setattr(base, "_kinds", dict(base._kinds))
    monkeypatch.setattr(base, "MAP_TYPES", [*MAP_TYPES, "FANCY"])

    class Fancy(Map, types=("FANCY",)):
        __slots__ = ()

    assert map_class(len(MAP_TYPES)) is Fancy


def test_hashes_and_arrays_load_no_other_kind() -> None:
    code = (
        "from bpfkit.core.maps.base import open_map\n"
        "open_map(('h', 1, 4, 4, 1), -1); open_map(('a', 2, 4, 4, 1), -1)"
    )
    rooms = {name for name in _modules_after(code) if name.startswith("bpfkit.core.maps.")}
    assert rooms == {f"bpfkit.core.maps.{name}" for name in ("base", "batch", "keyed")}


def test_public_classes_come_from_the_package() -> None:
    assert maps.HashMap is map_class(MAP_TYPES.index("LRU_HASH"))
    assert maps.RingBuffer.__module__ == "bpfkit.core.maps.buffers"
    with pytest.raises(AttributeError):
        maps.NoSuchMap  # noqa: B018


def test_every_entry_leads_to_a_function() -> None:
    for role, name in bpfkit.ENTRIES:
        assert callable(find_entry(role, name)), (role, name)
    assert find_entry("undo", "nothing") is None


def test_a_socket_filter_loads_one_kind_of_attachment() -> None:
    code = "import bpfkit.core.program, bpfkit.core.attach.socket"
    loaded = _modules_after(code)
    assert not [n for n in loaded if n.startswith(("bpfkit.net", "bpfkit.core.features"))]
    assert {n for n in loaded if n.startswith("bpfkit.core.attach.")} == {
        "bpfkit.core.attach.link",
        "bpfkit.core.attach.socket",
    }


def test_the_library_leaves_the_interpreter_alone() -> None:
    """Only programs keep bytecode against PYTHONDONTWRITEBYTECODE, whatever the arguments."""
    code = "sys.argv[:] = ['-m']\nimport bpfkit, bpfkit.app\nassert sys.dont_write_bytecode"
    subprocess.run(
        [sys.executable, "-B", "-c", f"import sys\n{code}"],
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT.parent)},
    )


def test_capability_numbers() -> None:
    """Numbers of include/uapi/linux/capability.h."""
    known = {"NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21, "PERFMON": 38, "BPF": 39}
    assert {name: CAPABILITIES.index(name) for name in known} == known
    assert capability_bit("BPF") == 1 << 39


def _imports(path: Path) -> set[str]:
    """The modules of bpfkit that a file imports at run time, lazily or not."""
    found = set()
    stack: list[ast.AST] = [ast.parse(path.read_text())]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bpfkit"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        stack += ast.iter_child_nodes(node)
    return found


def test_no_circle_in_core_and_nothing_from_above() -> None:
    files = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in (ROOT / "core").rglob("*.py")
    }
    edges = {name: _imports(path) - {"bpfkit"} for name, path in files.items()}
    above = {
        (name, target)
        for name, targets in edges.items()
        for target in targets
        if not target.startswith("bpfkit.core")
    }
    assert not above
    left = {name: {t for t in targets if t in files} for name, targets in edges.items()}
    # A package and its modules are one another's; what counts are imports between modules.
    packages = {name for name, path in files.items() if path.name == "__init__.py"}
    left = {name: targets - packages for name, targets in left.items()}
    while True:
        leaves = {name for name, targets in left.items() if not targets}
        if not leaves:
            break
        left = {name: targets - leaves for name, targets in left.items() if name not in leaves}
    assert not left, f"circles among {sorted(left)}"
