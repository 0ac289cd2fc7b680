# SPDX-License-Identifier: Apache-2.0
"""From the link header of a capture to an Ethernet frame, a function per kind of header.

Link types: https://www.tcpdump.org/linktypes.html.  A function takes the captured bytes and returns
the ethertype that the header names (network byte order) and the offset of what follows.  It returns
:data:`UNKNOWN` for a header that is cut off, and for a payload without an ethertype.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    #: Captured bytes -> (ethertype, offset of the payload).
    Parser = Callable[[bytes], tuple[bytes, int]]

__all__ = ["LINKTYPES", "made_ethernet"]

IP4, IP6 = b"\x08\x00", b"\x86\xdd"
#: Not an ethertype: no program takes the frame for IP.
UNKNOWN = b"\x00\x00"
_NO_MACS = bytes(12)

# AF_INET6 of NetBSD/OpenBSD, FreeBSD, Darwin, Windows, Linux; AF_INET is 2 everywhere
_AF_INET6 = frozenset((24, 28, 30, 23, 10))
#: PPP protocol numbers (RFC 1661, RFC 5072, RFC 3032) -> ethertype.
_PPP = {0x0021: IP4, 0x0057: IP6, 0x0281: b"\x88\x47", 0x0283: b"\x88\x48"}
#: Network layer protocol identifiers (RFC 2427) -> ethertype.
_NLPID = {0xCC: IP4, 0x8E: IP6}
_SNAP = b"\xaa\xaa\x03"
#: Organizations whose SNAP protocol numbers are ethertypes (RFC 1042, IEEE 802.1H).
_SNAP_ETHERTYPE = (b"\0\0\0", b"\0\0\xf8")


def _family(number: int) -> bytes:
    return IP4 if number == 2 else IP6 if number in _AF_INET6 else UNKNOWN


def _family_of_either_order(data: bytes) -> bytes:
    """An address family of 32 bits in the byte order of the machine that wrote the capture."""
    if len(data) < 4:
        return UNKNOWN
    number = int.from_bytes(data[:4], "big")
    return _family(number if number <= 0xFFFF else int.from_bytes(data[:4], "little"))


def _raw(data: bytes) -> tuple[bytes, int]:
    version = data[0] >> 4 if data else 0
    return IP4 if version == 4 else IP6 if version == 6 else UNKNOWN, 0


def _null(data: bytes) -> tuple[bytes, int]:
    return _family_of_either_order(data), 4


def _loop(data: bytes) -> tuple[bytes, int]:
    return _family(int.from_bytes(data[:4], "big")) if len(data) >= 4 else UNKNOWN, 4


def _ppp(data: bytes) -> tuple[bytes, int]:
    """PPP with or without HDLC framing, or Cisco HDLC where the address says so."""
    if data[:1] in (b"\x0f", b"\x8f"):
        return _cisco_hdlc(data)
    at = 2 if data[:2] == b"\xff\x03" else 0
    if len(data) <= at:
        return UNKNOWN, at
    # Protocol field compression: the last byte of a protocol number is odd, the first is even.
    size = 1 if data[at] & 1 else 2
    number = int.from_bytes(data[at : at + size], "big")
    return _PPP.get(number, UNKNOWN), at + size


def _cisco_hdlc(data: bytes) -> tuple[bytes, int]:
    return data[2:4].ljust(2, b"\0"), 4


def _frame_relay(data: bytes) -> tuple[bytes, int]:
    """RFC 2427 (control, optional padding, NLPID or SNAP), or Cisco's: an ethertype follows."""
    at = 0
    while at < len(data) and not data[at] & 1:  # extended address bit: last byte of the address
        at += 1
    at += 1
    if data[at : at + 1] != b"\x03":
        return data[at : at + 2].ljust(2, b"\0"), at + 2
    at += 1
    if data[at : at + 1] == b"\0":
        at += 1
    if data[at : at + 1] == b"\x80":
        return _snap_protocol(data, at + 1)
    return _NLPID.get(data[at] if at < len(data) else 0, UNKNOWN), at + 1


def _snap_protocol(data: bytes, at: int) -> tuple[bytes, int]:
    if data[at : at + 3] not in _SNAP_ETHERTYPE:
        return UNKNOWN, at
    return data[at + 3 : at + 5].ljust(2, b"\0"), at + 5


def _wifi(data: bytes) -> tuple[bytes, int]:
    """IEEE 802.11: data frames that are not encrypted, with an LLC/SNAP header."""
    if len(data) < 24 or data[0] & 0x0F != 0x08 or data[0] & 0x40 or data[1] & 0x40:
        return UNKNOWN, 0  # not data, no payload, or protected
    at = 30 if data[1] & 3 == 3 else 24  # a fourth address between access points
    if data[0] & 0x80:  # QoS
        if data[at : at + 1] and data[at] & 0x80:
            return UNKNOWN, 0  # A-MSDU: several frames in one
        at += 6 if data[1] & 0x80 else 2  # HT control
    if data[at : at + 3] != _SNAP:
        return UNKNOWN, at
    return _snap_protocol(data, at + 3)


