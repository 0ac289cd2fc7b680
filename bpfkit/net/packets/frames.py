# SPDX-License-Identifier: Apache-2.0
"""Builds packets and frames, and sends frames as they are.

For packets that no kernel socket would send: VLAN tags without VLAN devices, broadcasts, foreign
source addresses, wrong headers.  Addresses are text, IPv4 or IPv6; MAC addresses are text too
(``02:00:00:00:00:01``); all checksums are filled in.
"""

from __future__ import annotations

import errno
import struct

from bpfkit.core.errors import BpfkitError, errno_text
from bpfkit.net.packets.addresses import packed
from bpfkit.net.packets.checksum import checksum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfkit.net.links.netns import NetNS

__all__ = [
    "BROADCAST",
    "PRIORITY",
    "echo_packet",
    "ethernet",
    "icmp_message",
    "icmp_packet",
    "ip_packet",
    "neighbour_request",
    "send_frames",
    "syn_packet",
    "tag",
    "tcp_segment",
    "udp_frame",
    "udp_packet",
]

BROADCAST = "ff:ff:ff:ff:ff:ff"
#: The TCI of a priority tag: priority 5, VLAN id 0 (no VLAN).
PRIORITY = 5 << 13
#: Ethertype by the packet's first four bits.  ARP begins with a hardware type, so its are 0.
_ETHERTYPES = {0: b"\x08\x06", 4: b"\x08\x00", 6: b"\x86\xdd"}
_AF_PACKET, _SOCK_RAW = 17, 3
_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_SYN = 2


# -- frames ---------------------------------------------------------------------------------------


def ethernet(to: str, by: str, packet: bytes, *, vlans: Iterable[int] = ()) -> bytes:
    """An IPv4, IPv6 or ARP packet in an Ethernet frame, without padding and FCS.

    :param to, by: destination and source MAC address.
    :param vlans: 802.1Q tags, outermost first; each as for :func:`tag`.
    """
    macs = bytes.fromhex((to + by).replace(":", ""))
    frame = macs + _ETHERTYPES[packet[0] >> 4] + packet
    for vlan in reversed(list(vlans)):
        frame = tag(frame, vlan)
    return frame


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
    """A UDP datagram in an Ethernet frame; parameters as for :func:`ethernet` and
    :func:`udp_packet`.
    """
    packet = udp_packet(source, destination, payload, ports=ports, ttl=ttl)
    return ethernet(to, by, packet, vlans=vlans)


def tag(frame: bytes, vlan: int, ethertype: int = 0x8100) -> bytes:
    """``frame`` with one more VLAN tag, which becomes the outermost.

    :param vlan: VLAN id, or :data:`PRIORITY`.
    :param ethertype: 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    """
    return frame[:12] + struct.pack("!HH", ethertype, vlan) + frame[12:]


# -- packets --------------------------------------------------------------------------------------


def ip_packet(
    source: str, destination: str, proto: int, body: bytes, *, ttl: int = 64, df: bool = False
) -> bytes:
    """``body`` behind an IP header without options or extension headers.

    :param proto: IP protocol number of ``body``.
    :param ttl: TTL or hop limit.
    :param df: set IPv4's Don't Fragment flag.
    """
    addresses = packed(source) + packed(destination)
    if len(addresses) == 32:
        return struct.pack("!IHBB", 6 << 28, len(body), proto, ttl) + addresses + body
    flags = 0x4000 if df else 0
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, flags, ttl, proto, 0)
    return head[:10] + struct.pack("!H", checksum(head + addresses)) + addresses + body


