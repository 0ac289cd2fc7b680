# SPDX-License-Identifier: Apache-2.0
"""Where the layers above core lend it what bpf(2) alone cannot do.

core knows no netlink, yet attaching by clsact is a method of its Program and undoing a killed
process's filter is its duty.  The package that brings the layers together enters the functions
here by name; importing this costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bpfkit.core.attach.link import Link

__all__ = ["attachers", "undoers"]

#: Ways to attach, by name: (program, ifindex, direction, **options) -> Link.
attachers: dict[str, Callable[..., Link]] = {}

#: What undoes an ownership record, by its kind; must not mind that the thing is gone.
undoers: dict[str, Callable[[dict[str, Any]], None]] = {}
