# SPDX-License-Identifier: Apache-2.0
"""What redirection does to programs on this kernel: the answers that ``doctor sockmap`` prints.

As both ends of a connection are in the map or none, a socket of sk_msg reads redirected data only:
of the probes' answers those for redirected data count.
"""

from __future__ import annotations

from bpfkit.core.errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from bpfkit.core.features.answer import Feature

__all__ = ["check_kernel"]

_DOCTOR = "python3 -m bpfkit doctor sockmap shows what this kernel does"


def _redirected(probe: str) -> Feature | None:
    """A probe's answer for redirected data; None: there is no such probe."""
    from importlib import import_module

    try:
        function = getattr(import_module("bpfkit.core.features.sockmap"), probe)
    except (ImportError, AttributeError):
        return None
    found: Feature = function()
    return next((part for part in found.parts if part.name == "redirected"), found)


def check_kernel(all_ports: bool) -> Iterator[str]:
    """What a user should know before processes of his are redirected, line by line.

    :param all_ports: every port is in scope, so those of programs that would stall or lose data.
    :raises UnsupportedError: programs would stall, and no port is named as that of another.
    """
    from bpfkit.core.features.answer import NOT_SUPPORTED

    fionread = _redirected("probe_fionread")
    if fionread is not None and fionread.state == NOT_SUPPORTED:
        why = "on this kernel FIONREAD does not count redirected data: nginx, Java and .NET stall"
        if all_ports:
            raise UnsupportedError(
                "cannot redirect all ports", why=why, hint="name the ports of others with --ports"
            )
        yield f"{why}; {_DOCTOR}"
    splice = _redirected("probe_splice")
    if all_ports and (splice is None or splice.state == NOT_SUPPORTED):
        yield (
            "all ports are redirected: programs that splice(2) from sockets lose data; "
            "leave theirs out by --ports"
        )
