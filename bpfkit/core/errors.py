# SPDX-License-Identifier: Apache-2.0
"""One family of errors: what failed, why, and what to do about it.

``str(error)`` is what a user sees: one line ``what: why`` and, where there is something to do,
a second line with the hint.  Compilers' and verifiers' full text is never part of it; it stays
in :attr:`BpfkitError.log`.  :attr:`BpfkitError.exit_status` is the exit status of a program
that ends by this error (0 done, 1 failed, 2 bad usage or input, 77 this machine cannot).
"""

from __future__ import annotations

import errno as _errno
import os

from bpfkit.core.shown import Shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "AttachError",
    "BpfkitError",
    "CompileError",
    "InputError",
    "LoadError",
    "MapError",
    "NoSuchNameError",
    "PrivilegeError",
    "UnsupportedError",
    "UsageError",
    "VerifierError",
    "errno_text",
    "lacking",
    "nearest",
    "resource_error",
]


class BpfkitError(Shown, Exception):
    """Base class of the errors that bpfkit raises.

    :param what: what failed, on which object ("cannot attach program 'f' to eth0").
    :param why: the reason, in words.
    :param hint: what the user can do, one line.
    :param log: the full text behind the reason (clang, verifier); shown with ``-v`` only.
    """

    exit_status = 1
    #: The errno of the system call that failed, 0 if none did.
    errno = 0

    def __init__(self, what: str, *, why: str = "", hint: str = "", log: str = "") -> None:
        super().__init__(what, why, hint)
        self.what = what
        self.why = why
        self.hint = hint
        self.log = log

    def __str__(self) -> str:
        text = f"{self.what}: {self.why}" if self.why else self.what
        return f"{text}\n{self.hint}" if self.hint else text

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback: the caller's own lines, then the message.

        Source: IPython's InteractiveShell.showtraceback.
        """
        from linecache import getline

        lines = []
        step = self.__traceback__
        while step is not None:
            code = step.tb_frame.f_code
            package = str(step.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
            if package not in ("bpfkit", "IPython", "ipykernel", "traitlets", "decorator"):
                text = getline(code.co_filename, step.tb_lineno, step.tb_frame.f_globals).strip()
                if text.startswith("get_ipython().run_"):
                    step = step.tb_next  # a magic: the message names the cell's line
                    continue
                where = f"{code.co_name}(), " if code.co_name != "<module>" else ""
                lines.append(f"{where}line {step.tb_lineno}: {text}")
            step = step.tb_next
        return [*lines, f"{type(self).__name__}: {self}"]


class CompileError(BpfkitError):
    """The C source does not compile; ``diagnostics`` is a list of (file, line, column, text)."""

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        hint: str = "",
        log: str = "",
        diagnostics: list[tuple[str, int, int, str]] | None = None,
    ) -> None:
        super().__init__(what, why=why, hint=hint, log=log)
        self.diagnostics = diagnostics or []


class LoadError(BpfkitError):
    """The kernel refused a program or a map for a reason other than the verifier's."""


class VerifierError(LoadError):
    """The verifier rejected a program; ``log`` is its whole log.

    :ivar refused: ``bpf_get_current_comm()`` where it refused the call of that function, which the
        kernel does not have or does not have for this type; else "".
    """

    refused = ""


class AttachError(BpfkitError):
    """The kernel refused to attach a program."""


class MapError(BpfkitError):
    """A map operation failed."""


class UsageError(BpfkitError):
    """The command line is wrong."""

    exit_status = 2


class InputError(BpfkitError):
    """An input named by the user is missing, malformed or of the wrong kind."""

    exit_status = 2


class NoSuchNameError(InputError, KeyError):
    """Nothing has this name; also a KeyError, as looking up a name is expected to raise."""


class UnsupportedError(BpfkitError):
    """This kernel or machine lacks support; the missing config, version or package is named."""

    exit_status = 77


class PrivilegeError(UnsupportedError):
    """A capability is missing."""


#: The machine's state rather than a fault of bpfkit's: errno -> (reason, remedy).
_RESOURCES = {
    _errno.EMFILE: ("this process has too many open files", "raise the limit: ulimit -n 1024"),
    _errno.ENFILE: ("the machine has too many open files", "raise it: sysctl -w fs.file-max=…"),
    _errno.ENOSPC: ("no space is left", "free some space there"),
    _errno.EDQUOT: ("the disk quota is used up", "free some space there"),
    _errno.EROFS: ("the file system is read-only", "containers often mount it so: use the host"),
    _errno.ENOMEM: ("out of memory", "raise the limit (ulimit -v), or free memory"),
    _errno.EAGAIN: ("a limit on processes or locked memory is reached", "see ulimit -a"),
}


def resource_error(error: OSError) -> BpfkitError | None:
    """The error to report for a system call that failed for lack of a resource, a missing system
    call or a missing file of the kernel's; None for any other reason.
    """
    number = error.errno or 0
    name = error.filename
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    verb = "open" if number in (_errno.EMFILE, _errno.ENFILE, _errno.ENOENT) else "use"
    what = f"cannot {verb} {name}" if name else "a system call failed"
    if number == _errno.ENOSYS:
        return UnsupportedError(
            what,
            why="this kernel has no such system call",
            hint="bpf(2) needs CONFIG_BPF_SYSCALL; a container's seccomp filter may hide it",
        )
    if number == _errno.ENOENT and isinstance(name, str) and name.startswith(("/sys/", "/proc/")):
        return UnsupportedError(
            what,
            why="it does not exist",
            hint="mount it: mount -t sysfs sysfs /sys; mount -t proc proc /proc",
        )
    if number not in _RESOURCES:
        return None
    why, hint = _RESOURCES[number]
    if number == _errno.EROFS and isinstance(name, str) and name.startswith("/proc/sys/"):
        return UnsupportedError(what, why=why, hint=hint)
    return BpfkitError(what, why=why, hint=hint)


def lacking(error: OSError, what: str) -> BpfkitError | None:
    """The error of bpf(2) where the process has no descriptor left or the kernel no such call.

    :param what: what failed ("cannot create map 'm'").
    """
    if error.errno not in (_errno.EMFILE, _errno.ENFILE, _errno.ENOSYS):
        return None
    found = resource_error(error)
    if found is not None:
        found.what = what
    return found


def nearest(name: str, known: Iterable[str], cutoff: float = 0.75) -> str:
    """A hint with the names that are nearest to ``name``; "" if none is near."""
    import difflib

    names = list(known)
    near = [other for other in names if name and name in other][:3]
    near += difflib.get_close_matches(name, names, n=3, cutoff=cutoff)
    return f"nearest: {', '.join(list(dict.fromkeys(near))[:4])}" if near else ""


def errno_text(number: int) -> str:
    """``ENOENT (No such file or directory)`` for 2."""
    # The kernel's name: Python calls it ENOTSUP, which is another number there.
    name = "EOPNOTSUPP" if number == _errno.EOPNOTSUPP else _errno.errorcode.get(number)
    text = os.strerror(number)
    return f"{name} ({text})" if name else f"errno {number}"
