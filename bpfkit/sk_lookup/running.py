# SPDX-License-Identifier: Apache-2.0
"""Finds the sk_lookup that runs in a network namespace.

::

    namespace ─▶ its sk_lookup link ─▶ program ─▶ ids of its maps ─▶ the maps    (nothing is pinned)
"""

from __future__ import annotations

import os
import struct

from bpfkit.app.editing import close_maps, maps_of, require_ids
from bpfkit.core.errors import BpfkitError
from bpfkit.core.kernel import syscall as sc
from bpfkit.sk_lookup.control import MAPS, PROGRAM, RULE_SIZE, Steering

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["find", "running"]

_LINK_TYPE_NETNS = 5


def running(netns: str = "/proc/thread-self/ns/net") -> list[int]:
    """Ids of the sk_lookup programs of bpfkit that are attached in a namespace.

    Source: struct bpf_link_info (kernel 5.9).
    """
    inode = os.stat(netns).st_ino
    found: list[int] = []
    number: int | None = 0
    while True:
        number = sc.next_id(sc.LINK_GET_NEXT_ID, number or 0)
        if not number:
            return found
        try:
            fd = sc.link_get_fd_by_id(number)
        except OSError:
            continue  # it was closed meanwhile
        try:
            kind, _, program, _, where, _ = struct.unpack_from("=IIIIII", sc.obj_info(fd, 24))
        except OSError:
            continue
        finally:
            os.close(fd)
        if (kind, where) == (_LINK_TYPE_NETNS, inode) and _name(program) == PROGRAM:
            found.append(program)


def _name(program: int) -> Any:
    try:
        fd = sc.prog_get_fd_by_id(program)
    except OSError:
        return ""
    try:
        return sc.prog_info(fd)["name"]
    finally:
        os.close(fd)


def find() -> Steering:
    """The sk_lookup of the calling thread's namespace.

    :raises PrivilegeError: not permitted to open other processes' maps (CAP_SYS_ADMIN).
    :raises BpfkitError: none is running.
    """
    require_ids()
    for program in running():
        maps = maps_of(program, "sk_lookup")
        if set(MAPS) <= set(maps) and maps["rules"].value_size == RULE_SIZE:
            return Steering(maps, owned=True)
        close_maps(maps)
    raise BpfkitError(
        "sk_lookup is not running",
        why="no such program is attached in this network namespace",
        hint="start it: python3 -m bpfkit.sk_lookup --steer PORTS:PORT",
    )
