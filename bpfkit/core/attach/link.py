# SPDX-License-Identifier: Apache-2.0
"""Attachments.  Closing a link detaches the program; so does the end of the process.

Kernel links (an fd whose close detaches) are used where they exist.  An attachment made otherwise
(a socket option, ``BPF_PROG_ATTACH``) is an object of the same class with the call that undoes it.
"""

from __future__ import annotations

import errno
import os

from bpfkit.core.closing import Closing
from bpfkit.core.errors import (
    AttachError,
    BpfkitError,
    InputError,
    PrivilegeError,
    UnsupportedError,
    errno_text,
)
from bpfkit.core.kernel import syscall
from bpfkit.core.kernel.constants import attach_type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bpfkit.core.program import Program

__all__ = ["Link", "attach_error", "create_link", "interface_name"]


class Link(Closing):
    """One attachment of one program.

    :param kind: the kind of attachment ("xdp", "tcx", "socket", "cgroup" …).
    :param target: where the program is attached, for messages ("eth0", "fd 7").
    :param fd: the link's fd, or -1 where the kernel has no link for this kind.
    :param undo: called once on close, for attachments without a link.
    :param check: whether the attachment is there, for attachments without a link.
    """

    __slots__ = ("_check", "_undo", "fd", "kind", "program", "target")

    def __init__(
        self,
        program: Program,
        kind: str,
        target: str,
        fd: int = -1,
        undo: Callable[[], None] | None = None,
        check: Callable[[], bool] | None = None,
    ) -> None:
        self.program = program
        self.kind = kind
        self.target = target
        self.fd = fd
        self._undo = undo
        self._check = check
        program._links.append(self)

    @property
    def id(self) -> int | None:
        """The kernel's id of the link; None where there is no link."""
        if self.fd < 0 or self.kind in ("perf_event", "raw_tracepoint_fd"):
            return None
        try:
            return int.from_bytes(syscall.obj_info(self.fd, 8)[4:8], "little")
        except OSError:
            return None

    @property
    def closed(self) -> bool:
        """Whether this link has been undone."""
        return self.fd < 0 and self._undo is None

    def is_attached(self) -> bool:
        """Whether the program is attached: false once somebody else has removed the attachment.

        A kind of attachment that the kernel does not tell about is taken to be there.
        Source: struct bpf_link_info (kernel 5.8; detached links 5.9).
        """
        if self.closed:
            return False
        if self.fd < 0:
            return self._check is None or self._check()
        if self.kind not in _TARGET_SIZE:
            return True
        # Type, id, program, padding, and then the target: 0 for a link that was detached.
        size = _TARGET_SIZE[self.kind]
        return any(syscall.obj_info(self.fd, 16 + size)[16:])

    def missed(self) -> int:
        """Events that the kernel could not deliver: ``missed`` of kprobe links (kernel 6.7), by
        perf event or kprobe.multi; 0 for other kinds.

        Source: struct bpf_link_info, members kprobe_multi and perf_event.
        """
        if self.fd < 0 or self.kind not in ("kprobe", "kretprobe", "kprobe.multi"):
            return 0
        # Type, id, program, padding; then addrs u64, count u32, flags u32, missed u64; or
        # perf_event's type u32, padding, func_name u64, name_len u32, offset u32, addr u64, missed.
        at = 32 if self.kind == "kprobe.multi" else 48
        return int.from_bytes(syscall.obj_info(self.fd, at + 8)[at:], "little")

    def update(self, program: Program) -> None:
        """Replace the program atomically, without a gap (kernel 5.7; BPF_LINK_UPDATE)."""
        try:
            syscall.link_update(self.fd, program.fd)
        except OSError as error:
            raise attach_error(program, self.target, error) from None
        self.program._links.remove(self)
        self.program = program
        program._links.append(self)

    def close(self) -> None:
        """Detach.  Closing twice does nothing."""
        fd, self.fd = self.fd, -1
        undo, self._undo = self._undo, None
        if fd >= 0:
            # A process that lists links at this moment (bpftool) holds this one, too, so closing
            # it may not detach.  Kinds without BPF_LINK_DETACH (EOPNOTSUPP) are only closed.
            try:
                syscall.link_detach(fd)
            except OSError:
                pass
            os.close(fd)
        if undo is not None:
            undo()
        if self in self.program._links:
            self.program._links.remove(self)

    detach = close

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<Link {self.kind} {self.program.name} on {self.target}{state}>"


#: Kind of link -> bytes that say to what it is attached: an ifindex, a namespace, a cgroup's id,
#: the id of a struct_ops map.
_TARGET_SIZE = {"xdp": 4, "tcx": 4, "netkit": 4, "netns": 4, "cgroup": 8, "struct_ops": 4}


def create_link(
    program: Program,
    kind: str,
    target: str,
    number: int,
    attach_type: int,
    flags: int = 0,
    extra: bytes = b"",
) -> Link:
    """Attach by BPF_LINK_CREATE.

    :param number: the target: an ifindex, or the fd of a cgroup, namespace or perf event.
    :param attach_type: of ``enum bpf_attach_type``.
    :param extra: what follows the flags in ``union bpf_attr`` for this kind.
    :raises BpfkitError: the kernel refused; see :func:`attach_error`.
    """
    try:
        fd = syscall.link_create(program.fd, number, attach_type, flags, extra)
    except OSError as error:
        raise attach_error(program, target, error) from None
    return Link(program, kind, target, fd)


def interface_name(program: Program, ifindex: int) -> str:
    """The name of an interface of the caller's network namespace.

    :raises InputError: there is no such interface; the text names the program to attach.
    """
    import _socket

    try:
        return _socket.if_indextoname(ifindex)
    except OSError:
        raise InputError(
            f"cannot attach '{program.name}' to interface {ifindex}",
            why="there is no such interface",
        ) from None


_REASONS: dict[int, tuple[str, str]] = {
    errno.ENODEV: ("there is no such interface", ""),
    errno.EBUSY: (
        "another program is attached there",
        "`bpftool net show` shows which one",
    ),
    errno.EEXIST: ("another program is attached there", "`bpftool net show` shows which one"),
    errno.EOPNOTSUPP: ("the driver or the kernel does not support this attachment", ""),
    errno.EINVAL: ("the kernel does not support this kind of attachment for this program type", ""),
    errno.EPERM: ("not permitted", "run as root"),
    errno.ENOENT: ("the target does not exist in this kernel", ""),
    errno.E2BIG: ("too many programs are attached there", ""),
}

_UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOPROTOOPT)


def attach_error(program: Program, target: str, error: OSError) -> BpfkitError:
    """The error to raise when the kernel refused an attachment."""
    number = error.errno or 0
    why, hint = _REASONS.get(number, ("", ""))
    text = f"{why} [{errno_text(number)}]" if why else errno_text(number)
    kind = UnsupportedError if number in _UNSUPPORTED else AttachError
    if number == errno.EPERM and os.geteuid() != 0:
        kind = PrivilegeError
    attach = program.section.expected_attach_type
    what = f"cannot attach '{program.name}' ({program.type_name}"
    if attach:
        what += f", {attach_type_name(attach)}"
    refused = kind(f"{what}) to {target}", why=text, hint=hint)
    refused.errno = number
    return refused
