# SPDX-License-Identifier: Apache-2.0
"""Directories that hold what root acts upon: compiled programs, header trees, ownership records.

A file's own owner and mode say little: who may rename a directory on the way to the file can put
another file in its place between the check and the use.  So every directory on the way must belong
to root or to this user, and nobody else may write to it; then no name on the way can change under
us.  A sticky directory of root's (``/tmp``) will do: others cannot rename what is ours there.
"""

from __future__ import annotations

import os
import stat

__all__ = ["OWN", "UntrustedError", "is_private", "is_trusted", "open_trusted"]

#: Names of the directories that bpfkit makes for itself.
OWN = ("bpfkit", "objects", "headers")
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class UntrustedError(OSError):
    """A directory on the way belongs to somebody else, or others may write to it."""


def _objection(s: os.stat_result) -> str:
    """Why a directory must not be relied on, or an empty string."""
    if s.st_uid not in (0, os.geteuid()):
        return f"belongs to uid {s.st_uid}"
    if s.st_mode & stat.S_ISVTX and s.st_uid == 0:
        return ""
    if s.st_mode & stat.S_IWOTH:
        return "is writable by everybody"
    # A private group, as distributions with umask 002 give each user, is the user.
    private = s.st_gid == 0 or (s.st_gid == os.getegid() == os.geteuid())
    return "" if private or not s.st_mode & stat.S_IWGRP else f"is writable by group {s.st_gid}"


def open_trusted(path: str, *, create: bool = False) -> int:
    """A descriptor of the directory ``path``, every directory on the way having been checked.

    A directory of bpfkit's own (:data:`OWN`) that others may write to, as an umask of 0 made them
    once, is closed to them: what is in it still has to have the right owner.

    :param create: make the directories that are missing, with mode 0700 whatever the umask is.
    :raises UntrustedError: a directory on the way, or ``path``, is not to be relied on.
    :raises OSError: ``path`` cannot be opened or made.
    """
    fd = os.open("/", _FLAGS)
    here = ""
    try:
        # Symbolic links are resolved first; one that changes afterwards is not followed (ELOOP).
        for name in os.path.realpath(path).split("/")[1:]:
            if not name:
                continue
            here = f"{here}/{name}"
            try:
                below = os.open(name, _FLAGS, dir_fd=fd)
            except FileNotFoundError:
                if not create:
                    raise
                below = _make(name, fd)
            os.close(fd)
            fd = below
            s = os.fstat(fd)
            objection = _objection(s)
            if objection and name in OWN and s.st_uid == os.geteuid():
                os.fchmod(fd, 0o700)
                objection = _objection(os.fstat(fd))
            if objection:
                raise UntrustedError(1, f"{here} {objection}", path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make(name: str, parent: int) -> int:
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        pass  # another start was as quick
    else:
        # The umask may have taken the owner's bits away; O_PATH needs none of them.
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        finally:
            os.close(fd)
    return os.open(name, _FLAGS, dir_fd=parent)


def is_trusted(path: str) -> bool:
    """Whether nobody but root and this user can change what ``path`` leads to."""
    try:
        os.close(open_trusted(path))
    except OSError:
        return False
    return True


def is_private(path: str) -> bool:
    """Whether nobody but root and this user can put a file into the directory ``path``.

    A sticky directory (``/tmp``) is not private, as anybody may add a file; on the way it will do.
    """
    here = os.path.realpath(path)
    try:
        if os.stat(here).st_mode & stat.S_ISVTX and os.stat(here).st_mode & 0o022:
            return False
        while not _objection(os.stat(here)):
            if here == "/":
                return True
            here = os.path.dirname(here)
    except OSError:
        pass
    return False
