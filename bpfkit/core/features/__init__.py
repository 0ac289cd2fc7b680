# SPDX-License-Identifier: Apache-2.0
"""What this kernel and this process can do, found out by trying.

The public names (``features.program_types()``, ``features.WORKS`` …) are looked up on first use.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.core.features.answer import INCONCLUSIVE as INCONCLUSIVE
    from bpfkit.core.features.answer import NOT_SUPPORTED as NOT_SUPPORTED
    from bpfkit.core.features.answer import WORKS as WORKS
    from bpfkit.core.features.answer import Feature as Feature
    from bpfkit.core.features.maps import map_types as map_types
    from bpfkit.core.features.maps import probe_map_type as probe_map_type
    from bpfkit.core.features.privileges import capabilities as capabilities
    from bpfkit.core.features.privileges import refused_by_policy as refused_by_policy
    from bpfkit.core.features.programs import helper_functions as helper_functions
    from bpfkit.core.features.programs import probe_program_type as probe_program_type
    from bpfkit.core.features.programs import program_types as program_types
    from bpfkit.core.features.system import kernel_config as kernel_config
    from bpfkit.core.features.system import tracefs as tracefs

_HOME = {
    "Feature": "answer",
    "INCONCLUSIVE": "answer",
    "NOT_SUPPORTED": "answer",
    "WORKS": "answer",
    "capabilities": "privileges",
    "helper_functions": "programs",
    "kernel_config": "system",
    "map_types": "maps",
    "probe_map_type": "maps",
    "probe_program_type": "programs",
    "program_types": "programs",
    "refused_by_policy": "privileges",
    "tracefs": "system",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
