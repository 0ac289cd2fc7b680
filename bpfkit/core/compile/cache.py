# SPDX-License-Identifier: Apache-2.0
"""Compiled artifacts on disk.

The cache holds code that root loads into the kernel, so nothing in it is believed:

* nobody else can write to the directory or to one on the way to it (``bpfkit.core.trust``); it is
  opened once without following links, and every file is opened relative to it; an entry owned by
  somebody else or writable by a group is not read;
* an entry starts with its own key and the SHA-256 of its body, so a truncated, corrupted or
  swapped file is noticed before a byte of it is unmarshalled;
* the key covers what can change the result before anything is compiled (texts, flags, kernel,
  CPUs, environment); what is only known afterwards (system headers, libbcc, LLVM) is recorded in
  the entry with size, mtime and inode, and compared at every hit.

Writers never share a file: a new entry is written aside and renamed.  A cache that cannot be
written (full or read-only disk) is no error: bpfkit runs without it.
"""

from __future__ import annotations

import errno
import marshal
import os
import stat

try:
    from _sha256 import sha256  # type: ignore[import-not-found]  # < 3.12; hashlib costs 3 ms
except ImportError:
    try:
        from _sha2 import sha256  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha256

from bpfkit.core.compile.artifact import FORMAT, check
from bpfkit.core.errors import errno_text
from bpfkit.core.log import say
from bpfkit.core.trust import UntrustedError, open_trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bpfkit.core.compile.artifact import Artifact

__all__ = ["Cache", "cache_dir", "digest", "sha256"]

_MAGIC = b"bpfkit1\n"
_HEAD = len(_MAGIC) + 64 + 32
_MAX_ENTRY = 64 << 20
_DEFAULT_BOUND = 64 << 20
_STALE_TEMPORARY = 3600.0

#: Environment that changes what a compile yields.
_ENVIRONMENT = ("BPFKIT_HEADERS", "BCC_KERNEL_SOURCE", "BPFKIT_BCC_PYTHON", "BPFKIT_WORKER_NOHOOK")


def cache_dir() -> str:
    """Where bpfkit keeps what it can make again.

    ``BPFKIT_CACHE``, else ``$XDG_CACHE_HOME/bpfkit``, else ``/var/cache/bpfkit`` for root and
    ``~/.cache/bpfkit`` for everybody else.
    """
    override = os.environ.get("BPFKIT_CACHE")
    if override:
        return os.path.abspath(override)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return os.path.join(os.path.abspath(base), "bpfkit")
    if os.geteuid() == 0:
        return "/var/cache/bpfkit"
    return os.path.expanduser("~/.cache/bpfkit")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def digest(material: Iterable[bytes], cflags: Sequence[str]) -> str:
    """The cache key: 64 hexadecimal digits.

    :param material: the source's own texts with their names, in order.
    """
    h = sha256()
    uname = os.uname()
    parts = [
        b"%d" % FORMAT,
        _GENERATION,
        *material,
        *(flag.encode() for flag in cflags),
        b"--",
        uname.release.encode(),
        uname.version.encode(),
        uname.machine.encode(),
        _read("/sys/kernel/notes"),  # the kernel's build id
        _read("/sys/devices/system/cpu/possible"),
        *(os.environ.get(name, "").encode() for name in _ENVIRONMENT),
    ]
    for part in parts:
        h.update(len(part).to_bytes(8, "little"))
        h.update(part)
    return str(h.hexdigest())


def _generation() -> bytes:
    """Identity of the code that compiles: an edited or upgraded bpfkit makes a new key."""
    out = []
    with os.scandir(os.path.dirname(__file__)) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.endswith(".py"):
                s = entry.stat()
                out.append(b"%s %d.%d" % (entry.name.encode(), s.st_size, s.st_mtime_ns))
    return b",".join(out)


_GENERATION = _generation()


def _bound_of(text: str) -> int:
    """BPFKIT_CACHE_BYTES; what is no number is said with ``-v`` and otherwise ignored."""
    if text and not (text.isascii() and text.isdigit()):
        say(f"BPFKIT_CACHE_BYTES={text} is no number of bytes: not used")
        text = ""
    return int(text or 0) or _DEFAULT_BOUND


