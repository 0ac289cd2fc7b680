# SPDX-License-Identifier: Apache-2.0
"""bpfkit in Jupyter: ``%load_ext bpfkit.notebook``, and how the library's objects show themselves.

========================================  ========================================================
``%%bpf [NAME] [-i IF] [-D NAME=VALUE]``  compiles the cell; its programs and maps become variables
``%bpf_ls``                               what the notebook has open
``%bpf_close [NAME …]``                   closes objects that cells made; all of them by default
========================================  ========================================================

Objects, programs, maps, links, labs and traffic reports have views without the extension, too.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.notebook.magics import BpfMagics

__all__ = ["load_ipython_extension", "unload_ipython_extension"]

#: One kernel has one shell.
_magics: BpfMagics | None = None


def load_ipython_extension(shell: Any) -> None:
    """Called by ``%load_ext bpfkit.notebook``; removes what killed kernels left (cgroups)."""
    from bpfkit.core.records import reap
    from bpfkit.notebook.magics import BpfMagics

    global _magics
    if _magics is None:
        reap()
        _magics = BpfMagics(shell)
        _magics.register()


def unload_ipython_extension(shell: Any) -> None:
    """Called by ``%unload_ext bpfkit.notebook``: closes what the cells made."""
    global _magics
    if _magics is not None:
        _magics.close_all()
        _magics = None
