# SPDX-License-Identifier: Apache-2.0
"""Map kinds: a class per kind, which registers itself for the kernel's map types it handles.

``from bpfkit.core.maps import HashMap, open_map`` works for every public class; the module that
defines it is imported at that moment.

To add a kind, write one class, ``class Fancy(Map, types=("FANCY",))``, in any module of this
package.  Nothing else names it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType
    from typing import Any

# The modules that most programs need come first; opening a map stops at the one that has its kind.
_FIRST = ("keyed", "percpu", "references")
_NOT_KINDS = ("__init__", "base", "batch", "buffers", "events")


def kind_modules() -> Iterator[ModuleType]:
    """The modules that define map kinds, each imported when the iteration reaches it."""
    import os
    from importlib import import_module

    for name in _FIRST:
        yield import_module(f"{__name__}.{name}")
    for file in sorted(os.listdir(__path__[0])):
        name, dot, _ = file.partition(".")
        if dot and name not in _FIRST and name not in _NOT_KINDS:
            yield import_module(f"{__name__}.{name}")


def __getattr__(name: str) -> Any:
    """A public class (or ``open_map``) of one of the modules."""
    # Modules are in lower case: `from bpfkit.core.maps import base` asks here, too.
    if name[:1].isupper() or name == "open_map":
        from importlib import import_module

        for known in ("base", "buffers", "events"):
            module = import_module(f"{__name__}.{known}")
            if name in module.__all__:
                return getattr(module, name)
        for module in kind_modules():
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
