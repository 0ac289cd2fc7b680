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
from bpfkit.core.records import Record, locked
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
_MAX_PRIORITY = 65535
_TRIES = 20
#: The kernel's answers where there is no clsact, no filter or no interface any more.
_GONE = (errno.ENOENT, errno.EINVAL, errno.ENODEV)
_OURS = ".clsact"  # ends the name of a filter if bpfkit added clsact
_TCMSG = struct.Struct("=B3xiIII")


def attach_clsact(
    program: Program, ifindex: int, direction: str, *, priority: int = 0, handle: int = 1
) -> Link:
    """Attach a SCHED_CLS program by clsact (kernel 4.5), in the caller's network namespace.

    An ``ingress`` qdisc that is there already is used for ingress; it has no egress side.

    :param priority: the filter's preference, 1 to 65535; 0 means the first one behind the existing
        filters, or the last free one where preference 65535 is taken.
    :raises InputError: for an interface that does not exist.
    :raises AttachError: when the kernel refuses, or another qdisc is in clsact's place.
    """
    what = f"cannot attach '{program.name}' to ifindex {ifindex} {direction} by clsact"
    name = _name(ifindex)
    if name is None:
        raise InputError(what, why="there is no such interface")
    with locked():
        data, record = _attach(program, ifindex, direction, priority, handle, what)
    netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def undo() -> None:
        # The thread that closes the link may be in another namespace than the interface.
        from bpfkit.net.links.netns import NetNS

        with NetNS(netns) as ns, ns.entered():
            _remove(data)
        record.done()

    def check() -> bool:
        from bpfkit.net.links.netns import NetNS

        with NetNS(os.dup(netns)) as ns, ns.entered():
            return is_attached(data)

    return Link(program, "clsact", f"{name} {direction}", undo=undo, check=check)


def _attach(
    program: Program, ifindex: int, direction: str, priority: int, handle: int, what: str
) -> tuple[dict[str, Any], Record]:
    """Add the filter.  Whoever is as quick as we are gets the next preference, not an error."""
    for last in (False,) * _TRIES + (True,):
        kind = _qdisc_kind(ifindex)
        if kind and (kind != "clsact" and (kind, direction) != ("ingress", "ingress")):
            raise AttachError(
                what,
                why=f"a qdisc of kind {kind} is in clsact's place",
                hint=f"remove it (tc qdisc del dev {_name(ifindex)} {kind}), or attach by tcx",
            )
        made = not kind or _is_ours(ifindex)
        data = {
            "netns": _netns_inode(),
            "ifindex": ifindex,
            "ifname": _name(ifindex),
            "direction": direction,
            "priority": priority or _free_priority(ifindex, _PARENT[direction], what),
            "handle": handle,
            # The mark of ownership, and what `tc filter show` prints.
            "name": f"{program.name}/bpfkit.{os.getpid()}.{program.id}{_OURS * made}",
            "made_qdisc": made,
        }
        record = Record("clsact", data)
        try:
            if not kind:
                _qdisc(_NEWQDISC, ifindex, _NLM_F_CREATE | _NLM_F_EXCL)
            options = attribute(
                _TCA_OPTIONS,
                attribute(_TCA_BPF_FD, struct.pack("=I", program.fd)),
                attribute(_TCA_BPF_NAME, str(data["name"]).encode() + b"\0"),
                attribute(_TCA_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION)),
            )
            _filter(_NEWTFILTER, data, _NLM_F_CREATE | _NLM_F_EXCL, options)
            return data, record
        except OSError as error:
            _remove_unlocked(data)
            record.done()
            number = error.errno or 0
            # Somebody made or removed clsact, or took the preference, since it was looked at.
            lost_race = number in (errno.EINVAL, errno.ENOENT, errno.EAGAIN) or (
                number == errno.EEXIST and not (kind and priority)
            )
            if lost_race and not last and _qdisc_kind(ifindex) != kind:
                continue
            if number == errno.EEXIST and not priority and not last:
                continue
            refused = UnsupportedError if number == errno.ENOENT else AttachError
            why = errno_text(number)
            if number == errno.EEXIST:
                why = f"there is a filter of preference {priority} and handle {handle}"
            raise refused(what, why=why) from None
    raise AssertionError("the last try returns or raises")


def _free_priority(ifindex: int, parent: int, what: str) -> int:
    """The first preference behind the filters there; else the last one that is free."""
    taken = {f[0] for f in _filters(ifindex, parent)}
    free = max(taken, default=0) + 1
    if free <= _MAX_PRIORITY:
        return free
    for number in range(_MAX_PRIORITY, 0, -1):
        if number not in taken:
            return number
    raise AttachError(what, why="every preference is taken")


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


def _qdisc_kind(ifindex: int) -> str:
    """What is in the place that clsact would take: ``clsact``, ``ingress``, or nothing."""
    for body in dump(_GETQDISC, _TCMSG.pack(0, ifindex, 0, 0, 0)):
        _, index, _, parent, _ = _TCMSG.unpack_from(body)
        if (index, parent) == (ifindex, _CLSACT):
            kinds = [value for kind, value in attributes(body[_TCMSG.size :]) if kind == _TCA_KIND]
            return kinds[0].rstrip(b"\0").decode() if kinds else "?"
    return ""


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
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return []  # no clsact, or no interface
    for body in bodies:
        _, _, handle, _, info = _TCMSG.unpack_from(body)
        all_ = dict(attributes(body[_TCMSG.size :]))
        name = b""
        if all_.get(_TCA_KIND) == b"bpf\0":
            name = dict(attributes(all_.get(_TCA_OPTIONS, b""))).get(_TCA_BPF_NAME, b"")
        found.append((info >> 16, handle, name.rstrip(b"\0").decode(errors="replace")))
    return found


def _remove(data: dict[str, Any]) -> None:
    """Remove bpfkit's filter, and clsact if bpfkit added it and no other filter uses it.

    The filter is known by its ifindex, preference, handle and name; the interface's name is for
    people, and may have changed.

    :raises OSError: the filter is still there.
    """
    with locked():
        _remove_unlocked(data)


def _remove_unlocked(data: dict[str, Any]) -> None:
    ifindex, parent = data["ifindex"], _PARENT[data["direction"]]
    ours = (data["priority"], data["handle"], data["name"])
    try:
        if ours in _filters(ifindex, parent):
            _filter(_DELTFILTER, data)
        left = [f for p in _PARENT.values() for f in _filters(ifindex, p) if f[1]]
        if data["made_qdisc"] and not left:
            _qdisc(_DELQDISC, ifindex)
    except OSError as error:
        if error.errno not in _GONE:
            raise
    if ours in _filters(ifindex, parent):
        raise OSError(errno.EBUSY, f"filter {data['name']} is still on {_name(ifindex)}")


def is_attached(data: dict[str, Any]) -> bool:
    """Whether the filter is there, in the caller's network namespace."""
    ours = (data["priority"], data["handle"], data["name"])
    return ours in _filters(data["ifindex"], _PARENT[data["direction"]])


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