def _radiotap(data: bytes) -> tuple[bytes, int]:
    """IEEE 802.11 behind a radiotap header, whose fields are little endian."""
    length = int.from_bytes(data[2:4], "little")
    if len(data) < 8 or data[0] or not 8 <= length <= len(data):
        return UNKNOWN, 0
    at = 4
    while at + 4 <= length and data[at + 3] & 0x80:  # another word of `present` follows
        at += 4
    at += 4
    flags = 0
    if data[4] & 2:
        if data[4] & 1:  # TSFT: 8 bytes, aligned to 8
            at = (at + 7 & ~7) + 8
        flags = data[at] if at < length else 0
    frame = data[length:-4] if flags & 0x10 else data[length:]  # ends in a check sequence
    padding = 0
    if flags & 0x20 and len(frame) > 1:  # between header and payload, to 4 bytes
        header = (30 if frame[1] & 3 == 3 else 24) + (2 if frame[0] & 0x80 else 0)
        padding = -header & 3
        frame = frame[:header] + frame[header + padding :]
    kind, offset = _wifi(frame)
    return kind, length + offset + padding


def _pflog(data: bytes) -> tuple[bytes, int]:
    """OpenBSD's packet filter log: length and address family in front, padded to 4 bytes."""
    if len(data) < 2:
        return UNKNOWN, 0
    return _family(data[1]), data[0] + 3 & ~3


def _enc(data: bytes) -> tuple[bytes, int]:
    """OpenBSD's IPsec device: address family, SPI, flags."""
    return _family_of_either_order(data), 12


def _ipoib(data: bytes) -> tuple[bytes, int]:
    """IP over InfiniBand: 40 bytes of addresses, then RFC 4391's header."""
    return data[40:42].ljust(2, b"\0"), 44


def _nflog(data: bytes) -> tuple[bytes, int]:
    """Linux's NFLOG: family, version, group, then attributes in the writer's byte order."""
    if len(data) < 4 or data[1]:
        return UNKNOWN, 0
    for order in ("little", "big"):
        at = 4
        while at + 4 <= len(data):
            size = int.from_bytes(data[at : at + 2], order)
            kind = int.from_bytes(data[at + 2 : at + 4], order)
            if size < 4:
                break
            if kind == 9:  # NFULA_PAYLOAD
                return _family(data[0]), at + 4
            at += size + 3 & ~3
    return UNKNOWN, 0


def _cooked(data: bytes, arphrd: int, protocol: int, size: int) -> tuple[bytes, int]:
    """Linux cooked.  For netlink "devices" the protocol field is something else."""
    if data[arphrd : arphrd + 2] == b"\x03\x38":  # ARPHRD_NETLINK
        return UNKNOWN, size
    return data[protocol : protocol + 2].ljust(2, b"\0"), size


#: Link type -> (name, parser); Ethernet needs none.
_LINKTYPES: dict[int, tuple[str, Parser]] = {
    0: ("NULL", _null),
    9: ("PPP", _ppp),
    12: ("raw IP", _raw),
    14: ("raw IP", _raw),
    50: ("PPP in HDLC framing", _ppp),
    101: ("raw IP", _raw),
    104: ("Cisco HDLC", _cisco_hdlc),
    105: ("802.11", _wifi),
    107: ("Frame Relay", _frame_relay),
    108: ("LOOP", _loop),
    109: ("IPsec ENC", _enc),
    113: ("Linux cooked v1", lambda data: _cooked(data, 2, 14, 16)),
    117: ("PFLOG", _pflog),
    127: ("802.11 with radiotap", _radiotap),
    228: ("raw IPv4", lambda data: (IP4, 0)),
    229: ("raw IPv6", lambda data: (IP6, 0)),
    239: ("NFLOG", _nflog),
    242: ("IP over InfiniBand", _ipoib),
    276: ("Linux cooked v2", lambda data: _cooked(data, 8, 0, 20)),
}

#: Link types that can be read, with their names.
LINKTYPES = {1: "Ethernet", **{number: name for number, (name, _) in _LINKTYPES.items()}}


def made_ethernet(data: bytes, linktype: int) -> bytes:
    """The packet as an Ethernet frame, with a header made up in front of what follows the link
    header.

    :param linktype: LINKTYPE_* number.  A number that is not in :data:`LINKTYPES` gives a frame
        whose payload is not IP.
    """
    if linktype == 1:
        return data
    if linktype not in _LINKTYPES:
        return _NO_MACS + UNKNOWN + data
    kind, offset = _LINKTYPES[linktype][1](data)
    macs = _NO_MACS
    if linktype == 113:
        macs = bytes(6) + _sender(data, 5)
    elif linktype == 276:
        macs = bytes(6) + _sender(data, 11)
    return macs + kind + data[offset:]


def _sender(data: bytes, length: int) -> bytes:
    """The MAC address in a cooked header: the last byte of its length, then 8 bytes of room."""
    start = length + 1
    return data[start : start + 6].ljust(6, b"\0") if data[length:start] == b"\x06" else bytes(6)
