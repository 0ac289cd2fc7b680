# SPDX-License-Identifier: Apache-2.0
"""The XDP programs of an interface and the processes that hold them; by rtnetlink, no pyroute2.

The mode of a link (BPF_LINK_CREATE) is known only to the interface (IFLA_XDP).
Source: rtnetlink(7); ``include/uapi/linux/if_link.h``.
"""

from __future__ import annotations

import os
import struct

from bpfkit.core.closing import Closing
from bpfkit.core.errors import BpfkitError, errno_text
from bpfkit.core.kernel import syscall
from bpfkit.net.links import rtnetlink

__all__ = ["Attached", "Replaced", "attached", "detach", "holders"]

_RTM_GETLINK, _RTM_SETLINK = 18, 19
_NLM_F_ACK = 4
_IFLA_XDP = 43
_XDP_FD, _XDP_ATTACHED, _XDP_FLAGS = 1, 2, 3
_NESTED = 0x8000
#: IFLA_XDP_*_PROG_ID -> mode, and the mode -> its XDP_FLAGS_*_MODE.
_MODES = {5: "native", 6: "generic", 7: "offload"}
_FLAGS = {"generic": 2, "native": 4, "offload": 8}
_UPDATE_IF_NOEXIST = 1
_LINK_TYPE_XDP = 6
_LINK_GET_NEXT_ID = 31


class Attached:
    """An XDP program on an interface.

    :ivar mode: ``native``, ``generic`` or ``offload``.
    :ivar prog_id: the id that ``bpftool prog`` prints.
    :ivar name: the program's name, "" if it cannot be read.
    :ivar link_id: id of the link that attaches it; None if it was attached by netlink.
    """

    __slots__ = ("link_id", "mode", "name", "prog_id")

    def __init__(self, mode: str, prog_id: int) -> None:
        self.mode = mode
        self.prog_id = prog_id
        self.link_id = _link_of(prog_id)
        self.name = ""
        try:
            fd = syscall.prog_get_fd_by_id(prog_id)
        except OSError:
            return
        try:
            self.name = str(syscall.prog_info(fd)["name"])
        finally:
            os.close(fd)

    def __str__(self) -> str:
        by = holders(self.prog_id)
        owner = ", ".join(f"{pid} ({name})" for pid, name in by)
        text = f"program {self.prog_id} '{self.name}' ({self.mode})"
        return f"{text} of process {owner}" if owner else text


def _request(kind: int, ifindex: int, attributes: bytes = b"") -> bytes:
    """One rtnetlink request about an interface of the thread's namespace; the answer's body.

    :raises OSError: the kernel's answer.
    """
    body = struct.pack("=BxHiII", 0, 0, ifindex, 0, 0) + attributes
    return rtnetlink.request(kind, body, _NLM_F_ACK if kind == _RTM_SETLINK else 0)


def attached(ifindex: int) -> list[Attached]:
    """The XDP programs of an interface of the calling thread's namespace.

    :raises OSError: ENODEV: no interface has this index.
    """
    answer = _request(_RTM_GETLINK, ifindex)
    found = []
    for kind, value in rtnetlink.attributes(answer[16:]):
        if kind == _IFLA_XDP:
            for inner, number in rtnetlink.attributes(value):
                if inner in _MODES and len(number) == 4:
                    found.append(Attached(_MODES[inner], *struct.unpack("=I", number)))
    return found


def _link_of(prog_id: int) -> int | None:
    """Id of the XDP link that holds a program."""
    number: int | None = 0
    while True:
        try:
            number = syscall.next_id(_LINK_GET_NEXT_ID, number or 0)
            if not number:
                return None
            fd = syscall.link_get_fd_by_id(number)
        except OSError:
            return None
        try:
            kind, _, prog = struct.unpack_from("=III", syscall.obj_info(fd, 24))
        except OSError:
            continue
        finally:
            os.close(fd)
        if (kind, prog) == (_LINK_TYPE_XDP, prog_id):
            return number


def holders(prog_id: int) -> list[tuple[int, str]]:
    """(pid, name) of the processes that hold a program, or a link with it, by a descriptor."""
    wanted = f"prog_id:\t{prog_id}"
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if "bpf" not in os.readlink(f"/proc/{pid}/fd/{fd}"):
                    continue
                with open(f"/proc/{pid}/fdinfo/{fd}", errors="surrogateescape") as info:
                    if wanted in info.read().splitlines():
                        with open(f"/proc/{pid}/comm", errors="surrogateescape") as comm:
                            found.append((int(pid), comm.read().strip()))
                        break
        except OSError:
            continue
    return found


def detach(ifindex: int, one: Attached) -> None:
    """Detach another process's program from an interface, attached by a link or by netlink.

    :raises BpfkitError: the kernel refused.
    """
    try:
        if one.link_id is not None:
            fd = syscall.link_get_fd_by_id(one.link_id)
            try:
                syscall.link_detach(fd)
            finally:
                os.close(fd)
            return
        inner = struct.pack("=HHi", 8, _XDP_FD, -1)
        inner += struct.pack("=HHI", 8, _XDP_FLAGS, _FLAGS[one.mode])
        outer = struct.pack("=HH", 4 + len(inner), _IFLA_XDP | _NESTED) + inner
        _request(_RTM_SETLINK, ifindex, outer)
    except OSError as error:
        raise BpfkitError(f"cannot detach {one}", why=errno_text(error.errno or 0)) from None


class Replaced(Closing):
    """A program that was detached to make room, and can be put back until this is closed.

    It is held by a descriptor.  The kernel cannot attach a detached link again, so the program
    comes back by netlink, which its owner's end does not undo.

    :raises BpfkitError: the kernel refused; the program stays attached.
    """

    def __init__(self, ifindex: int, one: Attached) -> None:
        self.one = one
        self._ifindex = ifindex
        try:
            self._fd = syscall.prog_get_fd_by_id(one.prog_id)
        except OSError as error:
            raise BpfkitError(f"cannot hold {one}", why=errno_text(error.errno or 0)) from None
        try:
            detach(ifindex, one)
        except BaseException:
            self.close()
            raise

    def restore(self) -> None:
        """Attach the program again, in the mode it had.

        :raises BpfkitError: the kernel refused.
        """
        inner = struct.pack("=HHi", 8, _XDP_FD, self._fd)
        inner += struct.pack("=HHI", 8, _XDP_FLAGS, _FLAGS[self.one.mode] | _UPDATE_IF_NOEXIST)
        outer = struct.pack("=HH", 4 + len(inner), _IFLA_XDP | _NESTED) + inner
        try:
            _request(_RTM_SETLINK, self._ifindex, outer)
        except OSError as error:
            why = errno_text(error.errno or 0)
            raise BpfkitError(f"cannot restore program {self.one.prog_id}", why=why) from None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
