# SPDX-License-Identifier: Apache-2.0
"""Ownership records, for objects that the kernel does not remove with the process.

Links, unnamed namespaces and sockets disappear with their process.  A cgroup directory and a filter
on a user's interface do not, so before creating one bpfkit records the owner; the next start
and ``python -m bpfkit clean`` remove the objects of processes that no longer exist.

A record is written before the object is created and deleted after the object is removed, so a
``kill -9`` in between leaves at worst a record without an object.  The owner is a pid together with
its start time, so a reused pid is not mistaken for the owner.
"""

from __future__ import annotations

import os

from bpfkit.core.entries import find_entry
from bpfkit.core.log import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["Record", "reap", "records_dir"]

_count = 0


def records_dir() -> str:
    """Where the records are: ``BPFKIT_RUN``, else ``/run/bpfkit`` (gone after a reboot, as are
    the things recorded)."""
    return os.environ.get("BPFKIT_RUN") or "/run/bpfkit"


def _start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat, or an empty string for a process that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command's name may hold spaces and parentheses; fields count from the last ")".
            return file.read().rsplit(b")", 1)[1].split()[19].decode()
    except (OSError, IndexError):
        return ""


class Record:
    """An object that this process is about to create and that outlives it."""

    __slots__ = ("path",)

    def __init__(self, kind: str, data: Mapping[str, Any]) -> None:
        """Write the record.

        :param kind: names the function that removes the object (``bpfkit.ENTRIES``, role ``undo``).
        :param data: what that function needs to find the object; plain data for JSON.
        :raises OSError: the record cannot be written; the object must not be created then.
        """
        import json

        global _count
        _count += 1
        directory = records_dir()
        os.makedirs(directory, 0o700, exist_ok=True)
        pid = os.getpid()
        self.path = f"{directory}/{pid}-{_start_time(pid)}-{_count}"
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump({"kind": kind, "data": dict(data)}, file)

    def done(self) -> None:
        """Delete the record: the object is removed."""
        _unlink(self.path)


def _unlink(path: str) -> bool:
    """Delete a file; True if it existed and is gone."""
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def reap() -> list[str]:
    """Remove what dead processes left behind; returns a line about each object.

    Costs one ``listdir`` if there is nothing to remove.
    """
    directory = records_dir()
    try:
        s = os.stat(directory)
        names = os.listdir(directory) if s.st_uid == os.geteuid() else []
    except OSError:
        return []
    undone: list[str] = []
    for name in names:
        pid, _, rest = name.partition("-")
        started = rest.partition("-")[0]
        if not pid.isdigit() or _start_time(int(pid)) == started:
            continue
        undone += _reap_one(f"{directory}/{name}")
    return undone


def _reap_one(path: str) -> list[str]:
    import json

    try:
        with open(path) as file:
            record = json.load(file)
        handler = find_entry("undo", record["kind"])
        if handler is None:
            say(f"leftover of unknown kind {record['kind']} in {path}")
            return []
        handler(record["data"])
    except ValueError:
        say(f"{path} is not a record; removed")
        _unlink(path)
        return []
    except Exception as error:
        if isinstance(error, FileNotFoundError) and error.filename == path:
            return []  # another start was faster
        # No failure (an interpreter without pyroute2, an error of the kernel) may keep a program
        # from starting; a later start may succeed.
        say(f"cannot undo {path}: {error}")
        return []
    if not _unlink(path):
        return []
    figures = ", ".join(f"{name} {value}" for name, value in record["data"].items())
    text = f"{record['kind']} of a killed bpfkit ({figures})"
    say(f"removed {text}")
    return [text]
