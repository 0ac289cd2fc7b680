# SPDX-License-Identifier: Apache-2.0
"""What programs are made of: options, signals, life cycle, where a program is attached, sinks."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _keep_bytecode() -> None:
    """Let a program keep its bytecode although PYTHONDONTWRITEBYTECODE is set.

    Container images set it, and Python would compile 5000 lines at every start.  A directory that
    cannot be written is no problem.  A library user's process is left alone.
    """
    main: Any = getattr(sys.modules["__main__"], "__spec__", None)
    if not sys.dont_write_bytecode or main is None or not main.name.startswith("bpfkit."):
        return
    sys.dont_write_bytecode = False
    package: Any = sys.modules["bpfkit"].__spec__
    for spec in (main, package):
        spec.loader.get_code(spec.name)  # these two were imported before: writes their bytecode


_keep_bytecode()
