# SPDX-License-Identifier: Apache-2.0
"""cgroups of the v2 hierarchy: where it is mounted, a user's cgroup, a cgroup of our own.

A cgroup of our own is a directory that outlives the process, so it has an ownership record
(:mod:`bpfkit.core.records`): the next start removes it, and kills what was left running in it.

Source: Documentation/admin-guide/cgroup-v2.rst (kernel 4.5; ``cgroup.kill`` 5.14).
"""

from __future__ import annotations

import errno
import os

from bpfkit.core.closing import Held
from bpfkit.core.errors import BpfkitError, InputError, UnsupportedError, errno_text, lacking
from bpfkit.core.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from subprocess import CompletedProcess
    from types import TracebackType
    from typing import Any

__all__ = ["Cgroup", "cgroup_of", "cgroup_root", "own_cgroup", "undo_cgroup"]

_REMOVE_S = 2.0
_count = 0


def cgroup_root() -> str:
    """The directory where the v2 hierarchy is mounted.

    :raises UnsupportedError: it is not mounted; a v1 hierarchy alone has no place for programs.
    """
    other = ""
    with open("/proc/self/mounts", errors="surrogateescape") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[2] == "cgroup2":
                return fields[1].replace("\\040", " ")
            if fields[2] == "cgroup":
                other = "; BPF programs cannot be attached to the v1 hierarchy"
    raise UnsupportedError(
        "cannot use cgroups",
        why=f"no cgroup v2 hierarchy is mounted{other}",
        hint="mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
    )


def own_cgroup() -> str:
    """The directory of this process's cgroup in the v2 hierarchy.

    :raises UnsupportedError: the hierarchy is not mounted.
    """
    return cgroup_of("self")


def cgroup_of(pid: int | str) -> str:
    """The directory of a process's cgroup in the v2 hierarchy.

    :raises UnsupportedError: the hierarchy is not mounted.
    :raises OSError: there is no such process.
    """
    root = cgroup_root()
    with open(f"/proc/{pid}/cgroup", errors="surrogateescape") as groups:
        for line in groups:
            if line.startswith("0::"):
                path = root + line[3:].rstrip("\n").rstrip("/")
                # In a cgroup namespace the path may lead out of what is mounted.
                return path if "/.." not in path and os.path.isdir(path) else root
    return root


