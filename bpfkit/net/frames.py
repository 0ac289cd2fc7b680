# SPDX-License-Identifier: Apache-2.0
"""Frames made by hand, and sent as they are: what no socket of the kernel's would send.

For labs on kernels without VLAN devices, for broadcasts, and for headers that are wrong.
"""

from __future__ import annotations

import struct

from bpfkit.core.errors import BpfkitError, errno_text
from bpfkit.net.answers import packed
from bpfkit.net.checksum import checksum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.net.netns import NetNS

__all__ = ["BROADCAST", "PRIORITY", "send_frames", "tag", "udp_frame"]

BROADCAST = "ff:ff:ff:ff:ff:ff"
#: What is in a priority tag: VLAN id 0, for no VLAN.
PRIORITY = 5 << 13
_AF_PACKET, _SOCK_RAW = 17, 3
_UDP = 17


def udp_frame(
    to: str,
    by: str,
    source: str,
    destination: str,
    payload: bytes = b"",
    *,
    vlans: Iterable[int] = (),
    ports: tuple[int, int] = (40000, 9),
    ttl: int = 64,
) -> bytes:
    """A UDP datagram in an Ethernet frame.

    :param to, by: MAC addresses, destination and source.
    :param source, destination: IPv4 or IPv6 addresses.
    :param vlans: of 802.1Q tags, the outermost first; as for :func:`tag`.
    """
    src, dst = packed(source), packed(destination)
    udp = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    pseudo = src + dst + struct.pack("!II", len(udp), _UDP)
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp) or 0xFFFF) + udp[8:]
    if len(src) == 4:
        kind = 0x0800
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, ttl, _UDP, 0)
        head = head[:10] + struct.pack("!H", checksum(head + src + dst)) + src + dst
    else:
        kind = 0x86DD
        head = struct.pack("!IHBB", 6 << 28, len(udp), _UDP, ttl) + src + dst
    macs = bytes.fromhex((to + by).replace(":", ""))
    frame = macs + struct.pack("!H", kind) + head + udp
    for vlan in reversed(list(vlans)):
        frame = tag(frame, vlan)
    return frame


def tag(frame: bytes, vlan: int) -> bytes:
    """``frame`` with an 802.1Q tag more, the outermost.

    :param vlan: VLAN id, or :data:`PRIORITY`.
    """
    return frame[:12] + struct.pack("!HH", 0x8100, vlan) + frame[12:]


def send_frames(device: str, frames: Iterable[bytes], *, ns: NetNS) -> None:
    """Put frames on the wire, from the Ethernet header on.

    :raises BpfkitError: the device refuses one.
    """
    sock = ns.socket(_AF_PACKET, _SOCK_RAW, 0)
    try:
        sock.bind((device, 0))
        for frame in frames:
            sock.send(frame)
    except OSError as error:
        what = f"cannot send a frame on {device}"
        raise BpfkitError(what, why=errno_text(error.errno or 0)) from error
    finally:
        sock.close()
