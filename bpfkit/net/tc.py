# SPDX-License-Identifier: Apache-2.0
"""tc by netlink: a clsact filter with a BPF program in direct-action mode.

For kernels without tcx (before 6.6) and for people who want to see it in ``tc filter show``.
The filter stays in the chain with others: bpfkit picks a free priority behind them, and removes
only its own.  clsact itself is removed only if bpfkit added it and nobody else moved in.

Source: tc-bpf(8); ``include/uapi/linux/pkt_cls.h``.
"""

from __future__ import annotations

import errno
import os

from ..core.errors import AttachError, InputError, UnsupportedError, errno_text
from ..core.link import Link
from ..core.records import Record, recorded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..core.program import Program

__all__ = ["attach_clsact", "undo_clsact"]

_PARENT = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_ETH_P_ALL = 3


def attach_clsact(
    program: Program, ifindex: int, direction: str, *, priority: int = 0, handle: int = 1
) -> Link:
    """Attach a SCHED_CLS program by clsact (kernel 4.5), in the caller's network namespace.

    :param priority: the filter's preference; 0 takes the first one behind those there.
    :raises InputError: for an interface that does not exist.
    :raises AttachError: when the kernel refuses.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    what = f"cannot attach '{program.name}' to ifindex {ifindex} {direction} by clsact"
    parent = _PARENT[direction]
    with IPRoute() as ipr:
        name = _name(ipr, ifindex)
        if name is None:
            raise InputError(what, why="there is no such interface")
        has = _has_clsact(ipr, ifindex)
        if not priority:
            priority = max((f[0] for f in _filters(ipr, ifindex, parent)), default=0) + 1
        data = {
            "netns": _netns_inode(),
            "ifindex": ifindex,
            "ifname": name,
            "direction": direction,
            "priority": priority,
            "handle": handle,
            # The mark of ownership, and what `tc filter show` prints.
            "name": f"{program.name}/bpfkit.{os.getpid()}.{program.id}",
            "made_qdisc": not has or _is_bpfkits(ifindex),
        }
        record = Record("clsact", data)
        try:
            if not has:
                ipr.tc("add", "clsact", ifindex)
            ipr.tc(
                "add-filter",
                "bpf",
                ifindex,
                handle,
                parent=parent,
                prio=priority,
                protocol=_ETH_P_ALL,
                fd=program.fd,
                name=data["name"],
                direct_action=True,
            )
        except NetlinkError as error:
            _remove(data)
            record.done()
            kind = UnsupportedError if error.code == errno.ENOENT else AttachError
            raise kind(what, why=errno_text(error.code)) from None
    netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def undo() -> None:
        # Whoever closes the link need not be in the interface's namespace at that moment.
        from .netns import NetNS

        with NetNS(netns) as ns, ns.entered():
            _remove(data)
        record.done()

    return Link(program, "clsact", f"{name} {direction}", undo=undo)


def _is_bpfkits(ifindex: int) -> bool:
    """Is the clsact there one that bpfkit made?  Whose filter goes last takes it away."""
    return any(
        (one["netns"], one["ifindex"], one["made_qdisc"]) == (_netns_inode(), ifindex, True)
        for one in recorded("clsact")
    )


def _netns_inode() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def _name(ipr: Any, ifindex: int) -> str | None:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        links = ipr.get_links(ifindex)
    except NetlinkError:
        return None
    return str(links[0].get_attr("IFLA_IFNAME")) if links else None


def _has_clsact(ipr: Any, ifindex: int) -> bool:
    return any(
        q["index"] == ifindex and q.get_attr("TCA_KIND") == "clsact" for q in ipr.get_qdiscs()
    )


def _filters(ipr: Any, ifindex: int, parent: int) -> list[tuple[int, int, str]]:
    """(priority, handle, name) of the filters under a parent, in the kernel's order."""
    from pyroute2.netlink.exceptions import NetlinkError

    found = []
    try:
        for message in ipr.get_filters(index=ifindex, parent=parent):
            options = message.get_attr("TCA_OPTIONS")
            name = options.get_attr("TCA_BPF_NAME") if hasattr(options, "get_attr") else None
            found.append((message["info"] >> 16, message["handle"], name or ""))
    except NetlinkError:
        pass  # no clsact yet
    return found


def _remove(data: dict[str, Any]) -> None:
    """Take away our filter, and clsact if we brought it and nobody else moved in."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    ifindex = data["ifindex"]
    with IPRoute() as ipr:
        if _name(ipr, ifindex) != data["ifname"]:
            return  # the interface went, and the filter with it
        parent = _PARENT[data["direction"]]
        ours = (data["priority"], data["handle"], data["name"])
        try:
            if ours in _filters(ipr, ifindex, parent):
                ipr.tc(
                    "del-filter",
                    "bpf",
                    ifindex,
                    data["handle"],
                    parent=parent,
                    prio=data["priority"],
                    protocol=_ETH_P_ALL,
                )
            left = [f for p in _PARENT.values() for f in _filters(ipr, ifindex, p) if f[1]]
            if data["made_qdisc"] and not left:
                ipr.tc("del", "clsact", ifindex)
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                raise


def undo_clsact(data: dict[str, Any]) -> None:
    """Undo the record of a killed process, in whichever namespace its interface is."""
    from .netns import NetNS

    if data["netns"] == _netns_inode():
        _remove(data)
        return
    path = _namespace_path(data["netns"])
    if path:  # a namespace that is gone took everything along
        with NetNS.from_path(path) as ns, ns.entered():
            _remove(data)


def _namespace_path(inode: int) -> str:
    """A path that leads to the network namespace of this inode, or an empty string."""
    name = f"net:[{inode}]"
    with open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[3] == name:
                return fields[4].encode().decode("unicode_escape")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/net") == name:
                return f"/proc/{pid}/ns/net"
            for fd in os.listdir(f"/proc/{pid}/fd"):
                # A namespace without name or process, as bpfkit's own labs are.
                if os.readlink(f"/proc/{pid}/fd/{fd}") == name:
                    return f"/proc/{pid}/fd/{fd}"
        except OSError:
            continue
    return ""
