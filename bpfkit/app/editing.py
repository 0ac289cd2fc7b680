# SPDX-License-Identifier: Apache-2.0
"""Editing a program that runs in another process: its maps, and a lock against other editors.

::

    attachment ─▶ id of the program ─▶ ids of its maps ─▶ the maps      (nothing is pinned)
"""

from __future__ import annotations

import fcntl
import os
import time

from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError, PrivilegeError, errno_text
from bpfkit.core.kernel import syscall as sc
from bpfkit.core.maps.base import Map
from bpfkit.core.records import records_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EditLock", "close_maps", "maps_of", "require_ids"]

_WAIT = 20.0  # seconds to wait for another editor


class EditLock(Closing):
    """A lock for editors: waits for another one, and is released on close.

    The kernel releases it when a process dies.

    :raises BpfkitError: another editor has held it for 20 s.
    """

    def __init__(self) -> None:
        directory = records_dir()
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
            self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            why = errno_text(error.errno or 0)
            raise BpfkitError(f"cannot lock {directory}", why=why) from None
        deadline = time.monotonic() + _WAIT
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self.close()
                    raise BpfkitError(
                        "cannot change the rules",
                        why=f"another editor has held the lock for {_WAIT} s",
                    ) from None
                time.sleep(0.01)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def require_ids() -> None:
    """See that this process may open other processes' programs and maps by their ids.

    :raises PrivilegeError: it may not (CAP_SYS_ADMIN).
    """
    try:
        sc.next_id(sc.PROG_GET_NEXT_ID, 0)
    except PermissionError:
        raise PrivilegeError("needs root: run it with sudo (missing CAP_SYS_ADMIN)") from None


def maps_of(program: int, what: str) -> dict[str, Map]:
    """The maps that a program uses, by name; the caller closes them.

    :param program: its id.
    :param what: what has stopped if the program is gone: ``the firewall on eth0``.
    :raises BpfkitError: the program is gone.
    """
    maps: dict[str, Map] = {}
    try:
        fd = sc.prog_get_fd_by_id(program)
        try:
            for number in sc.prog_map_ids(fd):
                one = Map.from_id(number)
                maps[one.name] = one
        finally:
            os.close(fd)
    except (OSError, BpfkitError) as error:
        close_maps(maps)
        why = errno_text(error.errno or 0) if isinstance(error, OSError) else str(error)
        raise BpfkitError(f"{what} has just stopped", why=why) from None
    return maps


def close_maps(maps: Mapping[str, Map]) -> None:
    """Close all of them."""
    for one in maps.values():
        one.close()
