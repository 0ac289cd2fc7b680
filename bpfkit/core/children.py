# SPDX-License-Identifier: Apache-2.0
"""Child processes that run a program of bpfkit's, from whichever directory this one was started."""

from __future__ import annotations

import os
import sys

__all__ = ["command", "package_home"]

#: What ``python -m MODULE`` does, with the directory of the package first on the path instead of
#: the current one, which may be anybody's.
_RUN = (
    "import sys; sys.path[0] = sys.argv.pop(1); from runpy import run_module; "
    "run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def package_home() -> str:
    """The directory that holds the package ``bpfkit``: a checkout, or a site-packages."""
    return os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))


def command(module: str, *words: str) -> list[str]:
    """The argv of ``python -m MODULE WORDS``.

    :param module: ``bpfkit.xdp_firewall`` and the like.
    """
    return [sys.executable or "python3", "-c", _RUN, package_home(), module, *words]
