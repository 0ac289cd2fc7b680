# SPDX-License-Identifier: Apache-2.0
"""Attachments.  Closing a link detaches the program; so does the end of the process.

Kernel links (an fd whose close detaches) are used where they exist.  An attachment made otherwise
(a socket option, ``BPF_PROG_ATTACH``) is an object of the same class with the call that undoes it.
"""

from __future__ import annotations

import errno
import os
from time import time as unix_time

from bpfkit.core.closing import Closing, opened
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
from bpfkit.core.shown import Shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bpfkit.core.program import Program

__all__ = ["Attachment", "Link", "attach_error", "create_link", "find_interface", "own_link"]


class Attachment:
    """What a link holds.  Its program refers to it, and so keeps it when nobody refers to the link;
    it does not refer to its program, which so goes with the last reference to it.
    """

    __slots__ = ("check", "fd", "kind", "pid", "since", "target", "undo")

    def __init__(
        self,
        kind: str,
        target: str,
        fd: int,
        undo: Callable[[], None] | None,
        check: Callable[[], bool] | None,
    ) -> None:
        self.kind = kind
        self.target = target
        self.fd = fd
        self.undo = undo
        self.check = check
        self.pid = os.getpid()
        self.since = unix_time()

    @property
    def closed(self) -> bool:
        """Whether it was undone."""
        return self.fd < 0 and self.undo is None

    def close(self) -> None:
        """Detach.  Closing twice does nothing."""
        fd, self.fd = self.fd, -1
        undo, self.undo = self.undo, None
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

    def abandon(self) -> None:
        """Close what a fork copied; what the parent attached stays attached."""
        fd, self.fd, self.undo = self.fd, -1, None
        if fd >= 0:
            os.close(fd)


class Link(Closing, Shown):
    """One attachment of one program.

    :param kind: the kind of attachment ("xdp", "tcx", "socket", "cgroup" …).
    :param target: where the program is attached, for messages ("eth0", "fd 7").
    :param fd: the link's fd, or -1 where the kernel has no link for this kind.
    :param undo: called once on close, for attachments without a link.
    :param check: whether the attachment is there, for attachments without a link.

    A link is open until it or its program is closed, also when nobody refers to it.
    """

    __slots__ = ("_held", "program")

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
        self._held = Attachment(kind, target, fd, undo, check)
        program._attachments.append(self._held)

    @classmethod
    def _of(cls, program: Program, held: Attachment) -> Link:
        """The link of an attachment that exists."""
        link = cls.__new__(cls)
        link.program, link._held = program, held
        return link

    @property
    def kind(self) -> str:
        """The kind of attachment ("xdp", "tcx", "socket", "cgroup" …)."""
        return self._held.kind

    @property
    def since(self) -> float:
        """When the program was attached: UNIX time in seconds."""
        return self._held.since

    @property
    def target(self) -> str:
        """Where the program is attached, for messages ("eth0", "fd 7")."""
        return self._held.target

    @property
    def fd(self) -> int:
        """The kernel link's fd; -1 where there is none, and after :meth:`close`."""
        return self._held.fd

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Link) and self._held is other._held

    def __hash__(self) -> int:
        return hash(id(self._held))

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
        return self._held.closed

    def is_attached(self) -> bool:
        """Whether the program is attached: false once somebody else has removed the attachment.

        A kind of attachment that the kernel does not tell about is taken to be there.
        Source: struct bpf_link_info (kernel 5.8; detached links 5.9).
        """
        if self.closed:
            return False
        if self.fd < 0:
            check = self._held.check
            return check is None or check()
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
        self.program._attachments.remove(self._held)
        self.program = program
        program._attachments.append(self._held)

    def _hand_over(self) -> int:
        """Close the link without detaching; returns its fd, which the caller owns from now on."""
        fd, self._held.fd = self.fd, -1
        self.close()
        return fd

    def close(self) -> None:
        """Detach.  Closing twice does nothing."""
        try:
            self._held.close()
        finally:
            if self._held in self.program._attachments:
                self.program._attachments.remove(self._held)

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
        # No local variable refers to it: its traceback would then keep the program.
        raise _refused_link(program, kind, target, error) from None
    return Link(program, kind, target, fd)


def _refused_link(program: Program, kind: str, target: str, error: OSError) -> BpfkitError:
    """The error, which names the link of this process that is in the way, if one is."""
    refused = attach_error(program, target, error)
    mine = None
    if error.errno in (errno.EBUSY, errno.EEXIST):
        mine = own_link(kind, target)
    if mine is not None:
        refused.why = f"another link of this process is there: {mine!r}"
        refused.hint = "close that link first"
    return refused


def own_link(kind: str, target: str, number: int | None = None) -> Link | None:
    """The open link of this process with this kind and target.

    :param number: the kernel's id of the link; None: of any.
    """
    for one in opened():
        if (
            isinstance(one, Link)
            and (one.kind, one.target) == (kind, target)
            and number in (None, one.id)
        ):
            return one
    return None


def find_interface(program: Program, interface: int | str) -> tuple[int, str]:
    """Index and name of an interface of the caller's network namespace.

    :param interface: its index or its name.
    :raises InputError: there is no such interface; the text names the program to attach, and the
        nearest names.
    """
    import _socket

    try:
        if isinstance(interface, str):
            return _socket.if_nametoindex(interface), interface
        return interface, _socket.if_indextoname(interface)
    except (OSError, OverflowError, ValueError):
        names = [name for _, name in _socket.if_nameindex()]
    hint = f"the interfaces are {', '.join(names)}"
    if isinstance(interface, str):
        from bpfkit.core.errors import nearest

        hint = nearest(interface, names) or hint
    raise InputError(
        f"cannot attach '{program.name}' to interface {interface}",
        why="there is no such interface",
        hint=hint,
    )


_REASONS: dict[int, tuple[str, str]] = {
    errno.ENODEV: ("there is no such interface", ""),
    errno.EBUSY: (
        "another program is attached there",
        "`bpftool net show` shows which one",
    ),
    errno.EEXIST: ("another program is attached there", "`bpftool net show` shows which one"),
    errno.EOPNOTSUPP: ("the driver or the kernel does not support this attachment", ""),
    errno.ERANGE: (
        "the MTU is too large for XDP in this driver",
        'attach_xdp(mode="generic") takes frames of any size',
    ),
    errno.EINVAL: ("the kernel does not support this kind of attachment for this program type", ""),
    errno.EPERM: ("not permitted", "run as root"),
    errno.ENOENT: ("the target does not exist in this kernel", ""),
    errno.E2BIG: ("too many programs are attached there", ""),
}

_UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOPROTOOPT)


def attach_error(program: Program, target: str, error: OSError) -> BpfkitError:
    """The error to raise when the kernel refused an attachment."""
    from bpfkit.core.types.btf import kernel_names

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
    if kind is UnsupportedError and not kernel_names("bpf_attach_type", attach):
        text = f"this kernel does not have the attach type {attach_type_name(attach)}"
        hint = "`python3 -m bpfkit doctor` shows what works here"
    refused = kind(f"{what}) to {target}", why=text, hint=hint)
    refused.errno = number
    return refused
