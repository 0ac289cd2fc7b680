# SPDX-License-Identifier: Apache-2.0
"""Ownership records, for objects that the kernel does not remove with the process.

Links, unnamed namespaces and sockets disappear with their process.  A cgroup directory and a filter
on a user's interface do not, so before creating one bpfkit records it; the next start and ``python
-m bpfkit clean`` remove the objects of processes that no longer exist.

A record is written before the object is created and deleted after the object is removed, so a
``kill -9`` in between leaves at worst a record without an object.  The owner keeps its record
locked (flock(2)), and the kernel drops the lock with the process: a record that can be locked has
no owner any more.  A pid would not do: in another PID namespace it means another process.
"""

from __future__ import annotations

import errno
import fcntl
import os

from bpfkit.core.entries import find_entry
from bpfkit.core.errors import BpfkitError, errno_text
from bpfkit.core.log import say
from bpfkit.core.trust import UntrustedError, open_trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any

__all__ = ["Record", "locked", "open_records_dir", "reap", "records_dir"]

_count = 0
_LOCK_WAIT_S = 5.0
_STALE_S = 60.0


def records_dir() -> str:
    """Where the records are: ``BPFKIT_RUN``, else ``/run/bpfkit`` (gone after a reboot, as are
    the things recorded)."""
    return os.environ.get("BPFKIT_RUN") or "/run/bpfkit"


def open_records_dir(*, create: bool = False) -> int:
    """A descriptor of :func:`records_dir`.

    :raises BpfkitError: the directory cannot be used; says why.
    """
    try:
        return open_trusted(records_dir(), create=create)
    except OSError as error:
        raise _unusable(error) from None


def _unusable(error: OSError) -> BpfkitError:
    untrusted = isinstance(error, UntrustedError)
    return BpfkitError(
        f"cannot keep ownership records in {records_dir()}",
        why=str(error.strerror) if untrusted else errno_text(error.errno or 0),
        hint="BPFKIT_RUN names another directory",
    )


def _start_time() -> str:
    """Field 22 of /proc/self/stat: a bpfkit that knows no locks tells the living by it."""
    try:
        with open("/proc/self/stat", "rb") as file:
            # The command's name may hold spaces and parentheses; fields count from the last ")".
            return file.read().rsplit(b")", 1)[1].split()[19].decode()
    except (OSError, IndexError):
        return "0"


class Record:
    """An object that this process is about to create and that outlives it."""

    __slots__ = ("_fd", "path")

    def __init__(self, kind: str, data: Mapping[str, Any]) -> None:
        """Write the record.

        :param kind: names the function that removes the object (``bpfkit.ENTRIES``, role ``undo``).
        :param data: what that function needs to find the object; plain data for JSON.
        :raises BpfkitError: the record cannot be written; the object must not be created then.
        """
        import json

        global _count
        _count += 1
        name = f"{os.getpid()}-{_start_time()}-{_count}-{os.urandom(4).hex()}"
        self.path = f"{records_dir()}/{name}"
        # Written and locked before it has a name: nobody finds it half done or without an owner.
        hidden = f".{name}"
        self._fd = -1
        directory = open_records_dir(create=True)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(hidden, flags, 0o600, dir_fd=directory)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            text = json.dumps({"kind": kind, "data": dict(data)}).encode()
            while text:
                text = text[os.write(self._fd, text) :]
            os.rename(hidden, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            try:
                os.unlink(hidden, dir_fd=directory)
            except OSError:
                pass
            self._close()
            raise _unusable(error) from None
        finally:
            os.close(directory)

    def done(self) -> None:
        """Delete the record: the object is removed."""
        if self._fd >= 0:
            _unlink(self.path)
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _unlink(path: str) -> bool:
    """Delete a file; True if it existed and is gone."""
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


class locked:
    """``with locked():`` one bpfkit at a time changes what several share (clsact, a rule list).

    Waits for up to five seconds; a holder that hangs for longer does not stop the others.
    """

    def __enter__(self) -> None:
        from time import monotonic, sleep

        self._fd = open_records_dir(create=True)
        until = monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                    return  # a file system without locks
            if monotonic() > until:
                say(f"{records_dir()} has been locked for {_LOCK_WAIT_S:.0f} s: going on without")
                return
            sleep(0.002)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)


def reap() -> list[str]:
    """Remove what dead processes left behind; returns a line about each object.

    Costs one ``listdir`` if there is nothing to remove.
    """
    directory = records_dir()
    try:
        if not os.listdir(directory):
            return []
        fd = open_trusted(directory)
    except OSError as error:
        if isinstance(error, UntrustedError):
            say(f"ownership records not read: {error.strerror}")
        return []
    undone: list[str] = []
    try:
        for name in sorted(os.listdir(fd)):
            undone += _reap_one(fd, name)
    finally:
        os.close(fd)
    return undone


def _reap_one(directory: int, name: str) -> list[str]:
    import json
    from time import time

    path = f"{records_dir()}/{name}"
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(name, flags, dir_fd=directory)
    except OSError:
        return []  # another start was faster, or it is no file
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return []  # its owner lives
    try:
        if os.fstat(fd).st_nlink == 0:
            return []  # done, or undone by another start, since it was opened
        with os.fdopen(os.dup(fd), "rb") as file:
            text = file.read(1 << 20)
        if name.startswith("."):
            # The owner died before it made anything, or is about to lock and to write the record.
            if text or time() - os.fstat(fd).st_mtime > _STALE_S:
                _unlink(path)
            return []
        try:
            record = json.loads(text)
            kind, data = record["kind"], record["data"]
        except (ValueError, TypeError, KeyError):
            say(f"{path} is not a record; removed")
            _unlink(path)
            return []
        handler = find_entry("undo", kind)
        if handler is None:
            say(f"leftover of unknown kind {kind} in {path}")
            return []
        try:
            handler(data)
        except Exception as error:
            # No failure (no pyroute2 here, an error of the kernel) may keep a program
            # from starting; a later start may succeed.
            say(f"cannot undo {path}: {error}")
            return []
        if not _unlink(path):
            return []
        figures = ", ".join(f"{key} {value}" for key, value in data.items())
        text_ = f"{kind} of a killed bpfkit ({figures})"
        say(f"removed {text_}")
        return [text_]
    finally:
        os.close(fd)
