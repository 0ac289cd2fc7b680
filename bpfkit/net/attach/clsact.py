# SPDX-License-Identifier: Apache-2.0
"""tc by netlink: a clsact filter with a BPF program in direct-action mode.

For kernels without tcx (before 6.6), and to see the program in ``tc filter show``.  bpfkit gives
its filter a free priority behind the existing filters and removes only its own filter.  The last
filter of bpfkit's also removes clsact, if bpfkit added clsact and no other filter uses it.

Does not use pyroute2: its import takes several times as long as the rest of the start-up.

Source: tc-bpf(8); ``include/uapi/linux/rtnetlink.h``, ``pkt_sched.h``, ``pkt_cls.h``.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

from bpfkit.core.attach.link import Link
from bpfkit.core.errors import AttachError, InputError, UnsupportedError, errno_text
from bpfkit.core.records import Record
from bpfkit.net.links.rtnetlink import attribute, attributes, dump, request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpfkit.core.program import Program

__all__ = ["attach_clsact", "undo_clsact"]

_PARENT = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_CLSACT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_ETH_P_ALL = 3
_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_NEWTFILTER, _DELTFILTER, _GETTFILTER = 44, 45, 46
_NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 4, 0x200, 0x400
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS = 6, 7, 8
_DIRECT_ACTION = 1
_OURS = ".clsact"  # ends the name of a filter if bpfkit added clsact
_TCMSG = struct.Struct("=B3xiIII")


def attach_clsact(
    program: Program, ifindex: int, direction: str, *, priority: int = 0, handle: int = 1
) -> Link:
    """Attach a SCHED_CLS program by clsact (kernel 4.5), in the caller's network namespace.

    :param priority: the filter's preference; 0 means the first one behind the existing filters.
    :raises InputError: for an interface that does not exist.
    :raises AttachError: when the kernel refuses.
    """
    what = f"cannot attach '{program.name}' to ifindex {ifindex} {direction} by clsact"
    parent = _PARENT[direction]
    name = _name(ifindex)
    if name is None:
        raise InputError(what, why="there is no such interface")
    there = _has_clsact(ifindex)
    made = not there or _is_ours(ifindex)
    if not priority:
        priority = max((f[0] for f in _filters(ifindex, parent)), default=0) + 1
    data = {
        "netns": _netns_inode(),
        "ifindex": ifindex,
        "ifname": name,
        "direction": direction,
        "priority": priority,
        "handle": handle,
        # Marks the filter as bpfkit's; `tc filter show` prints it.
        "name": f"{program.name}/bpfkit.{os.getpid()}.{program.id}{_OURS * made}",
        "made_qdisc": made,
    }
    record = Record("clsact", data)
    try:
        if not there:
            _qdisc(_NEWQDISC, ifindex, _NLM_F_CREATE | _NLM_F_EXCL)
        options = attribute(
            _TCA_OPTIONS,
            attribute(_TCA_BPF_FD, struct.pack("=I", program.fd)),
            attribute(_TCA_BPF_NAME, str(data["name"]).encode() + b"\0"),
            attribute(_TCA_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION)),
        )
        _filter(_NEWTFILTER, data, _NLM_F_CREATE | _NLM_F_EXCL, options)
    except OSError as error:
        _remove(data)
        record.done()
        number = error.errno or 0
        kind = UnsupportedError if number == errno.ENOENT else AttachError
        raise kind(what, why=errno_text(number)) from None
    netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def undo() -> None:
        # The thread that closes the link may be in another namespace than the interface.
        from bpfkit.net.links.netns import NetNS

        with NetNS(netns) as ns, ns.entered():
            _remove(data)
        record.done()

    return Link(program, "clsact", f"{name} {direction}", undo=undo)


def _netns_inode() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def _name(ifindex: int) -> str | None:
    try:
        return _socket.if_indextoname(ifindex)
    except OSError:
        return None


def _qdisc(kind: int, ifindex: int, flags: int = 0) -> None:
    """Add clsact, or remove it."""
    body = _TCMSG.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT, 0)
    request(kind, body + attribute(_TCA_KIND, b"clsact\0"), _NLM_F_ACK | flags)


def _filter(kind: int, data: dict[str, Any], flags: int = 0, options: bytes = b"") -> None:
    """Add bpfkit's filter, or delete it."""
    info = data["priority"] << 16 | _socket.htons(_ETH_P_ALL)
    body = _TCMSG.pack(0, data["ifindex"], data["handle"], _PARENT[data["direction"]], info)
    request(kind, body + attribute(_TCA_KIND, b"bpf\0") + options, _NLM_F_ACK | flags)


def _has_clsact(ifindex: int) -> bool:
    for body in dump(_GETQDISC, _TCMSG.pack(0, ifindex, 0, 0, 0)):
        if _TCMSG.unpack_from(body)[1] == ifindex:
            kinds = [value for kind, value in attributes(body[_TCMSG.size :]) if kind == _TCA_KIND]
            if kinds == [b"clsact\0"]:
                return True
    return False


def _is_ours(ifindex: int) -> bool:
    """Whether bpfkit added clsact, by a filter that still exists.

    A filter that joins also takes over the duty to remove clsact: the last one removes it.
    """
    names = [f[2] for parent in _PARENT.values() for f in _filters(ifindex, parent)]
    return any("/bpfkit." in name and name.endswith(_OURS) for name in names)


def _filters(ifindex: int, parent: int) -> list[tuple[int, int, str]]:
    """(priority, handle, name) of the filters under a parent, in the kernel's order."""
    found = []
    try:
        bodies = dump(_GETTFILTER, _TCMSG.pack(0, ifindex, 0, parent, 0))
    except OSError:
        return []  # no clsact yet
    for body in bodies:
        _, _, handle, _, info = _TCMSG.unpack_from(body)
        all_ = dict(attributes(body[_TCMSG.size :]))
        name = b""
        if all_.get(_TCA_KIND) == b"bpf\0":
            name = dict(attributes(all_.get(_TCA_OPTIONS, b""))).get(_TCA_BPF_NAME, b"")
        found.append((info >> 16, handle, name.rstrip(b"\0").decode(errors="replace")))
    return found


def _remove(data: dict[str, Any]) -> None:
    """Remove bpfkit's filter, and clsact if bpfkit added it and no other filter uses it."""
    ifindex = data["ifindex"]
    if _name(ifindex) != data["ifname"]:
        return  # the interface is gone, and the filter with it
    parent = _PARENT[data["direction"]]
    ours = (data["priority"], data["handle"], data["name"])
    try:
        if ours in _filters(ifindex, parent):
            _filter(_DELTFILTER, data)
        left = [f for p in _PARENT.values() for f in _filters(ifindex, p) if f[1]]
        if data["made_qdisc"] and not left:
            _qdisc(_DELQDISC, ifindex)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            raise


def undo_clsact(data: dict[str, Any]) -> None:
    """Remove the filter of a killed process, in the network namespace of its interface."""
    from bpfkit.net.links.netns import NetNS

    if data["netns"] == _netns_inode():
        _remove(data)
        return
    ns = NetNS.from_inode(data["netns"])
    if ns is not None:  # a namespace that is gone took the filter with it
        with ns, ns.entered():
            _remove(data)
