# SPDX-License-Identifier: Apache-2.0
"""Programs in the cgroups of the servers that are steered to."""

from __future__ import annotations

import os

from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bpfkit.core.attach.link import Link
    from bpfkit.core.program import Program
    from bpfkit.net.sockets.listeners import Listener

__all__ = ["ServerCgroups"]


class ServerCgroups(Closing):
    """Attaches programs once to each cgroup that a server's socket belongs to.

    :param programs: returns them, when the first is needed.
    :param complain: is told once where that fails.
    """

    def __init__(
        self, programs: Callable[[], list[Program]], complain: Callable[[BpfkitError], None]
    ) -> None:
        self._programs = programs
        self._complain = complain
        self._links: dict[int, list[Link]] = {}
        self._paths: dict[int, str] = {}
        self._known: dict[int, int] = {}  # inode of a socket -> of its cgroup
        self._failed: set[str] = set()

    def update(self, servers: Iterable[Listener]) -> None:
        """Attach to the cgroups of these sockets, and let go of cgroups that were removed.

        A cgroup without a server stays watched: the server may come back there.
        """
        known: dict[int, int] = {}
        for one in servers:
            group = self._known.get(one.inode)
            known[one.inode] = self._attach(one) if group is None else group
        self._known = known
        for group, path in list(self._paths.items()):
            if _inode(path) != group:
                del self._paths[group]
                for link in self._links.pop(group, ()):
                    link.close()

    def _attach(self, one: Listener) -> int:
        try:
            path = _directory(one)
            group = os.stat(path).st_ino
            if group not in self._links:
                self._links[group] = []
                self._paths[group] = path
                for program in self._programs():
                    self._links[group].append(program.attach_cgroup(path))
            return group
        except BpfkitError as error:
            if str(error) not in self._failed:
                self._failed.add(str(error))
                self._complain(error)
        except OSError:
            pass  # the cgroup was removed: its server has ended
        return 0

    def close(self) -> None:
        """Detach."""
        for links in self._links.values():
            for link in links:
                link.close()
        self._links.clear()


def _directory(one: Listener) -> str:
    """The directory of the cgroup that a socket belongs to: its maker's at the time.

    :raises UnsupportedError: no v2 hierarchy is mounted.
    """
    from bpfkit.core.cgroups import cgroup_of, cgroup_root
    from bpfkit.net.sockets.listeners import find_owner

    owner = find_owner(one.inode)
    path = ""
    if owner is not None:
        try:
            path = cgroup_of(owner[0])
        except OSError:
            pass  # it has just ended
    root = cgroup_root()
    if not one.cgroup or _inode(path) == one.cgroup:
        return path or root
    for directory, _, _ in os.walk(root):
        if _inode(directory) == one.cgroup:
            return directory
    return path or root


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0