class Cgroup(Held):
    """A cgroup, open: one that is there (:meth:`open`), or one of our own (:meth:`new`).

    :ivar path: its directory.
    :ivar fd: a descriptor of the directory.
    :ivar id: the kernel's 64-bit id, which programs get from bpf_get_current_cgroup_id().
    """

    def __init__(self, path: str, fd: int, record: Record | None = None) -> None:
        self.path = path
        self.fd = fd
        self.id = os.fstat(fd).st_ino
        self._record = record
        self._pid = os.getpid()

    def __del__(self) -> None:
        # The child of a fork has a copy: the cgroup is its parent's to remove.
        if getattr(self, "_pid", 0) != os.getpid():
            self._record = None
        super().__del__()

    @classmethod
    def open(cls, path: str) -> Cgroup:
        """The cgroup of a directory.

        :param path: absolute, or relative to the current directory or to the hierarchy's root
            (``system.slice/ssh.service``).
        :raises InputError: there is none, or the directory is not one of the v2 hierarchy.
        :raises UnsupportedError: the hierarchy is not mounted.
        """
        if not path:
            # Below the root it would name the root: every process of the machine.
            raise InputError("the name of the cgroup is empty", why="write / for the root")
        root = cgroup_root()
        if not os.path.isdir(path) and os.path.isdir(f"{root}/{path}"):
            path = f"{root}/{path.strip('/')}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"no cgroup {path}", why=errno_text(error.errno or 0)) from None
        # cgroup.procs is in v1's directories, too; cgroup.controllers only in v2's.
        if not os.path.exists(f"{path}/cgroup.controllers"):
            os.close(fd)
            raise InputError(
                f"{path} is not a cgroup of the v2 hierarchy", why=f"that is mounted at {root}"
            )
        return cls(os.path.abspath(path), fd)

    @classmethod
    def new(cls, label: str = "", parent: str | None = None) -> Cgroup:
        """A new, empty cgroup, removed by :meth:`close`.

        :param label: a word in the directory's name, for people.
        :param parent: the directory to make it in; by default this process's own cgroup, so that
            the limits and programs that hold for the caller hold in the new one.
        :raises UnsupportedError: the hierarchy is not mounted, or cannot be written to.
        """
        global _count
        if parent is None:
            parent = own_cgroup()
        _count += 1
        words = filter(None, ("bpfkit", label, str(os.getpid()), str(_count)))
        path = f"{parent}/{'-'.join(words)}"
        record = Record("cgroup", {"path": path})
        try:
            os.mkdir(path, 0o755)
        except OSError as error:
            record.done()
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise UnsupportedError(
                    f"cannot make a cgroup in {parent}",
                    why=errno_text(error.errno),
                    hint="a container needs its cgroup file system mounted writable",
                ) from None
            raise lacking(error, f"cannot make a cgroup in {parent}") or BpfkitError(
                f"cannot make a cgroup in {parent}", why=errno_text(error.errno or 0)
            ) from None
        return cls(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), record)

    @property
    def is_own(self) -> bool:
        """Whether bpfkit made it."""
        return self._record is not None

    def is_removed(self) -> bool:
        """Whether somebody has removed it; another one may have its path by now."""
        try:
            return os.stat(self.path).st_ino != self.id
        except OSError:
            return True

    def check_there(self) -> None:
        """Raise BpfkitError if somebody has removed it."""
        if self.is_removed():
            raise BpfkitError(f"the cgroup {self.path} was removed, and the program with it")

    def pids(self) -> list[int]:
        """The processes in it, not those of cgroups below."""
        return _pids(self.path)

    def open_procs(self) -> int:
        """A descriptor: writing ``0`` to it moves the writing process into the cgroup."""
        return os.open(f"{self.path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def add(self, pid: int = 0) -> None:
        """Move a process, by default this one, into the cgroup.

        :raises BpfkitError: the process is gone, or the kernel refuses.
        """
        try:
            fd = self.open_procs()
            try:
                os.write(fd, b"%d" % pid)
            finally:
                os.close(fd)
        except OSError as error:
            raise BpfkitError(
                f"cannot move process {pid or os.getpid()} into {self.path}",
                why=errno_text(error.errno or 0),
            ) from None

    def entered(self) -> _Inside:
        """``with group.entered():`` this process, with all its threads, is in the cgroup."""
        return _Inside(self)

    def run(self, argv: Sequence[str], **options: Any) -> CompletedProcess[str]:
        """Run a command in the cgroup to its end; returns what it printed.

        :param options: for :func:`subprocess.run`; without them the input is empty, both outputs
            are captured as text, the limit is 60 seconds, and no status is an error.
        :raises BpfkitError: the command has not ended within the limit.
        """
        import subprocess

        procs = self.open_procs()
        defaults: dict[str, Any] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "timeout": 60,  # a VM without KVM is 15 times slower
            "check": False,
            "preexec_fn": lambda: os.write(procs, b"0"),
        }
        if "input" not in options:
            defaults["stdin"] = subprocess.DEVNULL
        try:
            return subprocess.run(list(argv), **{**defaults, **options})
        except subprocess.TimeoutExpired as error:
            limit = options.get("timeout", defaults["timeout"])
            why = f"still running after {limit} s"
            raise BpfkitError(f"{argv[0]} does not end in {self.path}", why=why) from error
        finally:
            os.close(procs)

    def kill(self) -> None:
        """Kill every process in it (SIGKILL)."""
        _kill(self.path)

    def close(self) -> None:
        """Close; a cgroup of our own is removed, processes still in it go to its parent."""
        fd, self.fd = self.fd, -1
        record, self._record = self._record, None
        if fd >= 0:
            os.close(fd)
        if record is not None:
            _move_out(self.path)
            if _remove(self.path):
                record.done()

    def __repr__(self) -> str:
        return f"<Cgroup {self.path}>"


class _Inside:
    def __init__(self, group: Cgroup) -> None:
        self._group = group
        self._before = ""

    def __enter__(self) -> None:
        self._before = own_cgroup()
        self._group.add()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with open(f"{self._before}/cgroup.procs", "w") as procs:
            procs.write("0")


def undo_cgroup(data: dict[str, Any]) -> None:
    """Remove the cgroup of an ownership record; what runs in it is killed, as its maker was."""
    path = data["path"]
    if not os.path.basename(path).startswith("bpfkit-") or not os.path.exists(
        f"{path}/cgroup.controllers"
    ):
        return
    _kill(path)
    if not _remove(path):
        raise BpfkitError(f"cannot remove {path}", why="processes in it do not end")


def _pids(path: str) -> list[int]:
    try:
        with open(f"{path}/cgroup.procs") as procs:
            return [int(line) for line in procs]
    except OSError:
        return []


def _kill(path: str) -> None:
    import signal

    try:
        with open(f"{path}/cgroup.kill", "w") as file:
            file.write("1")
        return
    except OSError:
        pass  # before 5.14
    for pid in _pids(path):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass


def _move_out(path: str) -> None:
    """Move the processes of a cgroup and of those below it to the cgroup's parent."""
    parent = os.path.dirname(path)
    for directory, _, _ in os.walk(path):
        for pid in _pids(directory):
            try:
                with open(f"{parent}/cgroup.procs", "w") as procs:
                    procs.write(str(pid))
            except OSError:
                pass  # it ended


def _remove(path: str) -> bool:
    """Remove a cgroup and those below it; true if it is gone.

    A process that was killed stays in its cgroup until it is reaped by its parent.
    """
    from time import monotonic, sleep

    deadline = monotonic() + _REMOVE_S
    while True:
        for directory, _, _ in os.walk(path, topdown=False):
            try:
                os.rmdir(directory)
            except OSError:
                pass
        if not os.path.isdir(path):
            return True
        if monotonic() > deadline:
            return False
        sleep(0.005)
