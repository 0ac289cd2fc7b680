# SPDX-License-Identifier: Apache-2.0
"""What redirection does to programs on this kernel: the answers of ``doctor sockmap``."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from bpfkit.core.features.answer import Feature

__all__ = ["warnings"]


def _answer(probe: str) -> Feature | None:
    """The answer of a probe of :mod:`bpfkit.core.features.sockmap`; None: it is not there."""
    from importlib import import_module

    try:
        function = getattr(import_module("bpfkit.core.features.sockmap"), probe)
    except (ImportError, AttributeError):
        return None
    found: Feature = function()
    return found


def warnings(all_ports: bool) -> Iterator[str]:
    """What a user should know before processes of his are redirected.

    :param all_ports: every port is in scope, those of programs that splice, too.
    """
    from bpfkit.core.features.answer import NOT_SUPPORTED

    splice = _answer("probe_splice")
    if all_ports and (splice is None or splice.state == NOT_SUPPORTED):
        yield (
            "all ports are redirected: programs that splice(2) from sockets lose data; "
            "--ports leaves them out"
        )
