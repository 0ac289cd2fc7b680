# SPDX-License-Identifier: Apache-2.0
"""XDP on an interface, by a link (BPF_LINK_CREATE; kernel 5.9)."""

from __future__ import annotations

import errno

from bpfkit.core.attach.link import Link, create_link, find_interface, own_link
from bpfkit.core.entries import find_entry
from bpfkit.core.errors import AttachError, BpfkitError, InputError, errno_text
from bpfkit.core.kernel.constants import attach_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.core.program import Program

__all__ = ["attach"]

#: XDP_FLAGS_*_MODE
_MODES = {"auto": 0, "generic": 1 << 1, "native": 1 << 2, "offload": 1 << 3}


def attach(
    program: Program, interface: int | str, mode: str = "auto", replace: bool = False
) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_xdp`."""
    if mode not in _MODES:
        raise InputError(f"unknown XDP mode '{mode}'", why="the modes are " + ", ".join(_MODES))
    ifindex, name = find_interface(program, interface)

    def create() -> Link:
        return create_link(program, "xdp", name, ifindex, attach_type("XDP"), _MODES[mode])

    try:
        return create()
    except BpfkitError as error:
        find = find_entry("find", "xdp")
        if error.errno not in (errno.EBUSY, errno.EEXIST) or find is None:
            raise
        there = find(ifindex)
        if not there:
            raise
        if not replace:
            raise _occupied(error, name, there) from None
    mine = own_link("xdp", name, there[0].link_id) if there[0].link_id else None
    if mine is not None and mode in ("auto", there[0].mode):
        mine.update(program)
        return Link(program, "xdp", name, mine._hand_over())
    if mine is None:
        return _in_place_of(there, ifindex, create)
    before = mine.program
    mine.close()
    try:
        return create()
    except BaseException:
        flags = _MODES[there[0].mode]
        create_link(before, "xdp", name, ifindex, attach_type("XDP"), flags)
        raise


def _occupied(error: BpfkitError, name: str, there: list[Any]) -> BpfkitError:
    """The error that says which program is there, and whose."""
    refused = AttachError(
        error.what,
        why=f"there is {' and '.join(map(str, there))} [{errno_text(error.errno)}]",
        hint="replace=True takes its place",
    )
    refused.errno = error.errno
    for one in there:
        mine = own_link("xdp", name, one.link_id) if one.link_id else None
        if mine is not None:
            refused.why = f"another link of this process is there: {mine!r}"
            refused.hint = "close that link first, or pass replace=True to take its place"
    return refused


def _in_place_of(there: list[Any], ifindex: int, create: Any) -> Link:
    """Detach what is there and attach; put it back if that fails."""
    take_away = find_entry("replace", "xdp")
    assert take_away is not None
    removed: list[Any] = []
    try:
        for one in there:
            removed.append(take_away(ifindex, one))
        link: Link = create()
        return link
    except BaseException:
        for one in reversed(removed):
            one.restore()
        raise
    finally:
        for one in removed:
            one.close()
