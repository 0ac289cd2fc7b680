# SPDX-License-Identifier: Apache-2.0
"""What net lends core: attachments that bpf(2) alone cannot make or undo.

core knows no netlink, yet attaching by clsact is a method of its Program, and undoing a killed
process's filter is its duty.  The functions are named here and imported when one is needed, so
neither room imports the other to have them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["ATTACHERS", "UNDOERS", "attacher", "undoer"]

#: Way to attach -> (module, function): (program, ifindex, direction, **options) -> Link.
ATTACHERS = {"clsact": ("bpfkit.net.attach.clsact", "attach_clsact")}

#: Kind of ownership record -> (module, function): (data) -> None.  The function must not mind that
#: what it undoes is gone.
UNDOERS = {
    "clsact": ("bpfkit.net.attach.clsact", "undo_clsact"),
    "route": ("bpfkit.net.attach.route", "undo_route"),
}


def _function(place: tuple[str, str]) -> Callable[..., Any]:
    from importlib import import_module

    function: Callable[..., Any] = getattr(import_module(place[0]), place[1])
    return function


def attacher(kind: str) -> Callable[..., Any]:
    """The function that attaches in the way ``kind``."""
    return _function(ATTACHERS[kind])


def undoer(kind: str) -> Callable[[dict[str, Any]], None] | None:
    """The function that undoes a record of this kind; None for a kind that is not known."""
    return _function(UNDOERS[kind]) if kind in UNDOERS else None
