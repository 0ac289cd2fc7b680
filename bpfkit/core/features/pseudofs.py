# SPDX-License-Identifier: Apache-2.0
"""Files of tracefs and securityfs: read where those are mounted, else through a mount of our own.

A detached mount (fsmount(2), kernel 5.2) has no place in any directory tree, is seen by nobody else
and disappears with its descriptor, so a tracepoint's number can be read on a machine where tracefs
is not mounted.
"""

from __future__ import annotations

import os

from bpfkit.core.errors import UnsupportedError, errno_text

__all__ = ["read_tracefs", "security_modules", "tracefs_entries"]

_NR_FSOPEN, _NR_FSCONFIG, _NR_FSMOUNT = 430, 431, 432
_CONFIG_CREATE = 6  # FSCONFIG_CMD_CREATE
_CLOEXEC = 1


def read_tracefs(path: str) -> str:
    """The text of a file, by its path below the root of tracefs (``events/sched/…/id``).

    :raises FileNotFoundError: the kernel has no such file.
    :raises UnsupportedError: tracefs cannot be used; says why.
    """
    root = _open()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    finally:
        os.close(root)
    with open(fd, encoding="utf-8", errors="replace") as file:
        return file.read()


def tracefs_entries(path: str) -> list[str]:
    """The names in a directory below the root of tracefs; none if there is no such directory.

    :raises UnsupportedError: tracefs cannot be used; says why.
    """
    root = _open()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    except FileNotFoundError:
        return []
    finally:
        os.close(root)
    try:
        return sorted(os.listdir(fd))
    finally:
        os.close(fd)


def _open() -> int:
    from bpfkit.core.features.system import tracefs

    mounted = tracefs()
    if mounted:
        try:
            return os.open(mounted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _unusable("tracefs", errno_text(error.errno or 0)) from None
    return _detached("tracefs", "CONFIG_TRACING")


def security_modules() -> list[str]:
    """The active security modules (LSM), in their order; ``lsm=`` on the kernel's command line says
    which.

    :raises UnsupportedError: securityfs cannot be used; says why.
    """
    try:
        with open("/sys/kernel/security/lsm") as file:
            return file.read().strip().split(",")
    except FileNotFoundError:
        pass
    root = _detached("securityfs", "CONFIG_SECURITYFS")
    try:
        fd = os.open("lsm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    finally:
        os.close(root)
    with open(fd) as file:
        return file.read().strip().split(",")


def _detached(kind: str, setting: str) -> int:
    """A descriptor of the root of a file system.

    :param setting: the option that the kernel was built without if it does not have it.
    """
    import ctypes
    import errno

    call = ctypes.CDLL(None, use_errno=True).syscall

    def checked(number: int, *words: object) -> int:
        result: int = call(ctypes.c_long(number), *words)
        if result < 0:
            code = ctypes.get_errno()
            if code == errno.ENODEV:
                raise _unusable(kind, f"the kernel has no {kind} ({setting})")
            raise _unusable(kind, errno_text(code))
        return result

    context = checked(_NR_FSOPEN, kind.encode(), ctypes.c_uint(_CLOEXEC))
    try:
        config = (ctypes.c_uint(_CONFIG_CREATE), None, None, ctypes.c_int(0))
        checked(_NR_FSCONFIG, ctypes.c_int(context), *config)
        flags = (ctypes.c_uint(_CLOEXEC), ctypes.c_uint(0))
        return checked(_NR_FSMOUNT, ctypes.c_int(context), *flags)
    finally:
        os.close(context)


def _unusable(kind: str, why: str) -> UnsupportedError:
    where = {"tracefs": "/sys/kernel/tracing", "securityfs": "/sys/kernel/security"}[kind]
    return UnsupportedError(
        f"cannot use {kind}", why=why, hint=f"as root: mount -t {kind} {kind} {where}"
    )