class Cache:
    """A directory of artifacts.  Every method survives a missing, foreign or full directory."""

    def __init__(self, path: str | None = None, bound: int | None = None) -> None:
        self.path = os.path.join(path or cache_dir(), "objects")
        self.bound = bound or _bound_of(os.environ.get("BPFKIT_CACHE_BYTES", ""))

    def _open_dir(self, create: bool) -> int | None:
        """An fd of the directory, if nobody else can change what is in it; else None."""
        try:
            return open_trusted(self.path, create=create)
        except FileNotFoundError:
            if create:
                say(f"no cache at {self.path}: {errno_text(errno.ENOENT)}")
        except UntrustedError as error:
            say(f"cache {self.path} not used: {error.strerror}")
        except OSError as error:
            say(f"no cache at {self.path}: {errno_text(error.errno or 0)}")
        return None

    def get(self, key: str) -> Artifact | None:
        """The artifact of ``key``, or None; with ``-v`` the reason is said."""
        directory = self._open_dir(create=False)
        if directory is None:
            return None
        try:
            return self._get(directory, key)
        finally:
            os.close(directory)

    def _get(self, directory: int, key: str) -> Artifact | None:
        try:
            # A FIFO must not make the open wait for a writer.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open(key, flags, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            say(f"cache entry {key[:12]} not used: {errno_text(error.errno or 0)}; rebuilding")
            return None
        try:
            s = os.fstat(fd)
            problem = ""
            data = b""
            if not stat.S_ISREG(s.st_mode):
                problem = "not a regular file"
            elif s.st_uid != os.geteuid():
                problem = f"belongs to uid {s.st_uid}"
            elif s.st_mode & 0o022:
                problem = "others may write to it"
            elif not _HEAD <= s.st_size <= _MAX_ENTRY:
                problem = "truncated" if s.st_size < _HEAD else "too large"
            else:
                data = os.read(fd, s.st_size)
                problem = _problem(data, key)
        finally:
            os.close(fd)
        if not problem:
            try:
                artifact = check(marshal.loads(memoryview(data)[_HEAD:]))
            except (ValueError, EOFError, TypeError) as error:
                problem = f"corrupted ({error})"
            else:
                changed = _changed(artifact["deps"])
                if not changed:
                    return artifact
                problem = f"{changed} has changed"
        say(f"cache entry {key[:12]} not used: {problem}; rebuilding")
        return None

    def put(self, key: str, artifact: Artifact) -> None:
        """Keep an artifact; a disk that refuses is noted with ``-v`` and otherwise ignored."""
        directory = self._open_dir(create=True)
        if directory is None:
            return
        temporary = f".{key}.{os.getpid()}"
        try:
            body = marshal.dumps(artifact)
            data = _MAGIC + key.encode() + sha256(body).digest() + body
            fd = os.open(
                temporary,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
                dir_fd=directory,
            )
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            finally:
                os.close(fd)
            os.rename(temporary, key, src_dir_fd=directory, dst_dir_fd=directory)
            self._bound(directory, keep=key)
        except OSError as error:
            say(f"cannot keep the compiled program: {errno_text(error.errno or 0)}")
            try:
                os.unlink(temporary, dir_fd=directory)
            except OSError:
                pass
        finally:
            os.close(directory)

    def drop(self, key: str) -> None:
        """Forget one entry."""
        directory = self._open_dir(create=False)
        if directory is None:
            return
        try:
            os.unlink(key, dir_fd=directory)
        except OSError as error:
            if error.errno != errno.ENOENT:
                say(f"cannot drop cache entry {key[:12]}: {errno_text(error.errno or 0)}")
        finally:
            os.close(directory)

    def _bound(self, directory: int, keep: str) -> None:
        """Remove the oldest entries beyond the bound, and what killed writers left."""
        import time

        now = time.time()
        entries: list[tuple[float, int, str]] = []
        for name in os.listdir(directory):
            try:
                s = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except OSError:
                continue
            if name.startswith("."):
                if now - s.st_mtime > _STALE_TEMPORARY:
                    _unlink(directory, name)
            else:
                entries.append((s.st_mtime, s.st_size, name))
        total = sum(size for _, size, _ in entries)
        for _, size, name in sorted(entries):
            if total <= self.bound:
                break
            if name != keep:
                _unlink(directory, name)
                total -= size

    def clear(self) -> int:
        """Remove every entry; returns how many there were."""
        directory = self._open_dir(create=False)
        if directory is None:
            return 0
        try:
            names = os.listdir(directory)
            for name in names:
                _unlink(directory, name)
            return sum(not name.startswith(".") for name in names)
        finally:
            os.close(directory)


def _unlink(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:
        pass


def _problem(data: bytes, key: str) -> str:
    if data[: len(_MAGIC)] != _MAGIC:
        return "not a cache entry"
    if data[len(_MAGIC) : len(_MAGIC) + 64] != key.encode():
        return "made for another key"
    if sha256(memoryview(data)[_HEAD:]).digest() != data[_HEAD - 32 : _HEAD]:
        return "truncated or corrupted"
    return ""


def _changed(deps: list[tuple[str, int, int, int]]) -> str:
    """The first recorded file that is not what it was, or an empty string."""
    for path, size, mtime_ns, inode in deps:
        try:
            s = os.stat(path)
        except OSError:
            return path
        if (s.st_size, s.st_mtime_ns, s.st_ino) != (size, mtime_ns, inode):
            return path
    return ""
