# SPDX-License-Identifier: Apache-2.0
"""Functions of the layers above core that core calls: found by name, imported when used.

core knows no netlink, yet ``Program.attach_tc`` attaches by clsact where the kernel has no tcx, and
``bpfkit clean`` removes the filters of killed processes.  ``bpfkit.ENTRIES`` says where those
functions are.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["find_entry"]


def find_entry(role: str, name: str) -> Callable[..., Any] | None:
    """The function that has a role; None if there is none.

    :param role: ``attach``: called with (program, ifindex, direction, options), returns a Link;
        ``find``: called with an ifindex, returns the programs that are there; ``replace``: called
        with an ifindex and one of them, detaches it and returns what can ``restore()`` it;
        ``show``: called with a value, returns its text;
        ``undo``: called with the data of an ownership record, undoes what the record is about, and
        does not fail if that is gone.
        ``notebook``: how IPython and Jupyter show an object.
    :param name: the way to attach, or the record's kind.
    """
    # The package itself, which is imported before any of its modules.
    entries: dict[tuple[str, str], str] = sys.modules[__name__.partition(".")[0]].ENTRIES
    place = entries.get((role, name))
    if place is None:
        return None
    from importlib import import_module

    module, _, function = place.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found