def udp_packet(
    source: str,
    destination: str,
    payload: bytes = b"",
    *,
    ports: tuple[int, int] = (40000, 9),
    ttl: int = 64,
    df: bool = False,
    check: bool = True,
) -> bytes:
    """A UDP datagram in an IP packet; other parameters as for :func:`ip_packet`.

    :param ports: source and destination port.
    :param check: False: without a UDP checksum, as IPv4 allows.
    """
    udp = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    if check:
        total = checksum(_pseudo(source, destination, _UDP, len(udp)) + udp) or 0xFFFF
        udp = udp[:6] + struct.pack("!H", total) + udp[8:]
    return ip_packet(source, destination, _UDP, udp, ttl=ttl, df=df)


def tcp_segment(
    source: str,
    destination: str,
    payload: bytes = b"",
    *,
    ports: tuple[int, int],
    flags: int = _SYN,
    sequence: int = 1,
    acknowledgement: int = 0,
    window: int = 1024,
) -> bytes:
    """A TCP segment without options, for an IP packet between these addresses.

    :param ports: source and destination port.
    :param flags: the header's flag bits (RFC 9293): 2 is SYN, 16 is ACK.
    """
    numbers = sequence, acknowledgement
    head = struct.pack("!HHIIBBHHH", *ports, *numbers, 5 << 4, flags, window, 0, 0)
    pseudo = _pseudo(source, destination, _TCP, len(head) + len(payload))
    total = checksum(pseudo + head + payload)
    return head[:16] + struct.pack("!H", total) + head[18:] + payload


def syn_packet(source: str, destination: str, *, ports: tuple[int, int], df: bool = False) -> bytes:
    """A TCP SYN in an IP packet."""
    return ip_packet(
        source, destination, _TCP, tcp_segment(source, destination, ports=ports), df=df
    )


def icmp_message(kind: int, rest: bytes, *, pseudo: bytes = b"") -> bytes:
    """An ICMP or ICMPv6 message with code 0.

    :param kind: its type.
    :param rest: the bytes that follow the checksum.
    :param pseudo: ICMPv6: the pseudo-header; raw sockets need none, the kernel fills in the
        checksum.
    """
    total = checksum(pseudo + struct.pack("!BBH", kind, 0, 0) + rest)
    return struct.pack("!BBH", kind, 0, total) + rest


def icmp_packet(source: str, destination: str, kind: int, rest: bytes, *, ttl: int = 64) -> bytes:
    """An ICMP or ICMPv6 message in an IP packet; parameters as for :func:`icmp_message`."""
    six = ":" in source
    proto = _ICMPV6 if six else _ICMP
    pseudo = _pseudo(source, destination, proto, 4 + len(rest)) if six else b""
    return ip_packet(source, destination, proto, icmp_message(kind, rest, pseudo=pseudo), ttl=ttl)


def echo_packet(source: str, destination: str, identifier: int) -> bytes:
    """An echo request (ping) in an IP packet."""
    kind = 128 if ":" in source else 8
    return icmp_packet(source, destination, kind, struct.pack("!HH8x", identifier, 1))


def neighbour_request(mac: str, source: str, target: str) -> bytes:
    """An ARP request for ``target``, or a neighbour solicitation that is sent to it by unicast.

    :param mac: the sender's MAC address.
    """
    sender = bytes.fromhex(mac.replace(":", ""))
    if ":" in target:
        rest = bytes(4) + packed(target) + b"\1\1" + sender
        return icmp_packet(source, target, 135, rest, ttl=255)
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    return head + sender + packed(source) + bytes(6) + packed(target)


def _pseudo(source: str, destination: str, proto: int, length: int) -> bytes:
    """The pseudo-header of RFC 8200; its sum is that of IPv4's for bodies of up to 64 kB."""
    return packed(source) + packed(destination) + struct.pack("!II", length, proto)


# -- sending --------------------------------------------------------------------------------------


def send_frames(device: str, frames: Iterable[bytes], *, ns: NetNS, lossy: bool = False) -> None:
    """Send frames, each from its Ethernet header on, out of a device by a packet socket.

    :param lossy: do not treat a drop on the way out, by a program at tc egress, as an error.
    :raises BpfkitError: the device refuses a frame.
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
