# SPDX-License-Identifier: Apache-2.0
"""Frames made by hand, and sent as they are: what no socket of the kernel's would send.

For labs on kernels without VLAN devices, for broadcasts, and for headers that are wrong.
"""

from __future__ import annotations

import errno
import struct

from bpfkit.core.errors import BpfkitError, errno_text
from bpfkit.net.packets.checksum import checksum
from bpfkit.xdp_afxdp.answers import packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.net.links.netns import NetNS

__all__ = [
    "BROADCAST",
    "PRIORITY",
    "echo_packet",
    "ethernet",
    "icmp_packet",
    "ip_packet",
    "neighbour_question",
    "send_frames",
    "syn_packet",
    "tag",
    "udp_frame",
    "udp_packet",
]

BROADCAST = "ff:ff:ff:ff:ff:ff"
#: What is in a priority tag: VLAN id 0, for no VLAN.
PRIORITY = 5 << 13
#: By the first four bits: ARP's are those of a hardware type.
_ETHERTYPES = {0: b"\x08\x06", 4: b"\x08\x00", 6: b"\x86\xdd"}
_AF_PACKET, _SOCK_RAW = 17, 3
_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58


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
    packet = udp_packet(source, destination, payload, ports=ports, ttl=ttl)
    return ethernet(to, by, packet, vlans=vlans)


def ethernet(to: str, by: str, packet: bytes, *, vlans: Iterable[int] = ()) -> bytes:
    """An IP or ARP packet in a frame; parameters as for :func:`udp_frame`."""
    macs = bytes.fromhex((to + by).replace(":", ""))
    frame = macs + _ETHERTYPES[packet[0] >> 4] + packet
    for vlan in reversed(list(vlans)):
        frame = tag(frame, vlan)
    return frame


def udp_packet(
    source: str,
    destination: str,
    payload: bytes = b"",
    *,
    ports: tuple[int, int] = (40000, 9),
    ttl: int = 64,
    df: bool = False,
) -> bytes:
    """A UDP datagram in an IP packet.

    :param df: IPv4: it must not be fragmented.
    """
    udp = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    total = checksum(_pseudo(source, destination, _UDP, udp) + udp) or 0xFFFF
    udp = udp[:6] + struct.pack("!H", total) + udp[8:]
    return ip_packet(source, destination, _UDP, udp, ttl=ttl, df=df)


def syn_packet(source: str, destination: str, *, ports: tuple[int, int], df: bool = False) -> bytes:
    """A TCP SYN in an IP packet."""
    tcp = struct.pack("!HHIIBBHHH", *ports, 1, 0, 5 << 4, 2, 1024, 0, 0)
    total = checksum(_pseudo(source, destination, _TCP, tcp) + tcp)
    tcp = tcp[:16] + struct.pack("!H", total) + tcp[18:]
    return ip_packet(source, destination, _TCP, tcp, df=df)


def icmp_packet(source: str, destination: str, kind: int, rest: bytes, *, ttl: int = 64) -> bytes:
    """ICMP or ICMPv6 in an IP packet.

    :param kind: its type; :param rest: what is behind the checksum.
    """
    six = ":" in source
    proto = _ICMPV6 if six else _ICMP
    pseudo = _pseudo(source, destination, proto, bytes(4) + rest) if six else b""
    total = checksum(pseudo + struct.pack("!BBH", kind, 0, 0) + rest)
    icmp = struct.pack("!BBH", kind, 0, total) + rest
    return ip_packet(source, destination, proto, icmp, ttl=ttl)


def echo_packet(source: str, destination: str, identifier: int) -> bytes:
    """An echo request, a ping, in an IP packet."""
    kind = 128 if ":" in source else 8
    return icmp_packet(source, destination, kind, struct.pack("!HH8x", identifier, 1))


def neighbour_question(mac: str, source: str, target: str) -> bytes:
    """Who has ``target``?  An ARP request, or a neighbour solicitation sent to the target itself.

    :param mac: of who asks.
    """
    here = bytes.fromhex(mac.replace(":", ""))
    if ":" in target:
        rest = bytes(4) + packed(target) + b"\1\1" + here
        return icmp_packet(source, target, 135, rest, ttl=255)
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    return head + here + packed(source) + bytes(6) + packed(target)


def ip_packet(
    source: str, destination: str, proto: int, body: bytes, *, ttl: int = 64, df: bool = False
) -> bytes:
    """``body`` behind an IP header; parameters as for :func:`udp_packet`."""
    ends = packed(source) + packed(destination)
    if len(ends) == 32:
        return struct.pack("!IHBB", 6 << 28, len(body), proto, ttl) + ends + body
    flags = 0x4000 if df else 0
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, flags, ttl, proto, 0)
    return head[:10] + struct.pack("!H", checksum(head + ends)) + ends + body


def _pseudo(source: str, destination: str, proto: int, body: bytes) -> bytes:
    return packed(source) + packed(destination) + struct.pack("!II", len(body), proto)


def tag(frame: bytes, vlan: int) -> bytes:
    """``frame`` with an 802.1Q tag more, the outermost.

    :param vlan: VLAN id, or :data:`PRIORITY`.
    """
    return frame[:12] + struct.pack("!HH", 0x8100, vlan) + frame[12:]


def send_frames(device: str, frames: Iterable[bytes], *, ns: NetNS, lossy: bool = False) -> None:
    """Put frames on the wire, from the Ethernet header on.

    :param lossy: one that is dropped on its way out, by a program at tc egress, is no error.
    :raises BpfkitError: the device refuses one.
    """
    sock = ns.socket(_AF_PACKET, _SOCK_RAW, 0)
    try:
        sock.bind((device, 0))
        for frame in frames:
            try:
                sock.send(frame)
            except OSError as error:
                if not lossy or error.errno != errno.ENOBUFS:
                    raise
    except OSError as error:
        what = f"cannot send a frame on {device}"
        raise BpfkitError(what, why=errno_text(error.errno or 0)) from error
    finally:
        sock.close()
