# SPDX-License-Identifier: Apache-2.0
"""A u32 filter with a BPF program as its action, by netlink.

For namespaces of bpfkit's own: filter and qdisc vanish with them, nothing is recorded.

Source: tc-bpf(8), tc-u32(8); ``net/sched/act_bpf.c`` (kernel 4.1).
"""

from __future__ import annotations

import errno
import os

from ..core.errors import AttachError, UnsupportedError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..core.program import Program
    from .interfaces import Interface

__all__ = ["add_action"]

_EGRESS = 0xFFFFFFF3
_ETH_P = {4: 0x0800, 6: 0x86DD}
#: UDP: the word at 8 of an IPv4 header, at 4 of an IPv6 header, names what follows.
_KEYS = {4: "0x00110000/0x00ff0000+8", 6: "0x00001100/0x0000ff00+4"}


def add_action(program: Program, interface: Interface, version: int) -> None:
    """Give the interface's outgoing UDP over IP ``version`` (4 or 6) to the program.

    :param program: of type SCHED_ACT.
    :param interface: in its namespace.
    :raises UnsupportedError: the kernel has no act_bpf, or no u32; names the setting.
    :raises AttachError: the kernel refused for another reason.
    """
    body = {"kind": "bpf", "fd": program.fd, "name": program.name, "action": "ok"}
    what = f"cannot attach '{program.name}' (BPF_PROG_TYPE_SCHED_ACT) behind u32"
    try:
        _add(interface, version, body)
        return
    except OSError as error:
        number = error.errno or 0
    if number != errno.ENOENT:
        raise AttachError(what, why=errno_text(number))
    # Which of the two is missing?  A filter without an action tells.
    why = "this kernel has no CONFIG_NET_ACT_BPF (act_bpf)"
    try:
        _add(interface, version, None)
    except OSError:
        why = "this kernel has no CONFIG_NET_CLS_U32 (cls_u32)"
    raise UnsupportedError(what, why=why, hint="`tools/vm.py` runs it on a kernel that has it")


def _add(interface: Interface, version: int, action: dict[str, Any] | None) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    from .lab import _netlink
    from .netns import NetNS

    options: dict[str, Any] = {"action": action} if action else {}

    def request(ipr: Any) -> int:
        try:
            ipr.tc("add", "clsact", interface.index)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                return int(error.code)
        try:
            ipr.tc(
                "add-filter",
                "u32",
                interface.index,
                parent=_EGRESS,
                prio=version,
                protocol=_ETH_P[version],
                target=0x10000,
                keys=[_KEYS[version]],
                **options,
            )
        except NetlinkError as error:
            return int(error.code)
        return 0

    with NetNS.current() if interface.ns is None else interface.ns.dup() as ns:
        number = _netlink(ns, "cannot talk to tc", request)
    if number:
        raise OSError(number, os.strerror(number))
