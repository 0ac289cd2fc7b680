# SPDX-License-Identifier: Apache-2.0
"""Child processes that run a program of bpfkit's, from whichever directory this one was started."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["command", "die_with_parent", "package_home"]

_PR_SET_PDEATHSIG = 1

#: What ``python3 -m MODULE`` does, with the directory of the package first on the path instead of
#: the current one, which may be anybody's.
_RUN = (
    "import sys; sys.path[0] = sys.argv.pop(1); from runpy import run_module; "
    "run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def package_home() -> str:
    """The directory that holds the package ``bpfkit``: a checkout, or a site-packages."""
    return os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))


def command(module: str, *words: str) -> list[str]:
    """The argv of ``python3 -m MODULE WORDS``.

    :param module: ``bpfkit.xdp_firewall`` and the like.
    """
    return [sys.executable or "python3", "-c", _RUN, package_home(), module, *words]


def die_with_parent() -> Callable[[], None]:
    """A ``preexec_fn``: the child is killed when this thread ends, also by ``kill -9``.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    import ctypes
    from signal import SIGKILL

    prctl = ctypes.CDLL(None).prctl  # before fork(2): the child must not load anything
    parent = os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # the parent ended first

    return prepare
