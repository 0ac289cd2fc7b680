# SPDX-License-Identifier: Apache-2.0
"""A BPF program as the action of a u32 or flower filter, by netlink.

Only for namespaces that bpfkit made: filter and qdisc disappear with them, so there is no record.

Source: tc-bpf(8), tc-u32(8), tc-flower(8); ``net/sched/act_bpf.c`` (kernel 4.1).
"""

from __future__ import annotations

import errno
import struct

from bpfkit.core.errors import AttachError, UnsupportedError, errno_text
from bpfkit.net.links.rtnetlink import attribute, request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpfkit.core.program import Program
    from bpfkit.net.links.interfaces import Interface

__all__ = ["MATCHES", "add_action"]

#: The classifiers, and the kernel setting that each needs.
MATCHES = {"u32": "CONFIG_NET_CLS_U32", "flower": "CONFIG_NET_CLS_FLOWER"}
_RTM_NEWQDISC, _RTM_NEWTFILTER = 36, 44
_ACK_CREATE_EXCL = 0x004 | 0x400 | 0x200
_CLSACT, _CLSACT_HANDLE, _INGRESS = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF2
_KIND, _OPTIONS = 1, 2  # TCA_*, and of an action
_ACT_PARMS, _ACT_FD, _ACT_NAME = 2, 5, 6  # TCA_ACT_BPF_*
_U32_CLASSID, _U32_SEL, _U32_ACT = 1, 5, 7
_FLOWER_ACT, _FLOWER_ETH_TYPE, _FLOWER_IP_PROTO, _FLOWER_VLAN_ETH_TYPE = 3, 8, 9, 25
_U32_TERMINAL = 1
_ETH_P = {4: 0x0800, 6: 0x86DD}
_ETH_P_8021Q = 0x8100
_UDP = 17
#: Words of the IP header (value, mask, offset): the version, and that UDP follows.
_WORDS = {
    4: ((0x40000000, 0xF0000000, 0), (_UDP << 16, 0xFF << 16, 8)),
    6: ((0x60000000, 0xF0000000, 0), (_UDP << 8, 0xFF << 8, 4)),
}


def add_action(
    program: Program, interface: Interface, match: str, version: int, *, tagged: bool = False
) -> None:
    """Run the program on the received UDP packets of IP ``version`` (4 or 6).

    :param program: of type SCHED_ACT.
    :param interface: in its namespace.
    :param match: the classifier that selects the packets, one of :data:`MATCHES`.
    :param tagged: select packets with a VLAN tag (802.1Q) instead of packets without.
    :raises UnsupportedError: the kernel has no act_bpf, or no such match; names the setting.
    :raises AttachError: the kernel refused for another reason.
    """
    what = f"cannot attach '{program.name}' (BPF_PROG_TYPE_SCHED_ACT) behind {match}"
    try:
        _add(interface, match, version, tagged, _action(program))
        return
    except OSError as error:
        number = error.errno or 0
    if number != errno.ENOENT:
        raise AttachError(what, why=errno_text(number))
    # Adding the filter without an action tells whether the action or the classifier is missing.
    why = "this kernel has no CONFIG_NET_ACT_BPF (act_bpf)"
    try:
        _add(interface, match, version, tagged, b"")
    except OSError:
        why = f"this kernel has no {MATCHES[match]} (cls_{match})"
    raise UnsupportedError(what, why=why, hint="`tools/vm.py` runs it on a kernel that has it")


def _action(program: Program) -> bytes:
    """The first action of a filter: ``action bpf … ok``; the program's verdict decides."""
    parms = struct.pack("=IIiii", 0, 0, 0, 0, 0)
    options = attribute(
        _OPTIONS,
        attribute(_ACT_PARMS, parms),
        attribute(_ACT_FD, struct.pack("=I", program.fd)),
        attribute(_ACT_NAME, program.name.encode() + b"\0"),
    )
    return attribute(1, attribute(_KIND, b"bpf\0"), options)


def _u32(version: int, action: bytes) -> bytes:
    # Offsets count from the IP header: before tc runs, the kernel moves a tag out of the packet.
    words = _WORDS[version]
    keys = b"".join(
        [struct.pack("!II", mask, value) + struct.pack("=ii", off, 0) for value, mask, off in words]
    )
    sel = struct.pack("=BBBxHHhhI", _U32_TERMINAL, 0, len(words), 0, 0, 0, 0, 0) + keys
    options = attribute(_U32_CLASSID, struct.pack("=I", 0x10000)) + attribute(_U32_SEL, sel)
    return options + (attribute(_U32_ACT, action) if action else b"")


def _flower(version: int, tagged: bool, action: bytes) -> bytes:
    inner = struct.pack("!H", _ETH_P[version])
    options = attribute(_FLOWER_ETH_TYPE, struct.pack("!H", _ETH_P_8021Q) if tagged else inner)
    if tagged:
        options += attribute(_FLOWER_VLAN_ETH_TYPE, inner)
    options += attribute(_FLOWER_IP_PROTO, bytes([_UDP]))
    return options + (attribute(_FLOWER_ACT, action) if action else b"")


def _add(interface: Interface, match: str, version: int, tagged: bool, action: bytes) -> None:
    """Add clsact, unless the interface has it, and the filter.

    :raises OSError: the kernel's answer.
    """
    from bpfkit.net.links.netns import NetNS

    protocol = struct.unpack("=H", struct.pack("!H", _ETH_P_8021Q if tagged else _ETH_P[version]))[
        0
    ]
    priority = version + 10 * tagged  # one per protocol
    options = _u32(version, action) if match == "u32" else _flower(version, tagged, action)

    def tcmsg(handle: int, parent: int, info: int, kind: str) -> bytes:
        head = struct.pack("=BxHiIII", 0, 0, interface.index, handle, parent, info)
        return head + attribute(_KIND, kind.encode() + b"\0")

    def send() -> None:
        try:
            request(_RTM_NEWQDISC, tcmsg(_CLSACT_HANDLE, _CLSACT, 0, "clsact"), _ACK_CREATE_EXCL)
        except FileExistsError:
            pass
        body = tcmsg(0, _INGRESS, priority << 16 | protocol, match)
        request(_RTM_NEWTFILTER, body + attribute(_OPTIONS, options), _ACK_CREATE_EXCL)

    with NetNS.current() if interface.ns is None else interface.ns.dup() as ns:
        ns.run(send)
