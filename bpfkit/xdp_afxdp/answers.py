# SPDX-License-Identifier: Apache-2.0
"""Answers to ARP requests, neighbour solicitations and pings, for hosts in user space.

Frames start with the Ethernet header and may have VLAN tags, which the answer then has, too.
Sources: RFC 826, RFC 792, RFC 4861 (7.2.4), RFC 4443 (4.2).
"""

from __future__ import annotations

import struct

from bpfkit.net.packets.checksum import checksum

__all__ = ["answer"]

_VLAN = (0x8100, 0x88A8, 0x9100)
_ARP, _IPV4, _IPV6 = 0x0806, 0x0800, 0x86DD
_ICMP, _ICMPV6 = 1, 58
_ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")


def answer(frame: bytes, addresses: set[bytes], mac: bytes) -> tuple[str, bytes] | None:
    """The answer of a host with these addresses to ``frame``.

    :param addresses: as :func:`bpfkit.net.packets.addresses.packed` returns them.
    :param mac: the host's MAC address, 6 bytes.
    :returns: the kind (``arp``, ``nd``, ``ping``, ``ping6``) and the frame of the answer; None if
        there is none.  Broken packets, fragments, and packets with options or extension headers
        get no answer.
    """
    at = 12
    while frame[at : at + 2] and int.from_bytes(frame[at : at + 2], "big") in _VLAN:
        at += 4
    body = frame[at + 2 :]
    kind = int.from_bytes(frame[at : at + 2], "big")
    found = None
    if kind == _ARP:
        found = _arp(body, addresses, mac)
    elif kind == _IPV4:
        found = _ipv4(body, addresses)
    elif kind == _IPV6:
        found = _ipv6(body, addresses, mac)
    if found is None:
        return None
    word, reply, to = found
    return word, (to or frame[6:12]) + mac + frame[12 : at + 2] + reply


def _arp(body: bytes, addresses: set[bytes], mac: bytes) -> tuple[str, bytes, bytes] | None:
    if len(body) < 28 or body[:8] != bytes.fromhex("0001080006040001"):
        return None
    sender, target = body[8:18], body[24:28]
    if target not in addresses:
        return None
    return "arp", body[:6] + b"\0\2" + mac + target + sender, b""


def _ipv4(body: bytes, addresses: set[bytes]) -> tuple[str, bytes, bytes] | None:
    if len(body) < 28 or body[0] != 0x45 or checksum(body[:20]):
        return None
    length, _, fragment = struct.unpack_from("!HHH", body, 2)
    source, here = body[12:16], body[16:20]
    if not 28 <= length <= len(body) or fragment & 0x3FFF or body[9] != _ICMP:
        return None
    icmp = body[20:length]
    if here not in addresses or icmp[0] != 8 or icmp[1] or checksum(icmp):
        return None
    if source[0] in (0, 127) or source[0] >= 224:
        return None
    reply = _with_checksum(b"\0\0\0\0" + icmp[4:], 2)
    header = b"\x45" + body[1:2] + struct.pack("!HHHBBH", length, 0, 0x4000, 64, _ICMP, 0)
    return "ping", _with_checksum(header + here + source, 10) + reply, b""


def _with_checksum(data: bytes, at: int, pseudo: bytes = b"") -> bytes:
    return data[:at] + struct.pack("!H", checksum(pseudo + data)) + data[at + 2 :]


def _pseudo(source: bytes, destination: bytes, length: int) -> bytes:
    return source + destination + struct.pack("!II", length, _ICMPV6)


def _ipv6(body: bytes, addresses: set[bytes], mac: bytes) -> tuple[str, bytes, bytes] | None:
    if len(body) < 48 or body[0] >> 4 != 6 or body[6] != _ICMPV6:
        return None
    length = int.from_bytes(body[4:6], "big")
    source, here = body[8:24], body[24:40]
    icmp = body[40 : 40 + length]
    if len(icmp) != length or length < 8 or checksum(_pseudo(source, here, length) + icmp):
        return None
    to = b""
    if icmp[0] == 135:
        if length < 24 or icmp[1] or body[7] != 255 or icmp[8:24] not in addresses:
            return None
        here = icmp[8:24]
        solicited = any(source)
        # Duplicate address detection sends from ::, and is answered to all nodes.
        destination = source if solicited else _ALL_NODES
        if not solicited:
            to = bytes.fromhex("333300000001")
        flags = 0x60000000 if solicited else 0x20000000  # solicited, override
        reply = struct.pack("!BBHI", 136, 0, 0, flags) + here + b"\2\1" + mac
        word, hops = "nd", 255
    elif icmp[0] == 128 and not icmp[1] and here in addresses:
        if source[0] == 0xFF or not any(source):
            return None
        destination = source
        reply = b"\x81\0\0\0" + icmp[4:]
        word, hops = "ping6", 64
    else:
        return None
    reply = _with_checksum(reply, 2, _pseudo(here, destination, len(reply)))
    header = struct.pack("!IHBB", 0x60000000, len(reply), _ICMPV6, hops)
    return word, header + here + destination + reply, to
