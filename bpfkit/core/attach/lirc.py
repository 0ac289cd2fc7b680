# SPDX-License-Identifier: Apache-2.0
"""Infrared receivers, ``/dev/lircN``, by BPF_PROG_ATTACH (kernel 4.18; CONFIG_BPF_LIRC_MODE2).

The kernel has no link for this kind: the receiver holds the program, after ``kill -9``, too.  So an
ownership record is written first; the next start of bpfkit detaches the program.

Source: drivers/media/rc/bpf-lirc.c.
"""

from __future__ import annotations

import errno
import os

from bpfkit.core.attach.link import Link, attach_error
from bpfkit.core.errors import AttachError, InputError, errno_text
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import attach_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from bpfkit.core.program import Program

__all__ = ["attach", "open_receiver", "undo_lirc"]

_REASONS = {
    errno.EINVAL: "it does not receive pulses (it only sends, or decodes scancodes itself)",
    errno.ENODEV: "the receiver is gone",
    errno.EEXIST: "the program is attached there",
    errno.E2BIG: "64 programs are attached there",
}


def open_receiver(path: str) -> int:
    """A descriptor of ``/dev/lircN`` for reading and writing; reads do not wait.

    :raises InputError: there is no such device, or it is no receiver.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise InputError(f"no receiver {path}", why=errno_text(error.errno or 0)) from None
    name = os.path.basename(os.path.realpath(path))
    try:
        with open(f"/sys/class/lirc/{name}/dev", encoding="ascii") as file:
            number = file.read().strip()
    except OSError:
        number = ""
    rdev = os.fstat(fd).st_rdev
    if number != f"{os.major(rdev)}:{os.minor(rdev)}":
        os.close(fd)
        raise InputError(f"{path} is no infrared receiver", why="it is not in /sys/class/lirc")
    return fd


def attach(program: Program, path: str) -> Link:
    """See :meth:`bpfkit.core.program.Program.attach_lirc`."""
    from bpfkit.core.records import Record

    number = attach_type("LIRC_MODE2")
    fd = open_receiver(path)
    try:
        record = Record("lirc", {"device": path, "program": program.id})
    except BaseException:
        os.close(fd)
        raise
    try:
        syscall.prog_attach(fd, program.fd, number)
    except OSError as error:
        os.close(fd)
        record.done()
        refused = attach_error(program, path, error)
        why = _REASONS.get(error.errno or 0)
        if why:
            kind = InputError if error.errno == errno.EINVAL else AttachError
            refused = kind(refused.what, why=f"{why} [{errno_text(error.errno or 0)}]")
        raise refused from None

    prog_fd, prog_id = program.fd, program.id  # and not the program, which would then never go

    def undo() -> None:
        try:
            syscall.prog_detach(fd, prog_fd, number)
        except OSError:
            pass  # somebody detached it, or the receiver is gone
        os.close(fd)
        record.done()

    def check() -> bool:
        return prog_id in _attached(fd)

    return Link(program, "lirc", path, undo=undo, check=check)


def _attached(fd: int) -> list[int]:
    """The ids of the programs that are attached to a receiver."""
    return syscall.prog_query(fd, attach_type("LIRC_MODE2"))


def undo_lirc(data: Mapping[str, Any]) -> None:
    """Detach the program of a process that is gone (an ownership record's undo).

    :param data: ``device``, the receiver's path, and ``program``, the id.
    """
    try:
        fd = open_receiver(str(data["device"]))
    except InputError:
        return  # the receiver is gone, and the attachment with it
    try:
        # The id is another program's by now only if it was used again, for this very receiver.
        if int(data["program"]) in _attached(fd):
            program = syscall.prog_get_fd_by_id(int(data["program"]))
            try:
                syscall.prog_detach(fd, program, attach_type("LIRC_MODE2"))
            finally:
                os.close(program)
    except FileNotFoundError:
        pass  # detached a moment ago
    finally:
        os.close(fd)
