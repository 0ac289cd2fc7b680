# SPDX-License-Identifier: Apache-2.0
"""Which XDP programs an interface has, and whose they are; by rtnetlink without pyroute2.

A link (BPF_LINK_CREATE) does not say in which mode it runs; the interface does (IFLA_XDP).
Source: rtnetlink(7); ``include/uapi/linux/if_link.h``.
"""

from __future__ import annotations

import _socket
import os
import struct

from ..core import syscall
from ..core.errors import BpfkitError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Attached", "attached", "detach", "holders"]

_AF_NETLINK = 16
_NETLINK_ROUTE = 0
_RTM_GETLINK, _RTM_SETLINK = 18, 19
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_NLMSG_ERROR = 2
_IFLA_XDP = 43
_XDP_FD, _XDP_ATTACHED, _XDP_FLAGS = 1, 2, 3
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
#: IFLA_XDP_*_PROG_ID -> mode, and the mode -> its XDP_FLAGS_*_MODE.
_MODES = {5: "native", 6: "generic", 7: "offload"}
_FLAGS = {"generic": 2, "native": 4, "offload": 8}
_LINK_TYPE_XDP = 6
_LINK_GET_NEXT_ID = 31


class Attached:
    """An XDP program on an interface.

    :ivar mode: ``native``, ``generic`` or ``offload``.
    :ivar prog_id: the id that ``bpftool prog`` prints.
    :ivar name: the program's name, "" where it cannot be asked.
    :ivar link_id: id of the link that holds it there; None: it was attached by netlink.
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


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            return
        yield kind & _TYPE_MASK, data[at + 4 : at + size]
        at += size + 3 & ~3


def _request(kind: int, ifindex: int, attributes: bytes = b"") -> bytes:
    """One rtnetlink request about an interface of the thread's namespace; the answer's body.

    :raises OSError: the kernel's answer.
    """
    body = struct.pack("=BxHiII", 0, 0, ifindex, 0, 0) + attributes
    flags = _NLM_F_REQUEST | (_NLM_F_ACK if kind == _RTM_SETLINK else 0)
    sock = _socket.socket(_AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
    try:
        sock.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        answer = sock.recv(1 << 16)
    finally:
        sock.close()
    if struct.unpack_from("=H", answer, 4)[0] == _NLMSG_ERROR:
        number = -struct.unpack_from("=i", answer, 16)[0]
        if number:
            raise OSError(number, os.strerror(number))
    return answer[16:]


def attached(ifindex: int) -> list[Attached]:
    """The XDP programs of an interface of the calling thread's namespace.

    :raises OSError: ENODEV: there is no such interface.
    """
    answer = _request(_RTM_GETLINK, ifindex)
    found = []
    for kind, value in _attributes(answer[16:]):
        if kind == _IFLA_XDP:
            for inner, number in _attributes(value):
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
                with open(f"/proc/{pid}/fdinfo/{fd}") as info:
                    if wanted in info.read().splitlines():
                        with open(f"/proc/{pid}/comm") as comm:
                            found.append((int(pid), comm.read().strip()))
                        break
        except OSError:
            continue
    return found


def detach(ifindex: int, one: Attached) -> None:
    """Take a program of somebody else off an interface, however it was attached.

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
