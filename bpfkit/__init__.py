# SPDX-License-Identifier: Apache-2.0
"""bpfkit: every BPF program type and map type, live, with one command.

The library's front door::

    import bpfkit

    with bpfkit.load("socket/sockex1.bpf.c") as obj:
        with obj.programs["count"].attach_socket(sock):
            print(obj["bytes"].items())

Names are looked up on first use, so ``import bpfkit`` costs next to nothing.
"""

from __future__ import annotations

import sys as _sys

if _sys.argv[:1] == ["-m"]:
    # Run as a program (python -m bpfkit.NAME), not used as a library.  Starting in hundredths of a
    # second is part of what a program promises, so it keeps its own bytecode beside itself even
    # where PYTHONDONTWRITEBYTECODE (container images set it) makes Python compile 5000 lines at
    # every start.  A directory that cannot be written is no problem.
    _sys.dont_write_bytecode = False

from bpfkit.core import registry as _registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.core.attach.link import Link as Link
    from bpfkit.core.errors import BpfkitError as BpfkitError
    from bpfkit.core.maps.base import Map as Map
    from bpfkit.core.object import Object as Object
    from bpfkit.core.object import load as load
    from bpfkit.core.program import Program as Program

__version__ = "0.1.0"

_HOME = {
    "BpfkitError": "errors",
    "Link": "attach.link",
    "Map": "maps.base",
    "Object": "object",
    "Program": "program",
    "load": "object",
}

__all__ = ["BpfkitError", "Link", "Map", "Object", "Program", "load"]


def __getattr__(name: str) -> Any:
    """The public names, found where they live."""
    if name not in _HOME:
        raise AttributeError(f"module 'bpfkit' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(f"bpfkit.core.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def _attach_clsact(*args: Any, **options: Any) -> Link:
    from bpfkit.net.attach.clsact import attach_clsact

    return attach_clsact(*args, **options)


def _undo_clsact(data: dict[str, Any]) -> None:
    from bpfkit.net.attach.clsact import undo_clsact

    undo_clsact(data)


def _undo_route(data: dict[str, Any]) -> None:
    from bpfkit.net.attach.route import undo_route

    undo_route(data)


_registry.attachers["clsact"] = _attach_clsact
_registry.undoers["clsact"] = _undo_clsact
_registry.undoers["route"] = _undo_route
